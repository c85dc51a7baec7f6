"""Block device (VIRTIO 1.2, section 5.2) on a file of the host."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from serai.machine.errors import ConfigurationError, SnapshotError, VirtqueueError
from serai.machine.memory import GuestMemory
from serai.machine.snapshot import Section, load_section
from serai.machine.virtio.queue import Chain, gather
from serai.machine.virtio.transport import VirtioDevice

FEATURE_SEGMENT_MAXIMUM = 1 << 2
FEATURE_READ_ONLY = 1 << 5
FEATURE_BLOCK_SIZE = 1 << 6
FEATURE_FLUSH = 1 << 9

SECTOR = 512

_IN, _OUT, _FLUSH, _GET_ID = 0, 1, 4, 8
_OK, _IO_ERROR, _UNSUPPORTED = 0, 1, 2
_HEADER = struct.Struct("<IIQ")
_QUEUE_SIZE = 128
_ID_BYTES = 20


@dataclass
class BlockState:
    """Nothing is in flight between two requests; the capacity guards against another disk."""

    VERSION: ClassVar[int] = 1

    sectors: int


class Block(VirtioDevice):
    """The device. Requests are served one after the other, from the host's page cache."""

    device_id = 2
    queue_sizes = (_QUEUE_SIZE,)

    def __init__(self, name: str, path: Path, *, read_only: bool = False) -> None:
        try:
            self._file = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigurationError(f"disk {path} cannot be opened: {error.strerror}") from None
        self._sectors = os.lseek(self._file, 0, os.SEEK_END) // SECTOR
        self._read_only = read_only
        # capacity, size_max, seg_max, geometry, blk_size
        configuration = struct.pack("<QII4sI", self._sectors, 0, _QUEUE_SIZE - 2, bytes(4), SECTOR)
        features = FEATURE_SEGMENT_MAXIMUM | FEATURE_BLOCK_SIZE | FEATURE_FLUSH
        super().__init__(
            name,
            features=features | (FEATURE_READ_ONLY if read_only else 0),
            configuration=configuration,
        )

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def serve(self, index: int) -> None:
        """See `VirtioDevice.serve`."""
        queue = self.transport.queues[index]
        done = False
        while (chain := queue.pop()) is not None:
            queue.push(chain.head, self._execute(chain))
            done = True
        if done:
            queue.publish()

    def _execute(self, chain: Chain) -> int:
        """Serve one request; returns the bytes written into it, the status byte included."""
        memory = self.transport.memory
        if chain.readable_bytes < _HEADER.size or chain.writable_bytes < 1:
            raise VirtqueueError("a block request without header or without room for its status")
        sent = gather(memory, chain.readable)
        kind, _, sector = _HEADER.unpack_from(sent)
        *whole, (last_address, last_length) = [buffer for buffer in chain.writable if buffer[1]]
        room = [*whole, (last_address, last_length - 1)] if last_length > 1 else whole
        try:
            status, written = self._dispatch(memory, kind, sector, memoryview(sent)[_HEADER.size :], room)
        except OSError:
            status, written = _IO_ERROR, 0
        memory.write(last_address + last_length - 1, bytes([status]))
        return written + 1

    def _dispatch(
        self, memory: GuestMemory, kind: int, sector: int, data: memoryview, room: list[tuple[int, int]]
    ) -> tuple[int, int]:
        if kind == _IN:
            return self._read(memory, sector, room)
        if kind == _OUT:
            return self._write(sector, data), 0
        if kind == _FLUSH:
            if not self._read_only:
                os.fdatasync(self._file)
            return _OK, 0
        if kind == _GET_ID and room:
            identity = self.name.encode()[:_ID_BYTES].ljust(_ID_BYTES, b"\0")[: room[0][1]]
            memory.write(room[0][0], identity)
            return _OK, len(identity)
        return _UNSUPPORTED, 0

    def _in_range(self, sector: int, length: int) -> bool:
        return length % SECTOR == 0 and sector + length // SECTOR <= self._sectors

    def _read(self, memory: GuestMemory, sector: int, room: list[tuple[int, int]]) -> tuple[int, int]:
        length = sum(size for _, size in room)
        if not self._in_range(sector, length):
            return _IO_ERROR, 0
        position = sector * SECTOR
        for address, size in room:
            if os.preadv(self._file, [memory.view(address, size)], position) != size:
                return _IO_ERROR, 0
            memory.wrote(address, size)
            position += size
        return _OK, length

    def _write(self, sector: int, data: memoryview) -> int:
        if self._read_only or not self._in_range(sector, len(data)):
            return _IO_ERROR
        position = sector * SECTOR
        while data:
            written = os.pwrite(self._file, data, position)
            position += written
            data = data[written:]
        return _OK

    def save(self) -> BlockState:
        """See `VirtioDevice.save`."""
        return BlockState(self._sectors)

    def restore(self, sections: dict[str, Section], name: str) -> None:
        """See `VirtioDevice.restore`."""
        state = load_section(sections, name, BlockState)
        if state.sectors != self._sectors:
            raise SnapshotError(name, f"its disk had {state.sectors} sectors, this one has {self._sectors}")
