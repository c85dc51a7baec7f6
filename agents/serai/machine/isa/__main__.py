"""``python -m serai.machine.isa list|show NAME|classify``: the instruction table for people and programs.

Prints JSON, or with ``--markdown`` (classify only) the page ``docs/instruction-classes.md``.
"""

# ruff: noqa: T201 - printing is what it is for
from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from serai.machine.isa.classes import classify, classify_all, condition_holds, specimens
from serai.machine.isa.report import markdown
from serai.machine.isa.table import COMPRESSED, INSTRUCTIONS, Compressed, Instruction


def _instruction(item: Instruction) -> dict[str, Any]:
    return {
        "name": item.name.replace("_", "."),
        "length": 4,
        "match": f"{item.match:#010x}",
        "mask": f"{item.mask:#010x}",
        "format": item.format,
        "effect": item.effect.value,
        "float": item.float.name.lower(),
        "clause": item.clause,
    }


def _compressed(item: Compressed) -> dict[str, Any]:
    return {
        "name": item.name,
        "length": 2,
        "match": f"{item.match:#06x}",
        "mask": f"{item.mask:#06x}",
        "format": item.format,
        "effect": f"expands to {item.target.replace('_', '.')}",
        "float": INSTRUCTIONS[item.target].float.name.lower(),
        "clause": item.clause,
    }


def _classes(name: str = "") -> list[dict[str, Any]]:
    found = classify_all() if not name else [classify(s) for s in specimens() if s.instruction == name]
    return [{**asdict(item), "sensitive": item.sensitive, "verdict": item.verdict} for item in found]


def _show(name: str) -> dict[str, Any]:
    if name in COMPRESSED:
        item = COMPRESSED[name]
        return {**_compressed(item), "classes": _classes(item.target)}
    key = name.replace(".", "_")
    if key not in INSTRUCTIONS:
        sys.exit(f"there is no instruction {name!r}")
    return {**_instruction(INSTRUCTIONS[key]), "classes": _classes(key)}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m serai.machine.isa", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every instruction of the table")
    commands.add_parser("show", help="one instruction and its class").add_argument("name")
    commands.add_parser("classify", help="the class of every instruction").add_argument(
        "--markdown", action="store_true"
    )
    commands.add_parser("x86", help="the Pentium's sensitive instructions, tried out (needs unicorn)")
    arguments = parser.parse_args()
    if arguments.command == "x86":
        from serai.machine.isa import x86  # noqa: PLC0415 - an optional extra

        print(x86.markdown(x86.try_out()), end="")
        return
    if arguments.command == "list":
        result: Any = [_instruction(item) for item in INSTRUCTIONS.values()]
        result += [_compressed(item) for item in COMPRESSED.values()]
    elif arguments.command == "show":
        result = _show(arguments.name)
    elif arguments.markdown:
        print(markdown(classify_all()), end="")
        return
    else:
        found = classify_all()
        result = {"condition_holds": condition_holds(found), "instructions": _classes()}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
