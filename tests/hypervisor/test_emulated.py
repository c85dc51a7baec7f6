"""The emulated driver with its real zygote and guest processes, on guests of a few instructions."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.hypervisor.bare_metal import COUNT, COUNTER, SLEEP, SPIN, write_elf

from serai.errors import AlreadyExistsError, HypervisorError
from serai.hypervisor.driver import Clock, GuestConfig, GuestState, InterfaceConfig
from serai.hypervisor.emulated import EmulatedDriver, EmulatedGuest

MEMORY = 4 << 20


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (the guest's process cannot set an event)
            await asyncio.sleep(0.005)


@pytest.fixture
async def driver() -> AsyncIterator[EmulatedDriver]:
    instance = EmulatedDriver()
    await instance.open()
    yield instance
    await instance.close()


async def guest_of(
    driver: EmulatedDriver, tmp_path: Path, program: tuple[int, ...], uid: str = "a"
) -> EmulatedGuest:
    kernel = write_elf(tmp_path / f"{uid}.elf", program)
    return await driver.create(
        GuestConfig(
            uid=uid,
            memory_bytes=MEMORY,
            kernel=kernel,
            interfaces=(InterfaceConfig("eth0", b"\2\0\0\0\0\1"),),
        )
    )


def counter(guest: EmulatedGuest) -> int:
    return int.from_bytes(guest.ram[COUNTER : COUNTER + 8], "little")


def exists(pid: int) -> bool:
    """Whether the process runs (one that ended and was not waited for does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_ram_is_shared_and_pages_written_are_logged(driver: EmulatedDriver, tmp_path: Path) -> None:
    guest = await guest_of(driver, tmp_path, COUNT)
    await guest.start()
    await until(lambda: counter(guest) > 0)
    await guest.start_dirty_log()
    before = counter(guest)
    await until(lambda: counter(guest) > before)
    bitmap = await guest.take_dirty_pages()
    page = COUNTER // 4096
    assert [n for n in range(MEMORY // 4096) if bitmap[n // 8] >> n % 8 & 1] == [page]
    await guest.pause()
    await guest.take_dirty_pages()
    stopped = counter(guest)
    assert not any(await guest.take_dirty_pages())
    assert counter(guest) == stopped
    await guest.stop_dirty_log()


async def test_a_killed_guest_is_reported_and_harms_nobody(driver: EmulatedDriver, tmp_path: Path) -> None:
    victim = await guest_of(driver, tmp_path, SPIN, "victim")
    witness = await guest_of(driver, tmp_path, COUNT, "witness")
    await victim.start()
    await witness.start()
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    await until(lambda: victim.state is GuestState.FAILED)
    assert victim.failure == "killed by SIGKILL"
    seen = counter(witness)
    await until(lambda: counter(witness) > seen)
    with pytest.raises(HypervisorError, match="ended"):
        await victim.take_dirty_pages()
    await victim.close()
    again = await guest_of(driver, tmp_path, COUNT, "victim")
    await again.start()
    await until(lambda: counter(again) > 0)


async def test_a_guest_that_computes_still_answers_and_stops(driver: EmulatedDriver, tmp_path: Path) -> None:
    guest = await guest_of(driver, tmp_path, SPIN)
    await guest.start()
    first = (await guest.statistics()).instructions
    await asyncio.sleep(0.05)
    assert (await guest.statistics()).instructions > first
    pid = guest.pid
    assert pid is not None
    await guest.stop(grace_seconds=0.1)  # it does not listen to the host channel
    assert (guest.state, guest.failure) == (GuestState.STOPPED, "stopped")
    await until(lambda: not exists(pid))
    assert (await guest.statistics()).instructions > first


async def test_state_moves_to_a_fresh_process(driver: EmulatedDriver, tmp_path: Path) -> None:
    source = await guest_of(driver, tmp_path, COUNT)
    await source.start()
    await until(lambda: counter(source) > 0)
    await source.pause()
    state = await source.save_state()
    other = EmulatedDriver()
    try:
        target = await other.create_incoming(source.config)
        target.ram[:] = source.ram
        await target.restore(state)
        moved = counter(target)
        await target.resume(elapsed_ns=1_000_000)
        await until(lambda: counter(target) > moved)
        assert counter(source) == moved, "the paused one does not run"
        assert (await target.statistics()).instructions > (await source.statistics()).instructions
    finally:
        await other.close()


async def test_the_virtual_clock_makes_runs_reproducible(driver: EmulatedDriver, tmp_path: Path) -> None:
    config = GuestConfig(
        uid="v", memory_bytes=MEMORY, kernel=write_elf(tmp_path / "v.elf", SLEEP), clock=Clock.VIRTUAL
    )
    guest = await driver.create(config)
    await guest.start()
    async with asyncio.timeout(10):
        while (await guest.statistics()).exits.get("wait", 0) == 0:  # noqa: ASYNC110 (polls a process)
            await asyncio.sleep(0.005)
    assert (await guest.statistics()).instructions == 1, "looking at a waiting guest does not move it"


async def test_a_waiting_guest_uses_no_processor(driver: EmulatedDriver, tmp_path: Path) -> None:
    guest = await guest_of(driver, tmp_path, SLEEP)
    await guest.start()
    async with asyncio.timeout(10):
        while (await guest.statistics()).exits.get("wait", 0) == 0:  # noqa: ASYNC110 (polls a process)
            await asyncio.sleep(0.005)
    before = (await guest.statistics()).cpu_seconds
    await asyncio.sleep(1.0)
    assert (await guest.statistics()).cpu_seconds - before < 0.02


async def test_names_are_taken_once_and_bad_configurations_explained(
    driver: EmulatedDriver, tmp_path: Path
) -> None:
    guest = await guest_of(driver, tmp_path, SLEEP)
    with pytest.raises(AlreadyExistsError):
        await driver.create(guest.config)
    with pytest.raises(HypervisorError, match="1 to 8"):
        await driver.create(GuestConfig(uid="b", memory_bytes=MEMORY, vcpus=9))
    with pytest.raises(HypervisorError, match="whole pages"):
        await driver.create(GuestConfig(uid="b", memory_bytes=MEMORY + 1))
    empty = await driver.create(GuestConfig(uid="b", memory_bytes=MEMORY))
    with pytest.raises(HypervisorError, match="no kernel"):
        await empty.start()


async def test_frames_to_a_guest_that_does_not_listen_are_bounded(
    driver: EmulatedDriver, tmp_path: Path
) -> None:
    guest = await guest_of(driver, tmp_path, SPIN)
    await guest.start()
    port = guest.ports["eth0"]
    refused = 0
    for _ in range(40):
        refused += sum(not port.deliver(b"x" * 1500) for _ in range(200))
        await asyncio.sleep(0.001)
    await guest.pause()
    state = await guest.save_state()
    assert len(state) < 4 << 20, "at most the device's backlog is kept"
    assert not port.deliver(b"x" * 70_000)


async def test_the_driver_survives_the_death_of_its_zygote(driver: EmulatedDriver, tmp_path: Path) -> None:
    guest = await guest_of(driver, tmp_path, COUNT)
    await guest.start()
    assert driver._zygote is not None
    process = driver._zygote._process
    assert process is not None
    process.kill()
    await until(lambda: driver._zygote is not None and not driver._zygote.alive)
    seen = counter(guest)
    await until(lambda: counter(guest) > seen)
    second = await guest_of(driver, tmp_path, COUNT, "b")
    await second.start()
    await until(lambda: counter(second) > 0)
    assert guest.pid is not None
    os.kill(guest.pid, signal.SIGKILL)
    await until(lambda: guest.state is GuestState.FAILED)
    assert "did not say how" in guest.failure


AGENT = """
import asyncio, sys
from pathlib import Path
from serai.hypervisor.driver import GuestConfig
from serai.hypervisor.emulated import EmulatedDriver

async def main():
    driver = EmulatedDriver()
    await driver.open()
    pids = [driver._zygote._process.pid]
    for uid in ("a", "b"):
        guest = await driver.create(GuestConfig(uid=uid, memory_bytes=4 << 20, kernel=Path(sys.argv[1])))
        await guest.start()
        pids.append(guest.pid)
    await guest.pause()
    print(*pids, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_a_killed_agent_leaves_no_process_behind(tmp_path: Path) -> None:
    kernel = write_elf(tmp_path / "spin.elf", SPIN)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", AGENT, str(kernel), stdout=asyncio.subprocess.PIPE, env=environment
    )
    try:
        assert agent.stdout is not None
        async with asyncio.timeout(120):
            pids = [int(word) for word in (await agent.stdout.readline()).split()]
        assert len(pids) == 3
        assert all(exists(pid) for pid in pids)
    finally:
        agent.kill()
        await agent.wait()
    await until(lambda: not any(exists(pid) for pid in pids))


async def test_a_trace_is_bounded_and_the_guest_runs_on(driver: EmulatedDriver, tmp_path: Path) -> None:
    guest = await guest_of(driver, tmp_path, COUNT)
    await guest.start()
    await until(lambda: counter(guest) > 0)
    pieces = [piece async for piece in guest.trace(count=30, low=0, high=1 << 64, steps=1000)]
    texts = [item.text for piece in pieces for item in piece.instructions]
    assert len(texts) == pieces[-1].steps == 30
    assert pieces[-1].finished
    assert set(texts) == {"addi t2,t2,1", "sd t2,0(t0)", "jal zero,0x80000010"}
    before = counter(guest)
    await until(lambda: counter(guest) > before)


async def test_a_trace_that_is_left_lets_the_guest_go(driver: EmulatedDriver, tmp_path: Path) -> None:
    guest = await guest_of(driver, tmp_path, COUNT)
    await guest.start()
    pieces = guest.trace(count=100_000, low=0, high=1, steps=100_000_000)
    first = await anext(pieces)
    assert (first.instructions, first.finished) == ((), False)
    with pytest.raises(HypervisorError, match="another trace"):
        await anext(guest.trace(count=1, low=0, high=1, steps=1))
    await pieces.aclose()
    await anext(guest.trace(count=1, low=0, high=1 << 64, steps=1))


async def test_what_marks_absent_pages_is_not_ram(driver: EmulatedDriver) -> None:
    """Seed 112 of the soak: a guest that came by post-copy could not move again."""
    guest = await driver.create_incoming(GuestConfig(uid="a", memory_bytes=1 << 20))
    guest.ram[4096 * 255] = 1
    guest.absent[7] = 1
    assert guest.used_pages() == [(255, 256)]
