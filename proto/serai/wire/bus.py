"""The event bus: publish without ever waiting, subscribe by topic.

In memory here; over MQTT in ``serai.wire.mqtt``.
"""

from __future__ import annotations

import abc
import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from serai.wire.events import TOPIC_ROOT, Event, Payload, topic_matches
from serai.wire.identity import Identity

EVERYTHING = f"{TOPIC_ROOT}/#"
QUEUE_EVENTS = 4096
"""Events that wait for a broker or a slow reader; beyond that the oldest are dropped and counted."""


@dataclass(slots=True)
class BusStatistics:
    """Counters since the bus was made."""

    published: int = 0
    delivered: int = 0
    dropped: int = 0
    connections: int = 0


class EventBus(abc.ABC):
    """Where a process puts its events. `publish` never blocks and never fails for want of a broker."""

    def __init__(self, source: Identity) -> None:
        self._source = source
        self._sequence = 0
        self.statistics = BusStatistics()

    def publish(self, subject: str, data: Payload) -> Event:
        """Say that something happened to the resource `subject`; call it in the event loop."""
        event = Event.create(self._source, self._sequence, subject, data)
        self._sequence += 1
        self.statistics.published += 1
        self._send(event)
        return event

    @abc.abstractmethod
    def _send(self, event: Event) -> None:
        """Queue the event."""

    @abc.abstractmethod
    def subscribe(self, pattern: str = EVERYTHING) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Events from now on whose topic matches the MQTT filter `pattern`, in the order of their source."""

    async def start(self) -> None:  # noqa: B027  (nothing to do for some)
        """Begin to deliver."""

    async def close(self) -> None:  # noqa: B027
        """Stop; safe to repeat."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class EventQueue:
    """A bounded queue for one reader that drops the oldest; `dropped` counts them."""

    def __init__(self, limit: int = QUEUE_EVENTS) -> None:
        self._events: deque[Event] = deque()
        self._limit = limit
        self._filled = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._events)

    def put(self, event: Event) -> bool:
        """Append; False if the oldest had to go for it."""
        full = len(self._events) >= self._limit
        if full:
            self._events.popleft()
            self.dropped += 1
        self._events.append(event)
        self._filled.set()
        self._empty.clear()
        return not full

    async def wait(self) -> Event:
        """The oldest, when there is one; it stays in the queue until `remove`."""
        while not self._events:
            self._filled.clear()
            await self._filled.wait()
        return self._events[0]

    def remove(self, event: Event) -> None:
        """Take out `event` if it is still the oldest."""
        if self._events and self._events[0] is event:
            self._events.popleft()
        if not self._events:
            self._empty.set()

    async def drained(self) -> None:
        """Return when it is empty."""
        await self._empty.wait()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = await self.wait()
        self.remove(event)
        return event


class MemoryBus(EventBus):
    """Events within one process."""

    def __init__(self, source: Identity) -> None:
        super().__init__(source)
        self._readers: dict[EventQueue, str] = {}

    def _send(self, event: Event) -> None:
        for queue, pattern in self._readers.items():
            if topic_matches(event.topic, pattern):
                self.statistics.delivered += 1
                self.statistics.dropped += not queue.put(event)

    @asynccontextmanager
    async def subscribe(self, pattern: str = EVERYTHING) -> AsyncIterator[AsyncIterator[Event]]:
        """See `EventBus.subscribe`."""
        queue = EventQueue()
        self._readers[queue] = pattern
        try:
            yield queue
        finally:
            del self._readers[queue]
