"""Instruction traces: what is recorded, and what bounds them."""

from __future__ import annotations

import mmap

from serai.machine.board import RAM_BASE, MachineConfig
from serai.machine.core_factory import make_hart
from serai.machine.hart import ClockSource
from serai.machine.isa.assembler import assemble
from serai.machine.isa.disassembler import disassemble
from serai.machine.machine import Machine, MachineExit
from serai.machine.trace import Tracer, read_records

COUNT = """
    li t0, 10
loop:
    addi t0, t0, -1
    bnez t0, loop
    .word 0
"""
TIMER = """
    auipc t0, 0
    addi t0, t0, 0x100
    csrw stvec, t0
    li t1, 0x20
    csrs sie, t1
    csrr a0, time
    addi a0, a0, 2
    csrw stimecmp, a0
    li t1, 2
    csrs sstatus, t1
spin:
    j spin
"""
EVERYTHING = (0, 1 << 64)


def machine(source: str) -> Machine:
    config = MachineConfig(memory_bytes=1 << 20, clock=ClockSource.VIRTUAL)
    made = Machine(config, memoryview(mmap.mmap(-1, config.memory_bytes)), make_hart)
    made.memory.write(RAM_BASE, assemble(source, RAM_BASE))
    made.hart.pc = RAM_BASE
    return made


def test_every_step_is_there_in_order_and_a_trap_is_marked() -> None:
    made = machine(COUNT)
    tracer = Tracer(1000, *EVERYTHING, 22)
    assert tracer.run(made) is MachineExit.BUDGET
    assert tracer.finished
    records = list(read_records(tracer.take()))
    texts = [disassemble(record.word, record.address) for record in records]
    assert texts[:3] == ["addi t0,zero,10", "addi t0,t0,-1", f"bne t0,zero,{RAM_BASE + 4:#x}"]
    assert texts[1:21] == texts[1:3] * 10
    assert [record.step for record in records] == list(range(1, 23))
    assert (records[21].trapped, records[20].trapped) == (True, False)
    assert {record.privilege for record in records} == {1}
    assert made.instructions == 21


def test_filter_and_count_bound_the_records() -> None:
    made = machine(COUNT)
    tracer = Tracer(3, RAM_BASE + 4, RAM_BASE + 8, 1000)
    tracer.run(made)
    assert [record.address for record in read_records(tracer.take())] == [RAM_BASE + 4] * 3
    assert tracer.finished
    assert (tracer.steps, made.instructions) == (6, 6)


def test_an_interrupt_shows_the_first_instruction_of_its_handler() -> None:
    made = machine(TIMER)
    made.memory.write(RAM_BASE + 0x100, assemble("addi a1, x0, 7\nspin:\nj spin", RAM_BASE + 0x100))
    tracer = Tracer(1000, *EVERYTHING, 60)
    tracer.run(made)
    records = list(read_records(tracer.take()))
    [first] = [number for number, record in enumerate(records) if record.interrupt]
    assert records[first].address == RAM_BASE + 0x100
    assert disassemble(records[first].word) == "addi a1,zero,7"
    assert disassemble(records[first + 1].word, RAM_BASE + 0x104).startswith("jal zero")
    assert made.hart.x[11] == 7


def test_a_traced_run_ends_where_a_plain_one_does() -> None:
    plain, traced = machine(TIMER), machine(TIMER)
    plain.run(50)
    Tracer(1000, *EVERYTHING, 50).run(traced)
    assert plain.save() == traced.save()
