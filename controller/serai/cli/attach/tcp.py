"""The calling side of TCP (RFC 9293) as a state machine: segments and time in, segments and bytes out. Pure.

Small on purpose: what arrives out of order is dropped and asked for again, lost data is sent again from the
first byte that is missing (go back N) with a timeout that doubles (RFC 6298, 5.5), and no more is under way
than the peer's window. The path is a virtual link, not the Internet: there is no congestion control.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from serai.cli.attach.packets import ACK, FIN, PSH, RST, SYN, Segment
from serai.errors import UnavailableError

MSS = 1400
RECEIVE_BYTES = 65535
SEND_BYTES = 256 * 1024
"""What `write` takes before it asks its caller to wait."""
FIRST_TIMEOUT_S = 0.3
LONGEST_TIMEOUT_S = 5.0
MAX_RETRIES = 8
_DUPLICATES = 3
_MODULO = 1 << 32
_HALF = 1 << 31


class State(enum.Enum):
    """Of the connection; which directions have ended is told apart from it."""

    OPENING = "opening"
    OPEN = "open"
    CLOSED = "closed"


def _ahead(later: int, earlier: int) -> int:
    """How far `later` is behind `earlier` in the sequence space; negative when it is before it."""
    return (later - earlier + _HALF) % _MODULO - _HALF


@dataclass
class Connection:
    """One connection to `remote_port`. `outgoing` are segments to send, `received` bytes for the caller."""

    local_port: int
    remote_port: int
    initial_sequence: int
    now: float
    state: State = State.OPENING
    outgoing: list[Segment] = field(default_factory=list)
    received: bytearray = field(default_factory=bytearray)
    ended: bool = False
    """The peer will send no more."""
    failure: UnavailableError | None = None

    def __post_init__(self) -> None:
        self._first_unacknowledged = self.initial_sequence
        self._next = (self.initial_sequence + 1) % _MODULO
        self._expected = 0
        self._window = 0
        self._mss = MSS
        self._buffer = bytearray()
        """From the first unacknowledged byte on."""
        self._closing = False
        self._fin_sent = False
        self._retries = 0
        self._duplicates = 0
        self._advertised = RECEIVE_BYTES
        self._deadline: float | None = self.now + FIRST_TIMEOUT_S
        self._send_syn()

    @property
    def deadline(self) -> float | None:
        """When `tick` has something to do."""
        return self._deadline

    @property
    def room(self) -> int:
        """How much `write` may still be given."""
        return SEND_BYTES - len(self._buffer)

    @property
    def is_over(self) -> bool:
        """Whether both directions have ended, or it has failed."""
        return self.state is State.CLOSED

    def write(self, data: bytes, now: float) -> None:
        """Send `data`, now or when there is room in the peer's window."""
        if self.state is not State.CLOSED and not self._closing:
            self._buffer += data
            self._pump(now)

    def close(self, now: float) -> None:
        """Nothing more will be written."""
        if not self._closing:
            self._closing = True
            self._pump(now)

    def abort(self) -> None:
        """End at once and tell the peer."""
        if self.state is not State.CLOSED:
            self._emit(RST | ACK, self._next)
            self.state, self._deadline = State.CLOSED, None

    def read(self) -> bytes:
        """Take what has been received; the peer may send as much again."""
        data = bytes(self.received)
        self.received.clear()
        if data and self.state is State.OPEN and self._advertised < RECEIVE_BYTES // 2:
            self._acknowledge()
        return data

    def receive(self, segment: Segment, now: float) -> None:
        """A segment of this connection has arrived (RFC 9293, 3.10.7)."""
        if self.state is State.CLOSED:
            return
        if segment.flags & RST:
            if self._is_valid_reset(segment):
                self._fail("the other side refused or reset the connection")
            return
        if self.state is State.OPENING:
            self._open(segment, now)
            return
        if segment.flags & ACK:
            self._take_acknowledgement(segment, now)
        self._take_data(segment)
        self._finish_if_over()
        self._pump(now)

    def tick(self, now: float) -> None:
        """Send again what has not been acknowledged in time."""
        if self._deadline is None or now < self._deadline or self.state is State.CLOSED:
            return
        self._retries += 1
        if self._retries > MAX_RETRIES:
            self._fail("the other side does not answer")
            return
        if self.state is State.OPENING:
            self._send_syn()
        else:
            self._go_back()
            if self._window == 0 and self._buffer:
                # A probe: the update of the window may have been lost (RFC 9293, 3.8.6.1).
                self._window = 1
            self._pump(now)
        self._deadline = now + self._timeout()

    def _timeout(self) -> float:
        return min(FIRST_TIMEOUT_S * 2.0**self._retries, LONGEST_TIMEOUT_S)

    def _is_valid_reset(self, segment: Segment) -> bool:
        if self.state is State.OPENING:
            return bool(segment.flags & ACK) and segment.acknowledgement == self._next
        return segment.sequence == self._expected

    def _open(self, segment: Segment, now: float) -> None:
        if segment.flags & (SYN | ACK) != SYN | ACK or segment.acknowledgement != self._next:
            return
        self.state = State.OPEN
        self._expected = (segment.sequence + 1) % _MODULO
        self._first_unacknowledged = self._next
        self._window = segment.window
        self._mss = min(MSS, segment.mss or 536)
        self._retries, self._deadline = 0, None
        self._acknowledge()
        self._pump(now)

    def _take_acknowledgement(self, segment: Segment, now: float) -> None:
        advance = _ahead(segment.acknowledgement, self._first_unacknowledged)
        if advance < 0 or advance > len(self._buffer) + self._fin_sent:
            return
        self._window = segment.window
        if self._window == 0:
            # It answers, it just has no room.
            self._retries = 0
        if advance == 0:
            self._note_duplicate(segment)
            return
        del self._buffer[:advance]
        self._first_unacknowledged = segment.acknowledgement
        if _ahead(self._next, self._first_unacknowledged) < 0:
            self._next = self._first_unacknowledged
        self._retries = self._duplicates = 0
        waiting = self._buffer or (self._fin_sent and not self._fin_acknowledged)
        self._deadline = now + FIRST_TIMEOUT_S if waiting else None

    def _note_duplicate(self, segment: Segment) -> None:
        if segment.payload or self._next == self._first_unacknowledged:
            return
        self._duplicates += 1
        if self._duplicates == _DUPLICATES:
            self._go_back()

    def _go_back(self) -> None:
        if not self._fin_acknowledged:
            self._next = self._first_unacknowledged
            self._fin_sent = False

    @property
    def _fin_acknowledged(self) -> bool:
        return self._fin_sent and not self._buffer and self._next == self._first_unacknowledged

    def _take_data(self, segment: Segment) -> None:
        fin = bool(segment.flags & FIN)
        if not segment.payload and not fin:
            return
        known = _ahead(self._expected, segment.sequence)
        if 0 <= known <= len(segment.payload) and not self.ended:
            fresh = segment.payload[known:]
            fits = fresh[: RECEIVE_BYTES - len(self.received)]
            self.received += fits
            self._expected = (self._expected + len(fits)) % _MODULO
            if fin and len(fits) == len(fresh):
                self._expected = (self._expected + 1) % _MODULO
                self.ended = True
        self._acknowledge()

    def _finish_if_over(self) -> None:
        if self.ended and self._fin_acknowledged:
            self.state, self._deadline = State.CLOSED, None

    def _pump(self, now: float) -> None:
        """Send what the peer's window has room for."""
        if self.state is not State.OPEN or self._fin_acknowledged:
            return
        while True:
            sent = _ahead(self._next, self._first_unacknowledged)
            size = min(self._mss, len(self._buffer) - sent, self._window - sent)
            if size <= 0:
                break
            piece = bytes(self._buffer[sent : sent + size])
            self._emit(ACK | PSH, self._next, piece)
            self._next = (self._next + size) % _MODULO
        sent = _ahead(self._next, self._first_unacknowledged)
        if self._closing and not self._fin_sent and sent == len(self._buffer):
            self._emit(ACK | FIN, self._next)
            self._next = (self._next + 1) % _MODULO
            self._fin_sent = True
        if self._deadline is None and (self._buffer or self._fin_sent):
            self._deadline = now + FIRST_TIMEOUT_S

    def _send_syn(self) -> None:
        self.outgoing.append(
            Segment(self.local_port, self.remote_port, self.initial_sequence, 0, SYN, RECEIVE_BYTES, mss=MSS)
        )

    def _acknowledge(self) -> None:
        self._emit(ACK, self._next)

    def _emit(self, flags: int, sequence: int, payload: bytes = b"") -> None:
        self._advertised = RECEIVE_BYTES - len(self.received)
        self.outgoing.append(
            Segment(
                self.local_port, self.remote_port, sequence, self._expected, flags, self._advertised, payload
            )
        )

    def _fail(self, reason: str) -> None:
        self.state, self._deadline = State.CLOSED, None
        self.failure = UnavailableError(
            f"port {self.remote_port}: {reason}", hint="does anything listen there?"
        )
