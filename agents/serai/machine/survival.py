"""How a guest process outlives its agent: it listens for the next one, for a while.

The agent made the listening Unix socket; confined processes cannot. Whoever can reach it in the agent's state
directory under the same user may adopt the guest, and only while it has no agent.
"""

from __future__ import annotations

import array
import os
import socket
import struct
import time
from dataclasses import dataclass

from serai.machine import protocol
from serai.machine.errors import ProtocolError
from serai.machine.protocol import Message

FAREWELL_SECONDS = 10.0
"""What a guest that nobody came for gets to power off in order."""

_EXCHANGE_SECONDS = 2.0
_MAXIMUM_DESCRIPTORS = 64
_CREDENTIALS = struct.Struct("3i")  # struct ucred, unix(7)


@dataclass(slots=True)
class Adoption:
    """A new agent's sockets."""

    control: socket.socket
    console: socket.socket
    frames: list[socket.socket]


class Survival:
    """The listening socket and the time that is left; `seconds` is how long a guest waits for an agent."""

    def __init__(self, listener: socket.socket | None, seconds: float) -> None:
        self.listener = listener
        self.orphaned = False
        self._seconds = seconds
        self._deadline = 0.0
        if listener is not None:
            listener.setblocking(False)

    @property
    def possible(self) -> bool:
        """Whether the process is meant to outlive its agent."""
        return self.listener is not None and self._seconds > 0

    def begin(self) -> None:
        """The agent is gone."""
        self.orphaned = True
        self._deadline = time.monotonic() + self._seconds

    def extend(self, seconds: float) -> None:
        """Allow this much longer, from now."""
        self._deadline = time.monotonic() + seconds

    @property
    def remaining(self) -> float | None:
        """Seconds until nobody will come any more; None while there is an agent."""
        return max(0.0, self._deadline - time.monotonic()) if self.orphaned else None

    def accept(self, interfaces: int) -> Adoption | None:
        """The next agent, if one is at the door and what it says is right. Its answer is `welcome`."""
        assert self.listener is not None
        try:
            control, _ = self.listener.accept()
        except OSError:
            return None
        control.settimeout(_EXCHANGE_SECONDS)
        received: list[int] = []
        try:
            _check_user(control)
            data, received, _, _ = socket.recv_fds(control, 4096, _MAXIMUM_DESCRIPTORS)
            _check_request(data, len(received), interfaces)
        except (OSError, ProtocolError) as error:
            for descriptor in received:
                os.close(descriptor)
            _refuse(control, str(error))
            return None
        console, *frames = (socket.socket(fileno=descriptor) for descriptor in received)
        return Adoption(control, console, frames)

    def welcome(self, adoption: Adoption, ram_file: int, reply: Message) -> bool:
        """Answer with RAM and a pidfd of this process; False when the agent has gone again."""
        pidfd = os.pidfd_open(os.getpid())
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [ram_file, pidfd]))
        data = protocol.encode(reply)
        try:
            sent = adoption.control.sendmsg([data], [rights])
            adoption.control.sendall(data[sent:])
        except OSError:
            return False
        finally:
            os.close(pidfd)
        self.orphaned = False
        return True


def _check_user(control: socket.socket) -> None:
    raw = control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(raw)
    if user not in (0, os.getuid()):
        raise ProtocolError(f"user {user} may not adopt a guest of user {os.getuid()}")


def _check_request(data: bytes, descriptors: int, interfaces: int) -> None:
    messages = protocol.Decoder().feed(data)
    if len(messages) != 1 or messages[0].fields.get("op") != "adopt":
        raise ProtocolError("an agent that comes to a guest has to adopt it first")
    if messages[0].fields.get("version") != protocol.VERSION:
        raise ProtocolError(
            f"protocol version {messages[0].fields.get('version')}, here it is {protocol.VERSION}"
        )
    if descriptors != 1 + interfaces:
        raise ProtocolError(f"{descriptors} sockets for a console and {interfaces} interfaces")


def _refuse(control: socket.socket, reason: str) -> None:
    with control:
        try:
            control.sendall(protocol.encode(Message({"error": reason, "kind": "ProtocolError"})))
        except OSError:
            return
