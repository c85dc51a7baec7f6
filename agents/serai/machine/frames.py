"""A network device's frames on their way to the agent and back, in batches over a seqpacket socket."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Protocol

from serai.machine import protocol
from serai.machine.errors import ProtocolError
from serai.machine.virtio.net import Net

_PACKETS_PER_TURN = 32
"""Bounds how long one interface keeps the guest and the other interfaces waiting."""


class Watch(Protocol):
    """Have `handler` called when one of `events` happens on a descriptor."""

    def __call__(self, descriptor: int, handler: Callable[[int], None], events: int = ...) -> None:
        """Watch, or change what is watched for."""


class FrameLink:
    """One interface. While the agent takes no frames, the guest's transmit queue waits."""

    def __init__(self, link: socket.socket, net: Net, watch: Watch, unwatch: Callable[[int], None]) -> None:
        self._socket = link
        self._net = net
        self._watch = watch
        self._unwatch = unwatch
        self._buffer = bytearray(protocol.MAXIMUM_BATCH)
        self._batch = bytearray()
        self._blocked = False
        net.transmit = self._transmit
        net.writable = self._writable
        net.served = self._flush
        self._connect()

    def _connect(self) -> None:
        self._open = True
        self._socket.setblocking(False)
        self._watch(self._socket.fileno(), self._ready, select.EPOLLIN)

    def reconnect(self, link: socket.socket) -> None:
        """Go on over another socket, as after the cable was plugged in again."""
        self._close()
        self._socket.close()
        self._socket = link
        self._batch.clear()
        self._connect()
        self._net.resume_transmission()

    def _writable(self) -> bool:
        return not self._blocked

    def _transmit(self, frame: bytes) -> None:
        self._batch += protocol.encode_frame(frame)
        if len(self._batch) >= protocol.BATCH_TARGET:
            self._flush()

    def _flush(self) -> None:
        if not self._batch:
            return
        try:
            self._socket.send(self._batch)
        except BlockingIOError:
            if not self._blocked:
                self._blocked = True
                self._watch(self._socket.fileno(), self._ready, select.EPOLLIN | select.EPOLLOUT)
            return
        except OSError:
            self._close()
        self._batch.clear()

    def _ready(self, events: int) -> None:
        waiting = self._blocked
        if events & select.EPOLLOUT and self._blocked:
            self._blocked = False
            self._flush()
            if not self._blocked and self._open:
                self._watch(self._socket.fileno(), self._ready, select.EPOLLIN)
                self._net.resume_transmission()
        if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR) and self._open:
            self._receive(_PACKETS_PER_TURN)
            self._net.flush()
        if waiting and not self._open:
            self._net.resume_transmission()  # into nowhere

    def drain(self) -> None:
        """Take all that the agent has sent into the device's backlog, where it is saved with the guest."""
        self._receive(None)

    def _receive(self, packets: int | None) -> None:
        view = memoryview(self._buffer)
        while self._open and (packets is None or packets > 0):
            try:
                length = self._socket.recv_into(view)
            except BlockingIOError:
                return
            except OSError:
                length = 0
            if length == 0:
                self._close()
                return
            try:
                for frame in protocol.decode_batch(view[:length]):
                    self._net.receive(frame)
            except ProtocolError:
                self._net.lost += 1
            if packets is not None:
                packets -= 1

    def _close(self) -> None:
        """The agent dropped the interface: like an unplugged cable, frames go nowhere."""
        if self._open:
            self._open = False
            self._blocked = False
            self._unwatch(self._socket.fileno())
