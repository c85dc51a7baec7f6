"""A guest's network interface in the agent: batches of frames over a seqpacket socket."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence

from serai.hypervisor.driver import FramePort
from serai.machine import protocol
from serai.machine.errors import ProtocolError
from serai.machine.virtio.net import MAXIMUM_FRAME

QUEUE_BYTES = 1 << 20
"""Bytes of frames that wait in the agent while the guest's socket is full."""

_PACKETS_PER_TURN = 16
_log = logging.getLogger(__name__)


class EmulatedPort(FramePort):
    """Frames delivered in one turn of the event loop leave as one packet."""

    def __init__(self, name: str, link: socket.socket) -> None:
        self.name = name
        self.lost = 0
        self._socket: socket.socket | None = link
        self._receiver: Callable[[Sequence[bytes]], None] | None = None
        self._queue = bytearray()
        self._ends: list[int] = []
        self._flush_planned = False
        self._drained: asyncio.Future[None] | None = None
        self._buffer = bytearray(protocol.MAXIMUM_BATCH)
        self._loop = asyncio.get_running_loop()
        link.setblocking(False)
        self._loop.add_reader(link.fileno(), self._readable)

    def deliver(self, frame: bytes | memoryview) -> bool:
        """See `FramePort.deliver`."""
        length = len(frame)
        if self._socket is None or not 0 < length <= MAXIMUM_FRAME or len(self._queue) + length > QUEUE_BYTES:
            self.lost += 1
            return False
        self._queue += protocol.encode_frame(frame)
        self._ends.append(len(self._queue))
        if not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._flush)
        return True

    def set_receiver(self, receiver: Callable[[Sequence[bytes]], None] | None) -> None:
        """See `FramePort.set_receiver`."""
        self._receiver = receiver

    async def drained(self) -> None:
        """Return when all that was delivered is in the guest's process (or lost with it)."""
        self._flush()
        if self._queue and self._socket is not None:
            if self._drained is None:
                self._drained = self._loop.create_future()
            await asyncio.shield(self._drained)

    def _flush(self) -> None:
        self._flush_planned = False
        if self._socket is None:
            return
        try:
            while self._queue:
                size = self._batch_size()
                with memoryview(self._queue)[:size] as batch:
                    self._socket.send(batch)
                self._consume(size)
        except BlockingIOError:
            self._flush_planned = True
            self._loop.add_writer(self._socket.fileno(), self._writable)
        except OSError:
            # The process has ended; the guest hears of it by its control socket.
            self._forget_queue()

    def _batch_size(self) -> int:
        """Bytes of the next packet: whole frames up to the target, at least one."""
        size = self._ends[0]
        for end in self._ends:
            if end > protocol.BATCH_TARGET:
                break
            size = end
        return size

    def _consume(self, size: int) -> None:
        del self._queue[:size]
        self._ends = [end - size for end in self._ends if end > size]
        if not self._queue:
            self._resolve_drained()

    def _writable(self) -> None:
        assert self._socket is not None
        self._loop.remove_writer(self._socket.fileno())
        self._flush()

    def _forget_queue(self) -> None:
        self.lost += len(self._ends)
        self._queue.clear()
        self._ends.clear()
        self._resolve_drained()

    def _resolve_drained(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    def _readable(self) -> None:
        view = memoryview(self._buffer)
        for _ in range(_PACKETS_PER_TURN):
            if self._socket is None:
                return
            try:
                length = self._socket.recv_into(view)
            except BlockingIOError:
                return
            except OSError:
                length = 0
            if length == 0:
                self.close()
                return
            self._hand_over(view[:length])

    def _hand_over(self, packet: memoryview) -> None:
        if self._receiver is None:
            return
        try:
            self._receiver(list(protocol.decode_batch(packet)))
        except ProtocolError as error:
            _log.warning("port %s: a malformed batch from the guest's process: %s", self.name, error)
        except Exception:
            _log.exception("port %s: the receiver failed", self.name)

    def close(self) -> None:
        """Let go of the socket; what waits is lost."""
        if self._socket is None:
            return
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._socket = None
        self._forget_queue()
