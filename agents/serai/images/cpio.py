"""The initramfs archive: SVR4 cpio without checksums ("newc"), written and read.

Format: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. Every header is 110 ASCII
bytes; name and data are padded to four bytes. An initramfs may be several archives one after the other, later
entries replacing earlier ones: that is how files of one VM are laid over an image.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from serai.errors import ImageError

_MAGIC = b"070701"
_HEADER_BYTES = 110
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class CpioEntry:
    """One file of an archive.

    `name` is relative (no leading slash), `mode` has type and permission bits as in `stat.st_mode`, `data` is
    the content of a regular file or the target of a symbolic link, `device` is (major, minor) of a device
    node.
    """

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str, permissions: int = 0o755) -> CpioEntry:
    """Make the entry of a directory."""
    return CpioEntry(name, stat.S_IFDIR | permissions)


def regular(name: str, data: bytes, permissions: int = 0o644) -> CpioEntry:
    """Make the entry of a regular file."""
    return CpioEntry(name, stat.S_IFREG | permissions, data)


def symlink(name: str, target: str) -> CpioEntry:
    """Make the entry of a symbolic link."""
    return CpioEntry(name, stat.S_IFLNK | 0o777, target.encode())


def character_device(name: str, major: int, minor: int, permissions: int = 0o600) -> CpioEntry:
    """Make the entry of a character device: a description only, so it needs no right on this machine."""
    return CpioEntry(name, stat.S_IFCHR | permissions, b"", (major, minor))


def write_cpio(entries: Iterable[CpioEntry]) -> bytes:
    """Return the archive of `entries` and of the directories that they need.

    The same entries give the same bytes: sorted by name (a directory thus stands before what it holds), owned
    by root, modification time 0. Raises ImageError for two entries of one name and for a name that is not
    plain.
    """
    chosen: dict[str, CpioEntry] = {}
    for entry in entries:
        _check_name(entry.name)
        if entry.name in chosen:
            raise ImageError(f"two initramfs entries are named {entry.name!r}", reason="INITRAMFS_INVALID")
        chosen[entry.name] = entry
    for name in list(chosen):
        for parent in _parents(name):
            chosen.setdefault(parent, directory(parent))
    blocks = [_encode(inode, chosen[name]) for inode, name in enumerate(sorted(chosen), start=1)]
    return b"".join([*blocks, _encode(0, CpioEntry(_TRAILER, 0))])


def read_cpio(archive: bytes) -> Iterator[CpioEntry]:
    """Yield the entries of one or more archives that follow each other, zero padding between them allowed.

    Raises ImageError for bytes that are no newc archive.
    """
    offset = 0
    while offset < len(archive):
        if archive[offset] == 0:
            offset += 1
            continue
        entry, offset = _decode(archive, offset)
        if entry.name != _TRAILER:
            yield entry


def _check_name(name: str) -> None:
    parts = name.split("/")
    if not name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise ImageError(f"an initramfs entry cannot be named {name!r}", reason="INITRAMFS_INVALID")


def _parents(name: str) -> Iterator[str]:
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def _encode(inode: int, entry: CpioEntry) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = _MAGIC + b"".join(b"%08x" % field for field in fields)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _decode(archive: bytes, offset: int) -> tuple[CpioEntry, int]:
    header = archive[offset : offset + _HEADER_BYTES]
    if len(header) < _HEADER_BYTES or header[:6] != _MAGIC:
        raise ImageError(f"byte {offset} starts no newc cpio entry", reason="INITRAMFS_INVALID")
    try:
        fields = [int(header[at : at + 8], 16) for at in range(6, _HEADER_BYTES, 8)]
    except ValueError as error:
        raise ImageError(
            f"byte {offset}: a cpio header field is not hexadecimal", reason="INITRAMFS_INVALID"
        ) from error
    mode, size, device, name_size = fields[1], fields[6], (fields[9], fields[10]), fields[11]
    # Alignment counts from the start of the archive, which itself is aligned.
    name_end = offset + _HEADER_BYTES + name_size
    data_start = name_end + (-(_HEADER_BYTES + name_size) % 4)
    data_end = data_start + size
    if name_size < 1 or data_end > len(archive):
        raise ImageError(f"byte {offset}: a cpio entry reaches past the end", reason="INITRAMFS_INVALID")
    name = archive[offset + _HEADER_BYTES : name_end - 1].decode(errors="surrogateescape")
    return CpioEntry(name, mode, archive[data_start:data_end], device), data_end + (-size % 4)
