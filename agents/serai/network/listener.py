"""The raw TCP listener of an agent: hands each connection to whoever expects its channel."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass

from serai.errors import AlreadyExistsError, SeraiError, UnavailableError
from serai.wire.records import ChannelSecret, parse_preamble
from serai.wire.streams import receive_preamble, split_address, tune_socket

log = logging.getLogger(__name__)

PREAMBLE_SECONDS = 5.0
EXPECT_SECONDS = 30.0
MAX_STRANGERS = 128
"""Connections that have not proved anything yet; more than these wait in the kernel."""

PAUSE_SECONDS = 0.1
"""After a failed accept, before the next."""

SocketHandler = Callable[[socket.socket, int], None]
"""Takes over a connected, non-blocking socket and the number of the stream it carries."""


@dataclass(slots=True)
class _Expected:
    secret: ChannelSecret
    handler: SocketHandler
    streams: set[int]
    expiry: asyncio.TimerHandle | None = None


class DataListener:
    """Listens from `start` to `close`.

    Each stream of a channel is accepted once: its nonces must not repeat.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._expected: dict[bytes, _Expected] = {}
        self._socket: socket.socket | None = None
        self._strangers: dict[asyncio.Task[None], socket.socket] = {}
        self._pause: asyncio.TimerHandle | None = None
        self.refused = 0

    @property
    def address(self) -> str:
        """``HOST:PORT`` as bound."""
        if self._socket is None:
            raise UnavailableError("the data listener is not started")
        host, port = self._socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def start(self) -> None:
        """Bind and accept. Raises AlreadyExistsError when the port is taken, UnavailableError otherwise."""
        host, port = split_address(self._address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            raise (AlreadyExistsError if taken else UnavailableError)(
                f"cannot listen for data at {self._address}: {error.strerror}",
                hint="choose another address; port 0 takes any free one",
                reason="ADDRESS_IN_USE" if taken else "ADDRESS_UNUSABLE",
                address=self._address,
            ) from error
        self._socket.setblocking(False)
        self._listen()

    async def close(self) -> None:
        """Stop listening and forget what was expected; safe to repeat."""
        listener, self._socket = self._socket, None
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        if self._pause is not None:
            self._pause.cancel()
        tasks = list(self._strangers)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for identifier in list(self._expected):
            self.forget(identifier)

    def expect(
        self,
        secret: ChannelSecret,
        handler: SocketHandler,
        *,
        streams: int = 1,
        seconds: float = EXPECT_SECONDS,
    ) -> None:
        """Hand the connections of a channel (`streams` of them, numbered from 0) to `handler`.

        What has not come within `seconds` is not expected any more. Raises AlreadyExistsError.
        """
        if secret.identifier in self._expected:
            raise AlreadyExistsError("this channel is expected already", hint="make a new one")
        expected = _Expected(secret, handler, set(range(streams)))
        expected.expiry = asyncio.get_running_loop().call_later(seconds, self.forget, secret.identifier)
        self._expected[secret.identifier] = expected

    def forget(self, identifier: bytes) -> None:
        """Refuse the channel's connections from now on; those handed over stay."""
        expected = self._expected.pop(identifier, None)
        if expected is not None and expected.expiry is not None:
            expected.expiry.cancel()

    def _listen(self) -> None:
        """Take connections while there is room.

        A reader rather than `sock_accept`: a task cancelled at the wrong moment loses what it accepted.
        """
        if self._socket is not None and len(self._strangers) < MAX_STRANGERS:
            asyncio.get_running_loop().add_reader(self._socket, self._accept, self._socket)

    def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            sock, origin = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Out of descriptors, or the caller has gone: neither may end the listener.
            log.warning("cannot accept a data connection: %s", error)
            loop.remove_reader(listener)
            self._pause = loop.call_later(PAUSE_SECONDS, self._listen)
            return
        sock.setblocking(False)
        task = asyncio.create_task(self._receive(sock, str(origin[0])))
        self._strangers[task] = sock
        task.add_done_callback(self._left)
        if len(self._strangers) >= MAX_STRANGERS:
            loop.remove_reader(listener)

    def _left(self, task: asyncio.Task[None]) -> None:
        sock = self._strangers.pop(task)
        if task.cancelled():
            # Before its first step, if it was unlucky: then nobody else closes it.
            sock.close()
        self._listen()

    async def _receive(self, sock: socket.socket, origin: str) -> None:
        with contextlib.ExitStack() as undo:
            undo.callback(sock.close)
            tune_socket(sock)
            try:
                preamble = await receive_preamble(sock, PREAMBLE_SECONDS)
                handler, stream = self._admit(preamble)
            except SeraiError as error:
                self.refused += 1
                log.warning("refused a data connection from %s: %s", origin, error.message)
                return
            undo.pop_all()
            handler(sock, stream)

    def _admit(self, preamble: bytes) -> tuple[SocketHandler, int]:
        identifier, stream = parse_preamble(preamble)
        expected = self._expected.get(identifier)
        if expected is None or stream not in expected.streams:
            raise UnavailableError("nobody expects this channel or stream", reason="CHANNEL_UNKNOWN")
        expected.secret.check_preamble(preamble)
        expected.streams.discard(stream)
        if not expected.streams:
            self.forget(identifier)
        return expected.handler, stream
