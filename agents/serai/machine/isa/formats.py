"""Instruction formats: where operands sit in the bits (Unprivileged ISA 2.3 and 27.8).

A format is data, so that decoder, assembler and disassembler read the same description.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

__all__ = ["FORMATS", "Field", "Format", "Immediate"]


@dataclass(frozen=True, slots=True)
class Field:
    """A register number: bits ``high`` to ``low`` plus ``base``; a fixed register if ``high`` is negative."""

    high: int = -1
    low: int = 0
    base: int = 0

    def extract(self, word: int) -> int:
        """Take the register number out of an instruction word."""
        if self.high < 0:
            return self.base
        return (word >> self.low & ((1 << (self.high - self.low + 1)) - 1)) + self.base

    def insert(self, number: int) -> int:
        """Return the bits of the word that name register ``number``."""
        return 0 if self.high < 0 else (number - self.base) << self.low


@dataclass(frozen=True, slots=True)
class Immediate:
    """An immediate: pieces (high bit and low bit in the word, position in the value), width, sign."""

    pieces: tuple[tuple[int, int, int], ...] = ()
    signed_bits: int = 0

    def extract(self, word: int) -> int:
        """Take the immediate out of an instruction word, sign-extended if it is signed."""
        value = 0
        for high, low, position in self.pieces:
            value |= (word >> low & ((1 << (high - low + 1)) - 1)) << position
        if self.signed_bits and value >> (self.signed_bits - 1) & 1:
            value -= 1 << self.signed_bits
        return value

    def insert(self, value: int) -> int:
        """Return the bits of the word that hold ``value``."""
        word = 0
        for high, low, position in self.pieces:
            word |= (value >> position & ((1 << (high - low + 1)) - 1)) << low
        return word


@dataclass(frozen=True, slots=True)
class Format:
    """Operand places of a format; ``extra`` is the third source register of the R4 format."""

    rd: Field = Field()
    rs1: Field = Field()
    rs2: Field = Field()
    extra: Field = Field()
    immediate: Immediate = field(default=Immediate())


RD, RS1, RS2, RS3 = Field(11, 7), Field(19, 15), Field(24, 20), Field(31, 27)
CRS2 = Field(6, 2)
LOW, MIDDLE = Field(4, 2, 8), Field(9, 7, 8)  # x8 to x15
ZERO, RA, SP = Field(-1, 0, 0), Field(-1, 0, 1), Field(-1, 0, 2)

I_IMMEDIATE = Immediate(((31, 20, 0),), 12)
ROUNDING = Immediate(((14, 12, 0),))
CI_IMMEDIATE = Immediate(((12, 12, 5), (6, 2, 0)), 6)
C_SHIFT = Immediate(((12, 12, 5), (6, 2, 0)))
C_BRANCH = Immediate(((12, 12, 8), (11, 10, 3), (6, 5, 6), (4, 3, 1), (2, 2, 5)), 9)
C_JUMP = Immediate(
    ((12, 12, 11), (11, 11, 4), (10, 9, 8), (8, 8, 10), (7, 7, 6), (6, 6, 7), (5, 3, 1), (2, 2, 5)), 12
)
C_WORD = Immediate(((12, 10, 3), (6, 6, 2), (5, 5, 6)))
C_DOUBLE = Immediate(((12, 10, 3), (6, 5, 6)))

FORMATS: Final[dict[str, Format]] = {
    "R": Format(RD, RS1, RS2),
    "R-rm": Format(RD, RS1, RS2, immediate=ROUNDING),
    "R4": Format(RD, RS1, RS2, RS3, immediate=ROUNDING),
    "I": Format(RD, RS1, immediate=I_IMMEDIATE),
    "I-shift": Format(RD, RS1, immediate=Immediate(((25, 20, 0),))),
    "I-shift-word": Format(RD, RS1, immediate=Immediate(((24, 20, 0),))),
    "I-csr": Format(RD, RS1, immediate=Immediate(((31, 20, 0),))),
    "S": Format(rs1=RS1, rs2=RS2, immediate=Immediate(((31, 25, 5), (11, 7, 0)), 12)),
    "B": Format(
        rs1=RS1, rs2=RS2, immediate=Immediate(((31, 31, 12), (30, 25, 5), (11, 8, 1), (7, 7, 11)), 13)
    ),
    "U": Format(RD, immediate=Immediate(((31, 12, 12),), 32)),
    "J": Format(RD, immediate=Immediate(((31, 31, 20), (30, 21, 1), (20, 20, 11), (19, 12, 12)), 21)),
    # Compressed: the operands of the instruction that each expands to.
    "CI": Format(RD, RD, immediate=CI_IMMEDIATE),
    "CI-li": Format(RD, ZERO, immediate=CI_IMMEDIATE),
    "CI-lui": Format(RD, immediate=Immediate(((12, 12, 17), (6, 2, 12)), 18)),
    "CI-sp": Format(
        SP, SP, immediate=Immediate(((12, 12, 9), (6, 6, 4), (5, 5, 6), (4, 3, 7), (2, 2, 5)), 10)
    ),
    "CI-shift": Format(RD, RD, immediate=C_SHIFT),
    "CI-lwsp": Format(RD, SP, immediate=Immediate(((12, 12, 5), (6, 4, 2), (3, 2, 6)))),
    "CI-ldsp": Format(RD, SP, immediate=Immediate(((12, 12, 5), (6, 5, 3), (4, 2, 6)))),
    "CIW": Format(LOW, SP, immediate=Immediate(((12, 11, 4), (10, 7, 6), (6, 6, 2), (5, 5, 3)))),
    "CL-word": Format(LOW, MIDDLE, immediate=C_WORD),
    "CL-double": Format(LOW, MIDDLE, immediate=C_DOUBLE),
    "CS-word": Format(rs1=MIDDLE, rs2=LOW, immediate=C_WORD),
    "CS-double": Format(rs1=MIDDLE, rs2=LOW, immediate=C_DOUBLE),
    "CSS-word": Format(rs1=SP, rs2=CRS2, immediate=Immediate(((12, 9, 2), (8, 7, 6)))),
    "CSS-double": Format(rs1=SP, rs2=CRS2, immediate=Immediate(((12, 10, 3), (9, 7, 6)))),
    "CR": Format(RD, RD, CRS2),
    "CR-move": Format(RD, ZERO, CRS2),
    "CR-jump": Format(ZERO, RD),
    "CR-call": Format(RA, RD),
    "CA": Format(MIDDLE, MIDDLE, LOW),
    "CB": Format(rs1=MIDDLE, immediate=C_BRANCH),
    "CB-shift": Format(MIDDLE, MIDDLE, immediate=C_SHIFT),
    "CB-and": Format(MIDDLE, MIDDLE, immediate=CI_IMMEDIATE),
    "CJ": Format(ZERO, immediate=C_JUMP),
    "none": Format(),
}
