"""Stock Debian on the emulated machine: boots, talks, pings, and moves to another process while it works."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import random
import re
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest

from serai.errors import SeraiError
from serai.hypervisor.driver import PAGE_SIZE, DiskConfig, FramePort, GuestConfig, GuestState, InterfaceConfig
from serai.hypervisor.emulated import EmulatedDriver, EmulatedGuest
from serai.images import Image, ImageStore, build_debian

pytestmark = pytest.mark.guest

MIB = 1 << 20


@pytest.fixture(scope="module")
def debian() -> Image:
    try:
        return ImageStore().get("debian")
    except SeraiError:
        return build_debian()


@pytest.fixture
async def driver() -> AsyncIterator[EmulatedDriver]:
    instance = EmulatedDriver()
    await instance.open()
    yield instance
    await instance.close()


def config(debian: Image, number: int, startup: str = "") -> GuestConfig:
    address = f"ip addr add 10.0.0.{number}/24 dev eth0\nip link set eth0 up\n"
    return GuestConfig(
        uid=f"guest-{number}",
        memory_bytes=128 * MIB,
        kernel=debian.kernel,
        initramfs=debian.initramfs,
        interfaces=(InterfaceConfig("eth0", bytes([2, 0, 0, 0, 0, number])),),
        extra_files={"/etc/serai/startup": (0o755, (address + startup).encode())},
    )


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (the guest cannot set an event)
            await asyncio.sleep(0.01)


async def ready(guest: EmulatedGuest, seconds: float = 60) -> None:
    arrived = asyncio.Event()
    unsubscribe = guest.subscribe(lambda changed: arrived.set())
    async with asyncio.timeout(seconds):
        while (await guest.statistics()).ready_seconds is None:
            assert guest.state is GuestState.RUNNING, guest.failure
            await arrived.wait()
            arrived.clear()
    unsubscribe()


async def run(guest: EmulatedGuest, command: str, seconds: float = 60) -> str:
    """Type a command; its output, once a mark that only the shell can compute has followed it."""
    start = len(guest.read_scrollback())
    guest.write_console(f"{command}; echo done-$((6*7))\n".encode())
    await until(lambda: b"\ndone-42" in guest.read_scrollback()[start:], seconds)
    text = guest.read_scrollback()[start:].decode(errors="replace").replace("\r", "")
    return text.split("\n", 1)[1].split("\ndone-42")[0]


def wire(one: FramePort, other: FramePort) -> None:
    def hand_over(to: FramePort, frames: object) -> None:
        for frame in frames:  # type: ignore[attr-defined]
            to.deliver(frame)

    one.set_receiver(partial(hand_over, other))
    other.set_receiver(partial(hand_over, one))


async def test_debian_boots_to_a_shell_and_powers_off(driver: EmulatedDriver, debian: Image) -> None:
    guest = await driver.create(config(debian, 1))
    await guest.start()
    await ready(guest)
    statistics = await guest.statistics()
    assert statistics.kernel_release == debian.kernel_release
    assert statistics.ready_seconds is not None
    assert statistics.ready_seconds < 30
    assert (await run(guest, "echo $((6 * 7)) $(id -u)")).endswith("42 0")
    assert "rv64imafdc" in await run(guest, "cat /proc/cpuinfo")
    assert re.search(r"virtio_net|eth0", await run(guest, "ls /sys/class/net"))
    await guest.stop(grace_seconds=20)
    assert (guest.state, guest.failure) == (GuestState.STOPPED, "powered off")
    assert (await guest.statistics()).instructions > statistics.instructions


async def test_an_idle_guest_takes_less_than_two_percent(driver: EmulatedDriver, debian: Image) -> None:
    guest = await driver.create(config(debian, 1))
    await guest.start()
    await ready(guest)
    await run(guest, "true")
    shares = []
    # After its start a guest still gives pages back to the balloon; how long depends on the host's load.
    for _ in range(5):
        before = await guest.statistics()
        await asyncio.sleep(5)
        after = await guest.statistics()
        assert after.instructions > before.instructions, "it does tick"
        shares.append((after.cpu_seconds - before.cpu_seconds) / 5)
        if shares[-1] < 0.02:
            return
    pytest.fail(f"it never came to rest: {shares}")


async def test_two_guests_ping_each_other_and_one_moves(driver: EmulatedDriver, debian: Image) -> None:
    here, there = await driver.create(config(debian, 1)), await driver.create(config(debian, 2))
    wire(here.ports["eth0"], there.ports["eth0"])
    await asyncio.gather(here.start(), there.start())
    await asyncio.gather(ready(here), ready(there))
    first = await run(here, "ping -c 10 -i 0.05 10.0.0.2")
    assert "10 packets transmitted, 10 packets received, 0% packet loss" in first
    # A computation that is in the middle when the guest moves.
    here.write_console(b"dd if=/dev/zero bs=1M count=40 2>/dev/null | sha256sum\n")
    await asyncio.sleep(0.3)
    await here.pause()
    state = await here.save_state()
    elsewhere = EmulatedDriver()
    try:
        moved = await elsewhere.create_incoming(here.config)
        moved.ram[:] = here.ram
        scrollback = here.read_scrollback()
        await here.close()
        await moved.restore(state, scrollback=scrollback)
        wire(moved.ports["eth0"], there.ports["eth0"])
        await moved.resume(elapsed_ns=10_000_000)
        expected = hashlib.sha256(bytes(40 * MIB)).hexdigest().encode()
        assert expected not in scrollback
        await until(lambda: expected in moved.read_scrollback())
        second = await run(there, "ping -c 10 -i 0.05 10.0.0.1")
        assert "10 packets received, 0% packet loss" in second
        assert (await moved.statistics()).ready_seconds is not None
    finally:
        await elsewhere.close()


async def test_a_transfer_between_guests_arrives_whole(driver: EmulatedDriver, debian: Image) -> None:
    sender, receiver = await driver.create(config(debian, 1)), await driver.create(config(debian, 2))
    wire(sender.ports["eth0"], receiver.ports["eth0"])
    await asyncio.gather(sender.start(), receiver.start())
    await asyncio.gather(ready(sender), ready(receiver))
    receiver.write_console(b"nc -l -p 5000 | sha256sum\n")
    await asyncio.sleep(0.5)
    sent = await run(
        sender, "dd if=/dev/urandom of=/d bs=1M count=8 2>/dev/null; sha256sum </d; nc 10.0.0.2 5000 </d"
    )
    digest = re.search(r"[0-9a-f]{64}", sent)
    assert digest is not None
    await until(lambda: digest.group().encode() in receiver.read_scrollback())


async def test_a_reboot_restarts_the_guest_in_place(driver: EmulatedDriver, debian: Image) -> None:
    guest = await driver.create(config(debian, 1, "echo booted >/dev/ttyS0\n"))
    await guest.start()
    await ready(guest)
    pid = guest.pid
    guest.write_console(b"reboot -f\n")
    await until(lambda: guest.read_scrollback().count(b"booted\r\n") == 2)
    assert guest.state is GuestState.RUNNING
    assert guest.pid == pid


async def test_disks_are_read_and_written(driver: EmulatedDriver, debian: Image, tmp_path: Path) -> None:
    content = random.Random(5).randbytes(2 * MIB)
    writable, sealed = tmp_path / "writable", tmp_path / "sealed"
    writable.write_bytes(content)
    sealed.write_bytes(content)
    disks = (DiskConfig(writable), DiskConfig(sealed, read_only=True))
    guest = await driver.create(dataclasses.replace(config(debian, 1), disks=disks))
    await guest.start()
    await ready(guest)
    digest = hashlib.sha256(content).hexdigest()
    assert digest in await run(guest, "sha256sum /dev/vda /dev/vdb | sort -u")
    await run(
        guest, "echo written by the guest | dd of=/dev/vda bs=512 seek=3 conv=notrunc,fsync 2>/dev/null"
    )
    assert writable.read_bytes()[1536:1560] == b"written by the guest\n" + content[1557:1560]
    refused = await run(
        guest, "echo x | dd of=/dev/vdb conv=notrunc,fsync 2>/dev/null || echo refused-$((40+2))"
    )
    assert "refused-42" in refused
    assert sealed.read_bytes() == content


def copy_pages(source: EmulatedGuest, target: EmulatedGuest, bitmap: bytes) -> int:
    """What a migration's round does, without the network; returns the number of pages."""
    pages = [
        8 * index + bit for index, byte in enumerate(bitmap) if byte for bit in range(8) if byte >> bit & 1
    ]
    for page in pages:
        target.ram[page * PAGE_SIZE : (page + 1) * PAGE_SIZE] = source.ram[
            page * PAGE_SIZE : (page + 1) * PAGE_SIZE
        ]
    return len(pages)


async def move(source: EmulatedGuest, driver: EmulatedDriver) -> EmulatedGuest:
    """Pre-copy to a fresh process while the guest works; RAM must then be equal to the last byte."""
    target = await driver.create_incoming(source.config)
    await source.start_dirty_log()
    target.ram[:] = source.ram
    for _ in range(3):
        copy_pages(source, target, await source.take_dirty_pages())
        await asyncio.sleep(0.02)
    await source.pause()
    assert (
        copy_pages(source, target, await source.take_dirty_pages()) < source.config.memory_bytes // PAGE_SIZE
    )
    state = await source.save_state()
    assert hashlib.sha256(target.ram).digest() == hashlib.sha256(source.ram).digest()
    await target.restore(state, scrollback=source.read_scrollback())
    await source.close()
    return target


async def test_a_working_guest_moves_again_and_again(debian: Image) -> None:
    """Computation and traffic in flight, four moves: no page that the guest or a device wrote is missed."""
    drivers = [EmulatedDriver(), EmulatedDriver()]
    try:
        guest, peer = await drivers[0].create(config(debian, 1)), await drivers[1].create(config(debian, 2))
        wire(guest.ports["eth0"], peer.ports["eth0"])
        await asyncio.gather(guest.start(), peer.start())
        await asyncio.gather(ready(guest), ready(peer))
        await run(guest, "dd if=/dev/urandom of=/f bs=64k count=32 2>/dev/null; sha256sum /f >/sum")
        guest.write_console(
            b"while sha256sum -c -s /sum; do cp /f /g; mv /g /f; echo go-$((1+1)); done; echo B$((0))D\n"
        )
        peer.write_console(b"ping -i 0.02 -s 1400 10.0.0.1 >/dev/null &\n")
        for hop in range(1, 5):
            progress = guest.read_scrollback().count(b"go-2")
            await until(lambda: guest.read_scrollback().count(b"go-2") > progress)  # noqa: B023
            guest = await move(guest, drivers[hop % 2])
            wire(guest.ports["eth0"], peer.ports["eth0"])
            await guest.resume(elapsed_ns=1_000_000)
        progress = guest.read_scrollback().count(b"go-2")
        await until(lambda: guest.read_scrollback().count(b"go-2") > progress + 1)
        assert b"B0D" not in guest.read_scrollback()
    finally:
        for instance in drivers:
            await instance.close()
