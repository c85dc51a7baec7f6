"""The firmware of a para-virtual machine: the RISC-V Supervisor Binary Interface 2.0, answered by the VMM.

Extensions: BASE, TIME, sPI, RFENCE, HSM, SRST, DBCN. Others probe as absent and answer SBI_ERR_NOT_SUPPORTED.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Protocol

from serai.machine.errors import GuestAccessError
from serai.machine.hart import SUPERVISOR_SOFTWARE_INTERRUPT
from serai.machine.harts import Harts, HartState
from serai.machine.memory import GuestMemory

SPECIFICATION_VERSION = 0x0200_0000
IMPLEMENTATION_ID = 0x5345_5241  # not registered: "SERA"
IMPLEMENTATION_VERSION = 1

SUCCESS = 0
ERR_FAILED = -1
ERR_NOT_SUPPORTED = -2
ERR_INVALID_PARAMETER = -3
ERR_DENIED = -4
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
_SUSPEND_RETENTIVE, _SUSPEND_NON_RETENTIVE = 0, 0x8000_0000
_RESET_SHUTDOWN, _RESET_COLD, _RESET_WARM = 0, 1, 2
_DEBUG_CONSOLE_LIMIT = 4096

Answer = tuple[int, int]
"""Error code and value, for a0 and a1."""


class DebugConsole(Protocol):
    """Where DBCN reads and writes: the serial line."""

    output: bytearray

    def take_input(self, limit: int) -> bytes:
        """Remove pending input."""


def _fence_range(start: int, size: int) -> tuple[int, int]:
    """The range of a remote fence; zero for both, or a size of all ones, means everything (chapter 8)."""
    return (0, _MASK64) if size == _MASK64 or (start == 0 and size == 0) else (start, size)


class SystemRequest(enum.Enum):
    """What a guest asked of the whole machine."""

    POWER_OFF = "powered off"
    REBOOT = "rebooted"


class Firmware:
    """Answers environment calls from S-mode."""

    def __init__(self, harts: Harts, memory: GuestMemory, console: DebugConsole) -> None:
        self.request: SystemRequest | None = None
        self._harts = harts
        self._memory = memory
        self._console = console
        self._extensions: dict[int, tuple[str, Callable[[int, int, Sequence[int]], Answer | None]]] = {
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
        x = self._harts.all[hart].x
        name, handler = self._extensions.get(x[17], ("unknown", self._unknown))
        answer = handler(hart, x[16], [x[10], x[11], x[12], x[13], x[14]])
        if answer is not None:  # None: a call that does not return
            x[10] = answer[0] & _MASK64
            x[11] = answer[1] & _MASK64
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
        self._harts.all[hart].set_timer(arguments[0])
        return SUCCESS, 0

    def _targets(self, mask: int, base: int) -> list[int] | None:
        """Hart numbers of a hart mask (chapter 3.1), None when it names harts that do not exist."""
        count = len(self._harts)
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
            self._harts.interrupt(target, SUPERVISOR_SOFTWARE_INTERRUPT, True)
        return SUCCESS, 0

    def _rfence(self, hart: int, function: int, arguments: Sequence[int]) -> Answer:
        # 0 fence.i, 1 sfence.vma, 2 sfence.vma of an ASID; 3 and up need the hypervisor extension.
        if function > 2:
            return ERR_NOT_SUPPORTED, 0
        targets = self._targets(arguments[0], arguments[1])
        if targets is None:
            return ERR_INVALID_PARAMETER, 0
        # Decoded code follows the stores of every hart by itself; there are no ASIDs to tell apart (satp).
        if function != 0:
            for target in targets:
                self._harts.all[target].fence(*_fence_range(arguments[2], arguments[3]))
        return SUCCESS, 0

    def _hsm(self, hart: int, function: int, arguments: Sequence[int]) -> Answer | None:
        match function:
            case 0:
                return self._hart_start(*arguments[:3])
            case 1:
                if self._harts.started == 1:
                    return ERR_FAILED, 0  # nothing could ever start a hart again
                self._harts.stop()
                return None
            case 2:
                known = arguments[0] < len(self._harts)
                return (SUCCESS, self._harts.state(arguments[0])) if known else (ERR_INVALID_PARAMETER, 0)
            case 3:
                return self._hart_suspend(*arguments[:3])
        return ERR_NOT_SUPPORTED, 0

    def _hart_start(self, number: int, entry: int, opaque: int) -> Answer:
        harts = self._harts
        if number >= len(harts):
            return ERR_INVALID_PARAMETER, 0
        if harts.state(number) is not HartState.STOPPED:
            return ERR_ALREADY_AVAILABLE, 0
        if not self._executable(entry):
            return ERR_INVALID_ADDRESS, 0
        if harts.started >= harts.allowed:
            return ERR_DENIED, 0
        harts.start(number, entry, opaque)
        return SUCCESS, 0

    def _hart_suspend(self, kind: int, resume: int, opaque: int) -> Answer | None:
        kind &= 0xFFFF_FFFF
        if kind == _SUSPEND_RETENTIVE:
            self._harts.suspend(None)
            return SUCCESS, 0
        if kind != _SUSPEND_NON_RETENTIVE:
            return ERR_INVALID_PARAMETER, 0
        if not self._executable(resume):
            return ERR_INVALID_ADDRESS, 0
        self._harts.suspend((resume, opaque))
        return None

    def _executable(self, address: int) -> bool:
        try:
            self._memory.offset(address, 2)
        except GuestAccessError:
            return False
        return address % 2 == 0

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
