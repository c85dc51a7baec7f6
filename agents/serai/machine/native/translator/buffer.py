"""The code buffer: memory that is written through one mapping and executed through another.

No page is ever writable and executable at the same address (W^X). The memory belongs to one hart of one
process; a child process does not inherit it (MADV_DONTFORK), because both would write the same pages.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref

from serai.machine.errors import CodeError

__all__ = ["CodeBuffer"]

MADV_DONTFORK = 10
MAP_FIXED = 0x10


class CodeBuffer:
    """``size`` bytes of code memory; ``write`` and ``execute`` are the addresses of its two mappings.

    Raises CodeError if the system refuses executable memory to this process.
    """

    def __init__(self, size: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        libc.munmap.argtypes = libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self.size = size
        self.write = self.execute = 0
        self._libc = libc
        self.renew()
        for address in (self.write, self.execute):
            weakref.finalize(self, libc.munmap, address, size, 0)

    def renew(self) -> None:
        """Replace the memory by new memory at the same addresses: for the child after a fork."""
        descriptor = os.memfd_create("serai-code", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, self.size)
            self.write = self._map(descriptor, mmap.PROT_READ | mmap.PROT_WRITE, self.write)
            self.execute = self._map(descriptor, mmap.PROT_READ | mmap.PROT_EXEC, self.execute)
        finally:
            os.close(descriptor)

    def _map(self, descriptor: int, protection: int, place: int) -> int:
        libc = self._libc
        flags = mmap.MAP_SHARED | (MAP_FIXED if place else 0)
        address = libc.mmap(place or None, self.size, protection, flags, descriptor, 0)
        if address in (None, ctypes.c_void_p(-1).value):
            raise CodeError(
                f"mapping {self.size} bytes of code failed with errno {ctypes.get_errno()}: "
                "the system forbids executable memory to this process; check SELinux or seccomp rules"
            )
        libc.madvise(address, self.size, MADV_DONTFORK)
        return int(address)
