"""The disassembler: the instruction table in the other direction, in standard assembly syntax.

Mnemonics of the table are printed, pseudo-instructions are not undone, as GNU objdump does with
``-M no-aliases``; a test compares the two. Branch and jump targets are absolute addresses.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Final

from serai.machine.isa.assembler import CSRS, FLOAT_NAMES, INTEGER_NAMES, ROUNDING
from serai.machine.isa.formats import FORMATS, Format
from serai.machine.isa.table import Effect, Instruction
from serai.machine.native.decoder import Encoding, decode_in_python

__all__ = ["CSR_NAMES", "disassemble", "disassemble_range", "instruction_length"]

CSR_NAMES: Final = {number: name for name, number in CSRS.items()}
_ROUNDING_NAMES: Final = {number: name for name, number in ROUNDING.items()}
_M64: Final = (1 << 64) - 1
# Conversions that are exact whatever the rounding mode: GNU as writes none and encodes rne.
_EXACT: Final = ("fcvt_d_w", "fcvt_d_wu", "fcvt_d_s")


def instruction_length(halfword: int) -> int:
    """The length in bytes of the instruction whose first 16 bits are given (Unprivileged ISA 1.5)."""
    return 4 if halfword & 3 == 3 else 2


def disassemble(word: int, pc: int = 0) -> str:
    """One instruction as text; ``word`` has 16 or 32 bits, ``pc`` is where it lies.

    An encoding that is illegal on this machine comes as ``.2byte`` or ``.4byte``.
    """
    length = instruction_length(word)
    word &= (1 << 8 * length) - 1
    encoding = _decode(word)
    if encoding is None:
        return f".{length}byte 0x{word:x}"
    name, operands = (_short if length == 2 else _long)(encoding, word, pc)
    return f"{name} {','.join(operands)}" if operands else name


def disassemble_range(code: bytes, pc: int) -> Iterator[tuple[int, int, str]]:
    """Address, word and text of each instruction of a piece of code; half of one at its end is left out."""
    position = 0
    while position + 2 <= len(code):
        length = instruction_length(code[position])
        if position + length > len(code):
            return
        word = int.from_bytes(code[position : position + length], "little")
        yield pc + position, word, disassemble(word, pc + position)
        position += length


@functools.lru_cache(maxsize=1 << 16)
def _decode(word: int) -> Encoding | None:
    return decode_in_python(word)


def _target(pc: int, immediate: int) -> str:
    return f"0x{pc + immediate & _M64:x}"


def _is_float(instruction: Instruction, parameter: str) -> bool:
    code = instruction.semantics.__code__
    return f"f{parameter}" in code.co_varnames[: code.co_argcount]


def _register(instruction: Instruction, parameter: str, number: int) -> str:
    return (FLOAT_NAMES if _is_float(instruction, parameter) else INTEGER_NAMES)[number]


def _destination(instruction: Instruction, number: int) -> str:
    return (FLOAT_NAMES if instruction.effect is Effect.FLOAT else INTEGER_NAMES)[number]


def _is_load(instruction: Instruction) -> bool:
    return instruction.match & 0x7F in (0x03, 0x07)


def _long(encoding: Encoding, word: int, pc: int) -> tuple[str, list[str]]:  # noqa: PLR0911 - a table
    """Mnemonic and operands of a 32-bit encoding."""
    instruction, layout = encoding.target, FORMATS[encoding.format]
    name = instruction.name.replace("_", ".")
    immediate = layout.immediate.extract(word)
    rd = _destination(instruction, layout.rd.extract(word))
    rs1 = _register(instruction, "rs1", layout.rs1.extract(word))
    rs2 = _register(instruction, "rs2", layout.rs2.extract(word))
    match encoding.format:
        case "I" if _is_load(instruction) or instruction.name == "jalr":
            return name, [rd, f"{immediate}({rs1})"]
        case "I":
            return name, [rd, rs1, str(immediate)]
        case "I-shift" | "I-shift-word":
            return name, [rd, rs1, f"0x{immediate:x}"]
        case "I-csr":
            csr = CSR_NAMES.get(immediate, f"0x{immediate:x}")
            return name, [rd, csr, str(layout.rs1.extract(word)) if name.endswith("i") else rs1]
        case "S":
            return name, [rs2, f"{immediate}({rs1})"]
        case "B":
            return name, [rs1, rs2, _target(pc, immediate)]
        case "U":
            return name, [rd, f"0x{immediate >> 12 & 0xFFFFF:x}"]
        case "J":
            return name, [rd, _target(pc, immediate)]
        case "R4":
            rs3 = _register(instruction, "rs3", layout.extra.extract(word))
            return name, [rd, rs1, rs2, rs3, *_rounding(instruction, immediate)]
        case "R-rm":
            sources = [rs1, rs2] if _has_rs2(instruction, layout) else [rs1]
            return name, [rd, *sources, *_rounding(instruction, immediate)]
        case "R":
            return _register_format(instruction, layout, word, name, [rd, rs1, rs2])
    return (name, _fence_sets(word)) if instruction.name == "fence" else (name, [])


def _has_rs2(instruction: Instruction, layout: Format) -> bool:
    return layout.rs2.insert(31) & ~instruction.mask != 0


def _register_format(
    instruction: Instruction, layout: Format, word: int, name: str, operands: list[str]
) -> tuple[str, list[str]]:
    rd, rs1, rs2 = operands
    if instruction.match & 0x7F == 0x2F:
        ordering = {0: "", 1: ".rl", 2: ".aq", 3: ".aqrl"}[word >> 25 & 3]
        return name + ordering, [rd, *([rs2] if _has_rs2(instruction, layout) else []), f"({rs1})"]
    if instruction.effect is Effect.SYSTEM:
        return name, [rs1, rs2]
    return name, operands if _has_rs2(instruction, layout) else [rd, rs1]


def _rounding(instruction: Instruction, mode: int) -> list[str]:
    """The rounding mode as an operand: left out where it is dynamic, as assemblers write it."""
    if mode == 7 or (mode == 0 and instruction.name in _EXACT):
        return []
    return [_ROUNDING_NAMES.get(mode, "unknown")]


def _fence_sets(word: int) -> list[str]:
    def letters(bits: int) -> str:
        return "".join(letter for letter, bit in zip("iorw", (8, 4, 2, 1), strict=True) if bits & bit) or "0"

    return [letters(word >> 24 & 15), letters(word >> 20 & 15)]


def _short(encoding: Encoding, word: int, pc: int) -> tuple[str, list[str]]:
    """Mnemonic and operands of a 16-bit encoding."""
    instruction, layout = encoding.target, FORMATS[encoding.format]
    immediate = layout.immediate.extract(word)
    number = layout.rd.extract(word)
    rd = _destination(instruction, number)
    rs1 = INTEGER_NAMES[layout.rs1.extract(word)]
    rs2 = _register(instruction, "rs2", layout.rs2.extract(word))
    operands: list[str]
    match encoding.format:
        case "CI" if encoding.name == "c.addi" and number == 0:
            return "c.nop", [str(immediate)] if immediate else []
        case "CI" | "CI-li" | "CI-sp" | "CB-and":
            operands = [rd, str(immediate)]
        case "CI-lui":
            operands = [rd, f"0x{immediate >> 12 & 0xFFFFF:x}"]
        case "CI-shift" | "CB-shift":
            operands = [rd, f"0x{immediate:x}"]
        case "CIW":
            operands = [rd, rs1, str(immediate)]
        case "CI-lwsp" | "CI-ldsp" | "CL-word" | "CL-double":
            operands = [rd, f"{immediate}({rs1})"]
        case "CS-word" | "CS-double" | "CSS-word" | "CSS-double":
            operands = [rs2, f"{immediate}({rs1})"]
        case "CR" | "CR-move" | "CA":
            operands = [rd, rs2]
        case "CR-jump" | "CR-call":
            operands = [rs1]
        case "CB":
            operands = [rs1, _target(pc, immediate)]
        case "CJ":
            operands = [_target(pc, immediate)]
        case _:
            operands = []
    return encoding.name, operands
