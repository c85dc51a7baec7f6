"""Random instruction sequences for differential tests: every entry of the table that a program may use.

Registers are divided so that a sequence can run on: x2 and x8 point into a data area (x2 and x8 are never
written), f0 to f7 hold single-precision values and f8 to f31 double ones. Jumps lead forwards.
"""

from __future__ import annotations

import functools
import itertools
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from serai.machine.isa import compressed  # noqa: F401 - completes the table
from serai.machine.isa.assembler import encode
from serai.machine.isa.formats import FORMATS
from serai.machine.isa.table import COMPRESSED, INSTRUCTIONS, Compressed, Effect, Instruction

RAM_BASE = 0x8000_0000
DATA = RAM_BASE + 0x8000
POINTERS = (2, 8)
TARGETS: list[int] = [number for number in range(32) if number not in POINTERS]
SINGLES, DOUBLES = range(8), range(8, 32)
ROUNDING = (0, 1, 2, 3, 4, 7)
SYSTEM = {"ecall", "ebreak", "sret", "mret", "wfi", "sfence_vma", "pause"}
BY_HAND = {"jalr", "csrrw", "csrrs", "csrrc", "csrrwi", "csrrsi", "csrrci"}
SHORT_BY_HAND = {"c.jr", "c.jalr", "c.ebreak", "c.addi16sp"}
INTERESTING = [
    0,
    1,
    2,
    0x7F,
    0x80,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
    1 << 63,
    (1 << 63) - 1,
    (1 << 64) - 1,
]
SPECIAL_SINGLES = [0, 1 << 31, 0x3F80_0000, 0x7F80_0000, 0xFF80_0000, 0x7FC0_0000, 0x7F80_0001, 1, 0x7F_FFFF]
SPECIAL_SINGLES += [0x80_0000, 0x7F7F_FFFF, 0x4F00_0000, 0xCF00_0000, 0x5F00_0000, 0x3F80_0001, 0x3300_0000]
SPECIAL_DOUBLES = [0, 1 << 63, 0x3FF << 52, 0x7FF << 52, 0xFFF << 52, 0x7FF8 << 48, (0x7FF << 52) + 1, 1]
SPECIAL_DOUBLES += [(1 << 52) - 1, 1 << 52, (0x7FF << 52) - 1, 0x41E0 << 48, 0xC1E0 << 48, 0x43E0 << 48]
SPECIAL_DOUBLES += [
    0x3690 << 48,
    0x47EF_FFFF_E000_0000,
    0x47EF_FFFF_F000_0000,
    0x3810 << 48,
    0x380F_FFFF_FFFF_FFFF,
]


Reach: TypeAlias = list[int]
"""Distances from the end of an instruction at which others begin."""

Maker: TypeAlias = Callable[[random.Random, Reach], bytes]


@dataclass(frozen=True)
class Sequence:
    """Code to execute from RAM_BASE on, what the registers hold before, and its text for people."""

    code: bytes
    integers: tuple[int, ...]
    floats: tuple[int, ...]
    fcsr: int
    data: bytes


def _register(choose: random.Random) -> int:
    """A destination that is no pointer."""
    return choose.choice(TARGETS)


def _float_width(instruction: Instruction, parameter: str) -> str:
    """s or d: of an operand (rs1, rs2, rs3, rd)."""
    name = instruction.name
    if name in ("flw", "fsw"):
        return "s"
    if name in ("fld", "fsd"):
        return "d"
    parts = name.split("_")
    if parts[0] == "fcvt":
        return parts[1] if parameter == "rd" else parts[2]
    if parts[0] == "fmv":
        return "s" if "w" in parts else "d"
    return parts[-1]


def _number(choose: random.Random, instruction: Instruction, parameter: str) -> int:
    code = instruction.semantics.__code__
    parameters = code.co_varnames[: code.co_argcount]
    is_float = instruction.effect is Effect.FLOAT if parameter == "rd" else f"f{parameter}" in parameters
    if is_float:
        return choose.choice(SINGLES if _float_width(instruction, parameter) == "s" else DOUBLES)
    if parameter == "rd":
        return _register(choose)
    return choose.randrange(32)


def _plain(choose: random.Random, instruction: Instruction, reach: Reach) -> bytes:
    """One 32-bit instruction with random operands."""
    opcode = instruction.match & 0x7F
    operands = {name: _number(choose, instruction, name) for name in ("rd", "rs1", "rs2", "rs3")}
    immediate = 0
    match instruction.format:
        case "R-rm" | "R4":
            immediate = choose.choice(ROUNDING)
        case "B" | "J":
            immediate = 4 + choose.choice(reach)
        case "U":
            immediate = choose.randrange(-(1 << 19), 1 << 19) << 12
        case "I-shift":
            immediate = choose.randrange(64)
        case "I-shift-word":
            immediate = choose.randrange(32)
        case "I" | "S":
            immediate = choose.randrange(-2048, 2048)
    if opcode in (0x03, 0x07, 0x23, 0x27, 0x2F):
        operands["rs1"] = choose.choice(POINTERS)
        immediate = 0 if opcode == 0x2F else choose.randrange(-1000, 1000)
    word = encode(instruction.name, imm=immediate, **operands)
    if opcode == 0x2F:
        word |= choose.randrange(4) << 25
    return word.to_bytes(4, "little")


def _short(choose: random.Random, item: Compressed, reach: Reach) -> bytes:
    """One 16-bit instruction with random operands that keep to the division of the registers."""
    target, layout = INSTRUCTIONS[item.target], FORMATS[item.format]
    while True:
        word = choose.getrandbits(16) & ~item.mask | item.match
        if item.nonzero and not word & item.nonzero:
            continue
        if layout.immediate.pieces and target.format in ("B", "J"):
            word = item.match | layout.rs1.insert(choose.randrange(8, 16)) & ~item.mask
            return (word | layout.immediate.insert(2 + choose.choice(reach))).to_bytes(2, "little")
        rd, rs1 = layout.rd.extract(word), layout.rs1.extract(word)
        if target.effect is Effect.FLOAT:
            fits = rd in DOUBLES
        else:
            fits = rd not in POINTERS or target.effect is Effect.NONE
        if target.match & 0x7F == 0x27:
            fits = layout.rs2.extract(word) in DOUBLES
        if target.match & 0x7F in (0x03, 0x07, 0x23, 0x27):
            fits = fits and rs1 in POINTERS
        if fits:
            return word.to_bytes(2, "little")


def _csr(choose: random.Random, reach: Reach) -> bytes:
    """An access to fflags, frm or fcsr."""
    name = choose.choice(sorted(BY_HAND - {"jalr"}))
    csr = choose.choice((1, 2, 3))
    if name.endswith("i"):
        source = choose.randrange(5) if csr == 2 else choose.randrange(32)
    else:
        source = choose.randrange(32) if csr == 1 else 0
    return encode(name, rd=_register(choose), rs1=source, imm=csr).to_bytes(4, "little")


def _jump(choose: random.Random, reach: Reach) -> bytes:
    """AUIPC and a jump through the register."""
    head = encode("auipc", rd=5, imm=0).to_bytes(4, "little")
    if choose.randrange(2):
        distance = 8 + choose.choice(reach) | choose.randrange(2)  # the lowest bit is ignored
        return head + encode("jalr", rd=_register(choose), rs1=5, imm=distance).to_bytes(4, "little")
    add = (0x0001 | 5 << 7 | 8 << 2).to_bytes(2, "little")
    return head + add + (choose.choice((0x8002, 0x9002)) | 5 << 7).to_bytes(2, "little")


def _apply(
    make: Callable[[random.Random, Any, Reach], bytes], item: Any, choose: random.Random, reach: Reach
) -> bytes:
    return make(choose, item, reach)


def makers(width: str) -> list[Maker]:
    """A maker for every table entry that a program may use; LR and SC of one width (w or d).

    What SC does after an LR of another width is up to the implementation (Unprivileged ISA 14.2).
    """
    found: list[Maker] = []
    other = {"w": {"lr_d", "sc_d"}, "d": {"lr_w", "sc_w"}}[width]
    for instruction in INSTRUCTIONS.values():
        if instruction.name not in SYSTEM | BY_HAND | other:
            found.append(functools.partial(_apply, _plain, instruction))
    for item in COMPRESSED.values():
        if item.name not in SHORT_BY_HAND:
            found.append(functools.partial(_apply, _short, item))
    return [*found, _csr, _csr, _jump]


MAKERS = {width: makers(width) for width in "wd"}


def _integer(choose: random.Random) -> int:
    kind = choose.randrange(4)
    if kind == 0:
        return choose.choice(INTERESTING)
    return (
        choose.getrandbits(choose.choice((8, 32, 64)))
        if kind < 3
        else -choose.getrandbits(20) & (1 << 64) - 1
    )


def _single(choose: random.Random) -> int:
    kind = choose.randrange(4)
    if kind == 0:
        return choose.choice(SPECIAL_SINGLES)
    if kind == 1:
        value: int = struct.unpack("<I", struct.pack("<f", choose.randrange(-100, 100) / 8))[0]
        return value
    return choose.getrandbits(32)


def _double(choose: random.Random) -> int:
    kind = choose.randrange(4)
    if kind == 0:
        return choose.choice(SPECIAL_DOUBLES)
    if kind == 1:
        value: int = struct.unpack("<Q", struct.pack("<d", choose.randrange(-100, 100) / 8))[0]
        return value
    return choose.getrandbits(64)


def generate(seed: int, length: int = 12) -> Sequence:
    """The sequence of a seed: the same for ever, as long as the table is."""
    choose = random.Random(seed)
    # From the end on, so that jumps know where the following instructions begin.
    pieces: list[bytes] = []
    known = MAKERS[choose.choice("wd")]
    for _ in range(length):
        following = list(itertools.accumulate((len(piece) for piece in reversed(pieces[-3:])), initial=0))
        pieces.append(choose.choice(known)(choose, following))
    code = b"".join(reversed(pieces))
    integers = [_integer(choose) for _ in range(32)]
    integers[0] = 0
    for pointer in POINTERS:
        integers[pointer] = DATA + 0x800
    floats = [_single(choose) | 0xFFFF_FFFF << 32 for _ in SINGLES] + [_double(choose) for _ in DOUBLES]
    return Sequence(
        code,
        tuple(integers),
        tuple(floats),
        choose.randrange(5) << 5 | choose.randrange(32),
        choose.randbytes(0x1000),
    )
