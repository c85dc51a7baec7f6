"""Serai's hart, interpreting and translating, against Unicorn (QEMU's TCG) on random sequences.

``python -m tests.soak.differential --count 1000000 [--first SEED]`` prints the counts. Where the reference
(QEMU 5.0) departs from today's manuals it is not compared: NaN boxing of single-precision values (it neither
checks nor makes it), FMIN and FMAX of signalling NaNs (IEEE 754-2008 there, 754-2019 in RISC-V), and the flag
NV of infinity times zero plus a quiet NaN, which it forgets. Serai's own tests have exact cases for these.
"""

from __future__ import annotations

import argparse
import mmap
import sys
import time
from dataclasses import dataclass
from typing import Any

import unicorn
import unicorn.riscv_const as names
from tests.soak.sequences import DATA, RAM_BASE, SINGLES, Sequence, generate

from serai.machine.core import Core
from serai.machine.hart import ClockSource, Execution, ExitReason
from serai.machine.isa.assembler import encode
from serai.machine.isa.disassembler import disassemble_range
from serai.machine.native.translator.store import load_stencils

SIZE = 0x10000
HANDLER = RAM_BASE + 0x4000
engine: Any = unicorn  # its stubs leave most out
FORGET = HANDLER + 0x100  # an SC that ends what an LR of an earlier sequence has reserved
CODE_ROOM = 0x400
WFI = encode("wfi").to_bytes(4, "little")
SC = encode("sc_w", rs1=8).to_bytes(4, "little")
NOP = encode("addi").to_bytes(4, "little")
M32 = 0xFFFF_FFFF


@dataclass(frozen=True)
class Result:
    """What is left behind; None in place of everything if it trapped."""

    integers: tuple[int, ...]
    floats: tuple[int, ...]
    fcsr: int
    data: bytes


class Ours:
    """Serai's hart, interpreting or translating."""

    def __init__(self, execution: Execution = Execution.INTERPRET) -> None:
        if execution is Execution.TRANSLATE:
            # Before it is there, a hart interprets.
            assert load_stencils().wait(300), "the translator's code does not come"
        self._ram = memoryview(mmap.mmap(-1, SIZE))
        self._core = Core(self._ram, clock=ClockSource.VIRTUAL, firmware_emulated=False, execution=execution)
        self._ram[HANDLER - RAM_BASE : HANDLER - RAM_BASE + 4] = WFI
        self._core.set_csr(0x305, HANDLER)
        self._ram[FORGET - RAM_BASE : FORGET - RAM_BASE + 4] = SC

    def run(self, sequence: Sequence) -> Result | None:
        """Execute; the registers and the data afterwards."""
        core, ram = self._core, self._ram
        length = self._prepare(sequence)
        reason = core.run(1000)
        assert reason is ExitReason.WAIT, (reason, hex(core.pc))
        if core.pc == HANDLER + 4:
            return None
        assert core.pc == RAM_BASE + length, hex(core.pc)
        return Result(
            tuple(core.x[number] for number in range(32)),
            tuple(core.f[number] for number in range(32)),
            core.csr(3),
            bytes(ram[DATA - RAM_BASE : DATA - RAM_BASE + len(sequence.data)]),
        )

    def meets_outdated_reference(self, sequence: Sequence) -> bool:
        """Whether something is executed in which the reference departs from today's manuals."""
        core = self._core
        self._prepare(sequence)
        while core.pc not in (HANDLER, HANDLER + 4):
            word = core.fetch(core.pc)
            double = bool(word >> 25 & 1)
            sources = [core.f[word >> shift & 31] for shift in (15, 20, 27)]
            if word & 0xF800_007F == 0x2800_0053:
                if any(_is_signalling(value, double=double) for value in sources[:2]):
                    return True
            elif word & 0x73 == 0x43 and _is_infinity_times_zero(sources, double=double):
                return True
            if core.run(1) is ExitReason.WAIT:
                break
        return False

    def _prepare(self, sequence: Sequence) -> int:
        core, ram = self._core, self._ram
        code = sequence.code + NOP * 4 + WFI
        ram[: len(code)] = code
        ram[DATA - RAM_BASE : DATA - RAM_BASE + len(sequence.data)] = sequence.data
        core.dma_wrote(RAM_BASE, len(code))
        core.x[8], core.pc, core.privilege = FORGET + 0x100, FORGET, 3
        core.run(1)
        core.set_csr(0x300, 1 << 13)
        core.set_csr(3, sequence.fcsr)
        for number in range(32):
            core.x[number] = sequence.integers[number]
            core.f[number] = sequence.floats[number]
        core.pc, core.privilege = RAM_BASE, 3
        return len(code)


def _is_infinity_times_zero(sources: list[int], *, double: bool) -> bool:
    """Of a fused multiply-add; it sets NV even if the addend is a quiet NaN (Unprivileged ISA 21.6)."""
    ones = (1 << 63) - 1 if double else (1 << 31) - 1
    infinity = 0x7FF << 52 if double else 0xFF << 23
    return {sources[0] & ones, sources[1] & ones} == {0, infinity}


def _is_signalling(bits: int, *, double: bool) -> bool:
    """A NaN whose quiet bit is clear (IEEE 754-2019, 6.2.1)."""
    fraction, width = (52, 11) if double else (23, 8)
    exponent = bits >> fraction & ((1 << width) - 1)
    return exponent == (1 << width) - 1 and bits & ((1 << fraction) - 1) != 0 and not bits >> fraction - 1 & 1


class Theirs:
    """Unicorn."""

    def __init__(self) -> None:
        self._machine: Any = engine.Uc(engine.UC_ARCH_RISCV, engine.UC_MODE_RISCV64)
        self._machine.mem_map(RAM_BASE, SIZE)
        self._machine.mem_write(FORGET, SC)
        self._x = [getattr(names, f"UC_RISCV_REG_X{number}") for number in range(32)]
        self._f = [getattr(names, f"UC_RISCV_REG_F{number}") for number in range(32)]

    def run(self, sequence: Sequence) -> Result | None:
        machine = self._machine
        code = sequence.code + NOP * 4 + WFI
        machine.mem_write(RAM_BASE, code)
        machine.ctl_remove_cache(RAM_BASE, RAM_BASE + CODE_ROOM)
        machine.mem_write(DATA, sequence.data)
        machine.reg_write(names.UC_RISCV_REG_MSTATUS, 1 << 13)
        machine.reg_write(names.UC_RISCV_REG_FCSR, sequence.fcsr)
        machine.reg_write(names.UC_RISCV_REG_X8, FORGET + 0x100)
        machine.emu_start(FORGET, FORGET + 4)
        machine.reg_write_batch(
            list(zip(self._x[1:] + self._f, sequence.integers[1:] + sequence.floats, strict=True))
        )
        try:
            machine.emu_start(RAM_BASE, RAM_BASE + len(code) - 4)
        except engine.UcError:
            return None
        values = machine.reg_read_batch(self._x + self._f)
        return Result(
            tuple(values[:32]),
            tuple(values[32:]),
            machine.reg_read(names.UC_RISCV_REG_FCSR),
            bytes(machine.mem_read(DATA, len(sequence.data))),
        )


def difference(ours: Result | None, theirs: Result | None) -> str:
    """What differs, empty if nothing does."""
    if ours is None or theirs is None:
        return "" if ours is theirs else f"trap: ours {ours is None}, theirs {theirs is None}"
    found = [
        f"x{n}: {a:#x} here, {b:#x} there"
        for n, (a, b) in enumerate(zip(ours.integers, theirs.integers, strict=True))
        if a != b
    ]
    for n, (a, b) in enumerate(zip(ours.floats, theirs.floats, strict=True)):
        mask = M32 if n in SINGLES else (1 << 64) - 1
        if a & mask != b & mask:
            found.append(f"f{n}: {a:#x} here, {b:#x} there")
    if ours.fcsr != theirs.fcsr:
        found.append(f"fcsr: {ours.fcsr:#x} here, {theirs.fcsr:#x} there")
    if ours.data != theirs.data:
        found.append("memory")
    return "; ".join(found)


def describe(sequence: Sequence) -> str:
    """The sequence as assembly."""
    return "\n".join(f"{at:#x}  {text}" for at, _, text in disassemble_range(sequence.code, RAM_BASE))


def compare(first: int, count: int, *, report_every: int = 0) -> tuple[int, list[tuple[int, str]]]:
    """Run the sequences of `count` seeds; how many trapped, and the seeds that differ with the reason."""
    tiers = {execution: Ours(execution) for execution in Execution}
    theirs = Theirs()
    trapped = 0
    failures: list[tuple[int, str]] = []
    for seed in range(first, first + count):
        sequence = generate(seed)
        reference = theirs.run(sequence)
        trapped += reference is None
        for execution, ours in tiers.items():
            why = difference(ours.run(sequence), reference)
            if why and not ours.meets_outdated_reference(sequence):
                failures.append((seed, f"{execution.value}: {why}"))
        if report_every and (seed - first + 1) % report_every == 0:
            print(f"{seed - first + 1} sequences, {len(failures)} differ", flush=True)
    return trapped, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    began = time.monotonic()
    trapped, failures = compare(arguments.first, arguments.count, report_every=100_000)
    for seed, why in failures[:10]:
        print(f"seed {seed}: {why}\n{describe(generate(seed))}\n")
    seconds = time.monotonic() - began
    counts = f"{arguments.count} sequences in {seconds:.0f} s"
    print(f"differential: {counts}, {trapped} trapped alike, {len(failures)} differ")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
