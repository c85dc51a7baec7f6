"""Guests that outlive a killed agent, with real processes; the next agent is this process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.hypervisor.bare_metal import COUNT, COUNTER, SPIN, write_elf

from serai.errors import HypervisorError
from serai.hypervisor.driver import GuestConfig, GuestState, InterfaceConfig
from serai.hypervisor.emulated import EmulatedDriver, EmulatedGuest
from serai.hypervisor.survivors import Survivors, start_ticks

MEMORY = 4 << 20

AGENT = """
import asyncio, sys
from pathlib import Path
from serai.hypervisor.driver import GuestConfig, InterfaceConfig
from serai.hypervisor.emulated import EmulatedDriver

async def main():
    kernel, directory, seconds, act = sys.argv[1:]
    driver = EmulatedDriver(Path(directory), orphan_seconds=float(seconds))
    await driver.open()
    guest = await driver.create(GuestConfig(
        uid="g", memory_bytes=4 << 20, kernel=Path(kernel),
        interfaces=(InterfaceConfig("eth0", b"\\2\\0\\0\\0\\0\\1"),),
    ))
    if act != "define":
        await guest.start()
    if act in ("freeze", "log"):
        await guest.start_dirty_log()
    if act == "freeze":
        await guest.pause()
    print(guest.pid, driver._zygote._process.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""

CONFIG = GuestConfig(uid="g", memory_bytes=MEMORY, interfaces=(InterfaceConfig("eth0", b"\2\0\0\0\0\1"),))


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (the guest's process cannot set an event)
            await asyncio.sleep(0.005)


def gone(pid: int) -> bool:
    return start_ticks(pid) is None


def counter(guest: EmulatedGuest) -> int:
    return int.from_bytes(guest.ram[COUNTER : COUNTER + 8], "little")


async def advances(guest: EmulatedGuest) -> None:
    seen = counter(guest)
    await until(lambda: counter(guest) > seen)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / ("a-directory-with-a-path-that-no-unix-socket-could-be-bound-to-" * 2) / "guests"
    path.mkdir(parents=True)
    return path


@contextlib.asynccontextmanager
async def killed_agent(
    directory: Path, program: tuple[int, ...] = COUNT, *, seconds: float = 60, act: str = "start"
) -> AsyncIterator[int]:
    """The pid of a guest whose agent was killed; afterwards it must have ended."""
    kernel = write_elf(directory.parent / "kernel.elf", program)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    agent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", AGENT, str(kernel), str(directory), str(seconds), act),
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )
    pid = 0
    try:
        assert agent.stdout is not None
        async with asyncio.timeout(120):
            pid, zygote = (int(word) for word in (await agent.stdout.readline()).split())
        agent.kill()
        await agent.wait()
        await until(lambda: gone(zygote))
        yield pid
        await until(lambda: gone(pid))
    finally:
        if agent.returncode is None:
            agent.kill()
            await agent.wait()
        Survivors(directory).discard("g")


@contextlib.asynccontextmanager
async def next_agent(directory: Path) -> AsyncIterator[EmulatedDriver]:
    driver = EmulatedDriver(directory, orphan_seconds=60)
    try:
        yield driver
    finally:
        await driver.close()


async def test_a_guest_runs_on_without_its_agent_and_is_adopted(directory: Path) -> None:
    async with killed_agent(directory) as pid, next_agent(directory) as driver:
        assert driver.survivors() == ["g"]
        guest = await driver.adopt(CONFIG)
        assert guest is not None
        assert (guest.pid, guest.state) == (pid, GuestState.RUNNING)
        seen = counter(guest)
        await until(lambda: counter(guest) > seen)
        first = await guest.statistics()
        await guest.start_dirty_log()
        before = counter(guest)
        await until(lambda: counter(guest) > before)
        assert any(await guest.take_dirty_pages())
        await guest.pause()
        assert (await guest.statistics()).instructions > first.instructions
        assert await guest.save_state()
        assert driver.survivors() == []
    assert [path.name for path in directory.iterdir()] == ["log"]  # noqa: ASYNC240


async def test_an_adopted_guest_survives_once_more(directory: Path) -> None:
    async with killed_agent(directory) as pid:
        first = EmulatedDriver(directory, orphan_seconds=60)
        guest = await first.adopt(CONFIG)
        assert guest is not None and guest._link is not None
        guest._link.close()  # as if the agent had been killed
        async with next_agent(directory) as second:
            again = await second.adopt(CONFIG)
            assert again is not None and again.pid == pid
            await advances(again)
        await guest.close()


async def test_a_frozen_guest_stays_frozen_and_its_dirty_log_is_off(directory: Path) -> None:
    async with killed_agent(directory, act="freeze"), next_agent(directory) as driver:
        guest = await driver.adopt(CONFIG)
        assert guest is not None and guest.state is GuestState.PAUSED
        frozen = counter(guest)
        with pytest.raises(HypervisorError, match="not on"):
            await guest.take_dirty_pages()
        assert counter(guest) == frozen
        await guest.resume()
        await until(lambda: counter(guest) > frozen)


async def test_a_defined_guest_is_adopted_as_such(directory: Path) -> None:
    async with killed_agent(directory, act="define"), next_agent(directory) as driver:
        guest = await driver.adopt(CONFIG)
        assert guest is not None and guest.state is GuestState.DEFINED
        await guest.start()
        await until(lambda: counter(guest) > 0)


async def test_a_guest_that_nobody_comes_for_ends(directory: Path) -> None:
    async with killed_agent(directory, seconds=0.3, act="freeze") as pid:
        await until(lambda: gone(pid), seconds=10)
    async with next_agent(directory) as driver:
        assert await driver.adopt(CONFIG) is None


async def test_a_guest_that_died_meanwhile_is_not_adopted(directory: Path) -> None:
    async with killed_agent(directory, SPIN) as pid, next_agent(directory) as driver:
        os.kill(pid, 9)
        await until(lambda: gone(pid))
        assert driver.survivors() == ["g"]
        assert await driver.adopt(CONFIG) is None
        assert driver.survivors() == []


async def test_the_end_of_an_adopted_guest_is_noticed(directory: Path) -> None:
    async with killed_agent(directory, SPIN) as pid, next_agent(directory) as driver:
        guest = await driver.adopt(CONFIG)
        assert guest is not None
        os.kill(pid, 9)
        await until(lambda: guest.state is GuestState.FAILED)
        assert "not known" in guest.failure


async def test_one_that_is_not_this_nodes_is_ended(directory: Path) -> None:
    async with killed_agent(directory) as pid, next_agent(directory) as driver:
        driver.discard("g")
        await until(lambda: gone(pid))


async def test_a_pid_that_is_another_process_now_is_left_alone(directory: Path) -> None:
    survivors = Survivors(directory)
    (directory / "g.pid").write_text(f"{os.getpid()} 1\n")
    survivors.discard("g")  # would end this test
    assert survivors.uids() == []


async def test_a_wrong_greeting_is_refused_and_the_next_one_is_not(directory: Path) -> None:
    async with killed_agent(directory), next_agent(directory) as driver:
        with pytest.raises(HypervisorError, match="1 sockets"):
            await driver.adopt(GuestConfig(uid="g", memory_bytes=MEMORY))
        assert await driver.adopt(CONFIG) is not None
