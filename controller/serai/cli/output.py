"""What the commands print: rows as table, JSON or YAML on stdout; progress and errors on stderr."""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

import yaml
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.text import Text

from serai.errors import SeraiError

Row = TypeVar("Row")
Resource = TypeVar("Resource", bound=Message)

NONE, UNKNOWN = "-", "?"
_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class Format(enum.StrEnum):
    """Value of ``-o``."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column of a table: its header and how to read it off a row."""

    header: str
    value: Callable[[Row], object]
    right: bool = False


stdout = Console(soft_wrap=True, highlight=False)
stderr = Console(stderr=True, soft_wrap=True, highlight=False)


def show(rows: Sequence[Resource], columns: Sequence[Column[Resource]], output: Format) -> None:
    """Print a list of resources; JSON and YAML carry all fields, a table the columns."""
    if output is Format.TABLE:
        print_table(rows, columns)
    else:
        show_data([as_data(row) for row in rows], output)


def show_data(data: object, output: Format) -> None:
    """Print plain data as JSON or YAML (a table of arbitrary data is YAML)."""
    if output is Format.JSON:
        sys.stdout.write(json.dumps(data, indent=2) + "\n")
    else:
        sys.stdout.write(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    sys.stdout.flush()


def as_data(message: Message) -> dict[str, object]:
    """A message as JSON data with the field names of its contract."""
    return MessageToDict(message, preserving_proto_field_name=True)


def print_table(rows: Iterable[Row], columns: Sequence[Column[Row]]) -> None:
    """Aligned columns without rules and never cut, as kubectl prints them: easy on the eye and on awk."""
    lines = [[column.header for column in columns]]
    lines += [[_cell(column.value(row)) for column in columns] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for number, cells in enumerate(lines):
        padded = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(cells, widths, columns, strict=True)
        ]
        stdout.print(Text("  ".join(padded).rstrip(), style="bold" if number == 0 else ""))


def print_error(error: SeraiError) -> None:
    """One message on stderr: what is wrong and the next step."""
    stderr.print(Text.assemble(("error: ", "bold red"), error.message))
    if error.hint:
        stderr.print(Text.assemble(("next:  ", "bold"), error.hint))


def done(resource: str, verbed: str) -> None:
    """What a mutation prints: ``vnet/demo created``."""
    stdout.print(Text(f"{resource} {verbed}"))


def binary_size(count: int) -> str:
    """Bytes for people: 134217728 is "128 MiB"."""
    value = float(count)
    for unit in _BINARY_UNITS:
        if value < 1024 or unit == _BINARY_UNITS[-1]:
            return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("the last unit takes everything")


def age(since: Timestamp) -> str:
    """Time since a timestamp in its two largest units: "3m12s"; NONE for an unset one."""
    if not since.seconds:
        return NONE
    seconds = max(0, int((datetime.now(UTC) - since.ToDatetime(UTC)).total_seconds()))
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [
        f"{value}{unit}"
        for value, unit in ((days, "d"), (hours, "h"), (minutes, "m"), (seconds, "s"))
        if value
    ]
    return "".join(parts[:2]) or "0s"


def _cell(value: object) -> str:
    text = str(value)
    return text or NONE
