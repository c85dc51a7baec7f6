"""A guest that does anything at all to its board: the machine goes on and never raises."""

from __future__ import annotations

import random
import struct
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.machine.scripted import Call, Load, Program, ScriptedHart, Step, Store, Wait, Write, factory

from serai.machine import board, plic, sbi
from serai.machine.board import RAM_BASE, Disk, MachineConfig, NetworkInterface
from serai.machine.machine import Machine, MachineExit

MEMORY = 1 << 20
SLOTS = board.FIXED_SLOTS + 2
RINGS = (0x1000, 0x1200, 0x1400, 0x1600)


def interesting(source: random.Random) -> int:
    """Numbers that tend to hurt."""
    return source.choice(
        [
            0,
            1,
            source.randrange(64),
            1 << source.randrange(64),
            (1 << source.randrange(65)) - 1,
            RAM_BASE + source.randrange(MEMORY),
            RAM_BASE + MEMORY - source.randrange(64),
            source.getrandbits(64),
        ]
    )


def address(source: random.Random) -> int:
    base = source.choice(
        [
            board.PLIC_BASE + source.choice([0, 0x1000, 0x2000, 0x2080, 0x200000, 0x201000, plic.SIZE - 8]),
            board.UART_BASE,
            *[board.slot_address(slot) for slot in range(SLOTS)] * 3,
            0x5000,
        ]
    )
    return base + source.choice([source.randrange(0x40), source.randrange(0, 0x110, 4)])


def anything(source: random.Random) -> Step:
    width = source.choice([1, 2, 4, 4, 4, 8])
    match source.randrange(10):
        case 0:
            extension = source.choice(
                [sbi.BASE, sbi.TIME, sbi.IPI, sbi.RFENCE, sbi.HSM, sbi.DBCN, 0, 0x504D55]
            )
            return Call(extension, source.randrange(8), tuple(interesting(source) for _ in range(5)))
        case 1 | 2 | 3:
            return Load(address(source), width)
        case 4 | 5 | 6:
            return ring_entry(source)
        case _:
            return Store(address(source), width, interesting(source) & (1 << 8 * width) - 1)


def ring_entry(source: random.Random) -> Step:
    """Something for the rings: a descriptor, an index, or plain noise."""
    ring = RAM_BASE + source.choice(RINGS)
    if source.random() < 0.5:
        length = source.choice([0, 1, 16, 32, 1526, 1 << 31])
        entry = struct.pack("<QIHH", interesting(source), length, source.randrange(8), source.randrange(10))
        return Write(ring + 16 * source.randrange(8), entry)
    if source.random() < 0.8:
        return Write(ring + 2 * source.randrange(12), struct.pack("<H", source.randrange(10)))
    return Write(ring + source.randrange(256), source.randbytes(source.randrange(64)))


def set_up_queues(source: random.Random) -> list[Step]:
    """Enough of a proper start that the devices look at the rings."""
    steps: list[Step] = []
    for slot in range(SLOTS):
        base = board.slot_address(slot)
        features = [(0x24, 0), (0x20, source.choice([0, 1 << 28, 1 << 29])), (0x24, 1), (0x20, 1)]
        registers = [(0x70, 3), *features, (0x70, 11)]
        for queue in (0, 1):
            registers += [(0x30, queue), (0x38, 8)]
            for ring in (0x80, 0x90, 0xA0):
                registers += [(ring, (RAM_BASE & 0xFFFF_FFFF) + source.choice(RINGS)), (ring + 4, 0)]
            registers.append((0x44, 1))
        registers.append((0x70, 15))
        steps += [Store(base + register, 4, value) for register, value in registers]
    return steps


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**64 - 1))
def test_nothing_a_guest_does_raises(seed: int) -> None:
    source = random.Random(seed)

    def program(hart: ScriptedHart) -> Program:
        yield from set_up_queues(source)
        while True:
            if source.random() < 0.02:
                yield Wait()
            yield anything(source)

    disk = Path("/dev/null")
    config = MachineConfig(
        memory_bytes=MEMORY,
        interfaces=(NetworkInterface("eth0", bytes(6)),),
        disks=(Disk(disk),),
    )
    machine = Machine(config, memoryview(bytearray(MEMORY)), factory(program))
    machine.resumed(0)
    try:
        for _ in range(30):
            cause = machine.run(50)
            assert cause in (MachineExit.BUDGET, MachineExit.WAIT)
            machine.uart.receive(source.randbytes(source.randrange(8)))
            machine.console.send_line("poweroff")
            machine.nets["eth0"].receive(bytes(source.randrange(1, 3000)))
            machine.nets["eth0"].flush()
            machine.uart.output.clear()
            machine.hart.set_interrupt(9, True)
    finally:
        machine.close()
