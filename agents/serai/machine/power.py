"""Power-off and reset of a bare board: SiFive's test finisher, as QEMU's virt board has it."""

from __future__ import annotations

from collections.abc import Callable

from serai.machine.sbi import SystemRequest

SIZE = 0x1000
POWER_OFF = 0x5555
REBOOT = 0x7777
FAIL = 0x3333
"""With an exit code in the upper half; ends the machine like POWER_OFF."""


class PowerSwitch:
    """One write-only register; has no state."""

    name = "power"

    def __init__(self, request: Callable[[SystemRequest], None]) -> None:
        self._request = request

    def read(self, offset: int, width: int) -> int:
        """Nothing to be read."""
        return 0

    def write(self, offset: int, width: int, value: int) -> None:
        """Ask for the end or a new start of the machine."""
        if offset != 0:
            return
        if value & 0xFFFF == REBOOT:
            self._request(SystemRequest.REBOOT)
        elif value & 0xFFFF in (POWER_OFF, FAIL):
            self._request(SystemRequest.POWER_OFF)
