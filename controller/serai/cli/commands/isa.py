"""``serai isa``: the instructions of the guests' machine, and what they mean for virtualization.

The command line does not import the machine: it starts ``python -m serai.machine.isa`` and reads its JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Annotated, Any

import typer

from serai.cli.app import Output, group
from serai.cli.output import Column, Format, print_table, show_data, stdout
from serai.errors import InternalError, NotFoundError

app = group("Instructions of the guests' machine and their classes.")

Row = dict[str, Any]

_LIST = (
    Column[Row]("NAME", lambda row: row["name"]),
    Column[Row]("BYTES", lambda row: row["length"], right=True),
    Column[Row]("MATCH", lambda row: row["match"]),
    Column[Row]("MASK", lambda row: row["mask"]),
    Column[Row]("FORMAT", lambda row: row["format"]),
    Column[Row]("CLAUSE", lambda row: row["clause"]),
)
_CLASSES = (
    Column[Row]("CASE", lambda row: row["name"]),
    Column[Row]("U", lambda row: row["outcome"]["U"]),
    Column[Row]("S", lambda row: row["outcome"]["S"]),
    Column[Row]("M", lambda row: row["outcome"]["M"]),
    Column[Row]("CLASS", lambda row: row["verdict"]),
    Column[Row]("CHANGES", lambda row: ",".join(row["changes"])),
    Column[Row]("DEPENDS-ON", lambda row: ",".join(row["depends_on"])),
)


@app.command("list")
def list_instructions(output: Output = Format.TABLE) -> None:
    """List every instruction with its encoding."""
    rows = _ask("list")
    if output is Format.TABLE:
        print_table(rows, _LIST)
    else:
        show_data(rows, output)


@app.command("show")
def show_instruction(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A mnemonic: sret, fadd.d, c.lw.")],
    output: Output = Format.YAML,
) -> None:
    """Show an instruction: encoding, clause of the manual, and how it behaves in each mode."""
    found = _ask("show", name)
    if output is Format.TABLE:
        print_table(found["classes"], _CLASSES)
    else:
        show_data(found, output)


@app.command("classify")
def classify(output: Output = Format.TABLE) -> None:
    """Execute every instruction in every mode and classify it after Popek and Goldberg."""
    found = _ask("classify")
    if output is not Format.TABLE:
        show_data(found, output)
        return
    print_table(found["instructions"], _CLASSES)
    holds = "holds" if found["condition_holds"] else "does not hold"
    stdout.print(f"\nPopek and Goldberg's condition {holds}: docs/instruction-classes.md has the caveats")


def _ask(*arguments: str) -> Any:
    run = subprocess.run(
        [sys.executable, "-m", "serai.machine.isa", *arguments], capture_output=True, text=True, check=False
    )
    if run.returncode == 1 and run.stderr.startswith("there is no instruction"):
        raise NotFoundError(run.stderr.strip(), hint="serai isa list shows them")
    if run.returncode:
        raise InternalError(f"the instruction table cannot be read: {run.stderr.strip()[-500:]}")
    return json.loads(run.stdout)
