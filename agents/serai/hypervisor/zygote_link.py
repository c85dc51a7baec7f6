"""The agent's side of the zygote: starts it, asks it for guest processes, and hears of their ends.

The agent itself never forks: gRPC does not survive it.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serai.errors import HypervisorError

START_SECONDS = 180.0
"""The first start on a machine compiles the CPU core."""

STATUS_UNKNOWN = -1
"""Stands for the wait status of a process that was not this agent's zygote's."""

_CLOSE_SECONDS = 5.0
_MESSAGE_BYTES = 4096


def describe_exit(status: int) -> str:
    """A wait status in words."""
    if status == STATUS_UNKNOWN:
        return "the guest's process ended; how is not known, as an earlier agent had started it"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(number).name}"
        return f"killed by signal {number}"
    return f"the guest's process ended with status {os.waitstatus_to_exitcode(status)}"


class ChildProcess:
    """A guest process: a pidfd, to signal it and no other, and its end as a future (a wait status)."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._pidfd = pidfd

    def kill(self) -> None:
        """End it at once; fine when it has ended already."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Let go of the pidfd."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


class AdoptedProcess(ChildProcess):
    """A guest process of an earlier run of the agent: nobody says how it ends, only that it does."""

    def __init__(self, pid: int, pidfd: int) -> None:
        super().__init__(pid, pidfd)
        asyncio.get_running_loop().add_reader(pidfd, self._gone)

    def _gone(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        if not self.exited.done():
            self.exited.set_result(STATUS_UNKNOWN)

    def close(self) -> None:
        """Let go of the pidfd."""
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
        super().close()


class ZygoteLink:
    """A running zygote. Use `start`; safe for one request at a time, which it sees to itself."""

    def __init__(self, log_file: Path | None = None) -> None:
        """What it and its guests print goes to `log_file`, for guests that outlive this process."""
        self._log_file = log_file
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._pidfd = -1
        self._lock = asyncio.Lock()
        self._reply: asyncio.Future[tuple[dict[str, Any], int]] | None = None
        self._children: dict[int, ChildProcess] = {}

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._socket is not None

    async def start(self) -> None:
        """Start the zygote and wait until it is warm. Raises HypervisorError when it does not come up."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, contextlib.ExitStack() as stack:
            output = None if self._log_file is None else stack.enter_context(self._log_file.open("ab"))
            # The zygote must find the same serai, however this process came to it.
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            self._process = subprocess.Popen(  # noqa: ASYNC220 (exec only, it does not wait)
                [sys.executable, "-m", "serai.machine.zygote", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        ours.setblocking(False)
        self._socket = ours
        self._pidfd = os.pidfd_open(self._process.pid)
        loop = asyncio.get_running_loop()
        self._reply = loop.create_future()
        loop.add_reader(ours.fileno(), self._readable)
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._reply
        except TimeoutError:
            await self.close()
            raise HypervisorError(f"the guests' zygote was not ready after {START_SECONDS:.0f} s") from None
        except HypervisorError:
            await self.close()
            raise
        finally:
            self._reply = None

    async def fork(
        self, descriptors: list[int], interfaces: int, *, orphan_seconds: float = 0.0, source: bool = False
    ) -> ChildProcess:
        """A new guest process on these descriptors. Raises HypervisorError.

        With `orphan_seconds` the descriptors are followed by the socket where it waits that long for another
        agent, with `source` by the file that its RAM begins as.
        """
        async with self._lock:
            if self._socket is None:
                raise HypervisorError("the guests' zygote is gone", hint="restart the agent")
            loop = asyncio.get_running_loop()
            self._reply = loop.create_future()
            fields: dict[str, Any] = {
                "fork": interfaces,
                "orphan_seconds": orphan_seconds,
                "source": source,
            }
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
            try:
                self._socket.sendmsg([json.dumps(fields).encode()], [rights])
                async with asyncio.timeout(START_SECONDS):
                    answer, pidfd = await self._reply
            except (OSError, TimeoutError) as error:
                raise HypervisorError(f"the guests' zygote does not answer: {error}") from None
            finally:
                self._reply = None
            if "error" in answer:
                raise HypervisorError(answer["error"])
            child = self._children[answer["pid"]]
            assert pidfd >= 0
            return child

    def _readable(self) -> None:
        assert self._socket is not None
        while self._socket is not None:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._socket, _MESSAGE_BYTES, 1)
            except BlockingIOError:
                return
            except ConnectionError:
                data, descriptors = b"", []
            if not data:
                self._lost()
                return
            self._dispatch(json.loads(data), descriptors[0] if descriptors else -1)

    def _dispatch(self, fields: dict[str, Any], descriptor: int) -> None:
        if "exited" in fields:
            child = self._children.pop(fields["exited"], None)
            if child is not None and not child.exited.done():
                child.exited.set_result(fields["status"])
            return
        if "pid" in fields:
            # Registered before anything else is read: the news of its end may be right behind.
            self._children[fields["pid"]] = ChildProcess(fields["pid"], descriptor)
        if self._reply is not None and not self._reply.done():
            self._reply.set_result((fields, descriptor))

    def _lost(self) -> None:
        self._close_socket()
        reason = "ended"
        if self._process is not None and (status := self._process.poll()) is not None:
            reason = f"ended with status {status}"
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(
                HypervisorError(
                    f"the guests' zygote {reason}",
                    hint=f"its messages are in {self._log_file or 'standard error'}",
                )
            )
        # Its children are nobody's now: their sockets tell of their end, their status is lost.
        self._children.clear()

    def _close_socket(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    async def close(self) -> None:
        """End the zygote, not its guests."""
        self._close_socket()
        if self._process is None:
            return
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        loop.add_reader(self._pidfd, _resolve(ended))
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await ended
        except TimeoutError:
            self._process.kill()
        finally:
            loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._process.wait()
            self._process = None


def _resolve(future: asyncio.Future[None]) -> Callable[[], None]:
    def resolve() -> None:
        if not future.done():
            future.set_result(None)

    return resolve
