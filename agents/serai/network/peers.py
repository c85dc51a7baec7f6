"""Channels to other agents: a sealed TCP stream per pair, with a bounded queue, renewed when it breaks."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from serai.errors import IntegrityError, SeraiError
from serai.network.framing import (
    BATCH_BYTES,
    FRAMES,
    REDIRECTED,
    Queue,
    Target,
    pack_record,
    parse_frames,
    parse_redirected,
)
from serai.network.switch import GuestPort
from serai.wire.records import ChannelSecret, Direction, RecordHeader
from serai.wire.streams import CallbackStream, dial_socket

log = logging.getLogger(__name__)

QUEUE_FRAMES = 8192
QUEUE_BYTES = 8 * 1024 * 1024
"""What waits for a peer at most; then frames are dropped and counted, and no guest ever waits."""

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0
"""Seconds between attempts to reach a peer; doubled each time, with up to half as much at random."""


@dataclass(frozen=True, slots=True)
class ChannelOffer:
    """What the accepting agent answers when a channel is asked for."""

    secret: ChannelSecret
    data_address: str


OpenChannel: TypeAlias = Callable[[str], Awaitable[ChannelOffer]]
"""Ask the named peer ("alpha/a1") for a channel, over gRPC; raises SeraiError."""


class Receiver(Protocol):
    """Where frames from peers go."""

    def frames_from(self, node: str, label: int, frames: Sequence[bytes]) -> None:
        """Frames of one virtual link."""

    def redirected_from(self, node: str, port: GuestPort, frames: Sequence[bytes]) -> None:
        """Frames for a guest that has moved here."""


@dataclass(slots=True)
class PeerCounters:
    """Frames and bytes (of frames, without overhead), and how often a stream came up."""

    frames_in: int = 0
    bytes_in: int = 0
    frames_out: int = 0
    bytes_out: int = 0
    dropped_out: int = 0
    connections: int = 0


class Peer:
    """One other agent. Either side may dial; when both did, each sends on the stream it has had longest."""

    def __init__(self, node: str, open_channel: OpenChannel, receiver: Receiver) -> None:
        self.node = node
        self.counters = PeerCounters()
        self._open_channel = open_channel
        self._receiver = receiver
        self._queue: Queue = deque()
        self._queued_bytes = 0
        self._streams: list[CallbackStream] = []
        self._dialled_streams: set[CallbackStream] = set()
        self._users = 0
        self._dialler: asyncio.Task[None] | None = None
        self._flush_due = False
        self._closed = False
        self._loop = asyncio.get_running_loop()

    @property
    def connected(self) -> bool:
        """Whether frames can leave now."""
        return bool(self._streams)

    def require(self) -> None:
        """Keep a stream open until as many calls of `release`."""
        self._users += 1
        self._ensure_stream()

    def release(self) -> None:
        """See `require`; the last one closes what this side has dialled, once the queue is empty."""
        self._users -= 1
        self._retire()

    def send(self, target: Target, frames: Sequence[bytes]) -> None:
        """Queue frames; they leave at the end of this turn of the loop, together."""
        queue, counters = self._queue, self.counters
        for frame in frames:
            size = len(frame)
            if len(queue) >= QUEUE_FRAMES or self._queued_bytes + size > QUEUE_BYTES:
                counters.dropped_out += 1
                continue
            queue.append((target, frame))
            self._queued_bytes += size
            counters.frames_out += 1
            counters.bytes_out += size
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def adopt(self, sock: socket.socket, secret: ChannelSecret, direction: Direction) -> None:
        """Use a connected socket on which the preamble has passed."""
        if self._closed:
            sock.close()
            return
        stream = CallbackStream(
            sock,
            secret,
            direction,
            on_record=self._received,
            on_idle=self._flush,
            on_closed=lambda error: self._lost(stream, error),
            maximum=BATCH_BYTES,
        )
        self._streams.append(stream)
        if direction is Direction.INITIATOR:
            self._dialled_streams.add(stream)
        self.counters.connections += 1
        log.info("channel with %s is open", self.node)
        self._flush()

    async def close(self) -> None:
        """Close its streams and drop what waits; safe to repeat."""
        self._closed = True
        self._queue.clear()
        if self._dialler is not None:
            self._dialler.cancel()
            await asyncio.gather(self._dialler, return_exceptions=True)
        streams, self._streams = self._streams, []
        self._dialled_streams.clear()
        for stream in streams:
            stream.finish()

    def _flush(self) -> None:
        self._flush_due = False
        queue = self._queue
        while queue and self._streams and self._streams[0].idle:
            stream = self._streams[0]
            record = pack_record(queue, stream.payload)
            self._queued_bytes -= record.frame_bytes
            stream.send(record.kind, record.length)
        self._retire()
        self._ensure_stream()

    def _retire(self) -> None:
        """Close idle streams that nobody here needs; those that the peer dialled are the peer's to close."""
        if self._users or self._queue:
            return
        for stream in [stream for stream in self._dialled_streams if stream.idle]:
            self._forget(stream)
            stream.finish()

    def _forget(self, stream: CallbackStream) -> None:
        if stream in self._streams:
            self._streams.remove(stream)
        self._dialled_streams.discard(stream)

    def _received(self, header: RecordHeader, payload: memoryview) -> None:
        if header.kind == FRAMES:
            for label, frames in parse_frames(payload):
                self._count_in(frames)
                self._receiver.frames_from(self.node, label, frames)
        elif header.kind == REDIRECTED:
            port, frames = parse_redirected(payload)
            self._count_in(frames)
            self._receiver.redirected_from(self.node, port, frames)
        else:
            raise IntegrityError(
                f"{self.node} sent a record of unknown kind {header.kind}", reason="BAD_FRAMES"
            )

    def _count_in(self, frames: Sequence[bytes]) -> None:
        self.counters.frames_in += len(frames)
        self.counters.bytes_in += sum(map(len, frames))

    def _lost(self, stream: CallbackStream, error: SeraiError | None) -> None:
        log.log(
            logging.INFO if error is None else logging.WARNING,
            "channel with %s has closed: %s",
            self.node,
            error.message if error else "the peer is done with it",
        )
        self._forget(stream)
        self._flush()

    def _ensure_stream(self) -> None:
        wanted = self._users or self._queue
        if wanted and not self._streams and self._dialler is None and not self._closed:
            self._dialler = asyncio.create_task(self._dial(), name=f"dial {self.node}")
            self._dialler.add_done_callback(self._dialled)

    def _dialled(self, task: asyncio.Task[None]) -> None:
        self._dialler = None
        if not task.cancelled() and task.exception() is None:
            # It may have been lost again, or not be wanted any more.
            self._ensure_stream()

    async def _dial(self) -> None:
        pause = FIRST_PAUSE
        while (self._users or self._queue) and not self._streams:
            try:
                offer = await self._open_channel(self.node)
                sock = await dial_socket(offer.data_address, offer.secret)
            except SeraiError as error:
                log.warning("no channel with %s: %s", self.node, error.message)
                await asyncio.sleep(pause * random.uniform(1, 1.5))
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self.adopt(sock, offer.secret, Direction.INITIATOR)
