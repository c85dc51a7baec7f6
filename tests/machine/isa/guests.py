"""Small guests in assembly, and a core to run them on."""

from __future__ import annotations

import mmap

from serai.machine.core import Core
from serai.machine.hart import ClockSource
from serai.machine.isa.assembler import assemble

RAM_BASE = 0x8000_0000
RAM_SIZE = 4 << 20


class Guest:
    """A core with a program at the start of RAM."""

    def __init__(
        self,
        source: str,
        *,
        firmware_emulated: bool = False,
        clock: ClockSource = ClockSource.VIRTUAL,
        size: int = RAM_SIZE,
    ) -> None:
        self.ram = mmap.mmap(-1, size)
        self.core = Core(self.ram, firmware_emulated=firmware_emulated, clock=clock)
        self.put(RAM_BASE, assemble(source))

    def put(self, address: int, data: bytes) -> None:
        self.ram[address - RAM_BASE : address - RAM_BASE + len(data)] = data

    def get(self, address: int, size: int = 8) -> int:
        return int.from_bytes(self.ram[address - RAM_BASE : address - RAM_BASE + size], "little")


def map_page(guest: Guest, root: int, virtual: int, physical: int, flags: int) -> None:
    """Enter a 4 KiB page in Sv39 tables that lie in the pages from ``root`` on (one table per level)."""
    table, middle, leaf = root, root + 0x1000, root + 0x2000
    guest.put(table + (virtual >> 30 & 511) * 8, (middle >> 12 << 10 | 1).to_bytes(8, "little"))
    guest.put(middle + (virtual >> 21 & 511) * 8, (leaf >> 12 << 10 | 1).to_bytes(8, "little"))
    guest.put(leaf + (virtual >> 12 & 511) * 8, (physical >> 12 << 10 | flags).to_bytes(8, "little"))


SV39 = 8 << 60
V, R, W, X, U, A, D = (1 << bit for bit in (0, 1, 2, 3, 4, 6, 7))
