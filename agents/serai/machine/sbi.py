"""The firmware of a para-virtual machine: the RISC-V Supervisor Binary Interface 2.0, answered by the VMM.

Extensions: BASE, TIME, sPI, RFENCE, HSM, SRST, DBCN. Others probe as absent and answer SBI_ERR_NOT_SUPPORTED.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Protocol

from serai.machine.errors import GuestAccessError
from serai.machine.hart import SUPERVISOR_SOFTWARE_INTERRUPT, Registers
from serai.machine.memory import GuestMemory

SPECIFICATION_VERSION = 0x0200_0000
IMPLEMENTATION_ID = 0x5345_5241  # not registered: "SERA"
IMPLEMENTATION_VERSION = 1

SUCCESS = 0
ERR_FAILED = -1
ERR_NOT_SUPPORTED = -2
ERR_INVALID_PARAMETER = -3
ERR_INVALID_ADDRESS = -5
ERR_ALREADY_AVAILABLE = -6

BASE = 0x10
TIME = 0x5449_4D45
IPI = 0x0073_5049
RFENCE = 0x5246_4E43
HSM = 0x0048_534D
SRST = 0x5352_5354
DBCN = 0x4442_434E

_MASK64 = (1 << 64) - 1
_HSM_STARTED = 0
_RESET_SHUTDOWN, _RESET_COLD, _RESET_WARM = 0, 1, 2
_DEBUG_CONSOLE_LIMIT = 4096

Answer = tuple[int, int]
"""Error code and value, for a0 and a1."""


class SbiHart(Protocol):
    """What the firmware needs of a hart."""

    @property
    def x(self) -> Registers:
        """The integer registers."""

    def set_timer(self, deadline_ticks: int) -> None:
        """See `Hart.set_timer`."""

    def set_interrupt(self, bit: int, level: bool) -> None:
        """See `Hart.set_interrupt`."""


class DebugConsole(Protocol):
    """Where DBCN reads and writes: the serial line."""

    output: bytearray

    def take_input(self, limit: int) -> bytes:
        """Remove pending input."""


class SystemRequest(enum.Enum):
    """What a guest asked of the whole machine."""

    POWER_OFF = "powered off"
    REBOOT = "rebooted"


class Firmware:
    """Answers environment calls from S-mode. `fence(hart, instructions)` flushes what a hart has cached."""

    def __init__(
        self,
        harts: Callable[[], Sequence[SbiHart]],
        memory: GuestMemory,
        console: DebugConsole,
        fence: Callable[[int, bool], None],
    ) -> None:
        self.request: SystemRequest | None = None
        self._harts = harts
        self._memory = memory
        self._console = console
        self._fence = fence
        self._extensions: dict[int, tuple[str, Callable[[int, int, Sequence[int]], Answer]]] = {
            BASE: ("base", self._base),
            TIME: ("time", self._time),
            IPI: ("ipi", self._ipi),
            RFENCE: ("rfence", self._rfence),
            HSM: ("hsm", self._hsm),
            SRST: ("srst", self._srst),
            DBCN: ("dbcn", self._dbcn),
        }

    def call(self, hart: int) -> str:
        """Answer the call in the registers of hart number `hart`; returns the extension's name."""
        x = self._harts()[hart].x
        name, handler = self._extensions.get(x[17], ("unknown", self._unknown))
        error, value = handler(hart, x[16], [x[10], x[11], x[12], x[13], x[14]])
        x[10] = error & _MASK64
        x[11] = value & _MASK64
        return name

    def _unknown(self, hart: int, function: int, arguments: Sequence[int]) -> Answer:
        return ERR_NOT_SUPPORTED, 0

    def _base(self, hart: int, function: int, arguments: Sequence[int]) -> Answer:
        # mvendorid, marchid and mimpid (4 to 6) of zero: not a commercial implementation.
        values = {
            0: SPECIFICATION_VERSION,
            1: IMPLEMENTATION_ID,
            2: IMPLEMENTATION_VERSION,
            3: int(arguments[0] in self._extensions),
            4: 0,
            5: 0,
            6: 0,
        }
        return (SUCCESS, values[function]) if function in values else (ERR_NOT_SUPPORTED, 0)

    def _time(self, hart: int, function: int, arguments: Sequence[int]) -> Answer:
        if function != 0:
            return ERR_NOT_SUPPORTED, 0
        self._harts()[hart].set_timer(arguments[0])
        return SUCCESS, 0

    def _targets(self, mask: int, base: int) -> list[int] | None:
        """Hart numbers of a hart mask (chapter 3.1), None when it names harts that do not exist."""
        count = len(self._harts())
        if base == _MASK64:
            return list(range(count))
        targets = [base + bit for bit in range(64) if mask >> bit & 1]
        return targets if all(target < count for target in targets) else None

    def _ipi(self, hart: int, function: int, arguments: Sequence[int]) -> Answer:
        if function != 0:
            return ERR_NOT_SUPPORTED, 0
        targets = self._targets(arguments[0], arguments[1])
        if targets is None:
            return ERR_INVALID_PARAMETER, 0
        for target in targets:
            self._harts()[target].set_interrupt(SUPERVISOR_SOFTWARE_INTERRUPT, True)
        return SUCCESS, 0

    def _rfence(self, hart: int, function: int, arguments: Sequence[int]) -> Answer:
        # 0 fence.i, 1 sfence.vma, 2 sfence.vma of an ASID; 3 and up need the hypervisor extension.
        if function > 2:
            return ERR_NOT_SUPPORTED, 0
        targets = self._targets(arguments[0], arguments[1])
        if targets is None:
            return ERR_INVALID_PARAMETER, 0
        for target in targets:
            self._fence(target, function == 0)
        return SUCCESS, 0

    def _hsm(self, hart: int, function: int, arguments: Sequence[int]) -> Answer:
        # One hart, always started: it cannot be started again, and stopping the last one fails.
        known = arguments[0] < len(self._harts())
        if function == 0:
            return (ERR_ALREADY_AVAILABLE if known else ERR_INVALID_PARAMETER), 0
        if function == 1:
            return ERR_FAILED, 0
        if function == 2:
            return (SUCCESS, _HSM_STARTED) if known else (ERR_INVALID_PARAMETER, 0)
        return ERR_NOT_SUPPORTED, 0

    def _srst(self, hart: int, function: int, arguments: Sequence[int]) -> Answer:
        if function != 0:
            return ERR_NOT_SUPPORTED, 0
        kind = arguments[0] & 0xFFFF_FFFF
        if kind not in (_RESET_SHUTDOWN, _RESET_COLD, _RESET_WARM):
            return ERR_INVALID_PARAMETER, 0
        self.request = SystemRequest.POWER_OFF if kind == _RESET_SHUTDOWN else SystemRequest.REBOOT
        return SUCCESS, 0

    def _dbcn(self, hart: int, function: int, arguments: Sequence[int]) -> Answer:
        if function == 2:
            self._console.output.append(arguments[0] & 0xFF)
            return SUCCESS, 0
        if function > 2:
            return ERR_NOT_SUPPORTED, 0
        length = min(arguments[0], _DEBUG_CONSOLE_LIMIT)
        address = arguments[1] | arguments[2] << 64
        try:
            if function == 0:
                self._console.output += self._memory.read(address, length)
                return SUCCESS, length
            self._memory.offset(address, length)
            data = self._console.take_input(length)
            self._memory.write(address, data)
        except GuestAccessError:
            return ERR_INVALID_PARAMETER, 0
        return SUCCESS, len(data)
