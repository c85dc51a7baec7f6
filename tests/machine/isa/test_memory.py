"""Sv39, misaligned accesses, self-modifying code, the dirty log, save and restore."""

from __future__ import annotations

import json
import os
import random
import struct
import zlib

import pytest
from tests.machine.isa.guests import RAM_BASE, RAM_SIZE, SV39, A, D, Guest, R, U, V, W, X, map_page

from serai.machine.errors import SnapshotError
from serai.machine.hart import ExitReason
from serai.machine.isa.assembler import assemble

SATP, STVEC, SEPC, SCAUSE, STVAL, SSTATUS = 0x180, 0x105, 0x141, 0x142, 0x143, 0x100
SUM, MXR = 1 << 18, 1 << 19
ROOT = RAM_BASE + 0x100000
DATA = RAM_BASE + 0x200000
CODE_PAGE = 0x1000
HANDLER_PAGE = 0x2000
DATA_PAGE = 0x4000


def paged(code: str, flags: int, *, privilege: int = 1, physical: int = DATA) -> Guest:
    """A guest with its code at virtual 0x1000, a page at 0x4000, and a handler that loops."""
    guest = Guest(code, firmware_emulated=True)
    map_page(guest, ROOT, CODE_PAGE, RAM_BASE, V | R | X | A | (U if privilege == 0 else 0))
    map_page(guest, ROOT, DATA_PAGE, physical, flags)
    guest.core.set_csr(SATP, SV39 | ROOT >> 12)
    map_page(guest, ROOT, HANDLER_PAGE, RAM_BASE, V | R | X | A)
    guest.core.set_csr(STVEC, HANDLER_PAGE + 0x800)
    guest.put(RAM_BASE + 0x800, assemble("handler: j handler"))
    guest.core.pc = CODE_PAGE
    guest.core.privilege = privilege
    return guest


LOAD = "li a0, 0x4000\nld a1, 8(a0)\nnop"
STORE = "li a0, 0x4000\nli a1, 5\nsd a1, 8(a0)\nnop"
JUMP = "li a0, 0x4000\njr a0"


def pte(guest: Guest) -> int:
    return guest.get(ROOT + 0x2000 + 4 * 8)


@pytest.mark.parametrize(
    ("code", "flags", "status", "privilege", "cause"),
    [
        (LOAD, V | R, 0, 1, None),
        (LOAD, V | R | W, 0, 1, None),
        (LOAD, 0, 0, 1, 13),
        (LOAD, R, 0, 1, 13),
        (LOAD, V | W, 0, 1, 13),  # reserved
        (LOAD, V | X, 0, 1, 13),
        (LOAD, V | X, MXR, 1, None),
        (LOAD, V | R | U, 0, 1, 13),
        (LOAD, V | R | U, SUM, 1, None),
        (LOAD, V | R, 0, 0, 13),
        (LOAD, V | R | U, 0, 0, None),
        (LOAD, V | R | 1 << 54, 0, 1, 13),  # reserved bits
        (LOAD, V, 0, 1, 13),  # a pointer at the last level
        (STORE, V | R, 0, 1, 15),
        (STORE, V | R | W, 0, 1, None),
        (STORE, V | R | W | U, 0, 1, 15),
        (JUMP, V | R, 0, 1, 12),
        (JUMP, V | R | X | U, SUM, 1, 12),
    ],
)
def test_permissions(code: str, flags: int, status: int, privilege: int, cause: int | None) -> None:
    guest = paged(code, flags, privilege=privilege)
    guest.core.set_csr(SSTATUS, status)
    guest.core.run(4)
    found = guest.core.csr(SCAUSE) or None
    assert found == cause
    if cause:
        assert guest.core.csr(STVAL) in (DATA_PAGE, DATA_PAGE + 8)
        assert not pte(guest) & (A | D)


def test_accessed_and_dirty_bits_are_set_by_the_machine() -> None:
    guest = paged(LOAD, V | R | W)
    guest.core.run(3)
    assert pte(guest) & (A | D) == A
    guest = paged(STORE, V | R | W)
    guest.core.run(4)
    assert pte(guest) & (A | D) == A | D


def test_a_misaligned_large_page_faults() -> None:
    guest = paged(LOAD, V | R)
    guest.put(ROOT + 0x1000, ((DATA + 0x1000) >> 12 << 10 | V | R | X | A).to_bytes(8, "little"))
    guest.core.set_csr(SATP, SV39 | ROOT >> 12)
    guest.core.run(4)
    assert guest.core.csr(SCAUSE) == 12


def test_a_non_canonical_address_faults() -> None:
    guest = paged("addi a0, x0, 1\nslli a0, a0, 39\nld a1, 0(a0)", V | R)
    guest.core.run(3)
    assert (guest.core.csr(SCAUSE), guest.core.csr(STVAL)) == (13, 1 << 39)


def test_a_large_page_is_forgotten_by_the_fence_of_one_address() -> None:
    code = "lui a0, 0x200\nld a1, 0(a0)\nsfence.vma a0, x0\nld a2, 0(a0)"
    guest = paged(code, V | R)
    middle = ROOT + 0x1000
    guest.put(middle + 8, ((RAM_BASE + 0x200000) >> 12 << 10 | V | R | W).to_bytes(8, "little"))
    guest.put(RAM_BASE + 0x200000, (11).to_bytes(8, "little"))
    guest.core.run(2)
    assert guest.core.x[11] == 11
    guest.put(middle + 8, ((RAM_BASE + 0x200000) >> 12 << 10).to_bytes(8, "little"))  # invalid now
    guest.core.run(2)
    assert guest.core.csr(SCAUSE) == 13


def test_fence_of_one_page() -> None:
    guest = paged("lui a0, 4\nld a1, 0(a0)\nsfence.vma a0, x0\nld a2, 0(a0)", V | R)
    guest.put(DATA, (11).to_bytes(8, "little"))
    guest.put(DATA + 0x1000, (22).to_bytes(8, "little"))
    guest.core.run(2)
    map_page(guest, ROOT, DATA_PAGE, DATA + 0x1000, V | R)
    guest.core.run(2)
    assert (guest.core.x[11], guest.core.x[12]) == (11, 22)


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("offset", range(-7, 2))
def test_misaligned_access_across_pages(size: int, offset: int) -> None:
    suffix = {2: "h", 4: "w", 8: "d"}[size]
    guest = Guest(f"s{suffix} a1, 0(a0)\nl{suffix} a2, 0(a0)")
    address = DATA + 0x1000 + offset
    value = 0x7766554433221100 & ((1 << 8 * size - 1) - 1)
    guest.core.x[10], guest.core.x[11] = address, value
    guest.core.run(2)
    assert guest.core.x[12] == value
    assert guest.get(address, size) == value
    assert guest.get(address - 1, 1) == 0 and guest.get(address + size, 1) == 0


def test_a_store_across_pages_that_faults_writes_nothing() -> None:
    guest = paged("li a0, 0x4ffc\nli a1, -1\nsd a1, 0(a0)\nnop", V | R | W)
    guest.core.run(5)
    assert (guest.core.csr(SCAUSE), guest.core.csr(STVAL)) == (15, 0x5000)
    assert guest.get(DATA + 0xFFC, 4) == 0


def test_self_modifying_code_is_seen_at_once() -> None:
    new = int.from_bytes(assemble("addi a0, a0, 100"), "little")
    guest = Guest(
        f"""
        auipc t0, 0
        li t1, {new & 0x7FFFFFFF}
        li t3, 3
    again:
        addi a0, a0, 1          # at 16: replaced in the first round
        sw t1, 16(t0)
        addi t3, t3, -1
        bnez t3, again
        """
    )
    guest.core.run(4 + 4 * 3)
    assert guest.core.x[10] == 1 + 100 + 100


def test_code_written_by_a_device_is_decoded_again() -> None:
    guest = Guest("loop: addi a0, a0, 1\nj loop")
    guest.core.run(10)
    guest.put(RAM_BASE, assemble("addi a0, a0, 16"))
    guest.core.dma_wrote(RAM_BASE, 4)
    guest.core.run(10)
    assert guest.core.x[10] == 5 + 5 * 16
    with pytest.raises(ValueError, match="not RAM"):
        guest.core.dma_wrote(RAM_BASE - 1, 4)


def test_load_reserved_and_store_conditional() -> None:
    guest = Guest(
        "lr.w a1, (a0)\nsc.w a2, a3, (a0)\nsc.w a4, a3, (a0)\nlr.d a1, (a0)\nsd a5, 0(a0)\nsc.d a6, a3, (a0)"
    )
    guest.core.x[10], guest.core.x[13], guest.core.x[15] = DATA, 77, 99
    guest.core.run(6)
    assert (guest.core.x[12], guest.core.x[14], guest.core.x[16]) == (0, 1, 1)
    assert guest.get(DATA) == 99


def pages(log: bytes) -> set[int]:
    return {8 * byte + bit for byte, value in enumerate(log) for bit in range(8) if value >> bit & 1}


def test_dirty_log_names_exactly_the_pages_written() -> None:
    guest = Guest(
        "sd a1, 0(a0)\nlui a2, 0x3\nadd a0, a0, a2\nld a3, 0(a0)\nlui a2, 0x1\nadd a0, a0, a2\nsd a1, -4(a0)"
    )
    guest.core.x[10] = DATA
    guest.core.run(1)
    guest.core.start_dirty_log()
    assert pages(guest.core.take_dirty_log()) == set()
    guest.core.pc = RAM_BASE
    guest.core.run(7)
    first = (DATA - RAM_BASE) >> 12
    assert pages(guest.core.take_dirty_log()) == {first, first + 3, first + 4}
    guest.core.pc, guest.core.x[10] = RAM_BASE, DATA
    guest.core.run(1)
    guest.core.dma_wrote(RAM_BASE + 0x7FFF, 2)
    assert pages(guest.core.take_dirty_log()) == {first, 7, 8}
    guest.core.stop_dirty_log()
    guest.core.run(1)


def test_dirty_log_sees_page_tables_and_code() -> None:
    guest = paged(STORE, V | R | W)
    guest.core.start_dirty_log()
    guest.core.run(4)
    tables, data = (ROOT + 0x2000 - RAM_BASE) >> 12, (DATA - RAM_BASE) >> 12
    assert pages(guest.core.take_dirty_log()) == {tables, data}
    guest.put(RAM_BASE + 0x1000, assemble("sd a1, 16(a0)"))
    guest.core.stop_dirty_log()
    self_writer = Guest("auipc a0, 0\nsd a1, 64(a0)")
    self_writer.core.start_dirty_log()
    self_writer.core.run(2)
    assert pages(self_writer.core.take_dirty_log()) == {0}


WORK = """
    lui s0, 0x40100
    add s0, s0, s0          # data behind the program
    li a0, 1
loop:
    slli a1, a0, 13
    xor a0, a0, a1
    srli a1, a0, 7
    xor a0, a0, a1
    slli a1, a0, 17
    xor a0, a0, a1
    li a2, 0x7fff8
    and a2, a2, a0
    add a2, a2, s0
    ld a3, 0(a2)
    add a3, a3, a0
    sd a3, 0(a2)
    mul a4, a4, a3
    csrr a5, time
    add a4, a4, a5
    fcvt.d.l fa0, a3
    fadd.d fa1, fa1, fa0
    lr.d a5, (s0)
    sc.d a6, a4, (s0)
    j loop
"""


def working_guest() -> Guest:
    guest = Guest(WORK)
    guest.core.set_csr(0x300, 1 << 13)
    return guest


@pytest.mark.parametrize("seed", range(3))
def test_saved_and_restored_runs_end_in_the_same_state(seed: int) -> None:
    source = random.Random(seed)
    straight, moved = working_guest(), working_guest()
    total = 60_000
    straight.core.run(total)
    done = 0
    while done < total:
        step = min(source.randrange(1, 9000), total - done)
        assert moved.core.run(step) is ExitReason.BUDGET
        done += step
        there = working_guest()
        there.ram[:] = moved.ram[:]
        there.core.restore(moved.core.save())
        moved = there
    assert moved.core.save() == straight.core.save()
    assert moved.ram[:] == straight.ram[:]


def test_restore_drops_code_and_translations_of_the_old_ram() -> None:
    guest = Guest("loop: addi a0, a0, 1\nj loop")
    state = guest.core.save()
    guest.core.run(100)
    guest.put(RAM_BASE, assemble("addi a0, a0, 2"))
    guest.core.restore(state)
    guest.core.run(2)
    assert guest.core.x[10] == 2


def resealed(state: bytes, **changes: object) -> bytes:
    fields = json.loads(state[20:]) | changes
    body = json.dumps(fields).encode()
    return state[:8] + struct.pack("<III", 1, len(body), zlib.crc32(body)) + body


@pytest.mark.parametrize(
    "change",
    [
        {"privilege": 7},
        {"privilege": 2},
        {"pc": 3},
        {"pc": -2},
        {"pc": "here"},
        {"pc": True},
        {"satp": 9 << 60},
        {"x": [0] * 31},
        {"x": [1] * 32},
        {"x": 5},
        {"steps": 1 << 64},
        {"unknown": 1},
        {"clock": "real"},
        {"frm": 9},
        {"mstatus": 2 << 11},
    ],
)
def test_restore_refuses_impossible_states_and_changes_nothing(change: dict[str, object]) -> None:
    guest = working_guest()
    guest.core.run(100)
    before = guest.core.save()
    with pytest.raises(SnapshotError):
        guest.core.restore(resealed(before, **change))
    assert guest.core.save() == before


def test_restore_refuses_damage() -> None:
    guest = working_guest()
    state = guest.core.save()
    for damaged in (b"", state[:10], state[:-1], state[:40] + b"\x00" + state[41:], b"x" + state[1:]):
        with pytest.raises(SnapshotError):
            guest.core.restore(damaged)
    with pytest.raises(SnapshotError, match="version 99"):
        guest.core.restore(state[:8] + struct.pack("<I", 99) + state[12:])


def test_a_forked_guest_runs_on_its_own() -> None:
    guest = working_guest()
    guest.core.run(1000)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        guest.core.run(1000)
        os.write(writing, guest.core.pc.to_bytes(8, "little") + guest.core.x[14].to_bytes(8, "little"))
        os._exit(0)
    os.waitpid(child, 0)
    answer = os.read(reading, 16)
    os.close(reading)
    os.close(writing)
    assert guest.core.instructions == 1000
    guest.core.run(1000)
    assert int.from_bytes(answer[:8], "little") == guest.core.pc


def test_ram_can_be_large_enough_to_need_the_code_pool_again() -> None:
    guest = Guest("nop", size=32 << 20)
    count = (32 << 20) // 4096 - 1
    # Every page jumps to the next one; the last one to the first.
    for page in range(count):
        guest.put(RAM_BASE + 4096 * page, assemble("addi a0, a0, 1\nlui a1, 1\nadd t0, t0, a1\njr t0"))
    guest.put(RAM_BASE + 4096 * count, assemble("ebreak"))
    guest.core.x[5] = RAM_BASE
    assert RAM_SIZE < 32 << 20
    guest.core.run(4 * count)
    assert guest.core.x[10] == count
    assert guest.core.pc == RAM_BASE + 4096 * count
