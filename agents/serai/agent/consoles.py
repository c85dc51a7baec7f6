"""Attaching to a guest's console: scrollback first, then what it prints, for any number of attachers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from serai.agent.inventory import Hosted, Presence
from serai.errors import SeraiError, StateError
from serai.v1 import guest_pb2

BUFFER_BYTES = 256 * 1024
"""Output kept for an attacher that reads slowly; beyond it the oldest is lost, and it is told."""


class Attachment:
    """One attacher's view of one guest's console."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._lost = 0
        self._wake = asyncio.Event()
        self._ended = False
        self._error: SeraiError | None = None

    def put(self, data: bytes) -> None:
        """The guest printed; never blocks."""
        self._pieces.append(data)
        self._size += len(data)
        while self._size > BUFFER_BYTES and len(self._pieces) > 1:
            dropped = self._pieces.popleft()
            self._size -= len(dropped)
            self._lost += len(dropped)
        self._wake.set()

    def end(self, error: SeraiError | None) -> None:
        """Nothing comes after what is buffered; the attacher then sees `error`."""
        self._ended = True
        self._error = error
        self._wake.set()

    async def read(self) -> AsyncIterator[bytes]:
        """The output in order, until the end; raises what `end` was given."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._lost:
                notice, self._lost = f"\r\n[{self._lost} bytes lost: read too slowly]\r\n", 0
                yield notice.encode()
            if self._pieces:
                data = b"".join(self._pieces)
                self._pieces.clear()
                self._size = 0
                yield data
            if self._ended and not self._pieces:
                if self._error is not None:
                    raise self._error
                return


class Consoles:
    """Who is attached to which guest."""

    def __init__(self) -> None:
        self._attached: dict[str, set[Attachment]] = {}

    async def attach(
        self, hosted: Hosted, typed: bytes, inputs: AsyncIterator[guest_pb2.ConsoleInput]
    ) -> AsyncIterator[guest_pb2.ConsoleOutput]:
        """Serve one attacher, who has `typed` already, until its input ends or the guest is gone."""
        machine = hosted.machine
        if hosted.presence is Presence.INCOMING:
            raise StateError(
                f"{hosted.name} is arriving and has no console yet",
                hint="wait until it is here",
                reason="ARRIVING",
            )
        if machine is None:
            raise StateError(
                f"{hosted.name} has no console: {hosted.facts.status_message or 'it does not run'}",
                hint="start it",
                guest=hosted.name,
            )
        attachment = Attachment()
        # In one step of the event loop: nothing is printed in between, or it would be shown twice.
        scrollback = machine.read_scrollback()
        unsubscribe = machine.subscribe_console(attachment.put)
        self._attached.setdefault(hosted.uid, set()).add(attachment)
        typing: asyncio.Task[None] | None = None
        try:
            # Always sent, even when empty: it tells the attacher that it is attached.
            yield guest_pb2.ConsoleOutput(data=scrollback, scrollback=True)
            if typed:
                machine.write_console(typed)
            typing = asyncio.create_task(self._type(hosted, inputs, attachment))
            async for data in attachment.read():
                yield guest_pb2.ConsoleOutput(data=data)
        finally:
            unsubscribe()
            if typing is not None:
                typing.cancel()
            self._discard(hosted.uid, attachment)

    def end(self, uid: str, error: SeraiError | None) -> None:
        """End every attachment of a guest."""
        for attachment in self._attached.get(uid, ()):
            attachment.end(error)

    def end_all(self, error: SeraiError | None) -> None:
        """End every attachment."""
        for uid in list(self._attached):
            self.end(uid, error)

    async def _type(
        self, hosted: Hosted, inputs: AsyncIterator[guest_pb2.ConsoleInput], attachment: Attachment
    ) -> None:
        async for message in inputs:
            if message.data and hosted.machine is not None:
                hosted.machine.write_console(message.data)
        attachment.end(None)

    def _discard(self, uid: str, attachment: Attachment) -> None:
        attached = self._attached.get(uid, set())
        attached.discard(attachment)
        if not attached:
            self._attached.pop(uid, None)
