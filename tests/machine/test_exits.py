"""Exits and native events are counted by cause, and timed."""

from __future__ import annotations

import mmap

from serai.machine.board import RAM_BASE, UART_BASE, MachineConfig
from serai.machine.core_factory import make_hart
from serai.machine.exits import EXCEPTION_NAMES, INTERRUPT_NAMES, CycleScale, name_events
from serai.machine.hart import ClockSource, Counters
from serai.machine.isa.assembler import assemble
from serai.machine.machine import Machine, MachineExit

PAGED = f"""
    li s0, {RAM_BASE >> 12}
    slli s0, s0, 12
    lui t0, 0x10            # root table at RAM + 0x10000: 1 GiB leaf at VA 0x80000000
    add t0, t0, s0
    srli t1, s0, 2
    ori t1, t1, 0xcf        # V R W X A D
    sd t1, 16(t0)
    srli t2, t0, 12
    addi t3, x0, 1
    slli t3, t3, 63
    or t2, t2, t3
    csrw satp, t2
    sfence.vma x0, x0
    lui t4, 0x20
    add t4, t4, s0
    li t5, 200
loop:
    ld t6, 0(t4)
    lui t6, 1
    add t4, t4, t6
    addi t5, t5, -1
    bnez t5, loop
"""
PRINT = f"""
    li t0, {UART_BASE}
    li t1, 65
    sb t1, 0(t0)
    sb t1, 0(t0)
    lbu t2, 5(t0)
    li a7, 0x10
    li a6, 0
    ecall
    csrw satp, x0
    lui t0, 0x80000
    slli t0, t0, 32
    srli t0, t0, 32
end:
    wfi
    j end
"""


def machine(source: str) -> Machine:
    config = MachineConfig(memory_bytes=4 << 20, clock=ClockSource.VIRTUAL)
    made = Machine(config, memoryview(mmap.mmap(-1, config.memory_bytes)), make_hart)
    code = assemble(source, RAM_BASE)
    made.memory.write(RAM_BASE, code)
    made.hart.pc = RAM_BASE
    return made


def test_every_exit_is_counted_and_timed() -> None:
    made = machine(PRINT)
    assert made.run(1000) is MachineExit.WAIT
    assert made.exits == {"mmio:uart": 3, "sbi:base": 1, "wait": 1}
    costs = made.costs()
    assert costs["mmio:uart"].events == 3
    assert costs["sbi:base"].events == 1
    assert 0 < costs["sbi:base"].nanoseconds < 1_000_000_000
    made.run(0)
    assert made.exits["wait"] == 1


def test_native_events_have_names_and_page_walks_a_cost() -> None:
    made = machine(PAGED + ".word 0")
    made.run(2000)  # the illegal instruction traps to stvec = 0, where nothing can be fetched
    events = made.events()
    assert events["tlb:data-fill"] >= 200
    assert events["page-walk"] >= 200
    assert events["trap:illegal-instruction"] == 1
    assert events["trap:fetch-page-fault"] >= 1
    walks = made.costs()["page-walk"]
    assert walks.events == events["page-walk"] // 64
    assert 0 < walks.nanoseconds / walks.events < 1_000_000


def test_names_cover_the_causes() -> None:
    counters = Counters(exceptions=tuple(range(1, 17)), interrupts=tuple(range(1, 17)))
    named = name_events(counters)
    assert named["trap:store-page-fault"] == 16
    assert named["interrupt:s-timer"] == 6
    assert len(named) == len(EXCEPTION_NAMES) + len(INTERRUPT_NAMES)


def test_cycles_become_nanoseconds() -> None:
    scale = CycleScale(1000)
    assert scale.nanoseconds(500, 1000) == 0
    assert scale.nanoseconds(10, 1010) > 0
