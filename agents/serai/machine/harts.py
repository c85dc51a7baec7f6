"""The harts of a machine and whose turn it is.

One thread executes all harts, one after the other in slices counted in steps, so that nothing of the machine
needs a lock and a run on the virtual clock is the same bit for bit. A hart that waits for an interrupt gives
its turn away; so does one that spins (PAUSE) while another could run. Slices go on across calls of
`Machine.run`: where the caller cuts a run makes no difference.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final

from serai.machine.errors import SnapshotError
from serai.machine.hart import (
    CSR_MIE,
    CSR_SATP,
    CSR_SCOUNTEREN,
    CSR_SSTATUS,
    NANOSECONDS_PER_TICK,
    SUPERVISOR,
    SUPERVISOR_SOFTWARE_INTERRUPT,
    ClockSource,
    Counters,
    ExitReason,
    Hart,
)

SLICE_STEPS: Final = 50_000
"""Steps of a hart's turn while others could run: about 0.1 ms."""

_STEPS_ALONE: Final = {ClockSource.REAL: 200_000, ClockSource.VIRTUAL: 1_000_000}
_STEPS_FOR_EVER: Final = 1 << 62
_STEPS_PER_TICK: Final = 10  # of the virtual clock
_COUNTERS_OPEN: Final = 0b111
_STATUS_SIE: Final = 1 << 1


class HartState(enum.IntEnum):
    """States of the Hart State Management extension (SBI 2.0, chapter 9); changes are immediate here."""

    STARTED = 0
    STOPPED = 1
    SUSPENDED = 4


@dataclass
class HartsState:
    """Whose turn it is, for a snapshot."""

    VERSION: ClassVar[int] = 1

    current: int
    slice_left: int
    allowed: int
    states: list[int]
    ready: list[bool]


class Harts:
    """All harts of a machine, of which at most `allowed` may be started. Hart 0 starts with the machine.

    On a `bare` board all of them start with it, in M-mode, and software sorts out which goes first.
    """

    def __init__(
        self, make: Callable[[int], Hart], count: int, clock: ClockSource, allowed: int, *, bare: bool = False
    ) -> None:
        self._bare = bare
        self.allowed = allowed
        self.slice_steps = SLICE_STEPS
        self._make = make
        self._count = count
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Power-on: fresh harts."""
        self.all = [self._make(number) for number in range(self._count)]
        for hart in self.all[1:]:
            hart.join(self.all[0])
        self.current = 0
        others = HartState.STARTED if self._bare else HartState.STOPPED
        self._states = [HartState.STARTED] + [others] * (self._count - 1)
        self._ready = [state is HartState.STARTED for state in self._states]
        self._left = 0

    def __len__(self) -> int:
        """Number of harts, the stopped ones included."""
        return self._count

    @property
    def hart(self) -> Hart:
        """The hart that runs or ran last; its clock is the machine's."""
        return self.all[self.current]

    @property
    def instructions(self) -> int:
        """Instructions retired by all harts since power-on."""
        return sum(hart.instructions for hart in self.all)

    @property
    def counters(self) -> Counters:
        """Events in native code of all harts since power-on."""
        return functools.reduce(Counters.plus, (hart.counters for hart in self.all))

    # Turns.

    @property
    def left(self) -> int:
        """Steps left of the current slice."""
        return self._left

    def used(self, steps: int) -> None:
        """The current hart has executed that many."""
        self._left -= steps

    def run(self, steps: int) -> ExitReason:
        """Let the current hart execute at most that many steps of its slice."""
        hart = self.all[self.current]
        before = hart.steps
        reason = hart.run(steps)
        self._left -= hart.steps - before
        return reason

    def next(self) -> Hart | None:
        """The hart to run now; None if all wait."""
        if self._left > 0 and self._ready[self.current]:
            return self.all[self.current]
        self._wake_due()
        for distance in range(1, self._count + 1):
            number = (self.current + distance) % self._count
            if self._ready[number]:
                return self._switch_to(number)
        return None

    def wait(self) -> None:
        """The current hart executed WFI and nothing is pending for it."""
        self._ready[self.current] = False

    def give_way(self) -> None:
        """The current hart spins: end its turn."""
        self._left = 0

    def _switch_to(self, number: int) -> Hart:
        hart = self.all[number]
        if number != self.current:
            hart.take_over(self.all[self.current])
            self.current = number
        contended = self._ready.count(True) > 1
        if self._count > 1:
            hart.yields = contended
        self._left = self.slice_steps if contended else self._steps_alone()
        return hart

    def _steps_alone(self) -> int:
        """A longer turn, but not past the moment at which a waiting hart's timer fires."""
        if self._count == 1:
            return _STEPS_FOR_EVER
        steps = _STEPS_ALONE[self._clock]
        deadline = self._earliest_deadline()
        if self._clock is ClockSource.VIRTUAL and deadline is not None:
            return max(1, min(steps, (deadline - self.hart.time) * _STEPS_PER_TICK))
        return steps

    def _waiting(self) -> list[Hart]:
        return [
            hart
            for hart, ready, state in zip(self.all, self._ready, self._states, strict=True)
            if not ready and state is not HartState.STOPPED
        ]

    def _wake_due(self) -> None:
        now: int | None = None
        for number in range(self._count):
            if self._ready[number] or self._states[number] is HartState.STOPPED:
                continue
            hart = self.all[number]
            deadline = hart.timer_deadline
            if deadline is not None and now is None:
                now = self.hart.time
            if hart.interrupt_pending or (deadline is not None and now is not None and deadline <= now):
                self._wake(number)

    def _wake(self, number: int) -> None:
        self._states[number] = HartState.STARTED
        self._ready[number] = True
        if number != self.current and self._ready[self.current]:
            self.hart.yields = True
            self._left = min(self._left, self.slice_steps)

    # Time.

    def _earliest_deadline(self) -> int | None:
        deadlines = [hart.timer_deadline for hart in self._waiting()]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def wait_deadline_ns(self) -> int | None:
        """Nanoseconds to the first timer interrupt of a waiting hart; None when none is set."""
        deadline = self._earliest_deadline()
        if deadline is None:
            return None
        return max(0, deadline - self.hart.time) * NANOSECONDS_PER_TICK

    def skip_to_deadline(self) -> None:
        """Virtual clock: let time pass up to the next timer interrupt of a waiting hart."""
        self.hart.advance_time(self.wait_deadline_ns() or 0)

    # What harts do to each other.

    def interrupt(self, number: int, bit: int, level: bool) -> None:
        """Drive an interrupt line of a hart (see `Hart.set_interrupt`), and wake it if that ends its wait."""
        hart = self.all[number]
        hart.set_interrupt(bit, level)
        asleep = not self._ready[number] and self._states[number] is not HartState.STOPPED
        if level and asleep and hart.interrupt_pending:
            self._wake(number)

    def state(self, number: int) -> HartState:
        """What HSM says of a hart."""
        return self._states[number]

    @property
    def started(self) -> int:
        """Harts that are not stopped."""
        return self._count - self._states.count(HartState.STOPPED)

    def boot(self, entry: int, tree: int, information: int) -> None:
        """Set up what starts first (Linux: Documentation/arch/riscv/boot.rst; OpenSBI: fw_dynamic in a2)."""
        if not self._bare:
            self._enter(0, entry, tree)
            return
        for number, hart in enumerate(self.all):
            hart.pc = entry
            hart.x[10], hart.x[11], hart.x[12] = number, tree, information

    def start(self, number: int, entry: int, opaque: int) -> None:
        """Start a stopped hart in S-mode, paging and interrupts off, its number in a0."""
        hart = self.all[number]
        hart.set_csr(CSR_MIE, 0)
        hart.set_interrupt(SUPERVISOR_SOFTWARE_INTERRUPT, False)
        self._enter(number, entry, opaque)
        self._wake(number)

    def stop(self) -> None:
        """Stop the current hart."""
        self._states[self.current] = HartState.STOPPED
        self._ready[self.current] = False

    def suspend(self, resume: tuple[int, int] | None) -> None:
        """The current hart sleeps until an interrupt is pending; `resume` is where it then starts anew."""
        if resume is not None:
            self._enter(self.current, *resume)
        if not self.hart.interrupt_pending:
            self._states[self.current] = HartState.SUSPENDED
            self._ready[self.current] = False

    def _enter(self, number: int, entry: int, opaque: int) -> None:
        hart = self.all[number]
        hart.pc = entry
        hart.privilege = SUPERVISOR
        hart.set_csr(CSR_SATP, 0)
        hart.set_csr(CSR_SSTATUS, hart.csr(CSR_SSTATUS) & ~_STATUS_SIE)
        # Firmware opens the counters to user programs: Linux relies on it, its vDSO reads the time.
        hart.set_csr(CSR_SCOUNTEREN, _COUNTERS_OPEN)
        hart.x[10] = number
        hart.x[11] = opaque

    # Snapshots.

    def save(self) -> HartsState:
        """The turn, without the harts themselves."""
        states = [int(state) for state in self._states]
        return HartsState(self.current, self._left, self.allowed, states, list(self._ready))

    def restore(self, state: HartsState) -> None:
        """Take over a saved turn, after each hart has been restored. Raises SnapshotError."""
        shape = {len(state.states), len(state.ready), self._count}
        known = set(HartState)
        if len(shape) != 1 or not 0 <= state.current < self._count or not set(state.states) <= known:
            raise SnapshotError("harts", "is of another number of harts")
        self.current = state.current
        self.allowed = max(1, min(state.allowed, self._count))
        self._left = state.slice_left
        self._states = [HartState(number) for number in state.states]
        self._ready = [
            ready and which is not HartState.STOPPED
            for ready, which in zip(state.ready, self._states, strict=True)
        ]
        hart = self.hart
        if self._count > 1:
            others = sum(other.steps for other in self.all) - hart.steps
            hart.set_time(hart.time, others)
            hart.yields = self._ready.count(True) > 1
