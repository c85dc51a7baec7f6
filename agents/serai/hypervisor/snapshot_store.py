r"""Snapshots of guests on this node's disk: written whole or not at all, checked before they are used.

A directory per snapshot::

    manifest.json   format, shape, digests; its own SHA-256 over everything else in it
    state           registers and devices, in the format of `serai.machine.snapshot`
    ram             as long as the guest's memory; chunks of zeros are holes

It is written under a name that begins with a dot and renamed when everything is on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from serai.errors import AlreadyExistsError, CapacityError, HypervisorError, NotFoundError
from serai.hypervisor.driver import PAGE_SIZE

FORMAT = 1
CHUNK = 1 << 20
"""Bytes of RAM under one digest."""

_UNFINISHED = ".new-"
_HOLE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of a snapshot. `description` is its owner's own, in hexadecimal."""

    format: int
    name: str
    guest_uid: str
    snapshot_version: int
    memory_bytes: int
    state_sha256: str
    ram_sha256: list[str]
    """By chunk; empty for one of zeros."""
    description: str

    @property
    def stored_bytes(self) -> int:
        """Of RAM in chunks that are not all zero."""
        return min(sum(CHUNK for digest in self.ram_sha256 if digest), self.memory_bytes)

    def encode(self) -> bytes:
        """As it stands on the disk."""
        content = asdict(self)
        return json.dumps({**content, "sha256": _digest_of(content)}, indent=1).encode()


@dataclass(frozen=True, slots=True)
class Stored:
    """A snapshot on the disk."""

    directory: Path
    manifest: Manifest

    def state(self) -> bytes:
        """Registers and devices. Raises HypervisorError when they are damaged."""
        with _reading(self.manifest.name, "state"):
            state = (self.directory / "state").read_bytes()
        if hashlib.sha256(state).hexdigest() != self.manifest.state_sha256:
            raise damaged(self.manifest.name, "state", "its checksum does not match")
        return state

    def open_ram(self) -> int:
        """A descriptor of the RAM file, which the caller closes. Raises HypervisorError."""
        with _reading(self.manifest.name, "ram"):
            descriptor = os.open(self.directory / "ram", os.O_RDONLY | os.O_CLOEXEC)
        if os.fstat(descriptor).st_size != self.manifest.memory_bytes:
            os.close(descriptor)
            raise damaged(self.manifest.name, "ram", "its length is wrong")
        return descriptor

    def check_ram(self, descriptor: int) -> None:
        """Compare all of RAM with its digests. Raises HypervisorError naming the first chunk that differs."""
        with _reading(self.manifest.name, "ram"):
            for number, digest in enumerate(ram_digests(descriptor, self.manifest.memory_bytes)):
                if digest != self.manifest.ram_sha256[number]:
                    where = f"ram at {number * CHUNK:#x}"
                    raise damaged(self.manifest.name, where, "its checksum does not match")


class SnapshotStore:
    """The snapshots below `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in directory.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(left, ignore_errors=True)

    def list(self) -> list[Stored]:
        """All that can be read; the others are named in errors when they are asked for."""
        found = []
        for path in sorted(self._directory.iterdir()):
            if not path.name.startswith("."):
                with contextlib.suppress(HypervisorError, NotFoundError):
                    found.append(self.get(path.name))
        return found

    def get(self, name: str) -> Stored:
        """Raises NotFoundError, or HypervisorError when its manifest is damaged or of another format."""
        directory = self._directory / name
        if name.startswith(".") or "/" in name or not directory.is_dir():
            raise NotFoundError(f"snapshots/{name} is not on this node", hint="list the snapshots")
        with _reading(name, "manifest"):
            raw = (directory / "manifest.json").read_bytes()
        return Stored(directory, _decode(name, raw))

    def expect_free(self, name: str) -> None:
        """AlreadyExistsError when there is a snapshot of this name."""
        if (self._directory / name).exists():
            raise AlreadyExistsError(f"snapshots/{name} exists on this node", hint="choose another name")

    def delete(self, name: str) -> None:
        """Raises NotFoundError. Guests that were copied from it keep what they share with it."""
        if name.startswith(".") or "/" in name or not (self._directory / name).is_dir():
            raise NotFoundError(f"snapshots/{name} is not on this node", hint="list the snapshots")
        doomed = self._directory / f"{_UNFINISHED}deleted-{name}"
        shutil.rmtree(doomed, ignore_errors=True)
        (self._directory / name).rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def begin(self, name: str, memory_bytes: int) -> SnapshotWriter:
        """Start to write one. Raises AlreadyExistsError, CapacityError when the disk is full."""
        self.expect_free(name)
        directory = self._directory / f"{_UNFINISHED}{name}"
        with _writing(name):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(mode=0o700)
            return SnapshotWriter(directory, self._directory / name, memory_bytes)


class SnapshotWriter:
    """A snapshot in the making; `finish` or `abandon` it. Methods block: call them off the event loop."""

    def __init__(self, directory: Path, target: Path, memory_bytes: int) -> None:
        self._directory = directory
        self._target = target
        self._memory_bytes = memory_bytes
        self._ram = os.open(directory / "ram", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._ram, memory_bytes)
        self._written = np.zeros(memory_bytes // PAGE_SIZE, dtype=np.bool_)

    def write_all(self, ram: memoryview) -> None:
        """All of RAM but zeros."""
        zeros = bytes(_HOLE)
        with _writing(self._target.name):
            for start in range(0, self._memory_bytes, _HOLE):
                piece = ram[start : start + _HOLE]
                if piece != zeros[: len(piece)]:
                    _write(self._ram, piece, start)
                    self._written[start // PAGE_SIZE : (start + len(piece)) // PAGE_SIZE] = True

    def write_pages(self, numbers: np.ndarray[Any, Any], contents: np.ndarray[Any, Any]) -> None:
        """Pages by number; `contents` has a row of PAGE_SIZE bytes for each. Zeros stay holes."""
        with _writing(self._target.name):
            for row in np.flatnonzero(contents.any(axis=1) | self._written[numbers]):
                _write(self._ram, memoryview(contents[row]), int(numbers[row]) * PAGE_SIZE)
        self._written[numbers] = True

    def finish(
        self, *, guest_uid: str, snapshot_version: int, state: bytes, description: bytes
    ) -> tuple[Stored, int]:
        """Make it durable and visible; the snapshot, and a descriptor of its RAM, which is the caller's."""
        with _writing(self._target.name):
            manifest = Manifest(
                format=FORMAT,
                name=self._target.name,
                guest_uid=guest_uid,
                snapshot_version=snapshot_version,
                memory_bytes=self._memory_bytes,
                state_sha256=hashlib.sha256(state).hexdigest(),
                ram_sha256=list(ram_digests(self._ram, self._memory_bytes)),
                description=description.hex(),
            )
            os.fdatasync(self._ram)
            for name, content in (("state", state), ("manifest.json", manifest.encode())):
                _write_durably(self._directory / name, content)
            _sync_directory(self._directory)
            self._directory.rename(self._target)
            _sync_directory(self._target.parent)
        ram, self._ram = self._ram, -1
        return Stored(self._target, manifest), ram

    def abandon(self) -> None:
        """Leave nothing; nothing happens after `finish`."""
        if self._ram >= 0:
            os.close(self._ram)
            self._ram = -1
            shutil.rmtree(self._directory, ignore_errors=True)


def page_numbers(bitmap: bytes, count: int) -> np.ndarray[Any, Any]:
    """The pages of a dirty bitmap."""
    bits = np.unpackbits(np.frombuffer(bitmap, dtype=np.uint8), bitorder="little")[:count]
    return np.flatnonzero(bits)


def ram_digests(descriptor: int, length: int) -> Iterator[str]:
    """SHA-256 by chunk, empty for zeros."""
    zeros = bytes(CHUNK)
    for start in range(0, length, CHUNK):
        chunk = os.pread(descriptor, min(CHUNK, length - start), start)
        if len(chunk) < min(CHUNK, length - start):
            raise OSError(errno.EIO, "the file ends too early")
        yield "" if chunk == zeros[: len(chunk)] else hashlib.sha256(chunk).hexdigest()


def damaged(name: str, part: str, what: str) -> HypervisorError:
    """The error for a part of a snapshot that cannot be used."""
    return HypervisorError(
        f"snapshots/{name}: {part}: {what}",
        hint="it cannot be used any more: delete it",
        reason="SNAPSHOT_DAMAGED",
        part=part,
    )


def _decode(name: str, raw: bytes) -> Manifest:
    try:
        content = json.loads(raw)
        digest = content.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise damaged(name, "manifest", "it cannot be read") from None
    if digest != _digest_of(content):
        raise damaged(name, "manifest", "its checksum does not match")
    if content.get("format") != FORMAT:
        raise HypervisorError(
            f"snapshots/{name} is of format {content.get('format')}, this version knows {FORMAT}",
            hint="use it with the version of Serai that wrote it",
            reason="SNAPSHOT_VERSION",
        )
    if set(content) != {field.name for field in fields(Manifest)}:
        raise damaged(name, "manifest", "it has other fields than a manifest has")
    return Manifest(**content)


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write(descriptor: int, content: memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _writing(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise CapacityError(
                f"snapshots/{name} does not fit on the disk", hint="delete others", reason="DISK_FULL"
            ) from None
        raise HypervisorError(f"snapshots/{name} cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def _reading(name: str, part: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise damaged(name, part, f"it cannot be read: {error.strerror or error}") from None
