"""A TCP relay between two agents that can be cut, stalled and made to damage what it carries."""

from __future__ import annotations

import asyncio
import contextlib

_PIECE = 1 << 16


class Proxy:
    """Listens at `host` on the same port as the target, which is reached at 127.0.0.1."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self._damage = False

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, self._host, self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.heal()
        assert self._server is not None
        self._server.close()
        self._abort()

    def cut(self) -> None:
        """Reset every connection and refuse new ones until healed."""
        self._refusing = True
        self._abort()

    def reset(self) -> None:
        """Reset every connection; new ones are fine."""
        self._abort()

    def stall(self) -> None:
        """Carry nothing until healed."""
        self._flowing.clear()

    def damage(self) -> None:
        """Flip a bit of the next piece."""
        self._damage = True

    def heal(self) -> None:
        """Be a wire again."""
        self._refusing = self._damage = False
        self._flowing.set()

    def _abort(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(OSError):
            if not self._refusing:
                there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._port)
                self._writers.add(there_writer)
                await asyncio.gather(self._pump(reader, there_writer), self._pump(there_reader, writer))
                self._writers.discard(there_writer)
        self._writers.discard(writer)
        writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_PIECE):
                await self._flowing.wait()
                if self._damage:
                    self._damage = False
                    middle = len(data) // 2
                    data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
