"""A small assembler over the instruction table, for test guests, benchmarks and examples.

Standard mnemonics ('_' or '.' in names), ABI or numbered registers, decimal or hexadecimal immediates,
``imm(rs1)`` addresses, labels, ``.word``/``.dword``/``.align`` and the pseudo-instructions of ``PSEUDO``.
32-bit encodings only, except ``.half``.
"""

from __future__ import annotations

import importlib
import re
from typing import Final

from serai.machine.isa.formats import FORMATS
from serai.machine.isa.table import INSTRUCTIONS, Effect, Instruction

__all__ = ["AssemblyError", "assemble", "encode"]

for _module in ("base", "atomic", "float_", "system"):
    importlib.import_module(f"serai.machine.isa.{_module}")

_INTEGER = (
    "zero ra sp gp tp t0 t1 t2 s0 s1 a0 a1 a2 a3 a4 a5 a6 a7 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11 t3 t4 t5 t6"
)
_FLOAT = (
    "ft0 ft1 ft2 ft3 ft4 ft5 ft6 ft7 fs0 fs1 fa0 fa1 fa2 fa3 fa4 fa5 fa6 fa7 "
    "fs2 fs3 fs4 fs5 fs6 fs7 fs8 fs9 fs10 fs11 ft8 ft9 ft10 ft11"
)
INTEGER_NAMES: Final = tuple(_INTEGER.split())
FLOAT_NAMES: Final = tuple(_FLOAT.split())
REGISTERS: Final = (
    {name: number for names in (_INTEGER, _FLOAT) for number, name in enumerate(names.split())}
    | {f"x{number}": number for number in range(32)}
    | {f"f{number}": number for number in range(32)}
    | {"fp": 8}
)
ROUNDING: Final = {"rne": 0, "rtz": 1, "rdn": 2, "rup": 3, "rmm": 4, "dyn": 7}
# Privileged ISA, tables of allocated CSR addresses.
CSRS: Final = (
    {"fflags": 1, "frm": 2, "fcsr": 3}
    | {"sstatus": 0x100, "sie": 0x104, "stvec": 0x105, "scounteren": 0x106, "senvcfg": 0x10A}
    | {"sscratch": 0x140, "sepc": 0x141, "scause": 0x142, "stval": 0x143, "sip": 0x144, "stimecmp": 0x14D}
    | {"satp": 0x180}
    | {"mstatus": 0x300, "misa": 0x301, "medeleg": 0x302, "mideleg": 0x303, "mie": 0x304, "mtvec": 0x305}
    | {"mcounteren": 0x306, "menvcfg": 0x30A, "mcountinhibit": 0x320}
    | {"mscratch": 0x340, "mepc": 0x341, "mcause": 0x342, "mtval": 0x343, "mip": 0x344}
    | {"mseccfg": 0x747, "tselect": 0x7A0, "tdata1": 0x7A1, "tdata2": 0x7A2, "tdata3": 0x7A3}
    | {"mcycle": 0xB00, "minstret": 0xB02, "cycle": 0xC00, "time": 0xC01, "instret": 0xC02}
    | {"mvendorid": 0xF11, "marchid": 0xF12, "mimpid": 0xF13, "mhartid": 0xF14, "mconfigptr": 0xF15}
    | {f"pmpcfg{n}": 0x3A0 + n for n in range(0, 16, 2)}
    | {f"pmpaddr{n}": 0x3B0 + n for n in range(64)}
    | {f"mhpmcounter{n}": 0xB00 + n for n in range(3, 32)}
    | {f"mhpmevent{n}": 0x320 + n for n in range(3, 32)}
    | {f"hpmcounter{n}": 0xC00 + n for n in range(3, 32)}
)
# Pseudo-instruction: the instructions it stands for, {0} {1} {2} being its operands.
PSEUDO: Final = {
    "nop": ("addi x0, x0, 0",),
    "mv": ("addi {0}, {1}, 0",),
    "j": ("jal x0, {0}",),
    "call": ("jal ra, {0}",),
    "jr": ("jalr x0, 0({0})",),
    "ret": ("jalr x0, 0(ra)",),
    "beqz": ("beq {0}, x0, {1}",),
    "bnez": ("bne {0}, x0, {1}",),
    "csrr": ("csrrs {0}, {1}, x0",),
    "csrw": ("csrrw x0, {0}, {1}",),
    "csrs": ("csrrs x0, {0}, {1}",),
    "csrc": ("csrrc x0, {0}, {1}",),
}


class AssemblyError(ValueError):
    """A line that cannot be assembled; the text names it."""


def encode(name: str, *, rd: int = 0, rs1: int = 0, rs2: int = 0, rs3: int = 0, imm: int = 0) -> int:
    """Encode one instruction of the table.

    Raises AssemblyError if the immediate does not fit.
    """
    instruction = INSTRUCTIONS[name]
    layout = FORMATS[instruction.format]
    word = instruction.match
    for place, number in ((layout.rd, rd), (layout.rs1, rs1), (layout.rs2, rs2), (layout.extra, rs3)):
        word |= place.insert(number) & ~instruction.mask
    held = layout.immediate.insert(imm)
    if layout.immediate.extract(held) != imm:
        raise AssemblyError(f"{name}: the immediate {imm} does not fit")
    return word | held & ~instruction.mask


def _operand_names(instruction: Instruction) -> list[str]:
    """The operands of an instruction in the order of its assembly syntax."""
    free = ~instruction.mask
    layout = FORMATS[instruction.format]
    is_there = {
        "rd": layout.rd.insert(31) & free and instruction.effect not in (Effect.NONE, Effect.BRANCH),
        "rs1": layout.rs1.insert(31) & free,
        "rs2": layout.rs2.insert(31) & free,
        "rs3": layout.extra.insert(31) & free,
        "imm": layout.immediate.insert(-1) & free,
    }
    if instruction.format == "S":
        order = ["rs2", "imm", "rs1"]
    elif instruction.format == "I-csr" or (
        instruction.format == "I" and instruction.match & 0x7F in (0x03, 0x07, 0x67)
    ):
        order = ["rd", "imm", "rs1"]
    elif instruction.match & 0x7F == 0x2F:
        order = ["rd", "rs2", "rs1"]
    else:
        order = ["rd", "rs1", "rs2", "rs3", "imm"]
    return [name for name in order if is_there[name]]


class _Assembler:
    def __init__(self, origin: int) -> None:
        self.origin = origin
        self.labels: dict[str, int] = {}
        self.code = bytearray()

    def number(self, text: str) -> int:
        for names in (self.labels, ROUNDING, CSRS):
            if text in names:
                return names[text]
        try:
            return int(text, 0)
        except ValueError:
            raise AssemblyError(f"unknown name or number {text!r}") from None

    def expand(self, line: str) -> list[str]:
        """Replace a pseudo-instruction by what it stands for."""
        name, _, rest = line.partition(" ")
        operands = [operand.strip() for operand in rest.split(",")] if rest.strip() else []
        if name == "li":
            value = self.number(operands[1])
            if -2048 <= value < 2048:
                return [f"addi {operands[0]}, x0, {value}"]
            upper = value + 0x800 >> 12 & 0xFFFFF
            lower = (value & 0xFFF) - ((value & 0x800) << 1)
            return [f"lui {operands[0]}, {upper}", f"addiw {operands[0]}, {operands[0]}, {lower}"]
        if name in PSEUDO:
            return [template.format(*operands) for template in PSEUDO[name]]
        return [line]

    def instruction(self, line: str, *, final: bool) -> None:
        name, _, rest = line.partition(" ")
        key = name.replace(".", "_")
        if key not in INSTRUCTIONS:
            raise AssemblyError(f"unknown instruction {name!r}")
        instruction = INSTRUCTIONS[key]
        rest = re.sub(r"([^,\s]*)\(([^)]*)\)", r"\1, \2", rest)  # imm(rs1) and (rs1)
        operands = [operand.strip() for operand in rest.split(",")]
        operands = [operand for operand in operands if operand]
        names = _operand_names(instruction)
        if names and names[-1] == "imm" and len(operands) == len(names) - 1 and "rm" in instruction.format:
            operands.append("dyn")
        if instruction.format == "R4" and len(operands) == 4:
            operands.append("dyn")
        if len(operands) != len(names):
            raise AssemblyError(f"{name} takes {', '.join(names) or 'no operands'}")
        values: dict[str, int] = {}
        for place, text in zip(names, operands, strict=True):
            if place != "imm" and text in REGISTERS:
                values[place] = REGISTERS[text]
            elif place == "imm" and instruction.format in ("B", "J"):
                target = self.number(text) if final else self.origin + len(self.code)
                values[place] = target - self.origin - len(self.code)
            elif instruction.format == "U":
                upper = self.number(text)
                if not -(1 << 19) <= upper < 1 << 20:
                    raise AssemblyError(f"{upper} does not fit in 20 bits")
                values[place] = (upper << 12 & 0xFFFFFFFF ^ 1 << 31) - (1 << 31)
            elif place == "imm" or (place == "rs1" and key.endswith("i") and key.startswith("csrr")):
                values[place] = self.number(text) if final or text not in self.labels else 0
            else:
                raise AssemblyError(f"{text!r} is not a register")
        self.code += encode(key, **values).to_bytes(4, "little")

    def directive(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        sizes = {".byte": 1, ".half": 2, ".word": 4, ".dword": 8}
        if name == ".align":
            self.code += bytes(-len(self.code) % (1 << int(rest, 0)))
        elif name == ".zero":
            self.code += bytes(int(rest, 0))
        elif name in sizes:
            for item in rest.split(","):
                value = self.number(item.strip()) & ((1 << 8 * sizes[name]) - 1)
                self.code += value.to_bytes(sizes[name], "little")
        else:
            raise AssemblyError(f"unknown directive {name}")

    def one_pass(self, source: str, *, final: bool) -> None:
        self.code.clear()
        for number, raw in enumerate(source.splitlines(), 1):
            line = " ".join(raw.split("#")[0].split())
            try:
                while match := re.match(r"(\w+):\s*", line):
                    self.labels[match[1]] = self.origin + len(self.code)
                    line = line[match.end() :]
                if line.startswith("."):
                    self.directive(line)
                elif line:
                    for simple in self.expand(line):
                        self.instruction(simple, final=final)
            except AssemblyError as error:
                raise AssemblyError(f"line {number}: {raw.strip()}: {error}") from None


def assemble(source: str, origin: int = 0x8000_0000) -> bytes:
    """Assemble a program that will lie at ``origin``.

    Raises AssemblyError, which names the line.
    """
    assembler = _Assembler(origin)
    for label in re.findall(r"^\s*(\w+):", source, re.MULTILINE):
        assembler.labels[label] = origin + 0x10000  # so that every size is final in the first pass
    assembler.one_pass(source, final=False)
    assembler.one_pass(source, final=True)
    return bytes(assembler.code)
