"""Passing consoles and captures on to where a virtual node is now, across its migrations.

Each role maps the name it is given to the next hop's. When the stream from there ends because the node has
moved, the relay attaches at the new place; the caller's stream goes on, and nothing is printed twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from serai.errors import InternalError, InvalidInputError, SeraiError
from serai.store.collection import Watcher
from serai.v1.guest_pb2 import ConsoleInput, ConsoleOutput
from serai.v1.link_pb2 import CapturedFrame, CaptureFramesRequest

MOVE_GRACE_S = 2.0
"""How long a stream that has ended may have ended because of a move that is not known here yet."""

TAIL_BYTES = 64 * 1024
"""Output remembered to recognise it in the scrollback of the next place."""

_SHORTEST_OVERLAP = 8
"""Fewer bytes than this agree by chance."""


def _not_offered(*_: object) -> Any:
    raise InternalError("a relay was asked for a stream that its place does not offer")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node is: `key` tells places apart, `name` is the node's there; `moving`: wait for another.

    Streams there: its console (`attach`), copies of its frames (`capture`), a station beside it (`join`).
    """

    key: str
    name: str
    attach: Callable[[], Any] = _not_offered
    capture: Callable[[CaptureFramesRequest], Any] = _not_offered
    join: Callable[[], Any] = _not_offered
    moving: bool = False


class Relay:
    """Streams of one virtual node. `locate` says where it is now, or raises when it is nowhere."""

    def __init__(
        self, locate: Callable[[], Place], watch: Callable[[], AbstractContextManager[Watcher[Any]]]
    ) -> None:
        self._locate = locate
        self._watch = watch

    async def console(
        self, requests: AsyncIterator[ConsoleInput], first: ConsoleInput
    ) -> AsyncIterator[ConsoleOutput]:
        """What the console prints; what comes in `requests` is typed. `first` named the node."""
        typed = _Typed()
        typed.put(first.data)
        reading = asyncio.create_task(typed.read(requests))
        seen: _Tail | None = None
        try:
            while True:
                place = self._locate()
                call = place.attach()
                typing = asyncio.create_task(typed.write(call, place.name))
                failure: SeraiError | None = None
                try:
                    async for output in call:
                        if output.scrollback and seen is not None:
                            output = ConsoleOutput(data=seen.news(output.data))  # noqa: PLW2901
                        if seen is None:
                            seen = _Tail()
                        seen.add(output.data)
                        if output.data or output.scrollback:
                            yield output
                except SeraiError as error:
                    failure = error
                finally:
                    typing.cancel()
                    call.cancel()
                if typed.ended or not await self._has_moved(place):
                    if failure is not None and not typed.ended:
                        raise failure
                    return
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def capture(self, request: CaptureFramesRequest) -> AsyncIterator[CapturedFrame]:
        """Copies of frames, wherever the node is."""
        while True:
            place = self._locate()
            there = CaptureFramesRequest(
                name=place.name, interface=request.interface, snapshot_length=request.snapshot_length
            )
            call = place.capture(there)
            failure: SeraiError | None = None
            try:
                async for frame in call:
                    yield frame
            except SeraiError as error:
                failure = error
            finally:
                call.cancel()
            if not await self._has_moved(place):
                if failure is not None:
                    raise failure
                return

    async def _has_moved(self, old: Place) -> bool:
        """Whether the node is in another place now; waits while it moves, and a moment for news of that."""
        deadline = asyncio.get_running_loop().time() + MOVE_GRACE_S
        with self._watch() as watcher, contextlib.suppress(SeraiError):
            while (place := self._locate()).key == old.key:
                remaining = deadline - asyncio.get_running_loop().time()
                if remaining <= 0 and not place.moving:
                    return False
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(remaining, 0.1)):
                        await watcher.changes()
            return True
        return False


class _Typed:
    """Input on its way; what could not be delivered waits for the next place."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self.ended = False

    def put(self, data: bytes) -> None:
        if data:
            self._pieces.append(data)
            self._wake.set()

    async def read(self, requests: AsyncIterator[ConsoleInput]) -> None:
        async for message in requests:
            self.put(message.data)
        self.ended = True
        self._wake.set()

    async def write(self, call: Any, name: str) -> None:
        with contextlib.suppress(SeraiError):
            await call.write(ConsoleInput(name=name))
            while True:
                while self._pieces:
                    await call.write(ConsoleInput(data=self._pieces[0]))
                    self._pieces.popleft()
                if self.ended:
                    await call.done_writing()
                    return
                await self._wake.wait()
                self._wake.clear()


class _Tail:
    """The end of what a caller has seen."""

    def __init__(self) -> None:
        self._bytes = b""

    def add(self, data: bytes) -> None:
        self._bytes = (self._bytes + data)[-TAIL_BYTES:]

    def news(self, scrollback: bytes) -> bytes:
        """What `scrollback` holds beyond that. Both are ends of one stream, and `scrollback` is not older."""
        if not self._bytes:
            return scrollback
        position = scrollback.rfind(self._bytes)
        if position >= 0:
            return scrollback[position + len(self._bytes) :]
        start = self._bytes.find(scrollback[:_SHORTEST_OVERLAP])
        while start >= 0:
            if scrollback.startswith(self._bytes[start:]):
                return scrollback[len(self._bytes) - start :]
            start = self._bytes.find(scrollback[:_SHORTEST_OVERLAP], start + 1)
        return scrollback


async def first_message(requests: AsyncIterator[ConsoleInput]) -> ConsoleInput:
    """The message that names the console; InvalidInputError when there is none."""
    async for message in requests:
        if message.name:
            return message
        break
    raise InvalidInputError("the first message names no console", hint="set `name` in it")
