"""The table of instructions: encoding, operands, semantics. Every consumer reads this and nothing else.

The decoder takes match, mask and format; the interpreter compiles the semantics function; a translator,
a disassembler and a classification of sensitive instructions take what they need.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serai.machine.isa.formats import FORMATS

__all__ = ["COMPRESSED", "INSTRUCTIONS", "Compressed", "Effect", "Instruction", "compressed", "instruction"]


class Effect(enum.Enum):
    """What the return value of a semantics function means."""

    INTEGER = "written to x[rd]"
    FLOAT = "written to f[rd]"
    NONE = "nothing is written"
    BRANCH = "a condition: taken to pc + imm"
    JUMP = "the target; x[rd] receives the address of the next instruction"
    SYSTEM = "a status of serai.machine.native.layout"


class Float(enum.Enum):
    """How an instruction uses the floating-point unit (mstatus.FS, Privileged ISA 3.1.6.6)."""

    NO = 0
    READS = 1  # FS must not be off
    WRITES = 2  # and becomes dirty


@dataclass(frozen=True, slots=True)
class Instruction:
    """One 32-bit instruction."""

    name: str
    mask: int
    match: int
    format: str
    effect: Effect
    float: Float
    clause: str
    semantics: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Compressed:
    """One 16-bit encoding and the instruction it expands to; ``nonzero`` bits must not all be zero."""

    name: str
    mask: int
    match: int
    format: str
    target: str
    nonzero: int
    clause: str


INSTRUCTIONS: dict[str, Instruction] = {}
COMPRESSED: dict[str, Compressed] = {}


def parse_bits(pattern: str, width: int) -> tuple[int, int]:
    """Return mask and match of a bit pattern, most significant bit first, '.' for an operand bit."""
    bits = pattern.replace(" ", "")
    if len(bits) != width:
        raise ValueError(f"{pattern!r} has {len(bits)} bits, not {width}")
    mask = int("".join("0" if bit == "." else "1" for bit in bits), 2)
    match = int("".join("1" if bit == "1" else "0" for bit in bits), 2)
    return mask, match


def instruction(
    pattern: str,
    format_: str,
    *,
    clause: str,
    effect: Effect = Effect.INTEGER,
    float_: Float = Float.NO,
    name: str = "",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter the decorated semantics function in the table; its name is the mnemonic ('_' for '.')."""
    mask, match = parse_bits(pattern, 32)
    if format_ not in FORMATS:
        raise ValueError(f"no format {format_}")

    def register(semantics: Callable[..., Any]) -> Callable[..., Any]:
        mnemonic = name or semantics.__name__.rstrip("_")
        if mnemonic in INSTRUCTIONS:
            raise ValueError(f"{mnemonic} is in the table already")
        INSTRUCTIONS[mnemonic] = Instruction(
            mnemonic, mask, match, format_, effect, float_, clause, semantics
        )
        return semantics

    return register


def compressed(name: str, pattern: str, format_: str, target: str, *, nonzero: int = 0, clause: str) -> None:
    """Enter a 16-bit encoding in the table."""
    mask, match = parse_bits(pattern, 16)
    if target not in INSTRUCTIONS or format_ not in FORMATS:
        raise ValueError(f"{name}: no instruction {target} or no format {format_}")
    COMPRESSED[name] = Compressed(name, mask, match, format_, target, nonzero, clause)
