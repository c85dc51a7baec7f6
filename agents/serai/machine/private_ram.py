"""RAM that begins as the content of a file and is copied page by page when the guest writes it.

The file (a snapshot's) is mapped privately over the memfd: reads share the host's page cache with every other
guest of that file, and the first write to a page copies it (mmap(2), MAP_PRIVATE). The agent, which maps the
memfd, sees none of that until `complete` has moved the content there, at the same addresses.
"""

from __future__ import annotations

import ctypes
import mmap
import os

_CHUNK = 64 * 1024
"""What is looked at, and left out of the memfd when it is all zero, at a time."""

_MAP_FIXED = 0x10
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)


class Ram:
    """A guest's RAM; `view` stays valid, at the same addresses, whatever is mapped there.

    `source` is a file of `size` bytes that the RAM begins with, None for zeros. Raises OSError.
    """

    def __init__(self, ram_file: int, size: int, source: int | None = None) -> None:
        self._ram_file = ram_file
        self._size = size
        self._memory = mmap.mmap(ram_file, size)
        self.view = memoryview(self._memory)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._completed = size
        if source is not None:
            self._completed = 0
            self._map(0, size, source, mmap.MAP_PRIVATE)

    @property
    def remaining(self) -> int:
        """Bytes that the agent does not see yet."""
        return self._size - self._completed

    def complete(self, limit: int) -> int:
        """Move at most `limit` bytes more into the memfd; what remains. No vCPU may run meanwhile."""
        end = min(self._size, self._completed + limit)
        zeros = bytes(_CHUNK)
        for start in range(self._completed, end, _CHUNK):
            chunk = self.view[start : min(start + _CHUNK, end)]
            if chunk != zeros[: len(chunk)]:
                self._write(chunk, start)
        if end > self._completed:
            self._map(self._completed, end - self._completed, self._ram_file, mmap.MAP_SHARED)
        self._completed = end
        return self.remaining

    def _write(self, chunk: memoryview, offset: int) -> None:
        while chunk:
            written = os.pwrite(self._ram_file, chunk, offset)
            chunk, offset = chunk[written:], offset + written

    def _map(self, start: int, length: int, file: int, kind: int) -> None:
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        address = _libc.mmap(self._address + start, length, protection, kind | _MAP_FIXED, file, start)
        if address != self._address + start:
            error = ctypes.get_errno()
            raise OSError(error, f"RAM cannot be mapped: {os.strerror(error)}")
