"""On the virtual clock a run of Debian is the same bit for bit, however it is sliced or moved."""

from __future__ import annotations

import hashlib
import mmap

import pytest

from serai.errors import SeraiError
from serai.images import Image, ImageStore, build_debian
from serai.machine.board import MachineConfig, NetworkInterface
from serai.machine.core_factory import make_hart
from serai.machine.hart import ClockSource
from serai.machine.machine import Machine, MachineExit

pytestmark = pytest.mark.guest

END = 620_000_000
"""Instructions: the system is up, its shell waits, and it idles for a while."""

MIDDLE = 300_000_000


@pytest.fixture(scope="module")
def debian() -> Image:
    try:
        return ImageStore().get("debian")
    except SeraiError:
        return build_debian()


def machine(debian: Image, vcpus: int) -> Machine:
    config = MachineConfig(
        memory_bytes=128 << 20,
        vcpus=vcpus,
        kernel=debian.kernel,
        initramfs=debian.initramfs,
        interfaces=(NetworkInterface("eth0", b"\2\0\0\0\0\1"),),
        clock=ClockSource.VIRTUAL,
    )
    return Machine(config, memoryview(mmap.mmap(-1, config.memory_bytes)), make_hart)


def run_to(m: Machine, end: int, budget: int) -> None:
    while m.instructions < end:
        cause = m.run(min(budget, end - m.instructions))
        m.uart.output.clear()
        if cause is MachineExit.WAIT:
            m.harts.skip_to_deadline()
        else:
            assert cause is MachineExit.BUDGET, m.fault


def digests(m: Machine) -> tuple[str, str]:
    return hashlib.sha256(m.memory.ram).hexdigest(), hashlib.sha256(m.save()).hexdigest()


@pytest.mark.parametrize("vcpus", [1, 2])
def test_slices_and_a_move_in_between_change_nothing(debian: Image, vcpus: int) -> None:
    whole = machine(debian, vcpus)
    lines: list[str] = []
    whole.console.line_received = lines.append
    whole.boot()
    run_to(whole, END, 5_000_000)
    assert lines == [f"ready kernel={debian.kernel_release}"]
    expected = digests(whole)

    left = machine(debian, vcpus)
    left.boot()
    run_to(left, MIDDLE, 77_777)
    left.paused()
    arrived = machine(debian, vcpus)
    arrived.memory.ram[:] = left.memory.ram
    arrived.restore(left.save())
    arrived.resumed(0)
    run_to(arrived, END, 300_001)
    assert digests(arrived) == expected
