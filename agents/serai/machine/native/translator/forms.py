"""What the stencil compiler and the native copier agree on: register locations, holes, the blob's layout.

Copy-and-patch (Xu and Kjolstad, "Copy-and-Patch Compilation", OOPSLA 2021): LLVM compiles every instruction
once per combination of operand locations into a stencil, machine code with holes. Translating a guest
instruction is copying its stencil and patching the holes.

Eight guest registers live in host registers while translated code runs (pins); the others in the state
block. A stencil is a function with the calling convention ``preserve_none`` whose arguments are the pins,
the state block, the data TLB and the budget; what comes next is a ``musttail`` call of a hole.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

__all__ = [
    "BASE",
    "MEMORY",
    "PINS",
    "SPECIAL",
    "ZERO",
    "Hole",
    "Kind",
    "OperationForms",
]

PINS: Final = (10, 11, 12, 13, 14, 15, 2, 8)  # a0 to a5, sp, s0: about 70 % of register operands
MEMORY: Final = len(PINS)  # location: in the state block
ZERO: Final = len(PINS) + 1  # location: the constant zero (x0 as a source)
BASE: Final = len(PINS) + 2  # locations per operand in a table of forms


class Kind(enum.IntEnum):
    """How the copier treats an operation."""

    NONE = 0  # no stencil: the interpreter executes it
    PLAIN = 1
    BRANCH = 2
    JUMP = 3  # direct
    INDIRECT = 4


class Hole(enum.IntEnum):
    """What a relocation of a stencil stands for."""

    CONTINUE = 0  # the code behind the stencil
    TAKEN = 1  # the target of a branch
    COLD = 2  # the stub that deoptimises
    IMMEDIATE = 3
    RD = 4  # offset of a register in the state block
    RS1 = 5
    RS2 = 6
    RS3 = 7
    COUNT = 8  # instructions of a basic block
    OFFSET = 9  # the instruction's offset in its page
    NEXT = 10  # the next instruction's offset in the page
    TARGET = 11  # a direct jump's target, relative to the page's start
    PLACE = 12  # slot and budget to give back: see translator.copier
    EDGE = 13  # patch place and slot
    EXIT = 14  # the common routines
    LINK = 15
    MISS = 16
    AMOUNT = 17  # the immediate of a shift: small and not negative


HOLES: Final = len(Hole)
SPECIAL: Final = (
    *("head", "jump", "exit", "link", "goto", "float_reads", "float_writes", "float_host"),
    *("common_exit", "common_link", "common_miss"),
    *(f"spill{n}" for n in range(len(PINS))),
    *(f"reload{n}" for n in range(len(PINS))),
)

# Operands of an operation that are integer registers, and so have a location.
USES_RD: Final = 1
USES_RS1: Final = 2
USES_RS2: Final = 4
# Flags of an operation.
TWO_ADDRESS: Final = 1  # forms with three different registers are made of a move and a two-address form
ROUNDS: Final = 2  # three forms: rounding mode dynamic, RNE, RTZ
ROUNDING: Final = {7: 0, 0: 1, 1: 2}
# Operands that are floating-point registers.
FLOAT_RD: Final = 1
FLOAT_RS1: Final = 2
FLOAT_RS2: Final = 4
FLOAT_RS3: Final = 8

# Blob: header {magic, size, operations, forms, special}, tables of operations and forms, records.
MAGIC: Final = 0x314E4554534152
HEADER_SIZE: Final = 64
OPERATION_SIZE: Final = 16
RECORD_HEADER: Final = 8  # code length u16, number of relocations u16, padding
RELOCATION_SIZE: Final = 8  # offset u16, hole u8, type u8, addend i32
RELATIVE32: Final = 0
ABSOLUTE32: Final = 1
ABSOLUTE64: Final = 2


@dataclass(frozen=True, slots=True)
class OperationForms:
    """One operation's entry in the blob."""

    kind: Kind
    uses: int
    float_check: int
    flags: int
    banks: int

    @property
    def size(self) -> int:
        """Entries that it takes in the table of forms."""
        located: int = BASE ** self.uses.bit_count()
        return located * (3 if self.flags & ROUNDS else 1)

    def index(self, rd: int, rs1: int, rs2: int, rounding: int) -> int:
        """Where a form is, counted from the operation's first."""
        index = 0
        for bit, location in ((USES_RD, rd), (USES_RS1, rs1), (USES_RS2, rs2)):
            if self.uses & bit:
                index = index * BASE + location
        return index * 3 + rounding if self.flags & ROUNDS else index
