"""Further stations on the wire of a guest's port: what an attached end user sends and gets.

The port becomes a small bridge between the guest, its wire and the stations. A station has one MAC address
and can send from no other, so nobody can take a guest's frames away by claiming its address. A station gets
what is addressed to it or to a group, never the guest's own traffic.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Self

from serai.errors import InvalidInputError

QUEUE_FRAMES = 4096
MAC_BYTES = 6


class Tap:
    """A station. Iterate over it for the batches of frames that it gets; close it to end."""

    def __init__(
        self, mac: bytes, send: Callable[[Tap, Sequence[bytes]], None], forget: Callable[[Tap], None]
    ) -> None:
        self.mac = check_mac(mac)
        self.lost = 0
        """Frames that it did not get because it was slow."""
        self.refused = 0
        """Frames that it may not send: not its MAC address, or not a frame."""
        self._send = send
        self._forget = forget
        self._frames: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._closed = False

    def send(self, frames: Sequence[bytes]) -> None:
        """Put frames on the wire."""
        if not self._closed:
            self._send(self, frames)

    def receive(self, frame: bytes) -> None:
        """Called by the port for each frame that the station gets."""
        if len(self._frames) >= QUEUE_FRAMES:
            self.lost += 1
            return
        self._frames.append(frame)
        self._changed.set()

    def close(self) -> None:
        """Leave the wire; the iteration ends after the frames that were taken."""
        if not self._closed:
            self._closed = True
            self._forget(self)
            self._changed.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[bytes]:
        while not self._frames:
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        batch = list(self._frames)
        self._frames.clear()
        return batch


def check_mac(mac: bytes) -> bytes:
    """`mac` if a station can have it: 6 bytes, not a group's, not all zero; else InvalidInputError."""
    if len(mac) != MAC_BYTES or mac[0] & 1 or not any(mac):
        raise InvalidInputError(
            f"{mac.hex(':') or 'nothing'} is not a station's MAC address", hint="give 6 bytes of one station"
        )
    return mac


def is_group(frame: bytes) -> bool:
    """Whether it is for several: the lowest bit of its first byte (IEEE 802.3, 3.2.3)."""
    return bool(frame[0] & 1)


def share(taps: Sequence[Tap], frames: Sequence[bytes], sender: Tap | None = None) -> list[bytes]:
    """Give the stations what is theirs; what is for others too is returned."""
    by_mac = {tap.mac: tap for tap in taps}
    rest = []
    for frame in frames:
        owner = by_mac.get(frame[:MAC_BYTES])
        if owner is not None:
            if owner is not sender:
                owner.receive(frame)
            continue
        rest.append(frame)
        if is_group(frame):
            for tap in taps:
                if tap is not sender:
                    tap.receive(frame)
    return rest
