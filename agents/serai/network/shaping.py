"""Bandwidth and delay of a virtual link at one hop. Pure: time goes in as an argument, in seconds.

The token bucket is in its virtual-scheduling form (GCRA, ITU-T I.371): when a frame may leave is known as
soon as it arrives, so nothing ticks and a late timer costs no bandwidth.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

BURST_SECONDS = 0.005
MIN_BURST_BYTES = 16 * 1024
"""The bucket holds 5 ms of the bandwidth, at least ten full Ethernet frames."""

QUEUE_SECONDS = 0.1
MIN_QUEUE_BYTES = 256 * 1024
"""Frames beyond the bandwidth wait as long as 0.1 s of it, at least 256 KiB; then they are dropped."""

MAX_DELAYED_BYTES = 32 * 1024 * 1024
"""What a delay line holds at most."""


class Shaper:
    """One direction of a segment: frames go in, and come out when bandwidth and delay allow."""

    def __init__(self, bandwidth_bps: int = 0, delay_seconds: float = 0.0) -> None:
        rate = bandwidth_bps / 8
        self._byte_seconds = 1 / rate if rate else 0.0
        self._burst_seconds = max(BURST_SECONDS, MIN_BURST_BYTES * self._byte_seconds)
        self._longest_wait = max(QUEUE_SECONDS, MIN_QUEUE_BYTES * self._byte_seconds)
        self._delay = delay_seconds
        self._queue: deque[tuple[float, bytes]] = deque()
        self._queued_bytes = 0
        self._theoretical = 0.0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def next_release(self) -> float | None:
        """When the next frame may leave; None if none waits."""
        return self._queue[0][0] if self._queue else None

    def pass_through(self, frames: Sequence[bytes], now: float) -> Sequence[bytes]:
        """Take frames that arrive at `now`; returns those that may leave at once, in order."""
        if not self._byte_seconds and not self._delay:
            return frames
        for frame in frames:
            self._take(frame, now)
        return self.release(now)

    def release(self, now: float) -> list[bytes]:
        """The frames whose time has come."""
        queue = self._queue
        out: list[bytes] = []
        while queue and queue[0][0] <= now:
            frame = queue.popleft()[1]
            self._queued_bytes -= len(frame)
            out.append(frame)
        return out

    def _take(self, frame: bytes, now: float) -> None:
        size = len(frame)
        theoretical = max(self._theoretical, now)
        # With no limit of bandwidth byte_seconds is 0, theoretical is now, and the wait is below 0.
        wait = theoretical - self._burst_seconds - now
        if wait > self._longest_wait or self._queued_bytes + size > MAX_DELAYED_BYTES:
            self.dropped += 1
            return
        self._theoretical = theoretical + size * self._byte_seconds
        self._queue.append((now + max(wait, 0.0) + self._delay, frame))
        self._queued_bytes += size
