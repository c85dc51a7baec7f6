"""A bare board around one hart with the host-target interface of riscv-tests: a word named tohost."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from serai.machine.core import Core
from serai.machine.hart import ClockSource, ExitReason

RAM_BASE = 0x8000_0000
RAM_SIZE = 16 << 20
LOAD, SYMBOLS = 1, 2
SLICE = 10_000
LIMIT = 5_000_000


class Board:
    """Loads an ELF file and runs it until it writes tohost."""

    def __init__(self, elf: Path) -> None:
        self.ram = mmap.mmap(-1, RAM_SIZE)
        self.tohost = self._load(elf.read_bytes()) - RAM_BASE
        self.core = Core(self.ram, ram_base=RAM_BASE, firmware_emulated=False, clock=ClockSource.VIRTUAL)

    def _load(self, data: bytes) -> int:
        """Copy the segments to RAM; return the address of tohost."""
        segments, sections = struct.unpack_from("<QQ", data, 32)
        segment_count, _, section_count = struct.unpack_from("<HHH", data, 56)
        for index in range(segment_count):
            kind, _, offset, _, address, size = struct.unpack_from("<IIQQQQ", data, segments + 56 * index)
            if kind == LOAD:
                self.ram[address - RAM_BASE : address - RAM_BASE + size] = data[offset : offset + size]
        for index in range(section_count):
            kind, _, _, offset, size, link = struct.unpack_from("<IQQQQI", data, sections + 64 * index + 4)
            if kind != SYMBOLS:
                continue
            names = struct.unpack_from("<Q", data, sections + 64 * link + 24)[0]
            for place in range(offset, offset + size, 24):
                name, value = struct.unpack_from("<I4xQ", data, place)
                if data[names + name : data.index(0, names + name)] == b"tohost":
                    return int(value)
        raise ValueError("the file has no symbol tohost")

    def run(self) -> int:
        """Return what the test writes to tohost: 1 is a pass, else the number of the failed check."""
        while self.core.instructions < LIMIT:
            reason = self.core.run(SLICE)
            value = int.from_bytes(self.ram[self.tohost : self.tohost + 8], "little")
            if value:
                return value
            if reason not in (ExitReason.BUDGET, ExitReason.WAIT):
                raise AssertionError(f"{reason.name} at {self.core.pc:#x}: {self.core.fault}")
        raise AssertionError(f"no result after {LIMIT} instructions, pc {self.core.pc:#x}")
