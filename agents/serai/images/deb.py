"""Reading .deb packages without dpkg: ar(5) outside, a compressed tar inside, streamed, nothing trusted.

A package is never unpacked: callers name what they want and get its bytes. So no name, link or device inside
a package can reach this machine's file system. Format: deb(5); xz, gzip and zstd members are read.
"""

from __future__ import annotations

import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from serai.errors import ImageError

from .progress import Progress, silent

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER_BYTES = 60
_CHUNK_BYTES = 1 << 20
# xz -9 needs 65 MiB to unpack; a stream that asks for more is not from a package builder.
_XZ_MEMORY_BYTES = 256 << 20
# Debian's kernel package unpacks to 138 MB. The limits stop a decompression bomb, not a real package.
_UNPACKED_LIMIT_BYTES = 4 << 30
_FILE_LIMIT_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class DebFile:
    """One regular file of a package; `name` is relative, without the leading ``./``."""

    name: str
    data: bytes


def read_files(
    package: Path, wanted: Callable[[str], bool], *, step: str = "unpack", progress: Progress = silent
) -> Iterator[DebFile]:
    """Yield the files of `package` whose name is wanted, in the package's order.

    The caller may stop early. Raises ImageError, naming the package, for anything that is not a sound .deb,
    for a wanted name that is not a regular file, and for sizes beyond what a package can have.
    """
    try:
        with package.open("rb") as source:
            name, size = _find_data_member(source, package)
            window = _Window(source, size, step, progress)
            unpacked = io.BufferedReader(_Unpacked(window, _decompressor(name, package)), _CHUNK_BYTES)
            yield from _tar_files(unpacked, wanted, package)
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, ValueError, UnicodeError) as error:
        raise _damaged(package, str(error) or type(error).__name__) from error


def _find_data_member(source: IO[bytes], package: Path) -> tuple[str, int]:
    """Leave `source` at the start of the member data.tar.*; return its name and size in bytes."""
    if source.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise _damaged(package, "it is not an ar archive")
    while header := source.read(_AR_HEADER_BYTES):
        if len(header) < _AR_HEADER_BYTES or header[58:60] != b"`\n":
            raise _damaged(package, "an ar header is broken")
        name = header[:16].decode("ascii").strip().rstrip("/")
        digits = header[48:58].decode("ascii").strip()
        if not digits.isdecimal():
            raise _damaged(package, f"the size of member {name!r} is not a number")
        size = int(digits)
        if name.startswith("data.tar"):
            return name, size
        source.seek(size + size % 2, io.SEEK_CUR)
    raise _damaged(package, "it has no member data.tar")


class Decompressor(Protocol):
    """What lzma and zstd decompressors have in common."""

    @property
    def eof(self) -> bool:
        """Tell whether the compressed stream has ended."""

    @property
    def needs_input(self) -> bool:
        """Tell whether more compressed bytes are needed to go on."""

    @property
    def unused_data(self) -> bytes:
        """Return what follows the end of the stream."""

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """Take compressed bytes and return at most `max_length` bytes."""


def _decompressor(name: str, package: Path) -> Callable[[], Decompressor]:
    suffix = name.removeprefix("data.tar")
    if suffix == ".xz":
        return lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY_BYTES)
    if suffix == ".gz":
        return _Gzip
    if suffix == "":
        return _Stored
    if suffix == ".zst":
        return _zstd(package)
    raise _damaged(package, f"the compression {suffix!r} is not known")


def _zstd(package: Path) -> Callable[[], Decompressor]:
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415  Python 3.14
    except ImportError as error:
        raise ImageError(
            f"{package.name} is compressed with zstd, which this Python cannot read",
            hint="run Serai on Python 3.14 or later, or use a Debian mirror: its packages are xz",
            reason="COMPRESSION_UNSUPPORTED",
        ) from error
    make: Callable[[], Decompressor] = zstd.ZstdDecompressor
    return make


class _Stored:
    """The decompressor of what is not compressed."""

    eof, needs_input, unused_data = False, True, b""

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return data


class _Gzip:
    """zlib's decompressor with the interface of the others."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max(max_length, 0))


class _Window:
    """The next `size` bytes of a file, read once."""

    def __init__(self, source: IO[bytes], size: int, step: str, progress: Progress) -> None:
        self._source, self._size, self._left = source, size, size
        self._step, self._progress = step, progress

    def read_chunk(self) -> bytes:
        chunk = self._source.read(min(_CHUNK_BYTES, self._left))
        if not chunk and self._left:
            raise EOFError("it is cut short")
        self._left -= len(chunk)
        self._progress(self._step, self._size - self._left, self._size)
        return chunk


class _Unpacked(io.RawIOBase):
    """The decompressed content of a window, as a stream that keeps to a limit."""

    def __init__(self, window: _Window, make: Callable[[], Decompressor]) -> None:
        self._window, self._make, self._decompressor = window, make, make()
        self._produced = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` with at least one byte, or return 0 at the end."""
        while True:
            chunk = b""
            if self._decompressor.eof:
                chunk = self._decompressor.unused_data or self._window.read_chunk()
                if not chunk:
                    return 0
                self._decompressor = self._make()
            elif self._decompressor.needs_input:
                chunk = self._window.read_chunk()
                if not chunk:
                    return self._end()
            data = self._decompressor.decompress(chunk, len(buffer))
            if data:
                return self._take(data, buffer)

    def _end(self) -> int:
        if isinstance(self._decompressor, _Stored):
            return 0
        raise EOFError("its compressed data are cut short")

    def _take(self, data: bytes, buffer: memoryview) -> int:
        self._produced += len(data)
        if self._produced > _UNPACKED_LIMIT_BYTES:
            raise ValueError(f"it unpacks to more than {_UNPACKED_LIMIT_BYTES} bytes")
        buffer[: len(data)] = data
        return len(data)


def _tar_files(stream: IO[bytes], wanted: Callable[[str], bool], package: Path) -> Iterator[DebFile]:
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if not wanted(name):
                continue
            if not member.isreg():
                raise _damaged(package, f"{name!r} is not a regular file")
            if member.size > _FILE_LIMIT_BYTES:
                raise _damaged(package, f"{name!r} has {member.size} bytes, more than {_FILE_LIMIT_BYTES}")
            content = archive.extractfile(member)
            data = content.read() if content else b""
            if len(data) != member.size:
                raise _damaged(package, f"{name!r} is cut short")
            yield DebFile(name, data)
    # The archive ends before the compressed stream does, whose checksum comes last.
    while stream.read(_CHUNK_BYTES):
        pass


def _damaged(package: Path, problem: str) -> ImageError:
    return ImageError(
        f"package {package.name} is damaged: {problem}",
        hint="build the image again, with another mirror if it happens twice",
        reason="PACKAGE_DAMAGED",
        package=package.name,
    )
