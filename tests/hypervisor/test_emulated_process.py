"""The emulated driver against real guest processes' code and sockets, with a scripted hart for the core.

The processes are threads here, so that a test can be the guest's software; `test_emulated.py` has real ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from tests.machine.scripted import Call, Fault, Load, Program, ScriptedHart, Store, Wait, Write, factory
from tests.machine.test_board import image

from serai.errors import HypervisorError, StateError
from serai.hypervisor.driver import DiskConfig, GuestConfig, GuestState, InterfaceConfig
from serai.hypervisor.emulated import EmulatedDriver, EmulatedGuest
from serai.hypervisor.zygote_link import ChildProcess, describe_exit
from serai.machine import process, sbi
from serai.machine.board import RAM_BASE, UART_BASE

MEMORY = 8 << 20
MAC = b"\2\0\0\0\0\1"
Until = Callable[[Callable[[], bool]], Awaitable[None]]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (the guest's process cannot set an event)
            await asyncio.sleep(0.002)


class ThreadChild(ChildProcess):
    """To be killed looks to the thread as if its agent had died."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        super().__init__(pid, -1)
        self._control = control

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()

    def end(self) -> None:
        if not self.exited.done():
            self.exited.set_result(0)


class ThreadZygote:
    """Runs guest processes as threads with the given program."""

    alive = True

    def __init__(self, program: Callable[[ScriptedHart], Program]) -> None:
        self.program = program
        self.threads: list[threading.Thread] = []

    async def fork(
        self, descriptors: list[int], interfaces: int, *, orphan_seconds: float = 0.0, source: bool = False
    ) -> ChildProcess:
        assert orphan_seconds == 0, "a thread cannot outlive its agent"
        assert not source
        assert len(descriptors) == 3 + interfaces
        child = ThreadChild(len(self.threads) + 1, socket.socket(fileno=os.dup(descriptors[1])))
        ram, control, console, *frames = [os.dup(descriptor) for descriptor in descriptors]
        loop = asyncio.get_running_loop()

        def body() -> None:
            process.run(ram, control, console, frames, factory(self.program))
            loop.call_soon_threadsafe(child.end)

        thread = threading.Thread(target=body)
        thread.start()
        self.threads.append(thread)
        return child

    async def close(self) -> None:
        for thread in self.threads:
            await asyncio.to_thread(thread.join, 10)
            assert not thread.is_alive(), "a guest process outlived its agent's sockets"


Make = Callable[..., Awaitable[EmulatedGuest]]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    kernel = tmp_path / "Image"
    kernel.write_bytes(image())
    drivers: list[EmulatedDriver] = []

    async def create(
        program: Callable[[ScriptedHart], Program],
        *,
        uid: str = "a",
        incoming: bool = False,
        **settings: object,
    ) -> EmulatedGuest:
        driver = EmulatedDriver()
        driver._zygote = ThreadZygote(program)  # type: ignore[assignment]
        drivers.append(driver)
        config = GuestConfig(
            uid=uid,
            memory_bytes=MEMORY,
            kernel=kernel,
            interfaces=(InterfaceConfig("eth0", MAC),),
            **settings,  # type: ignore[arg-type]
        )
        return await (driver.create_incoming(config) if incoming else driver.create(config))

    yield create
    for driver in drivers:
        await driver.close()


def sleeper(hart: ScriptedHart) -> Program:
    while True:
        yield Wait()


def echo(hart: ScriptedHart) -> Program:
    """Sends back what is typed, by polling."""
    while True:
        status = yield Load(UART_BASE + 5, 1)
        if status & 1:
            yield Store(UART_BASE, 1, (yield Load(UART_BASE, 1)))


async def test_start_console_and_stop(make: Make) -> None:
    guest = await make(echo)
    states: list[GuestState] = []
    guest.subscribe(lambda changed: states.append(changed.state))
    await guest.start()
    guest.write_console(b"hello")
    await until(lambda: guest.read_scrollback() == b"hello")
    statistics = await guest.statistics()
    assert statistics.instructions > 10
    assert statistics.exits["mmio:uart"] > 10
    await guest.stop()
    assert states == [GuestState.RUNNING, GuestState.STOPPED]
    assert guest.failure == "stopped"


async def test_a_large_paste_arrives_whole(make: Make) -> None:
    guest = await make(echo)
    await guest.start()
    text = bytes(range(256)) * 64
    guest.write_console(text)
    await until(lambda: len(guest.read_scrollback()) == len(text))
    assert guest.read_scrollback() == text


async def test_power_off_and_fault_give_their_reasons(make: Make) -> None:
    def off(hart: ScriptedHart) -> Program:
        yield Call(sbi.SRST, 0, (0,))

    def fault(hart: ScriptedHart) -> Program:
        yield Fault("illegal fetch at 0x0")

    guest = await make(off)
    await guest.start()
    await until(lambda: guest.state is GuestState.STOPPED)
    assert guest.failure == "powered off"
    assert (await guest.statistics()).instructions == 1
    broken = await make(fault, uid="b")
    await broken.start()
    await until(lambda: broken.state is GuestState.FAILED)
    assert broken.failure == "illegal fetch at 0x0"


async def test_pause_stops_and_resume_goes_on(make: Make) -> None:
    def count(hart: ScriptedHart) -> Program:
        number = 0
        while True:
            number += 1
            yield Write(RAM_BASE, number.to_bytes(8, "little"))

    guest = await make(count)
    await guest.start()
    await until(lambda: guest.ram[0] != 0)
    await guest.pause()
    before = bytes(guest.ram[:8])
    statistics = await guest.statistics()
    await asyncio.sleep(0.05)
    assert bytes(guest.ram[:8]) == before
    assert (await guest.statistics()).instructions == statistics.instructions
    await guest.start_dirty_log()
    assert not any(await guest.take_dirty_pages())
    await guest.resume()
    await until(lambda: bytes(guest.ram[:8]) != before)
    assert (await guest.take_dirty_pages())[0] == 1
    await guest.stop_dirty_log()
    with pytest.raises(StateError):
        await guest.save_state()


async def test_a_start_that_cannot_be_is_explained(make: Make) -> None:
    guest = await make(sleeper)
    assert guest.config.kernel is not None
    guest.config.kernel.write_bytes(b"rubbish")
    with pytest.raises(HypervisorError, match="neither a RISC-V Linux Image"):
        await guest.start()
    assert guest.state is GuestState.DEFINED


async def test_state_and_waiting_frames_move_to_another_process(make: Make) -> None:
    def scratch(hart: ScriptedHart) -> Program:
        yield Store(UART_BASE + 7, 1, 0x42)
        yield Write(RAM_BASE, b"memory")
        while True:
            yield Load(UART_BASE + 7, 1)

    def show(hart: ScriptedHart) -> Program:
        yield Store(UART_BASE, 1, (yield Load(UART_BASE + 7, 1)))
        while True:
            yield Wait()

    source = await make(scratch)
    await source.start()
    await until(lambda: bytes(source.ram[:6]) == b"memory")
    await source.pause()
    for number in range(500):
        assert source.ports["eth0"].deliver(number.to_bytes(2, "big") * 750)
    state = await source.save_state()
    target = await make(show, incoming=True)
    target.ram[:] = source.ram
    await target.restore(state, scrollback=b"earlier ")
    assert target.state is GuestState.PAUSED
    again = await target.save_state()
    assert again == state, "nothing runs and nothing is lost before the resume"
    await target.resume(elapsed_ns=5_000_000)
    await until(lambda: target.read_scrollback() == b"earlier B")
    bad = await make(show, incoming=True, uid="bad")
    with pytest.raises(HypervisorError, match="section 'hart0'"):
        await bad.restore(_damage(state, b"hart0"))


def _damage(state: bytes, section: bytes) -> bytes:
    position = state.index(section) + len(section) + 38
    return state[:position] + bytes([state[position] ^ 1]) + state[position + 1 :]


async def test_requests_fail_when_the_process_is_gone(make: Make) -> None:
    guest = await make(sleeper)
    await guest.start()
    with pytest.raises(HypervisorError, match="dirty log is not on"):
        await guest.take_dirty_pages()
    pending = asyncio.ensure_future(guest.start_dirty_log())
    await asyncio.sleep(0)
    assert guest._link is not None
    guest._link.close()
    with pytest.raises(HypervisorError, match="ended"):
        await pending
    with pytest.raises(HypervisorError, match="ended"):
        await guest.pause()
    await until(lambda: guest.state is GuestState.FAILED)


async def test_a_disk_that_is_missing_is_named(make: Make, tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match="no-such-disk"):
        await make(sleeper, disks=(DiskConfig(tmp_path / "no-such-disk"),))


def test_exit_descriptions() -> None:
    assert describe_exit(signal.SIGKILL) == "killed by SIGKILL"
    assert "status 3" in describe_exit(3 << 8)
