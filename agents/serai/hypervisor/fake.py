"""A driver without a machine, for tests of the agent, the switch and the migration protocol.

Everything is deterministic and happens in the event loop. A test plays the guest: it writes memory
(`FakeGuest.write_memory`, `FakeGuest.run`), sends frames (`FakePort.send`), prints (`FakeGuest.print`) and
dies (`FakeGuest.crash`). Whatever a real guest could not do raises `StateError` - above all, running while
paused, so that a test of migration notices a second copy that runs.

    driver = FakeDriver()
    guest = await driver.create(GuestConfig(uid="a", memory_bytes=1 << 20))
    await guest.start()
    guest.run(100)                       # 100 steps: one page written in each
    driver.fail("restore", HypervisorError("no"))   # the next restore of any guest fails
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import mmap
import random
import time
from collections import deque
from collections.abc import Callable, Sequence

from serai.errors import AlreadyExistsError, HypervisorError
from serai.hypervisor.base import BaseGuest
from serai.hypervisor.driver import (
    PAGE_SIZE,
    Driver,
    FramePort,
    Guest,
    GuestConfig,
    GuestState,
    GuestStatistics,
    GuestView,
)

QUEUE_FRAMES = 1024
"""Frames a port holds for a guest that does not read."""

KERNEL_RELEASE = "fake"

_STATE_MAGIC = b"SERAIFAKE1\n"


class FakePort(FramePort):
    """A port whose guest side is the test: `received` is what was delivered, `send` what the guest sends."""

    def __init__(self, guest: FakeGuest, name: str) -> None:
        self.name = name
        self.received: deque[bytes] = deque()
        self.lost = 0
        self._guest = guest
        self._receiver: Callable[[Sequence[bytes]], None] | None = None

    def deliver(self, frame: bytes | memoryview) -> bool:
        """Queue for the guest; lost when full or when no guest is there to take it."""
        alive = self._guest.state in (GuestState.DEFINED, GuestState.RUNNING, GuestState.PAUSED)
        if not alive or len(self.received) >= QUEUE_FRAMES:
            self.lost += 1
            return False
        self.received.append(bytes(frame))
        return True

    def set_receiver(self, receiver: Callable[[Sequence[bytes]], None] | None) -> None:
        """See `FramePort.set_receiver`."""
        self._receiver = receiver

    def send(self, *frames: bytes) -> None:
        """The guest sends `frames` as one batch; the receiver is called from the event loop."""
        self._guest.expect_running("send frames")
        asyncio.get_running_loop().call_soon(self._hand_over, list(frames))

    def _hand_over(self, frames: list[bytes]) -> None:
        if self._receiver is not None:
            self._receiver(frames)


class FakeGuest(BaseGuest):
    """A guest made of RAM, a step counter and a seeded random generator that picks the pages it writes."""

    def __init__(self, driver: FakeDriver, config: GuestConfig, *, incoming: bool) -> None:
        super().__init__(config)
        self._driver = driver
        self._incoming = incoming
        self._memory = mmap.mmap(-1, config.ram_bytes)
        self._view = memoryview(self._memory)
        self._ports = {interface.name: FakePort(self, interface.name) for interface in config.interfaces}
        self._random = random.Random(config.uid)
        self._dirty: set[int] | None = None
        self._steps = 0
        self._size = (config.vcpus, config.memory_bytes)
        self._started_at = 0.0
        self._ready_seconds: float | None = None
        self._exits: dict[str, int] = {}
        self._workload: asyncio.Task[None] | None = None
        self._absent = memoryview(bytearray(config.ram_bytes // PAGE_SIZE))
        self._absent_listener: Callable[[list[int]], None] | None = None
        self._arrived = asyncio.Event()
        self.elapsed_ns = 0
        self.typed = bytearray()

    # The test's side.

    def expect_running(self, doing: str) -> None:
        """Raise StateError unless the guest executes now."""
        self._expect(doing, GuestState.RUNNING)

    def write_memory(self, offset: int, data: bytes) -> None:
        """The guest stores `data` at RAM offset `offset`; the dirty log sees it."""
        self.expect_running("write memory")
        self._view[offset : offset + len(data)] = data
        if self._dirty is not None and data:
            self._dirty.update(range(offset // PAGE_SIZE, (offset + len(data) - 1) // PAGE_SIZE + 1))

    def run(self, steps: int, *, working_set_pages: int | None = None) -> None:
        """Execute `steps` steps, each of which writes to a random page of the working set (default: all)."""
        pages = min(working_set_pages or self.pages, self.pages)
        for _ in range(steps):
            self._steps += 1
            page = self._random.randrange(pages)
            self.write_memory(page * PAGE_SIZE, self._steps.to_bytes(8, "little"))

    def keep_busy(self, pages_per_second: float, *, working_set_pages: int | None = None) -> None:
        """Write pages at this rate in the background for as long as the guest runs and the loop turns."""
        if self._workload is not None:
            self._workload.cancel()
        self._workload = asyncio.get_running_loop().create_task(
            self._work(pages_per_second, working_set_pages)
        )

    async def _work(self, pages_per_second: float, working_set_pages: int | None) -> None:
        while self.state in (GuestState.RUNNING, GuestState.PAUSED):
            started = time.monotonic()
            await asyncio.sleep(0.005)
            if self.state is GuestState.RUNNING:
                steps = max(1, round((time.monotonic() - started) * pages_per_second))
                await self._run_with_absent(steps, working_set_pages)

    async def _run_with_absent(self, steps: int, working_set_pages: int | None) -> None:
        """As `run`; a step that needs an absent page asks for it and waits."""
        pages = min(working_set_pages or self.pages, self.pages)
        for _ in range(steps):
            if any(self._absent):
                ahead = random.Random()
                ahead.setstate(self._random.getstate())
                await self._need(ahead.randrange(pages))
            if self.state is not GuestState.RUNNING:
                return
            self.run(1, working_set_pages=working_set_pages)

    async def _need(self, page: int) -> None:
        while self._absent[page]:
            self._arrived.clear()
            if self._absent_listener is not None:
                self._absent_listener([page])
            await self._arrived.wait()

    def print(self, data: bytes) -> None:
        """The guest writes to its console."""
        self.expect_running("print")
        self._console_output(data)

    def power_off(self) -> None:
        """The guest powers itself off."""
        self.expect_running("power off")
        self._set_state(GuestState.STOPPED, "powered off")

    def crash(self, reason: str = "killed by SIGKILL") -> None:
        """The guest's process dies."""
        self._set_state(GuestState.FAILED, reason)

    @property
    def pages(self) -> int:
        """Pages of RAM."""
        return self.config.ram_bytes // PAGE_SIZE

    @property
    def steps(self) -> int:
        """Steps executed; carried along by save_state."""
        return self._steps

    # The contract.

    @property
    def ram(self) -> memoryview:
        """See `Guest.ram`."""
        return self._view

    @property
    def ports(self) -> dict[str, FramePort]:
        """See `Guest.ports`."""
        return dict(self._ports)

    def port(self, name: str) -> FakePort:
        """The port with its test side."""
        return self._ports[name]

    async def start(self) -> None:
        """See `Guest.start`; puts a pattern into the first pages and is ready one turn of the loop later."""
        self._expect("start", GuestState.DEFINED)
        self._driver.check("start")
        for path in (self.config.kernel, self.config.initramfs):
            if path is not None and not path.is_file():
                raise HypervisorError(f"guest {self.uid}: {path} cannot be loaded: there is no such file")
        for page in range(min(16, self.pages)):
            self._view[page * PAGE_SIZE : page * PAGE_SIZE + 8] = self._random.randbytes(8)
        self._started_at = time.monotonic()
        self._set_state(GuestState.RUNNING)
        asyncio.get_running_loop().call_soon(self._become_ready)

    def _become_ready(self) -> None:
        if self.state is GuestState.RUNNING and self._ready_seconds is None:
            self._ready_seconds = time.monotonic() - self._started_at
            self._console_output(b"\r\nfake guest ready\r\n# ")
            self._notify()

    async def pause(self) -> None:
        """See `Guest.pause`."""
        self._expect("pause", GuestState.RUNNING)
        self._driver.check("pause")
        self._set_state(GuestState.PAUSED)

    async def resume(self, *, elapsed_ns: int = 0) -> None:
        """See `Guest.resume`; `elapsed_ns` adds up in the attribute of that name."""
        self._expect("resume", GuestState.PAUSED)
        self._driver.check("resume")
        self.elapsed_ns += elapsed_ns
        self._set_state(GuestState.RUNNING)

    async def stop(self, *, grace_seconds: float = 0.0) -> None:
        """See `Guest.stop`; a running fake always obeys a request to power off."""
        asked = grace_seconds > 0 and self.state is GuestState.RUNNING
        self._set_state(GuestState.STOPPED, "powered off" if asked else "stopped")

    async def statistics(self) -> GuestStatistics:
        """See `Guest.statistics`."""
        return GuestStatistics(
            instructions=self._steps,
            cpu_seconds=0.0,
            ready_seconds=self._ready_seconds,
            exits=dict(self._exits),
            kernel_release=KERNEL_RELEASE if self._ready_seconds is not None else "",
            vcpus=self._size[0],
            memory_bytes=self._size[1],
        )

    async def resize(self, *, vcpus: int, memory_bytes: int, timeout_seconds: float) -> GuestView:
        """See `Guest.resize`; a fake obeys at once and has a tenth of its memory in use."""
        self._expect("resize", GuestState.RUNNING)
        self._driver.check("resize")
        self._size = (vcpus, memory_bytes)
        return GuestView(vcpus, memory_bytes, memory_bytes * 9 // 10)

    def write_console(self, data: bytes) -> None:
        """The guest keeps what was typed in `typed` and echoes it."""
        if self.state is GuestState.RUNNING:
            self.typed += data
            self._console_output(data)

    async def start_dirty_log(self) -> None:
        """See `Guest.start_dirty_log`."""
        self._expect("log dirty pages", GuestState.RUNNING, GuestState.PAUSED)
        self._driver.check("start_dirty_log")
        self._dirty = set()

    async def take_dirty_pages(self) -> bytes:
        """See `Guest.take_dirty_pages`."""
        self._driver.check("take_dirty_pages")
        if self._dirty is None:
            raise HypervisorError(f"guest {self.uid}: the dirty log is not on")
        bitmap = bytearray((self.pages + 7) // 8)
        for page in self._dirty:
            bitmap[page // 8] |= 1 << page % 8
        self._dirty = set()
        return bytes(bitmap)

    async def stop_dirty_log(self) -> None:
        """See `Guest.stop_dirty_log`."""
        self._dirty = None

    async def save_state(self) -> bytes:
        """See `Guest.save_state`; includes the frames that the guest has not read yet."""
        self._expect("save the state", GuestState.PAUSED)
        self._driver.check("save_state")
        version, numbers, gauss = self._random.getstate()
        body = json.dumps(
            {
                "steps": self._steps,
                "random": [version, list(numbers), gauss],
                "ready_seconds": self._ready_seconds,
                "elapsed_ns": self.elapsed_ns,
                "exits": self._exits,
                "queues": {
                    name: [frame.hex() for frame in port.received] for name, port in self._ports.items()
                },
            }
        ).encode()
        return _STATE_MAGIC + hashlib.sha256(body).digest() + body

    async def restore(self, state: bytes, *, scrollback: bytes = b"", absent: bool = False) -> None:
        """See `Guest.restore`."""
        self._expect("restore", GuestState.DEFINED)
        if not self._incoming:
            raise HypervisorError(f"guest {self.uid}: was not created to be restored into")
        self._driver.check("restore")
        head = len(_STATE_MAGIC)
        body = state[head + 32 :]
        if state[:head] != _STATE_MAGIC or hashlib.sha256(body).digest() != state[head : head + 32]:
            raise HypervisorError(f"guest {self.uid}: snapshot section 'fake' is damaged")
        values = json.loads(body)
        version, numbers, gauss = values["random"]
        self._random.setstate((version, tuple(numbers), gauss))
        self._steps = values["steps"]
        self._ready_seconds = values["ready_seconds"]
        self.elapsed_ns = values["elapsed_ns"]
        self._exits = values["exits"]
        for name, frames in values["queues"].items():
            if name in self._ports:
                # Frames that came before the restore stay behind those the guest had already been sent.
                self._ports[name].received.extendleft(bytes.fromhex(frame) for frame in reversed(frames))
        self._scrollback[:] = scrollback
        self._set_state(GuestState.PAUSED)

    @property
    def absent(self) -> memoryview:
        """See `Guest.absent`."""
        return self._absent

    def on_absent(self, listener: Callable[[list[int]], None] | None) -> None:
        """See `Guest.on_absent`."""
        self._absent_listener = listener

    async def pages_arrived(self, *, everything: bool = False) -> None:
        """See `Guest.pages_arrived`."""
        self._arrived.set()

    async def close(self) -> None:
        """See `Guest.close`; RAM stays readable for as long as somebody holds a view of it."""
        if self._workload is not None:
            self._workload.cancel()
        self._set_state(GuestState.STOPPED, "closed")
        self._driver.forget(self)


class FakeDriver(Driver):
    """Creates fake guests; `guests` are those not closed yet."""

    def __init__(self) -> None:
        self.guests: dict[str, FakeGuest] = {}
        self._failures: dict[str, deque[Exception]] = {}

    def fail(self, operation: str, error: Exception) -> None:
        """The next `operation` ("create", "start", "pause", "resume", "restore" ...) raises `error`."""
        self._failures.setdefault(operation, deque()).append(error)

    def check(self, operation: str) -> None:
        """Raise what `fail` laid in for `operation`, once."""
        queue = self._failures.get(operation)
        if queue:
            raise queue.popleft()

    def forget(self, guest: FakeGuest) -> None:
        """Free the uid of a closed guest."""
        if self.guests.get(guest.uid) is guest:
            del self.guests[guest.uid]

    async def open(self) -> None:
        """See `Driver.open`."""
        self.check("open")

    async def create(self, config: GuestConfig) -> FakeGuest:
        """See `Driver.create`."""
        self.check("create")
        return self._add(config, incoming=False)

    async def create_incoming(self, config: GuestConfig) -> FakeGuest:
        """See `Driver.create_incoming`."""
        self.check("create_incoming")
        return self._add(config, incoming=True)

    def _add(self, config: GuestConfig, *, incoming: bool) -> FakeGuest:
        if config.uid in self.guests:
            raise AlreadyExistsError(f"guest {config.uid}: there is one of this uid", guest=config.uid)
        if config.memory_bytes <= 0 or config.memory_bytes % PAGE_SIZE:
            raise HypervisorError(
                f"guest {config.uid}: {config.memory_bytes} bytes of RAM are not whole pages"
            )
        guest = FakeGuest(self, config, incoming=incoming)
        self.guests[config.uid] = guest
        return guest

    async def close(self) -> None:
        """See `Driver.close`."""
        for guest in list(self.guests.values()):
            await guest.close()


__all__ = ["KERNEL_RELEASE", "FakeDriver", "FakeGuest", "FakePort", "Guest"]
