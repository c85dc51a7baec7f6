"""Mode full: a bare board whose firmware runs in the guest."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import pytest

from serai.errors import SeraiError
from serai.images import Image, ImageStore, build_debian, build_opensbi
from serai.machine.aclint import Aclint
from serai.machine.board import ACLINT_BASE, POWER_BASE, RAM_BASE, MachineConfig, Mode
from serai.machine.core_factory import make_hart
from serai.machine.errors import LoadError, SnapshotError
from serai.machine.hart import ClockSource
from serai.machine.isa.assembler import assemble
from serai.machine.machine import Machine, MachineExit

MEMORY = 8 << 20

HEAD = f"""
    auipc t0, 0
    addi t0, t0, 0x200
    csrw mtvec, t0
    lui s0, {ACLINT_BASE >> 12}
    lui s1, {POWER_BASE >> 12}
    li t1, 0x88
    csrw mie, t1
    li t1, 8
    csrw mstatus, t1
"""
TIMER = """
    lui t2, 0xc
    add t2, t2, s0
    ld t3, -8(t2)           # mtime
    addi t3, t3, 1000
    lui t4, 4
    add t4, t4, s0
    sd t3, 0(t4)
sleep:
    wfi
    j sleep
"""
SOFTWARE = """
    li t3, 1
    sw t3, 0(s0)
spin:
    j spin
"""
HANDLER = """
    csrr a0, mcause
    csrr a1, time
    li t0, 0x5555
    sw t0, 0(s1)
hang:
    j hang
"""


def bare(source: str, **changes: object) -> Machine:
    config = MachineConfig(
        memory_bytes=MEMORY,
        clock=ClockSource.VIRTUAL,
        mode=Mode.FULL,
        **changes,  # type: ignore[arg-type]
    )
    made = Machine(config, memoryview(mmap.mmap(-1, MEMORY)), make_hart)
    made.memory.write(RAM_BASE, assemble(HEAD + source, RAM_BASE))
    made.memory.write(RAM_BASE + 0x200, assemble(HANDLER, RAM_BASE + 0x200))
    made.hart.pc = RAM_BASE
    return made


def run(made: Machine, limit: int = 1000) -> MachineExit:
    for _ in range(limit):
        cause = made.run(10_000)
        if cause is MachineExit.WAIT:
            made.hart.skip_to_deadline()
        elif cause is not MachineExit.BUDGET:
            return cause
    raise AssertionError("the guest does not end")


def test_machine_timer_wakes_a_waiting_hart_and_the_power_switch_ends_it() -> None:
    made = bare(TIMER)
    assert made.hart.privilege == 3
    assert run(made) is MachineExit.POWERED_OFF
    assert made.hart.x[10] == 1 << 63 | 7
    assert made.hart.x[11] >= 1000
    assert made.exits["mmio:power"] == 1
    assert made.exits["wait"] == 1
    assert made.events()["interrupt:m-timer"] == 1


def test_software_interrupt_interrupts_a_hart_that_computes() -> None:
    made = bare(SOFTWARE)
    assert run(made) is MachineExit.POWERED_OFF
    assert made.hart.x[10] == 1 << 63 | 3


@pytest.mark.parametrize("steps", [1, 14, 17, 20])
def test_a_timer_survives_a_move(steps: int) -> None:
    straight = bare(TIMER)
    run(straight)
    left = bare(TIMER)
    left.run(steps)
    left.paused()
    arrived = bare("")
    arrived.memory.ram[:] = left.memory.ram
    arrived.restore(left.save())
    arrived.resumed(0)
    assert run(arrived) is MachineExit.POWERED_OFF
    assert (arrived.hart.x[11], arrived.instructions) == (straight.hart.x[11], straight.instructions)


def test_modes_do_not_mix_in_a_restore() -> None:
    full = bare(TIMER)
    config = MachineConfig(memory_bytes=MEMORY, clock=ClockSource.VIRTUAL)
    other = Machine(config, memoryview(mmap.mmap(-1, MEMORY)), make_hart)
    with pytest.raises(SnapshotError, match="not of a machine of mode paravirtual"):
        other.restore(full.save())
    with pytest.raises(SnapshotError, match="not of a machine of mode full"):
        full.restore(other.save())


TIME = 0x1122_3344_5566_7788


class RecordingHart:
    def __init__(self) -> None:
        self.deadline = 0
        self.levels: dict[int, bool] = {}

    def set_machine_timer(self, deadline_ticks: int) -> None:
        self.deadline = deadline_ticks


def test_aclint_registers_in_halves_and_for_several_harts() -> None:
    harts = [RecordingHart(), RecordingHart()]
    device = Aclint(
        lambda: harts, lambda hart, bit, level: harts[hart].levels.update({bit: level}), lambda: TIME, 2
    )
    assert device.read(0xBFF8, 8) == 0x1122_3344_5566_7788
    assert (device.read(0xBFF8, 4), device.read(0xBFFC, 4)) == (0x5566_7788, 0x1122_3344)
    device.write(0x4008, 4, 0x89AB_CDEF)
    device.write(0x400C, 4, 0x0123_4567)
    assert harts[1].deadline == device.read(0x4008, 8) == 0x0123_4567_89AB_CDEF
    device.write(4, 4, 3)
    assert harts[1].levels == {3: True}
    assert harts[0].levels == {}
    assert (device.read(0, 4), device.read(4, 4)) == (0, 1)
    assert device.read(0x8000, 4) == 0
    device.write(0x4010, 8, 1)
    device.write(8, 4, 1)


def image(path: Path) -> Path:
    head = struct.pack("<IIQQQII", 0, 0, 0x200000, 0x10000, 0, 2, 0).ljust(48, b"\0") + b"RISCV\0\0\0RSC\x05"
    path.write_bytes(head + assemble("j 0x80201000", 0x8020_003C))
    return path


def test_firmware_finds_its_parameters(tmp_path: Path) -> None:
    (tmp_path / "fw").write_bytes(b"\x13\0\0\0")
    made = bare("", kernel=image(tmp_path / "kernel"), firmware=tmp_path / "fw")
    made.boot()
    assert (made.hart.pc, made.hart.privilege) == (RAM_BASE, 3)
    information = struct.unpack("<6Q", made.memory.read(made.hart.x[12], 48))
    assert information == (0x4942534F, 2, RAM_BASE + 0x200000, 1, 0, 0)
    assert made.memory.read(made.hart.x[11], 4) == b"\xd0\x0d\xfe\xed"
    assert b"sifive,clint0" in made.memory.read(made.hart.x[11], 8192)


@pytest.mark.parametrize("size", [0, 2 << 20])
def test_firmware_that_cannot_be_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "fw").write_bytes(bytes(size))
    made = bare("", kernel=image(tmp_path / "kernel"), firmware=tmp_path / "fw")
    with pytest.raises(LoadError, match=r"firmware image|overlaps"):
        made.boot()


def debian() -> Image:
    try:
        return ImageStore().get("debian")
    except SeraiError:
        return build_debian()


@pytest.mark.guest
@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("vcpus", [1, 2])
def test_debian_boots_in_both_modes_and_powers_off(mode: Mode, vcpus: int) -> None:
    image = debian()
    config = MachineConfig(
        memory_bytes=128 << 20,
        vcpus=vcpus,
        kernel=image.kernel,
        initramfs=image.initramfs,
        command_line=image.command_line,
        clock=ClockSource.VIRTUAL,
        mode=mode,
        firmware=build_opensbi().kernel if mode is Mode.FULL else None,
    )
    made = Machine(config, memoryview(mmap.mmap(-1, config.memory_bytes)), make_hart)
    lines: list[str] = []
    made.console.line_received = lines.append
    made.boot()
    console = bytearray()
    cause = MachineExit.BUDGET
    asked = False
    while cause in (MachineExit.BUDGET, MachineExit.WAIT) and made.instructions < 2_000_000_000:
        cause = made.run(5_000_000)
        console += made.uart.output
        made.uart.output.clear()
        if cause is MachineExit.WAIT:
            made.harts.skip_to_deadline()
        if lines and not asked:
            asked = True
            made.console.send_line("poweroff")
    assert cause is MachineExit.POWERED_OFF, made.fault
    assert lines == [f"ready kernel={image.kernel_release}"]
    assert sum(hart.steps > 1_000_000 for hart in made.harts.all) == vcpus, "Linux uses all of them"
    assert (b"OpenSBI v" in console) == (mode is Mode.FULL)
    assert any(key.startswith("sbi:") for key in made.exits) == (mode is Mode.PARAVIRTUAL)
    assert ("trap:call-from-s" in made.events()) == (mode is Mode.FULL)
