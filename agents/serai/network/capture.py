"""Copies of the frames that pass a guest's port, for whoever watches.

A slow watcher loses frames, counted.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from serai.network.switch import GuestPort

QUEUE_FRAMES = 4096


@dataclass(frozen=True, slots=True)
class CapturedFrame:
    """`time` is seconds since the epoch; `inbound` goes to the guest; `lost` counts those missed so far."""

    time: float
    port: GuestPort
    inbound: bool
    data: bytes
    original_length: int
    lost: int


class Capture:
    """Iterate over it for frames; close it (or leave its ``with``) to end."""

    def __init__(self, snapshot_length: int, forget: Callable[[Capture], None]) -> None:
        self._length = snapshot_length or None
        self._forget = forget
        self._frames: deque[CapturedFrame] = deque()
        self._changed = asyncio.Event()
        self._closed = False
        self.lost = 0

    def record(self, port: GuestPort, inbound: bool, frames: Sequence[bytes]) -> None:
        """Called by the port for each batch that passes it."""
        now = time.time()
        for frame in frames:
            if len(self._frames) >= QUEUE_FRAMES:
                self.lost += 1
                continue
            copy = frame[: self._length]
            self._frames.append(CapturedFrame(now, port, inbound, copy, len(frame), self.lost))
        self._changed.set()

    def close(self) -> None:
        """No more frames; the iteration ends after those that were taken."""
        if not self._closed:
            self._closed = True
            self._forget(self)
            self._changed.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> CapturedFrame:
        while not self._frames:
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._frames.popleft()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
