"""The default driver: guests on Serai's own emulated RISC-V machine, each in a process of its own.

A guest's process is forked from the zygote and confined; it shares the guest's RAM with the agent through a
memfd and is spoken to as `serai.machine.protocol` says. When it dies, its guest is FAILED with the reason,
and nobody else is harmed; when the agent dies, it goes on for a while and can be adopted by the next
(`serai.hypervisor.survivors`), or, without a directory for that, ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import mmap
import os
import socket
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

from serai.errors import AlreadyExistsError, HypervisorError
from serai.hypervisor.base import SCROLLBACK_BYTES, BaseGuest
from serai.hypervisor.driver import (
    PAGE_SIZE,
    Driver,
    FramePort,
    GuestConfig,
    GuestState,
    GuestStatistics,
    GuestView,
    TracePiece,
)
from serai.hypervisor.guest_link import GuestLink
from serai.hypervisor.ports import EmulatedPort
from serai.hypervisor.survivors import Survivor, Survivors
from serai.hypervisor.trace import decode_trace
from serai.hypervisor.zygote_link import AdoptedProcess, ChildProcess, ZygoteLink, describe_exit
from serai.machine import protocol
from serai.machine.board import Disk, MachineConfig, Mode, NetworkInterface
from serai.machine.errors import ConfigurationError
from serai.machine.hart import ClockSource, Execution

INPUT_BYTES = 64 * 1024
"""Console input that waits in the agent for a guest that does not read; beyond it the newest is lost."""

_EXIT_SECONDS = 5.0
_STATUS_SECONDS = 2.0
_TRACE_SECONDS = 0.02
_COMPLETE_BYTES = 4 << 20
"""Bytes of a copied guest's RAM completed in one go, a few milliseconds of its time."""

_CONSOLE_BYTES = 64 * 1024
_log = logging.getLogger(__name__)

_ENDED = (GuestState.STOPPED, GuestState.FAILED)


class EmulatedGuest(BaseGuest):
    """A guest and its process."""

    def __init__(
        self,
        driver: EmulatedDriver,
        config: GuestConfig,
        *,
        incoming: bool,
        ram_file: int = -1,
        source: int = -1,
    ) -> None:
        super().__init__(config)
        self._driver = driver
        self._incoming = incoming
        self._source = source
        self._ram_complete = source < 0
        self._ports: dict[str, EmulatedPort] = {}
        self._child: ChildProcess | None = None
        self._link: GuestLink | None = None
        self._console: socket.socket | None = None
        self._console_input = bytearray()
        self._statistics = GuestStatistics(0, 0.0, None, {})
        self._ended = asyncio.Event()
        self._resized: asyncio.Future[GuestView] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._ram_file = ram_file
        if ram_file < 0:
            self._ram_file = os.memfd_create(f"serai-{config.uid}"[:200], os.MFD_CLOEXEC)
            os.ftruncate(self._ram_file, config.ram_bytes + _absent_length(config))
        self._memory = mmap.mmap(self._ram_file, config.ram_bytes)
        self._view = memoryview(self._memory)
        self._absent: memoryview | None = None
        self._absent_listener: Callable[[list[int]], None] | None = None

    # Building.

    async def open(self, zygote: ZygoteLink) -> None:
        """Fork the process and have it build the machine. Raises HypervisorError; then `close` cleans up."""
        control, their_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        console, their_console = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        theirs = [their_control, their_console]
        survivors, orphan_seconds = self._driver.survival
        self._link = GuestLink(self.uid, control, self._event_received, self._link_ended)
        self._open_console(console)
        try:
            for interface in self.config.interfaces:
                ours, their_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                theirs.append(their_end)
                self._ports[interface.name] = EmulatedPort(interface.name, ours)
            if survivors is not None:
                theirs.append(survivors.listen(self.uid))
            descriptors = [self._ram_file, *(end.fileno() for end in theirs)]
            if self._source >= 0:
                descriptors.append(self._source)
            self._child = await zygote.fork(
                descriptors,
                len(self.config.interfaces),
                orphan_seconds=orphan_seconds,
                source=self._source >= 0,
            )
            if survivors is not None:
                survivors.note(self.uid, self._child.pid)
        finally:
            for end in theirs:
                end.close()
        self._watcher = self._loop.create_task(self._watch_process(self._child))
        fields = protocol.config_to_fields(machine_config(self.config))
        await self._request("configure", version=protocol.VERSION, config=fields, incoming=self._incoming)

    def adopt(self, survivor: Survivor) -> None:
        """Be the guest of a process that an earlier agent started."""
        for interface, link in zip(self.config.interfaces, survivor.frames, strict=True):
            self._ports[interface.name] = EmulatedPort(interface.name, link)
        self._open_console(survivor.console)
        self._scrollback[:] = survivor.scrollback[-SCROLLBACK_BYTES:]
        self._take_statistics(survivor.statistics)
        self._ram_complete = False  # asked again: the earlier agent knew
        self._child = AdoptedProcess(survivor.pid, survivor.pidfd)
        self.state = GuestState(survivor.state)
        self._note_running(self.state is GuestState.RUNNING)
        self._link = GuestLink(
            self.uid, survivor.control, self._event_received, self._link_ended, received=survivor.rest
        )
        self._watcher = self._loop.create_task(self._watch_process(self._child))

    def _open_console(self, console: socket.socket) -> None:
        console.setblocking(False)
        self._console = console
        self._loop.add_reader(console.fileno(), self._console_readable)

    async def _request(self, operation: str, **fields: Any) -> protocol.Message:
        if self._link is None:
            raise HypervisorError(f"guest {self.uid}: cannot {operation}: its process has ended")
        return await self._link.request(operation, **fields)

    # The end of the process.

    async def _watch_process(self, child: ChildProcess) -> None:
        status = await child.exited
        if self._link is not None:
            self._link.drain()  # what it said before it died comes first
        self._set_state(GuestState.FAILED, describe_exit(status))
        self._ended.set()

    def _link_ended(self) -> None:
        """The control socket ended; the exit status follows, unless the zygote has died too."""
        self._link = None
        self._loop.call_later(_STATUS_SECONDS, self._give_up_on_status)

    def _give_up_on_status(self) -> None:
        if not self._ended.is_set():
            self._set_state(GuestState.FAILED, "the guest's process ended, its zygote did not say how")
            self._ended.set()

    def _event_received(self, fields: dict[str, Any]) -> None:
        if "instructions" in fields:
            self._take_statistics(fields)
        match fields.get("event"):
            case "ready":
                self._notify()
            case "resized":
                self._size_confirmed(GuestView(*fields["view"]))
            case "stopped":
                self._set_state(GuestState.STOPPED, str(fields["reason"]))
            case "fault":
                self._set_state(GuestState.FAILED, str(fields["reason"]))
            case "absent":
                if self._absent_listener is not None:
                    self._absent_listener([int(page) for page in fields["pages"]])
            case "line":
                _log.warning("guest %s says on the host channel: %s", self.uid, fields["text"])
            case "rebooted":
                _log.info("guest %s rebooted", self.uid)
                self._notify()

    # The contract.

    @property
    def ram(self) -> memoryview:
        """See `Guest.ram`."""
        return self._view

    def used_pages(self) -> list[tuple[int, int]]:
        """See `Guest.used_pages`: what the memfd has memory for."""
        found: list[tuple[int, int]] = []
        position, end = 0, len(self._view)
        # Behind RAM lies what `absent` needs.
        while position < end:
            try:
                start = os.lseek(self._ram_file, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                    return found
                raise
            position = min(os.lseek(self._ram_file, start, os.SEEK_HOLE), end)
            if start < end:
                found.append((start // PAGE_SIZE, -(-position // PAGE_SIZE)))
        return found

    @property
    def ports(self) -> dict[str, FramePort]:
        """See `Guest.ports`."""
        return dict(self._ports)

    @property
    def pid(self) -> int | None:
        """The guest's process, for people and tests."""
        return None if self._child is None else self._child.pid

    async def start(self) -> None:
        """See `Guest.start`."""
        self._expect("start", GuestState.DEFINED)
        self._note_running(True)
        await self._request("start")
        self._set_state(GuestState.RUNNING)

    async def pause(self) -> None:
        """See `Guest.pause`."""
        self._expect("pause", GuestState.RUNNING)
        await self._request("pause")
        self._note_running(False)
        self._set_state(GuestState.PAUSED)

    async def resume(self, *, elapsed_ns: int = 0) -> None:
        """See `Guest.resume`; after a `restore`, `elapsed_ns` counts from the freeze at the source to now."""
        self._expect("resume", GuestState.PAUSED)
        self._note_running(True)
        await self._request("resume", elapsed_ns=elapsed_ns)
        self._set_state(GuestState.RUNNING)

    async def stop(self, *, grace_seconds: float = 0.0) -> None:
        """See `Guest.stop`."""
        if self.state is GuestState.RUNNING and grace_seconds > 0:
            with contextlib.suppress(HypervisorError, TimeoutError):
                async with asyncio.timeout(grace_seconds):
                    await self._request("power_off")
                    await self._ended.wait()
        await self._remember_statistics()
        self._set_state(GuestState.STOPPED, "stopped")
        await self._end_process()

    async def resize(self, *, vcpus: int, memory_bytes: int, timeout_seconds: float) -> GuestView:
        """See `Guest.resize`."""
        self._expect("resize", GuestState.RUNNING)
        before = await self.statistics()
        confirmed: asyncio.Future[GuestView] = self._loop.create_future()
        self._resized = confirmed
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._request("resize", vcpus=vcpus, memory_bytes=memory_bytes)
                return await confirmed
        except TimeoutError:
            with contextlib.suppress(HypervisorError):
                await self._request("resize", vcpus=before.vcpus, memory_bytes=before.memory_bytes)
            raise
        finally:
            self._resized = None

    def _size_confirmed(self, view: GuestView) -> None:
        if self._resized is not None and not self._resized.done():
            self._resized.set_result(view)

    async def _remember_statistics(self) -> None:
        if self._link is not None and self.state not in _ENDED:
            with contextlib.suppress(HypervisorError, TimeoutError):
                async with asyncio.timeout(_STATUS_SECONDS):
                    await self.statistics()

    async def _end_process(self) -> None:
        if self._child is None:
            return
        self._child.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_SECONDS):
                await self._ended.wait()

    async def statistics(self) -> GuestStatistics:
        """See `Guest.statistics`; of an ended guest, the last known."""
        if self._link is not None:
            try:
                self._take_statistics((await self._request("statistics")).fields)
            except HypervisorError:
                if self._link is not None:
                    raise
        return self._statistics

    def _take_statistics(self, fields: dict[str, Any]) -> None:
        self._statistics = GuestStatistics(
            instructions=fields["instructions"],
            cpu_seconds=fields["cpu_seconds"],
            ready_seconds=fields["ready_seconds"],
            exits=fields["exits"],
            kernel_release=fields["kernel_release"],
            events=fields["events"],
            costs={cause: (events, spent) for cause, (events, spent) in fields["costs"].items()},
            vcpus=fields["vcpus"],
            memory_bytes=fields["memory_bytes"],
            balloon=fields["balloon"],
        )

    async def trace(self, *, count: int, low: int, high: int, steps: int) -> AsyncGenerator[TracePiece, None]:
        """See `Guest.trace`; one trace of a guest at a time."""
        self._expect("trace", GuestState.RUNNING)
        await self._request("trace", count=count, low=low, high=high, steps=steps)
        try:
            finished = False
            while not finished:
                await asyncio.sleep(_TRACE_SECONDS)
                reply = await self._request("take_trace")
                finished = bool(reply.fields["finished"])
                yield TracePiece(decode_trace(reply.payload), int(reply.fields["steps"]), finished)
        finally:
            with contextlib.suppress(HypervisorError):
                await self._request("stop_trace")

    # Console.

    def write_console(self, data: bytes) -> None:
        """See `Guest.write_console`."""
        if self._console is None:
            return
        room = INPUT_BYTES - len(self._console_input)
        self._console_input += data[:room]
        self._flush_console()

    def _flush_console(self) -> None:
        if self._console is None:
            return
        descriptor = self._console.fileno()
        try:
            while self._console_input:
                sent = self._console.send(self._console_input)
                del self._console_input[:sent]
        except BlockingIOError:
            self._loop.add_writer(descriptor, self._flush_console)
            return
        except OSError:
            self._console_input.clear()
        self._loop.remove_writer(descriptor)

    def _console_readable(self) -> None:
        assert self._console is not None
        try:
            data = self._console.recv(_CONSOLE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._console_output(data)
        else:
            self._close_console()

    def _close_console(self) -> None:
        if self._console is not None:
            self._loop.remove_reader(self._console.fileno())
            self._loop.remove_writer(self._console.fileno())
            self._console.close()
            self._console = None

    # Migration.

    async def start_dirty_log(self) -> None:
        """See `Guest.start_dirty_log`."""
        self._expect("log dirty pages", GuestState.RUNNING, GuestState.PAUSED)
        await self._complete_ram()
        await self._request("start_dirty")

    async def _complete_ram(self) -> None:
        """Let the agent see all of RAM, that of a copied guest too."""
        while not self._ram_complete:
            answer = await self._request("complete_ram", limit=_COMPLETE_BYTES)
            self._ram_complete = answer.fields["remaining"] == 0

    async def identify(self, words: str) -> None:
        """See `Guest.identify`."""
        self._expect("give an identity", GuestState.PAUSED, GuestState.RUNNING)
        await self._request("identify", words=words)

    async def take_dirty_pages(self) -> bytes:
        """See `Guest.take_dirty_pages`."""
        return (await self._request("take_dirty")).payload

    async def stop_dirty_log(self) -> None:
        """See `Guest.stop_dirty_log`."""
        await self._request("stop_dirty")

    async def save_state(self) -> bytes:
        """See `Guest.save_state`; frames delivered so far are in it."""
        self._expect("save the state", GuestState.PAUSED)
        for port in self._ports.values():
            await port.drained()
        await self._complete_ram()
        return (await self._request("save")).payload

    async def restore(self, state: bytes, *, scrollback: bytes = b"", absent: bool = False) -> None:
        """See `Guest.restore`."""
        self._expect("restore", GuestState.DEFINED)
        if not self._incoming:
            raise HypervisorError(f"guest {self.uid}: was not created to be restored into")
        await self._request("restore", payload=state, absent=absent)
        self._scrollback[:] = scrollback
        self._set_state(GuestState.PAUSED)

    @property
    def absent(self) -> memoryview:
        """See `Guest.absent`; lies behind RAM in its file."""
        if self._absent is None:
            length = _absent_length(self.config)
            mapped = mmap.mmap(self._ram_file, length, offset=self.config.ram_bytes)
            self._absent = memoryview(mapped)[: self.config.ram_bytes // PAGE_SIZE]
        return self._absent

    def on_absent(self, listener: Callable[[list[int]], None] | None) -> None:
        """See `Guest.on_absent`."""
        self._absent_listener = listener

    async def pages_arrived(self, *, everything: bool = False) -> None:
        """See `Guest.pages_arrived`."""
        await self._request("present", all=everything)

    async def close(self) -> None:
        """See `Guest.close`; `ram` is gone afterwards, except for views that others still hold."""
        try:
            self._set_state(GuestState.STOPPED, "closed")
            await self._end_process()
        finally:
            self._release()
            self._driver.forget(self)

    def _note_running(self, running: bool) -> None:
        """For the log, from which it can be proved that no two copies of a guest ever ran at the same time.

        Said before it runs and after it has stopped; CLOCK_MONOTONIC, which all processes of a host share.
        """
        extra = {"guest": self.uid, "runs": running, "monotonic_ns": time.monotonic_ns()}
        _log.info("guest %s %s", self.uid, "runs" if running else "stands", extra=extra)

    def _release(self) -> None:
        self._note_running(False)
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None
        self._ended.set()
        if self._link is not None:
            self._link.close()
        for port in self._ports.values():
            port.close()
        self._close_console()
        if self._child is not None:
            self._child.close()
            self._child = None
        if self._ram_file >= 0:
            os.close(self._ram_file)
            self._ram_file = -1
            # A migration may still hold a view; the mapping then goes with it.
            with contextlib.suppress(BufferError):
                self._view.release()
                self._memory.close()


class EmulatedDriver(Driver):
    """Creates emulated guests; `guests` are those not closed yet."""

    def __init__(self, directory: Path | None = None, *, orphan_seconds: float = 0.0) -> None:
        """Guests outlive the agent by `orphan_seconds`, findable in `directory`; without, not at all."""
        wanted = directory is not None and orphan_seconds > 0
        self.survival = (
            Survivors(directory) if wanted and directory is not None else None,
            orphan_seconds if wanted else 0.0,
        )
        self.guests: dict[str, EmulatedGuest] = {}
        self._zygote: ZygoteLink | None = None
        self._starting = asyncio.Lock()

    async def open(self) -> None:
        """See `Driver.open`: starts the zygote, again if it has died."""
        async with self._starting:
            if self._zygote is None or not self._zygote.alive:
                if self._zygote is not None:
                    await self._zygote.close()
                survivors, _ = self.survival
                zygote = ZygoteLink(None if survivors is None else survivors.log_file)
                await zygote.start()
                self._zygote = zygote

    async def create(self, config: GuestConfig) -> EmulatedGuest:
        """See `Driver.create`."""
        return await self._create(config, incoming=False)

    async def create_incoming(self, config: GuestConfig) -> EmulatedGuest:
        """See `Driver.create_incoming`."""
        return await self._create(config, incoming=True)

    async def create_copy(self, config: GuestConfig, ram_file: int) -> EmulatedGuest:
        """See `Driver.create_copy`: memory is shared copy-on-write."""
        return await self._create(config, incoming=True, source=ram_file)

    async def _create(self, config: GuestConfig, *, incoming: bool, source: int = -1) -> EmulatedGuest:
        if config.uid in self.guests:
            raise AlreadyExistsError(f"guest {config.uid}: there is one of this uid", guest=config.uid)
        try:
            machine_config(config).check()
        except ConfigurationError as error:
            raise HypervisorError(f"guest {config.uid}: {error}", guest=config.uid) from None
        await self.open()
        assert self._zygote is not None
        try:
            guest = EmulatedGuest(self, config, incoming=incoming, source=source)
        except OSError as error:
            raise HypervisorError(
                f"guest {config.uid}: {config.ram_bytes} bytes of RAM cannot be had: {error.strerror}"
            ) from None
        self.guests[config.uid] = guest
        try:
            await guest.open(self._zygote)
        except BaseException:
            await guest.close()
            raise
        return guest

    def survivors(self) -> list[str]:
        """See `Driver.survivors`."""
        survivors, _ = self.survival
        return [] if survivors is None else [uid for uid in survivors.uids() if uid not in self.guests]

    async def adopt(self, config: GuestConfig) -> EmulatedGuest | None:
        """See `Driver.adopt`."""
        survivors, _ = self.survival
        if survivors is None:
            return None
        survivor = await survivors.adopt(config.uid, len(config.interfaces))
        if survivor is None:
            survivors.forget(config.uid)
            return None
        guest = EmulatedGuest(self, config, incoming=False, ram_file=survivor.ram_file)
        self.guests[config.uid] = guest
        guest.adopt(survivor)
        return guest

    def discard(self, uid: str) -> None:
        """See `Driver.discard`."""
        survivors, _ = self.survival
        if survivors is not None and uid not in self.guests:
            survivors.discard(uid)

    def forget(self, guest: EmulatedGuest) -> None:
        """Free the uid of a closed guest."""
        if self.guests.get(guest.uid) is guest:
            del self.guests[guest.uid]
            survivors, _ = self.survival
            if survivors is not None:
                survivors.forget(guest.uid)

    async def close(self) -> None:
        """See `Driver.close`."""
        await asyncio.gather(*(guest.close() for guest in list(self.guests.values())))
        if self._zygote is not None:
            await self._zygote.close()
            self._zygote = None


def _absent_length(config: GuestConfig) -> int:
    """Bytes of the pages that hold a byte for each page of RAM."""
    return -(-(config.ram_bytes // PAGE_SIZE) // PAGE_SIZE) * PAGE_SIZE


def machine_config(config: GuestConfig) -> MachineConfig:
    """The machine for a guest."""
    return MachineConfig(
        memory_bytes=config.memory_bytes,
        vcpus=config.vcpus,
        maximum_vcpus=config.maximum_vcpus,
        maximum_memory_bytes=config.maximum_memory_bytes,
        kernel=config.kernel,
        initramfs=config.initramfs,
        command_line=config.command_line,
        interfaces=tuple(NetworkInterface(interface.name, interface.mac) for interface in config.interfaces),
        disks=tuple(Disk(disk.path, disk.read_only) for disk in config.disks),
        extra_files=dict(config.extra_files),
        clock=ClockSource(config.clock.value),
        mode=Mode(config.mode.value),
        execution=Execution(config.execution.value),
        firmware=config.firmware,
    )
