"""TCP ports on this machine that lead to guests, through an attached port and without root."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from dataclasses import dataclass
from typing import Self

from serai.cli.attach.packets import Ip
from serai.cli.attach.port import AttachedPort
from serai.cli.attach.station import IpStation
from serai.cli.attach.tcp import Connection
from serai.errors import AlreadyExistsError, InvalidInputError, StateError, UnavailableError

log = logging.getLogger(__name__)

_CHUNK = 65536
_LINGER_S = 5.0
"""How long the guest may take to acknowledge the end."""


@dataclass(frozen=True, slots=True)
class Forward:
    """``LISTEN_ADDRESS:PORT:GUEST_ADDRESS:PORT``."""

    host: str
    port: int
    target: Ip
    target_port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """InvalidInputError that says how to write it."""
        parts = text.split(":")
        try:
            host, port, target, target_port = parts if len(parts) == 4 else ("127.0.0.1", *parts)
            result = cls(host, int(port), Ip(target), int(target_port))
            ipaddress.ip_address(host)
        except (ValueError, TypeError):
            result = None
        if result is None or not 0 <= result.port < 65536 or not 0 < result.target_port < 65536:
            raise InvalidInputError(
                f"{text!r} is no forward", hint="write 127.0.0.1:8080:10.1.0.2:80, listening side first"
            )
        return result


class Forwarder:
    """Runs an `IpStation` on an attached port and forwards to it."""

    def __init__(self, port: AttachedPort) -> None:
        attachment = port.attachment
        if not attachment.address:
            raise StateError(
                "the wire has no free IPv4 address, so nothing can be forwarded there",
                hint="give the node's interface an IPv4 address in the description, or use --pcap",
            )
        gateway = Ip(attachment.gateway) if attachment.gateway else None
        address = ipaddress.IPv4Interface(attachment.address)
        self._station = IpStation(attachment.mac, address, gateway)
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._changed: set[asyncio.Event] = set()
        self._servers: list[asyncio.Server] = []
        port.on_frames = self._receive

    async def listen(self, forward: Forward) -> str:
        """Accept connections for `forward`; returns where. AlreadyExistsError when the port is taken."""

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                await self._serve(forward, reader, writer)
            writer.close()

        try:
            server = await asyncio.start_server(accept, forward.host, forward.port)
        except OSError as error:
            raise AlreadyExistsError(
                f"{forward.host}:{forward.port} cannot be listened on: {error.strerror}",
                hint="choose another port",
            ) from error
        self._servers.append(server)
        name = server.sockets[0].getsockname()
        return f"{name[0]}:{name[1]}"

    async def close(self) -> None:
        """Listen no more."""
        for server in self._servers:
            server.close()
        if self._timer is not None:
            self._timer.cancel()

    async def _serve(
        self, forward: Forward, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        connection = self._station.connect(forward.target, forward.target_port, self._loop.time())
        changed = asyncio.Event()
        self._changed.add(changed)
        self._flush()
        tasks = [
            asyncio.create_task(self._upwards(connection, reader, changed)),
            asyncio.create_task(self._downwards(connection, writer, changed)),
        ]
        try:
            await asyncio.gather(*tasks)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_S):
                    while not connection.is_over:
                        changed.clear()
                        await changed.wait()
        except UnavailableError as error:
            log.warning("%s:%d: %s", forward.target, forward.target_port, error.message)
            _reset(writer)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            connection.abort()
            self._changed.discard(changed)
            self._flush()

    async def _upwards(
        self, connection: Connection, reader: asyncio.StreamReader, changed: asyncio.Event
    ) -> None:
        while not connection.is_over and (data := await reader.read(_CHUNK)):
            connection.write(data, self._loop.time())
            self._flush()
            while connection.room <= 0 and not connection.is_over:
                await changed.wait()
                changed.clear()
        connection.close(self._loop.time())
        self._flush()

    async def _downwards(
        self, connection: Connection, writer: asyncio.StreamWriter, changed: asyncio.Event
    ) -> None:
        while True:
            changed.clear()
            data = connection.read()
            if data:
                self._flush()
                writer.write(data)
                await writer.drain()
                continue
            if connection.failure is not None:
                raise connection.failure
            if connection.ended:
                writer.write_eof()
            if connection.ended or connection.is_over:
                return
            await changed.wait()

    def _receive(self, frames: list[bytes]) -> None:
        now = self._loop.time()
        for frame in frames:
            self._station.receive(frame, now)
        self._flush()

    def _flush(self) -> None:
        self._port.send(self._station.poll(self._loop.time()))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._station.deadline
        if deadline is not None:
            self._timer = self._loop.call_at(deadline, self._flush)
        for changed in self._changed:
            changed.set()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Refuse as the guest did: closed with a reset, so that nobody takes it for an empty answer."""
    sock: socket.socket = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
