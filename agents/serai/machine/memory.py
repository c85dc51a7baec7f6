"""Guest RAM as the devices see it: every address comes from the guest and is checked here."""

from __future__ import annotations

import errno
import mmap
import struct
from collections.abc import Callable

from serai.machine.errors import GuestAccessError

PAGE_SIZE = 4096

_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


def _never(pages: list[int]) -> None:
    raise GuestAccessError(f"page {pages[0]} has not arrived, and nobody fetches it")


class GuestMemory:
    """RAM by guest-physical address. Every method raises `GuestAccessError` outside RAM.

    `wrote(address, length)` is called after each write, so that the dirty log and the cores' decoded
    instructions take notice of what devices store.
    """

    def __init__(self, ram: memoryview, base: int, wrote: Callable[[int, int], None] | None = None) -> None:
        self.ram = ram
        self.base = base
        self.size = len(ram)
        self.absent: memoryview | None = None
        """A byte a page, not 0 while the page is still on its way (post-copy)."""
        self.fetch: Callable[[list[int]], None] = _never
        """Called with the numbers of absent pages that a device needs; returns when they are there."""
        self.wrote: Callable[[int, int], None] = wrote or (lambda address, length: None)

    def offset(self, address: int, length: int) -> int:
        """The offset in RAM of a range that lies in it completely."""
        offset = address - self.base
        if offset < 0 or length < 0 or offset + length > self.size:
            raise GuestAccessError(f"{length} bytes at {address:#x} are not in RAM")
        if self.absent is not None:
            self._fetch(offset, length)
        return offset

    def _fetch(self, offset: int, length: int) -> None:
        assert self.absent is not None
        first, last = offset // PAGE_SIZE, (offset + max(length, 1) - 1) // PAGE_SIZE
        missing = [page for page in range(first, min(last + 1, len(self.absent))) if self.absent[page]]
        if missing:
            self.fetch(missing)

    def read(self, address: int, length: int) -> bytes:
        """A copy of the range."""
        offset = self.offset(address, length)
        return bytes(self.ram[offset : offset + length])

    def view(self, address: int, length: int) -> memoryview:
        """The range itself, to read from. Whoever writes through it calls `wrote` afterwards."""
        offset = self.offset(address, length)
        return self.ram[offset : offset + length]

    def write(self, address: int, data: bytes | memoryview) -> None:
        """Store."""
        length = len(data)
        offset = self.offset(address, length)
        self.ram[offset : offset + length] = data
        self.wrote(address, length)

    def discard(self, address: int, length: int) -> None:
        """Give whole pages back to the host; they read as zero from now on."""
        offset = self.offset(address, length)
        backing = self.ram.obj
        try:
            if not isinstance(backing, mmap.mmap) or len(backing) != self.size:
                raise OSError(errno.EINVAL, "not the whole of a mapping")
            backing.madvise(mmap.MADV_REMOVE, offset, length)
        except OSError:  # memory that cannot be given back is at least empty
            self.ram[offset : offset + length] = bytes(length)
        self.wrote(address, length)

    def read_u16(self, address: int) -> int:
        """A little-endian 16-bit word."""
        value: int = _U16.unpack_from(self.ram, self.offset(address, 2))[0]
        return value

    def read_u64(self, address: int) -> int:
        """A little-endian 64-bit word."""
        value: int = _U64.unpack_from(self.ram, self.offset(address, 8))[0]
        return value

    def write_u16(self, address: int, value: int) -> None:
        """Store a little-endian 16-bit word."""
        _U16.pack_into(self.ram, self.offset(address, 2), value)
        self.wrote(address, 2)

    def write_u32(self, address: int, value: int) -> None:
        """Store a little-endian 32-bit word."""
        _U32.pack_into(self.ram, self.offset(address, 4), value)
        self.wrote(address, 4)
