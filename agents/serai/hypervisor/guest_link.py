"""The agent's side of a guest's control socket: requests with replies, and events."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Callable
from typing import Any

from serai.errors import HypervisorError
from serai.machine import protocol
from serai.machine.errors import ProtocolError
from serai.machine.protocol import Message

REQUEST_SECONDS = 30.0
"""A guest process answers between two slices, so within milliseconds; longer means that it hangs."""

_RECEIVE_BYTES = 1 << 20


class GuestLink:
    """Requests are sent in order and answered in order. `ended` is called once, when the socket has ended."""

    def __init__(
        self,
        uid: str,
        control: socket.socket,
        event: Callable[[dict[str, Any]], None],
        ended: Callable[[], None],
        *,
        received: bytes = b"",
    ) -> None:
        self._uid = uid
        self._socket: socket.socket | None = control
        self._event = event
        self._ended = ended
        self._decoder = protocol.Decoder()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._sending = asyncio.Lock()
        control.setblocking(False)
        asyncio.get_running_loop().add_reader(control.fileno(), self._readable)
        for message in self._decoder.feed(received):
            self._dispatch(message)

    async def request(self, operation: str, *, payload: bytes = b"", **fields: Any) -> Message:
        """Ask and wait for the answer. Raises HypervisorError with the guest process's reason."""
        if self._socket is None:
            raise HypervisorError(f"guest {self._uid}: cannot {operation}: its process has ended")
        number = next(self._numbers)
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await self._send(Message({"id": number, "op": operation, **fields}, payload))
                reply = await answer
        except TimeoutError:
            raise HypervisorError(
                f"guest {self._uid}: its process did not answer to {operation!r} in {REQUEST_SECONDS:.0f} s"
            ) from None
        except OSError as error:
            raise HypervisorError(f"guest {self._uid}: cannot {operation}: {error.strerror}") from None
        finally:
            self._waiting.pop(number, None)
        if "error" in reply.fields:
            raise HypervisorError(f"guest {self._uid}: {reply.fields['error']}", guest=self._uid)
        return reply

    async def _send(self, message: Message) -> None:
        async with self._sending:
            if self._socket is not None:
                await asyncio.get_running_loop().sock_sendall(self._socket, protocol.encode(message))

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            self._receive(self._socket)
        except BlockingIOError:
            pass
        except (OSError, ProtocolError):
            self.close()

    def _receive(self, control: socket.socket) -> None:
        """Take one piece. Raises BlockingIOError when there is none, ConnectionError when none will come."""
        data = control.recv(_RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError
        for message in self._decoder.feed(data):
            self._dispatch(message)

    def drain(self) -> None:
        """Take all that the ended process has left behind, then close."""
        with contextlib.suppress(OSError, ProtocolError):
            while self._socket is not None:
                self._receive(self._socket)
        self.close()

    def _dispatch(self, message: Message) -> None:
        if "event" in message.fields:
            self._event(message.fields)
            return
        answer = self._waiting.get(message.fields.get("id", 0))
        if answer is not None and not answer.done():
            answer.set_result(message)

    def close(self) -> None:
        """Close the socket and fail what waits for an answer."""
        if self._socket is None:
            return
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()
        self._socket = None
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(HypervisorError(f"guest {self._uid}: its process has ended"))
        self._ended()
