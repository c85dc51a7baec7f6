"""Instruction trace: the guest executes in single steps, and those in an address range are recorded.

Bounded twice: by the number of records and by the number of steps, after which the guest runs on at full
speed. A record is 24 bytes: address, word, flags, hart, privilege; the reader disassembles.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from serai.machine.hart import (
    CSR_MCAUSE,
    CSR_MTVEC,
    CSR_SCAUSE,
    CSR_STVEC,
    MACHINE,
    Hart,
)
from serai.machine.machine import Machine, MachineExit

MAXIMUM_RECORDS: Final = 100_000
MAXIMUM_STEPS: Final = 100_000_000
RECORD: Final = struct.Struct("<QIHBBQ")
_QUANTUM = 500  # steps between two looks at the sockets
_TRAPPED, _INTERRUPT = 1, 2
_VECTORED = 1


@dataclass(frozen=True, slots=True)
class TraceRecord:
    """One instruction. `trapped`: it raised an exception; `interrupt`: the first of a handler."""

    address: int
    word: int
    hart: int
    privilege: int
    trapped: bool
    interrupt: bool
    step: int


class Tracer:
    """One trace of `count` records at most, within `steps` steps; `low` <= address < `high` is recorded."""

    def __init__(self, count: int, low: int, high: int, steps: int) -> None:
        self.low, self.high = low, high
        self._wanted = min(count, MAXIMUM_RECORDS)
        self._limit = min(steps, MAXIMUM_STEPS)
        self._records = bytearray()
        self._recorded = 0
        self.steps = 0

    @property
    def finished(self) -> bool:
        """Whether the guest may run on at full speed."""
        return self._recorded >= self._wanted or self.steps >= self._limit

    def take(self) -> bytes:
        """The records since the last call."""
        taken = bytes(self._records)
        self._records.clear()
        return taken

    def run(self, machine: Machine) -> MachineExit:
        """Execute a few hundred steps, or until the guest waits or ends."""
        for _ in range(_QUANTUM):
            if self.finished:
                break
            hart = machine.harts.next()
            if hart is None:
                return MachineExit.WAIT
            cause = self._step(machine, hart)
            if cause is not MachineExit.BUDGET:
                return cause
        return MachineExit.BUDGET

    def _step(self, machine: Machine, hart: Hart) -> MachineExit:
        address, privilege = hart.pc, hart.privilege
        word = hart.fetch(address)
        instructions, interrupts = hart.instructions, hart.interrupt_count
        cause = machine.run(1)
        self.steps += 1
        flags = 0 if hart.instructions > instructions else _TRAPPED
        if hart.interrupt_count > interrupts:
            # The interrupt came first: what was executed is the first instruction of its handler.
            address, privilege, flags = _vector(hart), hart.privilege, flags | _INTERRUPT
            word = hart.fetch(address)
        if self.low <= address < self.high:
            self._recorded += 1
            number = machine.harts.all.index(hart)
            self._records += RECORD.pack(address, word, flags, number, privilege, self.steps)
        return cause


def _vector(hart: Hart) -> int:
    """Where the handler of the interrupt that was just taken begins (Privileged ISA 3.1.7, 12.1.2)."""
    machine = hart.privilege == MACHINE
    base = hart.csr(CSR_MTVEC if machine else CSR_STVEC)
    number = hart.csr(CSR_MCAUSE if machine else CSR_SCAUSE) & 63
    return (base & ~3) + (4 * number if base & 3 == _VECTORED else 0)


def read_records(data: bytes) -> Iterator[TraceRecord]:
    """The records in what `Tracer.take` gave."""
    for address, word, flags, hart, privilege, step in RECORD.iter_unpack(data):
        yield TraceRecord(
            address, word, hart, privilege, bool(flags & _TRAPPED), bool(flags & _INTERRUPT), step
        )
