"""Pages on their way: the guest stops at each that is missing, and what it computes is the same."""

from __future__ import annotations

import hashlib
import mmap
import random
from pathlib import Path

from tests.migration.workload import Workload

from serai.machine.board import MachineConfig
from serai.machine.core_factory import make_hart
from serai.machine.hart import ClockSource
from serai.machine.machine import Machine, MachineExit

MEMORY = 16 << 20
PAGES = MEMORY >> 12


def machine(path: Path) -> Machine:
    workload = Workload("w", 4 << 20, 40 << 20, 2 << 20)
    path.write_bytes(workload.elf())
    config = MachineConfig(memory_bytes=MEMORY, kernel=path, clock=ClockSource.VIRTUAL)
    return Machine(config, memoryview(mmap.mmap(-1, MEMORY)), make_hart)


def run_to(m: Machine, end: int, source: memoryview | None = None) -> int:
    """The number of pages that were missing when they were needed."""
    missing = 0
    while m.instructions < end:
        cause = m.run(min(100_000, end - m.instructions))
        m.uart.output.clear()
        if cause is MachineExit.WAIT:
            m.harts.skip_to_deadline()
        elif cause is MachineExit.ABSENT:
            missing += 1
            bring(m, source, m.missing)
        else:
            assert cause is MachineExit.BUDGET, m.fault
    return missing


def bring(m: Machine, source: memoryview | None, page: int) -> None:
    assert source is not None and m.memory.absent is not None and m.memory.absent[page]
    m.memory.ram[page << 12 : page + 1 << 12] = source[page << 12 : page + 1 << 12]
    m.memory.absent[page] = 0


def test_a_guest_whose_pages_come_when_it_needs_them_computes_the_same(tmp_path: Path) -> None:
    whole = machine(tmp_path / "k")
    whole.boot()
    run_to(whole, 400_000)
    state, ram = whole.save(), memoryview(bytearray(whole.memory.ram))
    run_to(whole, 1_200_000)

    left = machine(tmp_path / "k")
    left.memory.ram[:] = random.Random(1).randbytes(MEMORY)
    left.restore(state)
    left.set_absent(memoryview(bytearray(b"\1" * PAGES)))
    left.resumed(0)
    missing = run_to(left, 1_200_000, ram)
    assert missing > 100
    assert left.memory.absent is not None
    for page in range(PAGES):
        if left.memory.absent[page]:
            bring(left, ram, page)
    left.set_absent(None)
    assert left.save() == whole.save()
    assert hashlib.sha256(left.memory.ram).digest() == hashlib.sha256(whole.memory.ram).digest()


def test_devices_wait_for_pages_too(tmp_path: Path) -> None:
    m = machine(tmp_path / "k")
    m.set_absent(memoryview(bytearray(b"\1" * PAGES)))
    asked: list[list[int]] = []

    def fetch(pages: list[int]) -> None:
        assert m.memory.absent is not None
        asked.append(pages)
        for page in pages:
            m.memory.absent[page] = 0

    m.memory.fetch = fetch
    base = m.memory.base
    m.memory.write(base + 4095, b"ab")
    assert m.memory.read(base, 4096)[-1:] == b"a"
    m.memory.read_u64(base + 5 * 4096)
    assert asked == [[0, 1], [5]]
