"""Passing an attached end user's frames on to where the guest is now, across its migrations.

Frames that are under way while it moves are lost, as Ethernet may lose them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from serai.errors import InvalidInputError, SeraiError
from serai.roles.relay import Relay
from serai.v1.attachment_pb2 import AttachInput, AttachOutput, AttachPort

QUEUE_MESSAGES = 4096
"""Batches of frames kept for the next hop; then the oldest are lost."""


class _Frames:
    """What the user sends, on its way."""

    def __init__(self) -> None:
        self._batches: deque[AttachInput] = deque(maxlen=QUEUE_MESSAGES)
        self._wake = asyncio.Event()
        self.ended = False

    async def read(self, requests: AsyncIterator[AttachInput]) -> None:
        try:
            async for message in requests:
                self._batches.append(AttachInput(frames=message.frames))
                self._wake.set()
        finally:
            self.ended = True
            self._wake.set()

    async def write(self, call: Any, first: AttachInput) -> None:
        with contextlib.suppress(SeraiError):
            await call.write(first)
            while True:
                while self._batches:
                    await call.write(self._batches.popleft())
                if self.ended:
                    await call.done_writing()
                    return
                await self._wake.wait()
                self._wake.clear()


class AttachmentRelay(Relay):
    """The stream of one attachment; `Place.join` attaches at the next hop."""

    async def frames(
        self, requests: AsyncIterator[AttachInput], port: AttachPort
    ) -> AsyncGenerator[AttachOutput]:
        """What the station gets; what comes in `requests` is sent. Says once that it is attached."""
        outgoing = _Frames()
        reading = asyncio.create_task(outgoing.read(requests))
        attached = False
        try:
            while True:
                place = self._locate()
                first = AttachPort(name=place.name, interface=port.interface, mac=port.mac)
                failure: SeraiError | None = None
                try:
                    async with contextlib.aclosing(
                        _hop(place.join, AttachInput(port=first), outgoing)
                    ) as hop:
                        async for output in hop:
                            if not (attached and output.HasField("attachment")):
                                yield output
                            attached = True
                except SeraiError as error:
                    failure = error
                if outgoing.ended:
                    return
                if not attached or not await self._has_moved(place):
                    if failure is not None:
                        raise failure
                    return
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def pass_on(
    requests: AsyncIterator[AttachInput], join: Callable[[], Any], first: AttachInput
) -> AsyncGenerator[AttachOutput]:
    """One hop that never moves; `first` is what it is told first."""
    outgoing = _Frames()
    reading = asyncio.create_task(outgoing.read(requests))
    try:
        async with contextlib.aclosing(_hop(join, first, outgoing)) as hop:
            async for output in hop:
                yield output
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def _hop(
    join: Callable[[], Any], first: AttachInput, outgoing: _Frames
) -> AsyncGenerator[AttachOutput]:
    call = join()
    writing = asyncio.create_task(outgoing.write(call, first))
    try:
        async for output in call:
            yield output
    finally:
        writing.cancel()
        call.cancel()
        await asyncio.gather(writing, return_exceptions=True)


async def first_input(requests: AsyncIterator[AttachInput]) -> AttachInput:
    """The message that says where; InvalidInputError when there is none."""
    async for message in requests:
        if message.token or message.HasField("port"):
            return message
        break
    raise InvalidInputError("the first message says not where to attach", hint="set `token` in it")
