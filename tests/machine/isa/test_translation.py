"""The translator: equal to the interpreter bit for bit, and what only translated code could get wrong."""

from __future__ import annotations

import hashlib
import mmap
import random
import struct

import pytest
from tests.machine.isa.guests import RAM_BASE, SV39, A, Guest, R, V, X, map_page

from serai.machine.core import Core
from serai.machine.hart import ClockSource, Execution, ExitReason
from serai.machine.isa.assembler import assemble
from serai.machine.isa.table import INSTRUCTIONS, Effect
from serai.machine.native.decoder import encodings

SIZE = 1 << 18
PROGRAM = RAM_BASE + 0x1000
PROGRAM_WORDS = 1600  # more than a page
DATA = RAM_BASE + 0x20000

HANDLER = f"""
    csrw mscratch, t0
    csrr t0, mcause
    addi t0, t0, -1
    beqz t0, restart
    csrr t0, mepc
    addi t0, t0, 4
    csrw mepc, t0
    csrr t0, mscratch
    mret
restart:
    li t0, {PROGRAM >> 12}
    slli t0, t0, 12
    csrw mepc, t0
    csrr t0, mscratch
    mret
"""
SPECIAL_FLOATS = [
    *(0, 1 << 63, 0x3FF << 52, 0x7FF << 52, 0xFFF << 52, 0x7FF8 << 48, 1, 0x000FFFFFFFFFFFFF, 0x0010 << 48),
    *(0x7FEF << 48, 0xFFFFFFFF3F800000, 0xFFFFFFFF7F800001, 0xFFFFFFFF00000001, 0x3F800000, (1 << 64) - 1),
]


def random_program(generator: random.Random) -> bytes:
    """Instructions from the whole table but the privileged ones, most of which do something sensible."""
    usable = [
        e for e in encodings() if e.target.effect is not Effect.SYSTEM and e.target.name in INSTRUCTIONS
    ]
    code = bytearray()
    while len(code) < 4 * PROGRAM_WORDS:
        encoding = generator.choice(usable)
        word = encoding.match | generator.getrandbits(8 * encoding.length) & ~encoding.mask
        if encoding.target.effect is Effect.JUMP and generator.random() < 0.9:
            continue
        if not encoding.matches(word):
            continue
        code += word.to_bytes(encoding.length, "little")
    return bytes(code)


class Twin:
    """A random program on one tier."""

    def __init__(self, seed: int, execution: Execution) -> None:
        generator = random.Random(seed)
        self.ram = mmap.mmap(-1, SIZE)
        self.core = Core(self.ram, firmware_emulated=False, clock=ClockSource.VIRTUAL, execution=execution)
        for address, code in ((RAM_BASE, assemble(HANDLER)), (PROGRAM, random_program(generator))):
            self.ram[address - RAM_BASE : address - RAM_BASE + len(code)] = code
        core = self.core
        core.set_csr(0x305, RAM_BASE)  # mtvec
        core.set_csr(0x300, 3 << 13)  # mstatus.FS
        core.set_csr(0x003, generator.choice([0, 0, 1, generator.randrange(256)]))  # fcsr
        core.pc = PROGRAM
        for number in range(1, 32):
            value = (
                generator.getrandbits(64) if generator.random() < 0.3 else DATA + generator.randrange(0x4000)
            )
            core.x[number] = value & ~7 if generator.random() < 0.8 else value
            core.f[number] = generator.choice([generator.getrandbits(64), *SPECIAL_FLOATS])

    def run(self, budget: int) -> tuple[ExitReason, bytes, bytes]:
        """Execute; return why it stopped, the architectural state and a digest of RAM."""
        reason = self.core.run(budget)
        if reason is ExitReason.MMIO_LOAD:
            self.core.complete_load(0x0123456789ABCDEF)
        return reason, self.core.save(), hashlib.sha256(self.ram[:]).digest()


@pytest.mark.parametrize("seed", range(40))
def test_random_programs_end_in_the_same_state_on_both_tiers(seed: int) -> None:
    interpreted, translated = (Twin(seed, execution) for execution in Execution)
    budgets = random.Random(-seed)
    for _ in range(60):
        budget = budgets.choice([1, 2, 7, 61, 500, 5000])
        expected = interpreted.run(budget)
        assert translated.run(budget) == expected
        if expected[0] is ExitReason.FAULT:
            break
    assert translated.core.translation["instructions"] > 0
    assert interpreted.core.translation["instructions"] == 0


COUNTING = """
    li t0, 0
loop:
    addi t0, t0, 1
    addi t1, t0, 5
    xor t2, t1, t0
    j loop
"""


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 997, 40_001])
def test_a_budget_ends_inside_of_a_block(budget: int, tier: Execution) -> None:
    guest = Guest(COUNTING)
    for executed in range(budget, 12 * budget, budget):
        assert guest.core.run(budget) is ExitReason.BUDGET
        assert guest.core.instructions == executed
        assert guest.core.x[5] == (executed - 1 + 3) // 4
        assert guest.core.pc == RAM_BASE + 4 + ((executed - 1) % 4 * 4 if executed else 0)


def test_a_fault_in_the_middle_of_a_block_is_precise(tier: Execution) -> None:
    guest = Guest(
        f"""
        li a0, {RAM_BASE + 0x2000 >> 12}
        slli a0, a0, 12
        li s0, 64
    loop:
        addi a1, a1, 1
        ld a2, 0(a0)
        addi a3, a3, 1          # not executed when the load faults
        slli a4, a0, 40
        beqz a4, skip
    skip:
        addi s0, s0, -1
        bnez s0, loop
        li a0, -1
        addi a1, a1, 1
        ld a2, 0(a0)
        addi a3, a3, 1
        ebreak
    """
    )
    guest.core.set_csr(0x305, RAM_BASE + 0x3000)
    guest.put(RAM_BASE + 0x3000, assemble("stop: j stop"))
    guest.core.run(2000)
    assert guest.core.csr(0x342) == 5
    assert (guest.core.x[11], guest.core.x[13]) == (65, 64)
    assert guest.core.csr(0x343) == (1 << 64) - 1


def test_code_that_rewrites_the_next_instruction_of_its_block(tier: Execution) -> None:
    guest = Guest(
        """
    loop:
        sw a1, 0(a0)
        addi a2, a2, 100
        mv a4, a1
        mv a1, a3
        mv a3, a4
        addi s0, s0, -1
        bnez s0, loop
        ebreak
    """
    )
    guest.core.set_csr(0x305, RAM_BASE + 0x3000)
    guest.put(RAM_BASE + 0x3000, assemble("stop: j stop"))
    guest.core.x[10], guest.core.x[8] = RAM_BASE + 4, 200
    for register, instruction in ((11, "addi a2, a2, 1"), (13, "addi a2, a2, 2")):
        guest.core.x[register] = int.from_bytes(assemble(instruction), "little")
    guest.core.run(5000)
    assert guest.core.x[12] == 300


def test_one_page_of_code_at_two_addresses(tier: Execution) -> None:
    """Translated code belongs to a physical page; what depends on pc follows the virtual address."""
    guest = Guest("", firmware_emulated=True)
    code = RAM_BASE + 0x4000
    guest.put(code, assemble("auipc a0, 0\njal ra, next\nnext: auipc a1, 1\nloop: j loop"))
    root = RAM_BASE + 0x10000
    for virtual in (0x5000, 0x9000):
        map_page(guest, root, virtual, code, V | R | X | A)
    guest.core.set_csr(0x180, SV39 | root >> 12)
    for virtual in (0x5000, 0x9000, 0x5000):
        guest.core.pc = virtual
        guest.core.run(10)
        assert guest.core.x[10] == virtual
        assert guest.core.x[1] == virtual + 8
        assert guest.core.x[11] == virtual + 8 + 0x1000


def test_a_jump_to_a_page_that_was_unmapped_faults(tier: Execution) -> None:
    """The jump cache knows nothing that SFENCE.VMA has made void."""
    guest = Guest("", firmware_emulated=True)
    first, second, handler, root = (RAM_BASE + offset for offset in (0x4000, 0x5000, 0x6000, 0x10000))
    guest.put(
        first,
        assemble("loop: jalr ra, 0(s1)\naddi s2, s2, 1\nbne s2, s3, loop\nsfence.vma zero, zero\nj loop"),
    )
    guest.put(second, assemble("ret"))
    guest.put(handler, assemble("stop: j stop"))
    for virtual, physical in ((0x4000, first), (0x5000, second), (0x6000, handler)):
        map_page(guest, root, virtual, physical, V | R | X | A)
    core = guest.core
    core.set_csr(0x180, SV39 | root >> 12)
    core.set_csr(0x105, 0x6000)
    core.pc, core.x[9], core.x[19] = 0x4000, 0x5000, 1000
    core.run(2000)
    assert 0 < core.x[18] < 1000
    map_page(guest, root, 0x5000, second, 0)
    core.run(4000)
    assert core.csr(0x142) == 12 and core.csr(0x141) == 0x5000
    assert core.x[18] == 1000


def test_an_interrupt_is_taken_within_a_slice(tier: Execution) -> None:
    guest = Guest(COUNTING)
    guest.put(RAM_BASE + 0x3000, assemble("stop: j stop"))
    guest.core.set_csr(0x305, RAM_BASE + 0x3000)
    guest.core.run(100_000)
    guest.core.set_csr(0x304, 1 << 11)
    guest.core.set_csr(0x300, 1 << 3)
    guest.core.set_interrupt(11, True)
    before = guest.core.instructions
    while guest.core.pc != RAM_BASE + 0x3000 and guest.core.instructions < before + 100_000:
        guest.core.run(1000)
    assert guest.core.instructions - before <= 1 << 15


def test_a_full_code_buffer_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serai.machine.core.CODE_BUFFER_SIZE", 1 << 19)
    pages = 400
    block = assemble("add a0, a0, a1\nxor a1, a1, a0\n" * 500)[:4000]
    next_page = assemble(
        "auipc t0, 0\nlui t1, 1\nadd t0, t0, t1\naddi t0, t0, -2000\naddi t0, t0, -2000\njr t0"
    )
    cores = []
    for execution in Execution:
        ram = mmap.mmap(-1, 4 << 20)
        for page in range(pages):
            ram[page * 4096 : page * 4096 + 4000] = block
            ram[page * 4096 + 4000 : page * 4096 + 4000 + len(next_page)] = next_page
        core = Core(ram, firmware_emulated=False, clock=ClockSource.VIRTUAL, execution=execution)
        core.x[10], core.x[11] = 1, 2
        core.run(390_000)
        cores.append(core)
    interpreted, translated = cores
    assert translated.translation["flushes"] >= 2
    assert translated.save() == interpreted.save()
    assert interpreted.pc > RAM_BASE + 300 * 4096


def test_floating_point_uses_the_host_and_stays_exact(tier: Execution) -> None:
    guest = Guest(
        """
        fadd.d fa0, fa0, fa1
        fmul.d fa2, fa0, fa1
        fdiv.d fa3, fa2, fa0
        fsqrt.d fa4, fa3
        fmadd.d fa5, fa4, fa3, fa2
        addi s0, s0, -1
        bnez s0, again
    stop: j stop
    again: j 0x80000000
    """
    )
    core = guest.core
    core.set_csr(0x300, 3 << 13)
    core.x[8] = 50
    core.f[10], core.f[11] = (struct.unpack("<Q", struct.pack("<d", value))[0] for value in (0.1, 0.3))
    core.run(1000)
    x = 0.1
    for _ in range(50):
        x += 0.3
    assert core.f[10] == struct.unpack("<Q", struct.pack("<d", x))[0]
    assert core.csr(1) == 1
