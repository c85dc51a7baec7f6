"""Guests' ports as the switch sees them: deliver, hold while a guest is frozen, redirect when it has left.

::

    HELD --bind--> BOUND --hold--> HELD --redirect--> REDIRECTED
                     \\----------- redirect ----------/
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serai.hypervisor.driver import FramePort
from serai.network.capture import Capture
from serai.network.switch import GuestPort
from serai.network.taps import MAC_BYTES, Tap, is_group, share

MIN_FRAME_BYTES = 14
MAX_FRAME_BYTES = 65535 + 18
"""An Ethernet header alone; the largest IP packet behind a header with a VLAN tag (IEEE 802.1Q)."""

HOLD_FRAMES = 4096
HOLD_BYTES = 4 * 1024 * 1024
"""What a port holds for a guest that cannot take frames now; then frames are dropped and counted."""

_RETRY_SECONDS = 0.001
_MAX_OWN = 64


class PortState(enum.Enum):
    """Where frames for the guest go."""

    HELD = "held"
    BOUND = "bound"
    REDIRECTED = "redirected"


@dataclass(slots=True)
class PortCounters:
    """`in` is towards the guest. Frames are counted as held or redirected beside being counted in."""

    frames_in: int = 0
    bytes_in: int = 0
    frames_out: int = 0
    bytes_out: int = 0
    held: int = 0
    redirected: int = 0
    dropped_in: int = 0
    dropped_out: int = 0


class Port:
    """One guest port. `transmit` takes the frames that the guest sends."""

    def __init__(self, name: GuestPort, transmit: Callable[[GuestPort, Sequence[bytes]], None]) -> None:
        self.name = name
        self.state = PortState.HELD
        self.redirect_from: str | None = None
        """The only peer that may send frames for this port by redirection."""
        self.counters = PortCounters()
        self.captures: list[Capture] = []
        self.taps: list[Tap] = []
        """Further stations on the guest's wire."""
        self._own: set[bytes] = set()
        """MAC addresses that the guest has sent from, noted while there are such stations."""
        self._transmit = transmit
        self._driver: FramePort | None = None
        self._redirect: Callable[[Sequence[bytes]], None] | None = None
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._retry: asyncio.TimerHandle | None = None

    @property
    def backlog(self) -> int:
        """Frames held, or bound and not yet taken by the guest."""
        return len(self._backlog)

    def receive(self, frames: Sequence[bytes]) -> None:
        """Frames for the guest arrive from the switch; never blocks."""
        if self.taps:
            frames = share(self.taps, frames)
        self._into_guest(frames)

    def join(self, mac: bytes) -> Tap:
        """A further station on the wire; one that has the address already is replaced."""
        for present in [tap for tap in self.taps if tap.mac == mac]:
            present.close()
        tap = Tap(mac, self._from_tap, self.taps.remove)
        self.taps.append(tap)
        return tap

    def _from_tap(self, tap: Tap, frames: Sequence[bytes]) -> None:
        good = [
            frame
            for frame in frames
            if MIN_FRAME_BYTES <= len(frame) <= MAX_FRAME_BYTES
            and frame[MAC_BYTES : 2 * MAC_BYTES] == tap.mac
        ]
        tap.refused += len(frames) - len(good)
        rest = share(self.taps, good, tap)
        if rest:
            self._into_guest(rest)
        beyond = [frame for frame in rest if is_group(frame) or frame[:MAC_BYTES] not in self._own]
        if beyond:
            self._transmit(self.name, beyond)

    def _into_guest(self, frames: Sequence[bytes]) -> None:
        for capture in self.captures:
            capture.record(self.name, True, frames)
        self.counters.frames_in += len(frames)
        self.counters.bytes_in += sum(map(len, frames))
        if self._redirect is not None:
            self.counters.redirected += len(frames)
            self._redirect(frames)
        elif self._driver is None or self.state is PortState.HELD or self._backlog:
            self._hold(frames)
        else:
            self._deliver(self._driver, frames)

    def bind(self, driver: FramePort) -> None:
        """The guest can take frames: those held first, in order, as fast as it takes them."""
        if driver is not self._driver:
            self._detach()
        self._redirect = None
        self._driver = driver
        self.state = PortState.BOUND
        driver.set_receiver(self._sent)
        self._drain()

    def hold(self) -> None:
        """The guest is frozen or not here yet: keep what arrives.

        What it had sent before it was frozen may still be on its way out of the driver and is forwarded.
        """
        self._stop_draining()
        self._redirect = None
        self.state = PortState.HELD

    def redirect(self, send: Callable[[Sequence[bytes]], None]) -> None:
        """The guest has left: hand what is held and what still arrives to `send`."""
        self._detach()
        self._redirect = send
        self.state = PortState.REDIRECTED
        held = self._empty_backlog()
        if held:
            self.counters.redirected += len(held)
            send(held)

    def close(self) -> None:
        """Forget the guest; what is held is dropped."""
        self._detach()
        self.hold()
        self.counters.dropped_in += len(self._backlog)
        self._empty_backlog()
        for capture in list(self.captures):
            capture.close()
        for tap in list(self.taps):
            tap.close()

    def _empty_backlog(self) -> list[bytes]:
        frames = list(self._backlog)
        self._backlog.clear()
        self._backlog_bytes = 0
        return frames

    def _detach(self) -> None:
        if self._driver is not None:
            self._driver.set_receiver(None)
            self._driver = None
        self._stop_draining()

    def _stop_draining(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _sent(self, frames: Sequence[bytes]) -> None:
        """The guest has sent frames. Whatever it sends is only ever bytes between two lengths."""
        good = [frame for frame in frames if MIN_FRAME_BYTES <= len(frame) <= MAX_FRAME_BYTES]
        self.counters.dropped_out += len(frames) - len(good)
        self.counters.frames_out += len(good)
        self.counters.bytes_out += sum(map(len, good))
        for capture in self.captures:
            capture.record(self.name, False, good)
        if self.taps:
            self._note_own(good)
            good = share(self.taps, good)
        self._transmit(self.name, good)

    def _note_own(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            if len(self._own) < _MAX_OWN:
                self._own.add(frame[MAC_BYTES : 2 * MAC_BYTES])

    def _deliver(self, driver: FramePort, frames: Sequence[bytes]) -> None:
        for frame in frames:
            if not driver.deliver(frame):
                self.counters.dropped_in += 1

    def _hold(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            if len(self._backlog) >= HOLD_FRAMES or self._backlog_bytes + len(frame) > HOLD_BYTES:
                self.counters.dropped_in += 1
                continue
            self._backlog.append(frame)
            self._backlog_bytes += len(frame)
            self.counters.held += 1

    def _drain(self) -> None:
        """Give the backlog to the guest; more of it later when the guest's queue is full."""
        self._retry = None
        driver = self._driver
        while driver is not None and self._backlog:
            frame = self._backlog[0]
            if not driver.deliver(frame):
                self._retry = asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._drain)
                return
            self._backlog.popleft()
            self._backlog_bytes -= len(frame)
