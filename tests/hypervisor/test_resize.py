"""Debian with several vCPUs, and Debian resized while it runs; the guest's own view confirms it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.hypervisor.test_linux import MIB, ready, run

from serai.errors import HypervisorError
from serai.hypervisor.driver import GuestConfig
from serai.hypervisor.emulated import EmulatedDriver, EmulatedGuest
from serai.images import Image, build_debian

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def debian() -> Image:
    return build_debian()


@pytest.fixture
async def driver() -> AsyncIterator[EmulatedDriver]:
    instance = EmulatedDriver()
    await instance.open()
    yield instance
    await instance.close()


async def boot(driver: EmulatedDriver, debian: Image, vcpus: int) -> EmulatedGuest:
    guest = await driver.create(
        GuestConfig(
            uid="g",
            memory_bytes=128 * MIB,
            vcpus=vcpus,
            kernel=debian.kernel,
            initramfs=debian.initramfs,
            command_line=debian.command_line,
            maximum_vcpus=4,
            maximum_memory_bytes=256 * MIB,
        )
    )
    await guest.start()
    await ready(guest)
    return guest


async def last(guest: EmulatedGuest, command: str) -> str:
    """The last word that a command prints; the terminal may echo what is typed before it."""
    return (await run(guest, command)).split()[-1]


PARALLEL = (
    "for cpu in 0 1 2 3; do taskset $((1<<cpu)) sh -c "
    "'i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; echo done >>/tmp/parallel' & done; wait; "
    "wc -l </tmp/parallel"
)


async def test_four_vcpus_work(driver: EmulatedDriver, debian: Image) -> None:
    guest = await boot(driver, debian, vcpus=4)
    assert await last(guest, "nproc") == "4"
    assert await last(guest, PARALLEL) == "4"
    interrupts = await run(guest, "grep riscv-timer /proc/interrupts")
    counts = [int(word) for word in interrupts.splitlines()[-1].split()[1:5]]
    assert min(counts) > 0, "each of them had its timer"
    assert (await guest.statistics()).vcpus == 4


async def test_a_running_guest_grows_and_shrinks(driver: EmulatedDriver, debian: Image) -> None:
    guest = await boot(driver, debian, vcpus=1)
    assert await last(guest, "nproc") == "1"
    totals = []
    for vcpus, memory in ((4, 256), (2, 192), (1, 128)):
        view = await guest.resize(vcpus=vcpus, memory_bytes=memory * MIB, timeout_seconds=30)
        assert view.vcpus == int(await last(guest, "nproc")) == vcpus
        total = int(await last(guest, "awk '/MemTotal/ {print $2}' /proc/meminfo"))
        assert view.memory_total == total << 10
        totals.append(total >> 10)
        statistics = await guest.statistics()
        assert (statistics.vcpus, statistics.memory_bytes) == (vcpus, memory * MIB)
    assert totals[0] - totals[1] == 64 == totals[1] - totals[2], "to the last mebibyte"
    refused = await last(guest, "echo 1 >/sys/devices/system/cpu/cpu1/online; nproc")
    assert refused == "1", "the guest cannot take back by itself what it has given up"


async def test_what_a_guest_cannot_give_it_keeps(driver: EmulatedDriver, debian: Image) -> None:
    guest = await boot(driver, debian, vcpus=2)
    with pytest.raises(HypervisorError, match="up to 4"):
        await guest.resize(vcpus=5, memory_bytes=128 * MIB, timeout_seconds=5)
    with pytest.raises(TimeoutError):
        await guest.resize(vcpus=2, memory_bytes=16 * MIB, timeout_seconds=3)
    view = await guest.resize(vcpus=2, memory_bytes=128 * MIB, timeout_seconds=30)
    assert (view.vcpus, await last(guest, "echo alive")) == (2, "alive")


async def test_two_vcpus_move_to_another_process_while_they_work(
    driver: EmulatedDriver, debian: Image
) -> None:
    source = await boot(driver, debian, vcpus=2)
    counting = "i=0; while :; do i=$((i+1)); echo $i >/tmp/b; mv /tmp/b /tmp/a; done"
    await run(source, f"({counting}) & (while :; do :; done) & sleep 1")
    before = int(await last(source, "cat /tmp/a"))
    await source.pause()
    state = await source.save_state()
    other = EmulatedDriver()
    await other.open()
    try:
        destination = await other.create_incoming(source.config)
        destination.ram[:] = source.ram
        await destination.restore(state)
        await source.close()
        await destination.resume()
        assert await last(destination, "nproc") == "2"
        assert int(await last(destination, "sleep 0.2; cat /tmp/a")) > before
        view = await destination.resize(vcpus=4, memory_bytes=192 * MIB, timeout_seconds=30)
        assert view.vcpus == 4
    finally:
        await other.close()
