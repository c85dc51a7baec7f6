"""Makes the harts of a machine from the CPU core."""

from __future__ import annotations

from serai.machine.board import RAM_BASE
from serai.machine.core import Core
from serai.machine.hart import ClockSource, Hart


def make_hart(ram: memoryview, hart: int, clock: ClockSource) -> Hart:
    """A hart of a para-virtual machine: S-mode calls the VMM."""
    return Core(ram, ram_base=RAM_BASE, hart_id=hart, clock=clock, firmware_emulated=True)


def preload() -> None:
    """Have the core's code loaded (and compiled, the first time), so that processes forked later share it."""
    make_hart(memoryview(bytearray(1 << 20)), 0, ClockSource.VIRTUAL)
