"""Writes cpio archives of the "newc" format (Linux: driver-api/early-userspace/buffer-format.rst).

The kernel unpacks any number of archives that follow each other at multiples of four bytes, so that files of
one guest travel as an archive appended to the initramfs that all share.
"""

from __future__ import annotations

import stat
from pathlib import PurePosixPath

from serai.machine.errors import ConfigurationError

_TRAILER = "TRAILER!!!"


def write(files: dict[str, tuple[int, bytes]]) -> bytes:
    """An archive of regular files (path -> permission bits, content), with the directories they need."""
    parts: list[bytes] = []
    directories: set[PurePosixPath] = set()
    inode = 1
    for name, (mode, content) in files.items():
        path = _relative(name)
        for parent in reversed([p for p in path.parents if p.name]):
            if parent not in directories:
                directories.add(parent)
                parts.append(_entry(str(parent), inode, stat.S_IFDIR | 0o755, b"", links=2))
                inode += 1
        parts.append(_entry(str(path), inode, stat.S_IFREG | (mode & 0o7777), content))
        inode += 1
    parts.append(_entry(_TRAILER, 0, 0, b""))
    return b"".join(parts)


def append(initramfs: bytes, files: dict[str, tuple[int, bytes]]) -> bytes:
    """The initramfs followed by an archive of `files`."""
    return _padded(initramfs) + write(files) if files else initramfs


def _relative(name: str) -> PurePosixPath:
    path = PurePosixPath(name.lstrip("/"))
    if not path.name or ".." in path.parts or "\0" in name or str(path) == _TRAILER:
        raise ConfigurationError(f"{name!r} is not the path of a file in the guest")
    return path


def _entry(name: str, inode: int, mode: int, content: bytes, *, links: int = 1) -> bytes:
    encoded = name.encode() + b"\0"
    numbers = (inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % number for number in numbers)
    return _padded(header + encoded) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
