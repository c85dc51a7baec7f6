"""Ways to make a migration fail: drivers that stop at a gate, and a cable that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from serai.hypervisor.driver import GuestConfig
from serai.hypervisor.fake import FakeDriver, FakeGuest


class Gate:
    """Where an operation waits: `reached` when it is there, `open` lets it go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._opened = asyncio.Event()

    def open(self) -> None:
        self._opened.set()

    async def wait(self) -> None:
        self.reached.set()
        await self._opened.wait()


class GatedGuest(FakeGuest):
    _driver: GatedDriver

    async def pause(self) -> None:
        await self._driver.pass_gate("pause")
        await super().pause()

    async def resume(self, *, elapsed_ns: int = 0) -> None:
        await self._driver.pass_gate("resume")
        await super().resume(elapsed_ns=elapsed_ns)
        self._driver.on_resumed()

    async def save_state(self) -> bytes:
        await self._driver.pass_gate("save_state")
        return await super().save_state()

    async def restore(self, state: bytes, *, scrollback: bytes = b"", absent: bool = False) -> None:
        await self._driver.pass_gate("restore")
        await super().restore(state, scrollback=scrollback, absent=absent)


class GatedDriver(FakeDriver):
    """Operations with a gate wait there."""

    def __init__(self, *operations: str) -> None:
        super().__init__()
        self.gates = {operation: Gate() for operation in operations}
        self.on_resumed: Callable[[], None] = lambda: None

    async def pass_gate(self, operation: str) -> None:
        if operation in self.gates:
            await self.gates[operation].wait()

    async def create_incoming(self, config: GuestConfig) -> FakeGuest:
        await self.pass_gate("create_incoming")
        return await super().create_incoming(config)

    def _add(self, config: GuestConfig, *, incoming: bool) -> FakeGuest:
        super()._add(config, incoming=incoming)
        self.guests[config.uid] = GatedGuest(self, config, incoming=incoming)
        return self.guests[config.uid]


class Cable:
    """A TCP relay that can be cut, and that can damage what it carries."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._whole = True
        self.damage_after: int | None = None
        """Bytes towards the target after which one is flipped."""
        self.cut_after: int | None = None
        self.stall_after: int | None = None
        self.address = ""
        self.carried = 0

    async def __aenter__(self) -> Cable:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break every connection and refuse new ones."""
        self._whole = False
        for task in self._tasks:
            task.cancel()

    def mend(self) -> None:
        self._whole = True

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            async with self._connection(writer):
                if self._whole:
                    await self._relay(reader, writer)

    @contextlib.asynccontextmanager
    async def _connection(self, writer: asyncio.StreamWriter) -> AsyncIterator[None]:
        try:
            yield
        finally:
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(self._host, self._port)
        async with self._connection(there_writer), asyncio.TaskGroup() as both:
            both.create_task(self._pump(reader, there_writer, towards_target=True))
            both.create_task(self._pump(there_reader, writer, towards_target=False))

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, towards_target: bool
    ) -> None:
        while data := await reader.read(65536):
            if towards_target:
                self.carried += len(data)
                if self.damage_after is not None and self.carried > self.damage_after:
                    self.damage_after = None
                    data = bytes([data[0] ^ 1]) + data[1:]
                if self.cut_after is not None and self.carried > self.cut_after:
                    self.cut_after = None
                    self.cut()
                    return
                if self.stall_after is not None and self.carried > self.stall_after:
                    await asyncio.Event().wait()
            writer.write(data)
            await writer.drain()
        writer.transport.abort()
