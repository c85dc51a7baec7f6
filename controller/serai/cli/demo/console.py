"""A guest's shell, driven over its serial console as a person would drive it."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from serai.errors import InternalError, UnavailableError
from serai.v1.console_pb2_grpc import ConsoleServiceStub
from serai.v1.guest_pb2 import ConsoleInput
from serai.wire.rpc import Channel

_CONTROL_C = b"\x03"


@dataclass(frozen=True, slots=True)
class Result:
    """What a command printed, and its exit status."""

    status: int
    output: str


class GuestConsole:
    """One console session. Lines are stamped (time.monotonic) when they arrive."""

    def __init__(self, channel: Channel, name: str) -> None:
        self.name = name
        self._channel = channel
        self._input: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._lines: asyncio.Queue[tuple[float, str] | None] = asyncio.Queue()
        self._numbers = itertools.count(1)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._receive(), name=f"console {self.name}")
        try:
            await self.run("stty -echo; PS1=", within=30.0)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._end()

    async def run(self, command: str, *, within: float) -> Result:
        """Run one command line; returns when it is over.

        Raises UnavailableError when it is not over in `within` seconds or the console has ended.
        """
        output: list[str] = []
        marker = re.compile(self._type_marked(command) + r"=(\d+)$")
        try:
            async with asyncio.timeout(within):
                async for _, line in self.lines():
                    if match := marker.search(line):
                        return Result(int(match[1]), "\n".join(output))
                    output.append(line)
        except TimeoutError:
            raise UnavailableError(
                f"{self.name}: {command!r} was not over within {within:.0f} s",
                hint="the console's last output: " + " | ".join(output[-3:]),
            ) from None
        raise UnavailableError(f"{self.name}: the console has ended", hint="is the guest still running?")

    async def check(self, command: str, *, within: float = 15.0) -> str:
        """Like `run`, for commands that must succeed: their output. Raises InternalError otherwise."""
        result = await self.run(command, within=within)
        if result.status != 0:
            raise InternalError(f"{self.name}: {command!r} gave {result.status}: {result.output.strip()}")
        return result.output.strip()

    def start(self, command: str) -> None:
        """Type a command whose lines are then read with `lines`."""
        self._input.put_nowait(f"{command}\n".encode())

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._input.put_nowait(_CONTROL_C)

    async def lines(self) -> AsyncIterator[tuple[float, str]]:
        """Lines as they come, each with its time of arrival; ends with the console."""
        while (item := await self._lines.get()) is not None:
            yield item
        self._lines.put_nowait(None)

    def _type_marked(self, command: str) -> str:
        """Type the command and the printing of a marker; the typed form differs, so its echo is no match."""
        marker = f"serai-demo-{next(self._numbers)}"
        self.start(command)
        self.start(f"echo serai'-'demo-{marker.rpartition('-')[2]}=$?")
        return marker

    async def _receive(self) -> None:
        try:
            partial = b""
            async for output in ConsoleServiceStub(self._channel).OpenConsole(self._typed()):
                if output.scrollback:
                    continue
                *complete, partial = (partial + output.data).split(b"\n")
                now = time.monotonic()
                for line in complete:
                    self._lines.put_nowait((now, line.decode(errors="replace").rstrip("\r")))
        finally:
            self._lines.put_nowait(None)

    async def _typed(self) -> AsyncIterator[ConsoleInput]:
        yield ConsoleInput(name=self.name)
        while (data := await self._input.get()) is not None:
            yield ConsoleInput(data=data)

    async def _end(self) -> None:
        self._input.put_nowait(None)
        if self._task is None:
            return
        _, pending = await asyncio.wait([self._task], timeout=2.0)
        for task in pending:
            task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
