"""Events over an MQTT 3.1.1 broker with aiomqtt.

Losing the broker disturbs nothing: events wait in a bounded queue, the connection is made again with growing
pauses, and an event that was not acknowledged is sent once more (readers know it by its id).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

import aiomqtt

from serai.errors import InvalidInputError
from serai.wire.bus import EVERYTHING, EventBus, EventQueue, MemoryBus
from serai.wire.events import Event
from serai.wire.identity import Identity

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
"""Seconds between attempts to reach the broker; doubled each time, with up to half as much at random."""

_KEEPALIVE = 10
_PORTS = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """``mqtt://[USER:PASSWORD@]HOST[:PORT]`` or, with TLS, ``mqtts://...[?ca=FILE&cert=FILE&key=FILE]``."""

    host: str
    port: int
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read the URL; InvalidInputError says what is wrong, without the password."""
        parts = urlsplit(url)
        options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        try:
            port = parts.port
        except ValueError:
            port = -1
        wrong_options = options.keys() - {"ca", "cert", "key"}
        extra = parts.path.strip("/") or parts.fragment or wrong_options
        if parts.scheme not in _PORTS or not parts.hostname or port == -1 or extra:
            raise InvalidInputError(
                f"not the URL of an MQTT broker: {parts.scheme}://{parts.hostname or ''}...",
                hint="write mqtt://HOST:PORT, or mqtts://USER:PASSWORD@HOST:PORT?ca=FILE",
            )
        tls = parts.scheme == "mqtts"
        if options and not tls:
            raise InvalidInputError("only mqtts:// has certificates", hint="write mqtts://")
        return cls(
            parts.hostname,
            port or _PORTS[parts.scheme],
            unquote(parts.username) if parts.username else None,
            unquote(parts.password) if parts.password else None,
            tls,
            options.get("ca"),
            options.get("cert"),
            options.get("key"),
        )

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def tls_context(self) -> ssl.SSLContext | None:
        """What to trust and present; InvalidInputError when a file cannot be used."""
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate:
                context.load_cert_chain(self.certificate, self.key)
        except OSError as error:
            raise InvalidInputError(f"TLS files for the broker {self}: {error}") from error
        return context


class MqttBus(EventBus):
    """An event bus on a broker somewhere."""

    def __init__(self, source: Identity, url: str) -> None:
        super().__init__(source)
        self._broker = BrokerAddress.parse(url)
        self._tls = self._broker.tls_context()
        self._queue = EventQueue()
        self._publisher: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Events that the broker has not acknowledged yet."""
        return len(self._queue)

    async def start(self) -> None:
        """Connect in the background; does not wait for the broker."""
        self._publisher = asyncio.create_task(self._keep_connected(self._publish_all), name="mqtt publisher")

    async def close(self, grace: float = 1.0) -> None:
        """Give what still waits up to `grace` seconds to reach the broker, then disconnect."""
        publisher, self._publisher = self._publisher, None
        if publisher is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._queue.drained()
        publisher.cancel()
        await asyncio.gather(publisher, return_exceptions=True)

    def _send(self, event: Event) -> None:
        self.statistics.dropped += not self._queue.put(event)

    @asynccontextmanager
    async def subscribe(self, pattern: str = EVERYTHING) -> AsyncIterator[AsyncIterator[Event]]:
        """See `EventBus.subscribe`.

        Returns once the broker, if it is there, has confirmed; later losses heal.
        """
        queue = EventQueue()
        attempted = asyncio.Event()

        async def read(client: aiomqtt.Client) -> None:
            await client.subscribe(pattern, qos=1)
            attempted.set()
            async for message in client.messages:
                self._receive(message, queue)

        task = asyncio.create_task(
            self._keep_connected(read, attempted.set), name=f"mqtt reader of {pattern}"
        )
        try:
            await attempted.wait()
            yield queue
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _receive(self, message: aiomqtt.Message, queue: EventQueue) -> None:
        try:
            if not isinstance(message.payload, bytes | bytearray):
                raise InvalidInputError("an event is bytes")
            event = Event.from_json(message.payload)
        except InvalidInputError as error:
            log.warning("ignored a message at %s: %s", message.topic, error.message)
            return
        self.statistics.delivered += 1
        self.statistics.dropped += not queue.put(event)

    async def _publish_all(self, client: aiomqtt.Client) -> None:
        async def publish() -> None:
            while True:
                event = await self._queue.wait()
                await client.publish(event.topic, event.to_json(), qos=1)
                self._queue.remove(event)

        async def watch() -> None:
            # Nothing is subscribed; the iterator raises when the connection is lost while there is no event.
            async for _ in client.messages:
                pass

        await _first_failure(publish(), watch())

    async def _keep_connected(
        self, use: Callable[[aiomqtt.Client], Awaitable[None]], failed: Callable[[], None] = lambda: None
    ) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                async with self._client() as client:
                    self.statistics.connections += 1
                    log.info("connected to the broker %s", self._broker)
                    pause = FIRST_PAUSE
                    await use(client)
            except aiomqtt.MqttError as error:
                # Its text only: the error holds the socket.
                reason = str(error)
                log.warning("broker %s: %s; next attempt in about %.1f s", self._broker, reason, pause)
            except Exception:
                # A defect here must not end the events for good.
                log.exception("broker %s", self._broker)
            failed()
            await asyncio.sleep(pause * random.uniform(1, 1.5))
            pause = min(2 * pause, LONGEST_PAUSE)

    def _client(self) -> aiomqtt.Client:
        broker = self._broker
        return aiomqtt.Client(
            broker.host,
            broker.port,
            username=broker.user,
            password=broker.password,
            tls_context=self._tls,
            keepalive=_KEEPALIVE,
            timeout=_KEEPALIVE,
        )


async def _first_failure(*operations: Awaitable[None]) -> None:
    """Run them until one raises, end the others, and raise that; a task group would raise a group."""
    tasks = [asyncio.ensure_future(operation) for operation in operations]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def create_bus(source: Identity, url: str | None) -> EventBus:
    """The bus that a setting names: an MQTT URL, or None for events within this process only."""
    return MqttBus(source, url) if url else MemoryBus(source)
