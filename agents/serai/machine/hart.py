"""What the board needs of a CPU core. `serai.machine.core.Core` provides it; tests play it by hand."""

from __future__ import annotations

import enum
import operator
from dataclasses import dataclass
from typing import Any, Protocol

TIMEBASE_HZ = 10_000_000
"""Ticks of the `time` CSR in a second, as the device tree says."""

NANOSECONDS_PER_TICK = 1_000_000_000 // TIMEBASE_HZ

SUPERVISOR_SOFTWARE_INTERRUPT = 1
MACHINE_SOFTWARE_INTERRUPT = 3
SUPERVISOR_TIMER_INTERRUPT = 5
MACHINE_TIMER_INTERRUPT = 7
SUPERVISOR_EXTERNAL_INTERRUPT = 9
MACHINE_EXTERNAL_INTERRUPT = 11

SUPERVISOR, MACHINE = 1, 3
"""Numbers of the privilege modes S and M."""

CSR_SSTATUS = 0x100
CSR_SCOUNTEREN = 0x106
CSR_SATP = 0x180
CSR_MIE = 0x304
CSR_STVEC, CSR_SCAUSE = 0x105, 0x142
CSR_MTVEC, CSR_MCAUSE = 0x305, 0x342
CSR_MIP = 0x344


class Execution(enum.Enum):
    """How a hart executes instructions. The guest cannot tell the difference."""

    INTERPRET = "interpret"
    TRANSLATE = "translate"


class ExitReason(enum.IntEnum):
    """Why `Hart.run` came back."""

    BUDGET = 0
    WAIT = 1
    MMIO_LOAD = 2
    MMIO_STORE = 3
    ENVIRONMENT_CALL = 4
    REQUESTED = 5
    FAULT = 6
    PAUSE = 7
    ABSENT = 8
    """A page of RAM has not arrived yet; `exit_address` is its address. The instruction has not retired."""


class ClockSource(enum.Enum):
    """What drives guest time."""

    REAL = "real"
    VIRTUAL = "virtual"


@dataclass(frozen=True, slots=True)
class Counters:
    """Events that a hart served without leaving native code, since it was made; traps by mcause code."""

    exceptions: tuple[int, ...] = (0,) * 16
    interrupts: tuple[int, ...] = (0,) * 16
    data_fills: int = 0
    fetch_fills: int = 0
    page_walks: int = 0
    walks_timed: int = 0
    walk_cycles: int = 0

    def plus(self, other: Counters) -> Counters:
        """The sum of two harts."""
        return Counters(
            tuple(map(operator.add, self.exceptions, other.exceptions)),
            tuple(map(operator.add, self.interrupts, other.interrupts)),
            self.data_fills + other.data_fills,
            self.fetch_fills + other.fetch_fills,
            self.page_walks + other.page_walks,
            self.walks_timed + other.walks_timed,
            self.walk_cycles + other.walk_cycles,
        )


class Registers(Protocol):
    """A register file."""

    def __getitem__(self, number: int) -> int:
        """Read a register."""

    def __setitem__(self, number: int, value: int) -> None:
        """Write a register."""


class Hart(Protocol):
    """One hart: runs instructions and comes back with a reason."""

    pc: int
    privilege: int
    yields: bool
    """Whether PAUSE leaves `run`: another hart could use the time."""

    @property
    def x(self) -> Registers:
        """The integer registers."""

    @property
    def exit_address(self) -> int:
        """Physical address of the access that left."""

    @property
    def exit_width(self) -> int:
        """Its width in bytes."""

    @property
    def exit_value(self) -> int:
        """What it stores."""

    @property
    def fault(self) -> str:
        """Why no progress is possible, after FAULT."""

    @property
    def time(self) -> int:
        """Ticks of the `time` CSR."""

    @property
    def instructions(self) -> int:
        """Instructions retired since reset."""

    @property
    def counters(self) -> Counters:
        """Events since this hart was made; not part of its saved state."""

    @property
    def interrupt_count(self) -> int:
        """Interrupts taken since this hart was made."""

    def fetch(self, address: int) -> int:
        """The instruction word at a virtual address in the present mode; 0 where there is none."""

    def host_cycles(self) -> int:
        """The cycle counter in which `Counters.walk_cycles` is measured."""

    @property
    def steps(self) -> int:
        """Instructions and traps since reset: what `run` counts."""

    @property
    def interrupt_pending(self) -> bool:
        """Whether there is what ends a WFI."""

    @property
    def timer_deadline(self) -> int | None:
        """The tick of `time` at which a timer ends a WFI; None if none does."""

    def join(self, first: Any) -> None:
        """Become a further hart of the machine of `first`, a hart of the same class."""

    def take_over(self, previous: Any) -> None:
        """Run next after `previous` of the same machine: its time goes on here."""

    def set_time(self, ticks: int, other_steps: int) -> None:
        """Let time go on from `ticks`; the other harts have executed `other_steps`."""

    def fence(self, start: int, size: int) -> None:
        """Forget the translations of a range of virtual addresses."""

    def run(self, budget: int) -> ExitReason:
        """Execute at most `budget` instructions, without the GIL."""

    def complete_load(self, value: int) -> None:
        """Finish the load of an MMIO_LOAD exit."""

    def csr(self, number: int) -> int:
        """Read a CSR."""

    def set_csr(self, number: int, value: int) -> None:
        """Write a CSR."""

    def set_interrupt(self, bit: int, level: bool) -> None:
        """Drive a bit of mip."""

    def set_timer(self, deadline_ticks: int) -> None:
        """Raise the S-mode timer interrupt at this tick of `time`, and withdraw it until then."""

    def set_machine_timer(self, deadline_ticks: int) -> None:
        """Bare board: MTIP is pending while `time` has reached this tick (mtimecmp)."""

    def interpret(self) -> None:
        """Leave the translator off. Before the hart has run."""

    def become_bare(self) -> None:
        """Be a hart of a bare board, fresh from reset: M-mode, nothing delegated, no SBI but the guest's."""

    def wait_deadline_ns(self) -> int | None:
        """Nanoseconds to the next timer interrupt; None when none is set."""

    def skip_to_deadline(self) -> None:
        """Virtual clock: let time pass up to the next timer interrupt."""

    def advance_time(self, ns: int) -> None:
        """Let time pass."""

    def request_exit(self) -> None:
        """Make `run` come back soon; any thread may call."""

    def set_absent(self, absent: memoryview | None) -> None:
        """Pages whose byte in `absent` is not 0 are on their way; others may clear bytes, none sets them."""

    def dma_wrote(self, address: int, length: int) -> None:
        """A device wrote to RAM."""

    def start_dirty_log(self) -> None:
        """Remember every page written from now on."""

    def take_dirty_log(self) -> bytes:
        """The bitmap of pages written since the last call."""

    def stop_dirty_log(self) -> None:
        """Stop remembering."""

    def save(self) -> bytes:
        """The architectural state, time included."""

    def restore(self, state: bytes) -> None:
        """Take over what `save` gave."""
