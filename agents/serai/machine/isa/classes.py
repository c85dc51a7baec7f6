"""Classes of instructions after Popek and Goldberg (1974): every instruction is executed in U, S and M.

*Privileged*: traps in user mode and does not in machine mode. *Control-sensitive*: changes the
configuration of resources (mode, translation, interrupts, protection). *Behaviour-sensitive*: what it does
depends on the mode or on that configuration. *Innocuous*: neither. A virtual machine monitor that runs all
of the guest in user mode can be built if every sensitive instruction traps there (theorem 1).

Every experiment starts from the same state but for the mode; a second series also changes each control
register in turn, which shows what depends on it. A static look at the semantics functions says the same
from the text. Held constant, as ``docs/instruction-classes.md`` explains: address translation off,
floating-point unit on.
"""

from __future__ import annotations

import ast
import functools
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from serai.machine.core import Core
from serai.machine.hart import ClockSource, ExitReason
from serai.machine.isa import compressed  # noqa: F401 - completes the table
from serai.machine.isa.assembler import CSRS, encode
from serai.machine.isa.formats import FORMATS
from serai.machine.isa.table import INSTRUCTIONS, Effect, Instruction
from serai.machine.native.language import NATIVE_FUNCTIONS, function_ast

__all__ = ["InstructionClass", "Specimen", "classify", "classify_all", "condition_holds", "specimens"]

RAM_BASE: Final = 0x8000_0000
_SIZE: Final = 1 << 16
_DATA: Final = RAM_BASE + 0x8000
_HANDLER: Final = RAM_BASE + 0x4000
_MODES: Final = {"U": 0, "S": 1, "M": 3}
_CSR_VALUE: Final = 0x22A3  # changes something in every writable control register
_FS_INITIAL: Final = 1 << 13
_FS_AND_SD: Final = 3 << 13 | 1 << 63
_COUNTERS: Final = ("cycle", "time", "instret")
# What software may use in user mode without a monitor's knowing: part of its own state.
_USER_STATE: Final = ("fflags", "frm", "fcsr")
# Control registers, with a value other than the one the experiments begin with.
_CONTROL: Final = {
    "mstatus": 1 << 1 | _FS_INITIAL,
    "mtvec": _HANDLER + 0x100,
    "mepc": RAM_BASE + 0x40,
    "mcause": 2,
    "mtval": 3,
    "mscratch": 5,
    "mie": 0x222,
    "mip": 2,
    "medeleg": 0x100,
    "mideleg": 0x222,
    "mcounteren": 7,
    "menvcfg": 1 << 63,
    "stvec": _HANDLER + 0x200,
    "sepc": RAM_BASE + 0x80,
    "scause": 4,
    "stval": 5,
    "sscratch": 6,
    "scounteren": 7,
    "senvcfg": 1,
    "pmpaddr1": 0x2000_0000,
}
_OBSERVED: Final = (*_CONTROL, "satp", "pmpcfg0", "pmpaddr0", "stimecmp")


@dataclass(frozen=True, slots=True)
class Specimen:
    """One instruction to execute; CSR instructions once for every register and a few of its accesses."""

    name: str
    instruction: str
    word: int
    csr: str = ""


@dataclass(frozen=True, slots=True)
class InstructionClass:
    """What the experiments say of a specimen. `outcome` by mode: retires, waits, or the trap's cause."""

    name: str
    instruction: str
    outcome: dict[str, str]
    privileged: bool
    control_sensitive: bool
    behaviour_sensitive: bool
    changes: tuple[str, ...]
    depends_on: tuple[str, ...]
    static: tuple[str, ...]

    @property
    def sensitive(self) -> bool:
        """Either way."""
        return self.control_sensitive or self.behaviour_sensitive

    @property
    def traps_in_user_mode(self) -> bool:
        """Whether a monitor gets to see it."""
        return self.outcome["U"].startswith("trap")

    @property
    def verdict(self) -> str:
        """The class in one or two words."""
        if all(outcome.startswith("trap") for outcome in self.outcome.values()):
            return "always traps"
        if self.sensitive:
            return "privileged, sensitive" if self.privileged else "SENSITIVE, UNPRIVILEGED"
        return "privileged" if self.privileged else "innocuous"


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What one execution did: `visible` to the program, `control` to the machine."""

    kind: str
    visible: tuple[Any, ...]
    control: dict[str, int]


def specimens() -> Iterator[Specimen]:
    """What is executed: each instruction of the table once, CSR instructions for each register."""
    for instruction in INSTRUCTIONS.values():
        if instruction.format != "I-csr":
            yield Specimen(instruction.name.replace("_", "."), instruction.name, _word(instruction))
    for csr, number in CSRS.items():
        if csr.startswith(("pmpaddr", "mhpm", "hpm", "pmpcfg")) and csr not in ("pmpaddr1", "pmpcfg0"):
            continue  # more of the same
        yield Specimen(f"csrrs (read) {csr}", "csrrs", encode("csrrs", rd=10, rs1=0, imm=number), csr)
        if number >> 10 != 3:
            yield Specimen(f"csrrw {csr}", "csrrw", encode("csrrw", rd=10, rs1=11, imm=number), csr)


def _word(instruction: Instruction) -> int:
    """A typical use: a0, a1, a2 (fa0 to fa3), no immediate or one that leads to the next word but one."""
    layout = FORMATS[instruction.format]
    immediate = {"B": 8, "J": 8, "U": 0x1000, "R-rm": 0, "R4": 0}.get(instruction.format, 0)
    free = ~instruction.mask
    word = instruction.match | layout.immediate.insert(immediate) & free
    for place, number in ((layout.rd, 10), (layout.rs1, 11), (layout.rs2, 12), (layout.extra, 13)):
        word |= place.insert(number) & free
    return word


class _Laboratory:
    """A hart on a little RAM, put into the same state before every experiment."""

    def __init__(self) -> None:
        self._ram = memoryview(mmap.mmap(-1, _SIZE))
        self._core = Core(self._ram, clock=ClockSource.VIRTUAL, firmware_emulated=False)
        self._core.set_csr(CSRS["pmpaddr0"], (1 << 54) - 1)
        self._core.set_csr(CSRS["pmpcfg0"], 0x1F)
        self._fresh = self._core.save()

    def execute(self, specimen: Specimen, mode: str, changed: str = "") -> _Outcome:
        core, ram = self._core, self._ram
        core.restore(self._fresh)
        ram[:] = bytes(_SIZE)
        ram[:4] = specimen.word.to_bytes(4, "little")
        ram[_DATA - RAM_BASE : _DATA - RAM_BASE + 16] = bytes(range(1, 17))
        core.dma_wrote(RAM_BASE, _SIZE)
        core.set_csr(CSRS["mtvec"], _HANDLER)
        core.set_csr(CSRS["mstatus"], _FS_INITIAL)
        for number in range(32):
            core.f[number] = 0x3FF0_0000_0000_0000 + number
        core.x[11], core.x[12] = _CSR_VALUE if specimen.csr else _DATA, 9
        if changed:
            core.set_csr(CSRS[changed], _CONTROL[changed])
        before = {name: self._read(name) for name in _OBSERVED}
        core.pc, core.privilege = RAM_BASE, _MODES[mode]
        reason = core.run(1)
        kind = self._kind(reason)
        visible: tuple[Any, ...] = ()
        if not kind.startswith("trap"):
            data = bytes(ram[_DATA - RAM_BASE : _DATA - RAM_BASE + 64])
            visible = (
                core.pc,
                tuple(core.x[n] for n in range(32)),
                tuple(core.f[n] for n in range(32)),
                data,
            )
        after = {name: self._read(name) for name in _OBSERVED} | {"mode": core.privilege}
        before["mode"] = _MODES[mode]
        control = {name: value for name, value in after.items() if value != before[name]}
        return _Outcome(kind, visible, control if not kind.startswith("trap") else {})

    def _read(self, name: str) -> int:
        value = self._core.csr(CSRS[name])
        return value & ~_FS_AND_SD if name == "mstatus" else value

    def _kind(self, reason: ExitReason) -> str:
        if reason is ExitReason.WAIT:
            return "waits"
        for cause, destination in (("mcause", "mepc"), ("scause", "sepc")):
            trapped = self._core.instructions == 0 and self._core.csr(CSRS[destination]) == RAM_BASE
            if trapped:
                return f"trap {self._core.csr(CSRS[cause])}"
        return "retires"


@functools.cache
def _laboratory() -> _Laboratory:
    return _Laboratory()


def classify(specimen: Specimen) -> InstructionClass:
    """Execute a specimen in every mode and state, and say what it is."""
    laboratory = _laboratory()
    outcomes = {mode: laboratory.execute(specimen, mode) for mode in _MODES}
    working = {mode: outcome for mode, outcome in outcomes.items() if not outcome.kind.startswith("trap")}
    static = static_dependencies(INSTRUCTIONS[specimen.instruction])
    changes = {name for outcome in working.values() for name in outcome.control}
    depends = {"mode"} if len({(o.kind, o.visible) for o in working.values()}) > 1 else set()
    if "M" in working:
        for name in _CONTROL:
            other = laboratory.execute(specimen, "M", name)
            if (other.kind, other.visible) != (working["M"].kind, working["M"].visible):
                depends.add(name)
    if "translation caches" in static and not specimen.csr and working:
        changes.add("translation caches")
    if any(outcome.kind == "waits" for outcome in working.values()):
        changes.add("processor (waits)")
    if specimen.csr in _COUNTERS:
        depends.add("real time")
    if specimen.csr and specimen.csr not in (*_COUNTERS, *_USER_STATE) and working:
        depends.add(specimen.csr)
    kinds = {mode: outcome.kind for mode, outcome in outcomes.items()}
    return InstructionClass(
        name=specimen.name,
        instruction=specimen.instruction,
        outcome=kinds,
        privileged=kinds["U"].startswith("trap") and not kinds["M"].startswith("trap"),
        control_sensitive=bool(changes),
        behaviour_sensitive=bool(depends),
        changes=tuple(sorted(changes)),
        depends_on=tuple(sorted(depends)),
        static=static,
    )


def classify_all() -> list[InstructionClass]:
    """Every specimen; takes seconds."""
    return [classify(specimen) for specimen in specimens()]


def condition_holds(classes: list[InstructionClass]) -> bool:
    """Popek and Goldberg's theorem 1: every sensitive instruction traps in user mode."""
    return all(item.traps_in_user_mode for item in classes if item.sensitive)


_CONTROL_FIELDS: Final = frozenset(
    (
        *("privilege", "mstatus", "mie", "mip", "medeleg", "mideleg", "mtvec", "mepc", "mcause", "mtval"),
        *("mscratch", "mcounteren", "menvcfg", "stvec", "sepc", "scause", "stval", "sscratch"),
        *("scounteren", "senvcfg", "satp", "stimecmp", "pmpcfg", "pmpaddr"),
    )
)
_FLUSHES: Final = {"flush_all", "flush_page"}


@functools.cache
def static_dependencies(instruction: Instruction) -> tuple[str, ...]:
    """Control state that the text of a semantics function reads or writes, through all that it calls."""
    if instruction.effect is not Effect.SYSTEM:
        return ()
    found: set[str] = set()
    done: set[str] = set()
    pending = [function_ast(instruction.semantics)]
    while pending:
        for node in ast.walk(pending.pop()):
            if isinstance(node, ast.Attribute) and node.attr in _CONTROL_FIELDS:
                found.add(node.attr)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                name = node.func.id
                if name in _FLUSHES:
                    found.add("translation caches")
                if name in NATIVE_FUNCTIONS and name not in done and name not in ("illegal", *_FLUSHES):
                    done.add(name)
                    pending.append(function_ast(NATIVE_FUNCTIONS[name]))
    return tuple(sorted(found))
