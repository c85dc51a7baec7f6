"""Debian on the virtual clock is the same bit for bit whether it is interpreted or translated."""

from __future__ import annotations

import hashlib
import mmap

import pytest

from serai.errors import SeraiError
from serai.images import Image, ImageStore, build_debian
from serai.machine.board import MachineConfig, NetworkInterface
from serai.machine.core import Core
from serai.machine.core_factory import make_hart
from serai.machine.hart import ClockSource, Execution
from serai.machine.machine import Machine, MachineExit
from serai.machine.native.translator.store import load_stencils

pytestmark = pytest.mark.guest

END = 620_000_000
"""Instructions: the system is up, its shell waits, and it idles for a while."""

CHECKPOINTS = 31
STENCILS_SECONDS = 300


@pytest.fixture(scope="module")
def debian() -> Image:
    try:
        return ImageStore().get("debian")
    except SeraiError:
        return build_debian()


def machine(debian: Image, execution: Execution, vcpus: int) -> Machine:
    config = MachineConfig(
        memory_bytes=128 << 20,
        vcpus=vcpus,
        kernel=debian.kernel,
        initramfs=debian.initramfs,
        interfaces=(NetworkInterface("eth0", b"\2\0\0\0\0\1"),),
        clock=ClockSource.VIRTUAL,
        execution=execution,
    )
    return Machine(config, memoryview(mmap.mmap(-1, config.memory_bytes)), make_hart)


def checkpoints(debian: Image, execution: Execution, vcpus: int) -> list[tuple[int, str, str, str]]:
    """Instructions, RAM, registers and devices, and the console so far, at equal instruction counts."""
    m = machine(debian, execution, vcpus)
    m.boot()
    console, found = hashlib.sha256(), []
    for number in range(1, CHECKPOINTS + 1):
        end = number * END // CHECKPOINTS
        while m.instructions < end:
            cause = m.run(min(5_000_000, end - m.instructions))
            console.update(m.uart.output)
            m.uart.output.clear()
            if cause is MachineExit.WAIT:
                m.harts.skip_to_deadline()
            else:
                assert cause is MachineExit.BUDGET, m.fault
        ram, state = hashlib.sha256(m.memory.ram), hashlib.sha256(m.save())
        found.append((m.instructions, ram.hexdigest(), state.hexdigest(), console.hexdigest()))
    assert isinstance(m.hart, Core)
    assert (m.hart.translation["instructions"] > 0) is (execution is Execution.TRANSLATE)
    return found


@pytest.mark.parametrize("vcpus", [1, 2])
def test_debian_is_the_same_on_both_tiers(debian: Image, vcpus: int) -> None:
    assert load_stencils().wait(STENCILS_SECONDS)
    interpreted = checkpoints(debian, Execution.INTERPRET, vcpus)
    assert checkpoints(debian, Execution.TRANSLATE, vcpus) == interpreted
