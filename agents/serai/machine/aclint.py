"""The machine-level timers and software interrupts of a bare board: RISC-V ACLINT 1.0, laid out as a CLINT.

MSWI (msip) at 0, MTIMER (mtimecmp) at 0x4000, mtime at 0xbff8, as "sifive,clint0" has them and every firmware
knows. mtime is the guest's one clock, which the VMM keeps: writes to it are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from serai.machine.errors import SnapshotError
from serai.machine.hart import MACHINE_SOFTWARE_INTERRUPT

SIZE = 0x10000
_MTIMECMP = 0x4000
_MTIME = 0xBFF8
_MASK64 = (1 << 64) - 1


class AclintHart(Protocol):
    """What the device needs of a hart."""

    def set_machine_timer(self, deadline_ticks: int) -> None:
        """See `Hart.set_machine_timer`."""


@dataclass
class AclintState:
    """What a snapshot keeps: by hart."""

    VERSION: ClassVar[int] = 1

    deadlines: list[int]
    software: list[bool]


class Aclint:
    """Timers and software interrupts for `count` harts; `interrupt(hart, bit, level)` drives a line."""

    name = "aclint"

    def __init__(
        self,
        harts: Callable[[], Sequence[AclintHart]],
        interrupt: Callable[[int, int, bool], None],
        time: Callable[[], int],
        count: int,
    ) -> None:
        self._harts = harts
        self._time = time
        self._interrupt = interrupt
        self._count = count
        self.reset()

    def reset(self) -> None:
        """Power-on: no timer set, no software interrupt. The harts have been reset as well."""
        self._deadlines = [_MASK64] * self._count
        self._software = [False] * self._count

    def read(self, offset: int, width: int) -> int:
        """A register, or the half or byte of one that `width` names."""
        if _MTIME <= offset < _MTIME + 8:
            word, base = self._time(), _MTIME
        elif _MTIMECMP <= offset < _MTIMECMP + 8 * self._count:
            word, base = self._deadlines[(offset - _MTIMECMP) // 8], offset & ~7
        elif offset < 4 * self._count:
            word, base = int(self._software[offset // 4]), offset & ~3
        else:
            return 0
        return word >> 8 * (offset - base) & ((1 << 8 * width) - 1)

    def write(self, offset: int, width: int, value: int) -> None:
        """Set a timer (in halves too, as 32-bit software does) or a software interrupt."""
        if _MTIMECMP <= offset < _MTIMECMP + 8 * self._count:
            hart, shift = (offset - _MTIMECMP) // 8, 8 * (offset & 7)
            mask = ((1 << 8 * width) - 1) << shift
            self._deadlines[hart] = self._deadlines[hart] & ~mask | value << shift & mask
            self._harts()[hart].set_machine_timer(self._deadlines[hart])
        elif offset < 4 * self._count and offset % 4 == 0:
            hart = offset // 4
            self._software[hart] = bool(value & 1)
            self._interrupt(hart, MACHINE_SOFTWARE_INTERRUPT, self._software[hart])

    def save(self) -> AclintState:
        """The state for a snapshot."""
        return AclintState(list(self._deadlines), list(self._software))

    def restore(self, state: AclintState) -> None:
        """Take over a saved state; the harts, restored before, are driven by it."""
        if len(state.deadlines) != self._count or len(state.software) != self._count:
            raise SnapshotError(self.name, "is of another number of harts")
        self._deadlines = [deadline & _MASK64 for deadline in state.deadlines]
        self._software = list(state.software)
        for number, hart in enumerate(self._harts()):
            hart.set_machine_timer(self._deadlines[number])
            self._interrupt(number, MACHINE_SOFTWARE_INTERRUPT, self._software[number])
