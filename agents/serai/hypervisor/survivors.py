"""Guest processes that outlive their agent, as they lie in its state directory.

For each guest there are two files: ``UID.sock``, where its process waits for the next agent, and ``UID.pid``,
a line ``PID START`` (start time in clock ticks since boot: proc(5), stat field 22) by which others, such as
``serai cluster down``, find the process and no other. What the processes print is in ``log``.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serai.errors import HypervisorError
from serai.machine import protocol
from serai.machine.errors import ProtocolError
from serai.machine.protocol import Message

WELCOME_SECONDS = 5.0
"""A guest process looks at its door between two slices, so within milliseconds."""

_UID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_RECEIVE_BYTES = 256 * 1024


@dataclass(slots=True)
class Survivor:
    """What a guest process handed to its new agent. The descriptors are the receiver's to close."""

    control: socket.socket
    console: socket.socket
    frames: list[socket.socket]
    ram_file: int
    pidfd: int
    pid: int
    state: str
    statistics: dict[str, Any]
    scrollback: bytes
    rest: bytes
    """What came on the control socket behind the answer."""


class Survivors:
    """The directory of one agent's guests."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.log_file = directory / "log"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def uids(self) -> list[str]:
        """Guests that were running when the agent ended, or whose files it left; they may be gone by now."""
        found = {path.stem for path in self._directory.iterdir() if path.suffix in (".sock", ".pid")}
        return sorted(uid for uid in found if _UID.fullmatch(uid))

    def listen(self, uid: str) -> socket.socket:
        """The door of a new guest. Raises HypervisorError."""
        if not _UID.fullmatch(uid):
            raise HypervisorError(f"guest {uid!r}: no file can be named so")
        door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.forget(uid)
            with self._short_path(uid) as path:
                door.bind(path)
            door.listen(1)
        except OSError as error:
            door.close()
            raise HypervisorError(
                f"guest {uid}: no socket can be made in {self._directory}: {error.strerror}",
                hint="is the disk full?",
            ) from None
        return door

    def note(self, uid: str, pid: int) -> None:
        """Write down which process is the guest's. Raises HypervisorError."""
        start = start_ticks(pid)
        if start is None:
            return
        temporary = self._directory / f".{uid}.pid"
        try:
            temporary.write_text(f"{pid} {start}\n")
            temporary.replace(self._directory / f"{uid}.pid")
        except OSError as error:
            raise HypervisorError(f"guest {uid}: {temporary}: {error.strerror}") from None

    def forget(self, uid: str) -> None:
        """Its process has ended."""
        for suffix in (".sock", ".pid"):
            with contextlib.suppress(OSError):
                (self._directory / f"{uid}{suffix}").unlink()

    def discard(self, uid: str) -> None:
        """End the process, if it lives, and forget it."""
        with contextlib.suppress(OSError, ValueError):
            pid, start = map(int, (self._directory / f"{uid}.pid").read_text().split())
            pidfd = os.pidfd_open(pid)
            try:
                # Compared after the pidfd was opened: from then on the pid cannot become another's.
                if start_ticks(pid) == start:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)
        self.forget(uid)

    async def adopt(self, uid: str, interfaces: int) -> Survivor | None:
        """Take over the guest's process; None when it has ended. Raises HypervisorError when it refuses."""
        control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Does not wait: there is room for one in the socket's queue, or nobody listens.
            with self._short_path(uid) as path:
                control.connect(path)
        except OSError:
            control.close()
            return None
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)]
        pairs += [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(interfaces)]
        try:
            return await self._exchange(uid, control, [ours for ours, _ in pairs], [end for _, end in pairs])
        except BaseException:
            control.close()
            for ours, _ in pairs:
                ours.close()
            raise
        finally:
            for _, theirs in pairs:
                theirs.close()

    async def _exchange(
        self, uid: str, control: socket.socket, ours: list[socket.socket], theirs: list[socket.socket]
    ) -> Survivor:
        rights = array.array("i", [end.fileno() for end in theirs])
        request = protocol.encode(Message({"op": "adopt", "version": protocol.VERSION}))
        control.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        control.setblocking(False)
        descriptors: list[int] = []
        try:
            async with asyncio.timeout(WELCOME_SECONDS):
                message, rest = await _receive(control, descriptors)
            if "error" in message.fields or len(descriptors) != 2:
                raise HypervisorError(f"guest {uid}: cannot be adopted: {message.fields.get('error')}")
        except (OSError, TimeoutError, ProtocolError, HypervisorError) as error:
            for descriptor in descriptors:
                os.close(descriptor)
            if isinstance(error, HypervisorError):
                raise
            raise HypervisorError(
                f"guest {uid}: its process does not answer: {error or 'too slow'}"
            ) from None
        fields = message.fields
        return Survivor(
            control=control,
            console=ours[0],
            frames=ours[1:],
            ram_file=descriptors[0],
            pidfd=descriptors[1],
            pid=_pid_of(descriptors[1]),
            state=str(fields.pop("state", "")),
            statistics=fields,
            scrollback=message.payload,
            rest=rest,
        )

    @contextlib.contextmanager
    def _short_path(self, uid: str) -> Iterator[str]:
        """A socket's path has at most 107 bytes (unix(7)), a state directory's may be longer."""
        directory = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{directory}/{uid}.sock"
        finally:
            os.close(directory)


async def _receive(control: socket.socket, descriptors: list[int]) -> tuple[Message, bytes]:
    """The first message, with what follows it."""
    loop = asyncio.get_running_loop()
    data = b""
    while True:
        readable = asyncio.Event()
        loop.add_reader(control.fileno(), readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(control.fileno())
        piece, received, _, _ = socket.recv_fds(control, _RECEIVE_BYTES, 4)
        descriptors += received
        if not piece:
            raise ConnectionResetError("it ended")
        data += piece
        length = protocol.message_length(data)
        if length is not None and len(data) >= length:
            return protocol.Decoder().feed(data[:length])[0], data[length:]


def start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None when it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])


def _pid_of(pidfd: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Pid":
            return int(value)
    return -1
