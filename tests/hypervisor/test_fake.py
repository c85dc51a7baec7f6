"""The fake keeps the driver contract, so that what passes with it means something."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from serai.errors import AlreadyExistsError, HypervisorError, StateError
from serai.hypervisor.driver import PAGE_SIZE, GuestConfig, GuestState, InterfaceConfig
from serai.hypervisor.fake import FakeDriver, FakeGuest

CONFIG = GuestConfig(uid="a", memory_bytes=64 * PAGE_SIZE, interfaces=(InterfaceConfig("eth0", bytes(6)),))


async def running(driver: FakeDriver, config: GuestConfig = CONFIG) -> FakeGuest:
    guest = await driver.create(config)
    await guest.start()
    return guest


async def test_life_and_notifications() -> None:
    guest = await FakeDriver().create(CONFIG)
    seen: list[GuestState] = []
    unsubscribe = guest.subscribe(lambda changed: seen.append(changed.state))
    await guest.start()
    await asyncio.sleep(0)
    assert (await guest.statistics()).ready_seconds is not None
    await guest.pause()
    await guest.resume(elapsed_ns=7)
    await guest.stop(grace_seconds=1)
    unsubscribe()
    unsubscribe()
    await guest.close()
    assert seen == [
        GuestState.RUNNING,
        GuestState.RUNNING,
        GuestState.PAUSED,
        GuestState.RUNNING,
        GuestState.STOPPED,
    ]
    assert guest.failure == "powered off"
    assert guest.elapsed_ns == 7


async def test_a_paused_guest_cannot_run() -> None:
    guest = await running(FakeDriver())
    await guest.pause()
    with pytest.raises(StateError, match="paused"):
        guest.run(1)
    with pytest.raises(StateError):
        guest.port("eth0").send(b"x" * 60)


async def test_dirty_log_is_exactly_what_was_written_since_the_last_take() -> None:
    guest = await running(FakeDriver())
    guest.write_memory(0, b"before the log")
    await guest.start_dirty_log()
    guest.write_memory(9 * PAGE_SIZE - 1, b"ab")
    assert await guest.take_dirty_pages() == (1 << 8 | 1 << 9).to_bytes(8, "little")
    assert await guest.take_dirty_pages() == bytes(8)
    await guest.stop_dirty_log()
    with pytest.raises(HypervisorError):
        await guest.take_dirty_pages()


async def test_a_migrated_guest_goes_on_as_if_it_had_stayed() -> None:
    stayed = await running(FakeDriver())
    left = await running(FakeDriver())
    stayed.run(50)
    left.run(20)
    left.port("eth0").deliver(b"queued")
    await left.pause()
    arrived = await FakeDriver().create_incoming(CONFIG)
    arrived.ram[:] = left.ram
    await arrived.restore(await left.save_state(), scrollback=left.read_scrollback())
    assert arrived.state is GuestState.PAUSED
    await arrived.resume()
    arrived.run(30)
    assert hashlib.sha256(arrived.ram).digest() == hashlib.sha256(stayed.ram).digest()
    assert list(arrived.port("eth0").received) == [b"queued"]
    assert arrived.steps == 50


async def test_a_damaged_state_is_refused_and_names_its_section() -> None:
    left = await running(FakeDriver())
    await left.pause()
    state = bytearray(await left.save_state())
    state[-1] ^= 1
    arrived = await FakeDriver().create_incoming(CONFIG)
    with pytest.raises(HypervisorError, match="'fake'"):
        await arrived.restore(bytes(state))
    assert arrived.state is GuestState.DEFINED


async def test_frames_and_console() -> None:
    guest = await running(FakeDriver())
    await asyncio.sleep(0)
    batches: list[list[bytes]] = []
    guest.ports["eth0"].set_receiver(lambda frames: batches.append(list(frames)))
    guest.port("eth0").send(b"one", b"two")
    assert batches == []
    await asyncio.sleep(0)
    assert batches == [[b"one", b"two"]]
    pieces: list[bytes] = []
    guest.subscribe_console(pieces.append)
    guest.write_console(b"ls\n")
    assert pieces == [b"ls\n"]
    guest.print(b"x" * 70000)
    assert len(guest.read_scrollback()) == 65536


async def test_queue_bound_and_injected_failures() -> None:
    driver = FakeDriver()
    guest = await running(driver)
    results = [guest.ports["eth0"].deliver(b"f") for _ in range(1025)]
    assert results == [True] * 1024 + [False]
    driver.fail("pause", HypervisorError("no"))
    with pytest.raises(HypervisorError):
        await guest.pause()
    await guest.pause()
    guest.crash("killed by SIGSEGV")
    assert (guest.state, guest.failure) == (GuestState.FAILED, "killed by SIGSEGV")
    with pytest.raises(AlreadyExistsError):
        await driver.create(CONFIG)
    await driver.close()
    assert driver.guests == {}


async def test_a_missing_kernel_is_named() -> None:
    guest = await FakeDriver().create(GuestConfig(uid="b", memory_bytes=PAGE_SIZE, kernel=Path("/no/such")))
    with pytest.raises(HypervisorError, match="/no/such"):
        await guest.start()
