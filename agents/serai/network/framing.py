"""How frames lie in the records between two agents. Pure.

::

    FRAMES       { label u64, length u32, frame } ...
    REDIRECTED   guest uid length u8, guest uid, interface length u8, interface, then as FRAMES with label 0

All numbers are big-endian. REDIRECTED carries frames for a guest that has moved to the receiver.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

from serai.errors import IntegrityError
from serai.network.ports import MAX_FRAME_BYTES, MIN_FRAME_BYTES
from serai.network.switch import GuestPort

FRAMES, REDIRECTED = 1, 2
BATCH_FRAMES = 64
BATCH_BYTES = 256 * 1024
"""A record holds at most so many frames and bytes."""

_ENTRY = struct.Struct("!QI")

Target: TypeAlias = int | GuestPort
"""A label, or the port of a guest that has moved to the peer."""

Queue: TypeAlias = deque[tuple[Target, bytes]]


@dataclass(frozen=True, slots=True)
class PackedRecord:
    """A record's kind and length, and the bytes of the frames in it."""

    kind: int
    length: int
    frame_bytes: int


def pack_record(queue: Queue, payload: memoryview) -> PackedRecord:
    """Move frames from the queue (not empty) into `payload`, which has at least BATCH_BYTES."""
    target = queue[0][0]
    if isinstance(target, GuestPort):
        return _pack_redirected(queue, target, payload)
    return PackedRecord(FRAMES, *_pack_entries(queue, None, payload, 0))


def _pack_redirected(queue: Queue, port: GuestPort, payload: memoryview) -> PackedRecord:
    offset = 0
    for text in (port.guest_uid, port.interface):
        encoded = text.encode()
        payload[offset] = len(encoded)
        payload[offset + 1 : offset + 1 + len(encoded)] = encoded
        offset += 1 + len(encoded)
    return PackedRecord(REDIRECTED, *_pack_entries(queue, port, payload, offset))


def _pack_entries(queue: Queue, port: GuestPort | None, payload: memoryview, offset: int) -> tuple[int, int]:
    """Entries for `port`, or with labels when it is None, until the queue turns to something else."""
    pack, head = _ENTRY.pack_into, _ENTRY.size
    frame_bytes = 0
    for _ in range(BATCH_FRAMES):
        if not queue:
            break
        target, frame = queue[0]
        start = offset + head
        end = start + len(frame)
        if end > BATCH_BYTES:
            break
        if isinstance(target, int):
            if port is not None:
                break
            pack(payload, offset, target, len(frame))
        elif target == port:
            pack(payload, offset, 0, len(frame))
        else:
            break
        payload[start:end] = frame
        offset = end
        frame_bytes += len(frame)
        queue.popleft()
    return offset, frame_bytes


def parse_frames(payload: memoryview, offset: int = 0) -> list[tuple[int, list[bytes]]]:
    """Runs of frames with the same label, in order.

    Raises IntegrityError for anything that is not such a record.
    """
    runs: list[tuple[int, list[bytes]]] = []
    current, frames = -1, list[bytes]()
    end, unpack, head = len(payload), _ENTRY.unpack_from, _ENTRY.size
    while offset < end:
        start = offset + head
        if start > end:
            raise IntegrityError("a record of frames ends within an entry", reason="BAD_FRAMES")
        label, length = unpack(payload, offset)
        offset = start + length
        if offset > end or not MIN_FRAME_BYTES <= length <= MAX_FRAME_BYTES:
            raise IntegrityError(f"a record of frames claims a frame of {length} bytes", reason="BAD_FRAMES")
        if label != current:
            current, frames = label, []
            runs.append((label, frames))
        frames.append(bytes(payload[start:offset]))
    return runs


def parse_redirected(payload: memoryview) -> tuple[GuestPort, list[bytes]]:
    """Port and frames of a REDIRECTED record; IntegrityError for anything else."""
    names: list[str] = []
    offset = 0
    try:
        for _ in range(2):
            end = offset + 1 + payload[offset]
            if end > len(payload):
                raise IndexError
            names.append(bytes(payload[offset + 1 : end]).decode())
            offset = end
    except (IndexError, UnicodeDecodeError):
        raise IntegrityError("a record of redirected frames names no port", reason="BAD_FRAMES") from None
    frames = [frame for _, run in parse_frames(payload, offset) for frame in run]
    return GuestPort(*names), frames
