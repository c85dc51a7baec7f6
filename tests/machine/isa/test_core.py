"""The hart: budget, traps, devices, interrupts, time, exits."""

from __future__ import annotations

import threading
import time

import pytest
from tests.machine.isa.guests import RAM_BASE, Guest

from serai.machine.core import Core
from serai.machine.hart import ClockSource, ExitReason
from serai.machine.isa.assembler import encode

MTVEC, MEPC, MCAUSE, MTVAL, MIE, MIP, MSTATUS = 0x305, 0x341, 0x342, 0x343, 0x304, 0x344, 0x300
STVEC, SEPC, SCAUSE, STVAL, SIE, SSTATUS, SIP = 0x105, 0x141, 0x142, 0x143, 0x104, 0x100, 0x144
HANDLER = RAM_BASE + 0x800
SUM_LOOP = """
    li a0, 0
loop:
    addi a0, a0, 1
    xor a1, a1, a0
    j loop
"""


@pytest.mark.parametrize("budget", [1, 2, 3, 7, 32768, 32769, 100_001])
def test_budget_is_exact(budget: int) -> None:
    guest = Guest(SUM_LOOP)
    assert guest.core.run(budget) is ExitReason.BUDGET
    assert guest.core.instructions == budget
    assert guest.core.x[10] == (budget + 1) // 3
    assert guest.core.pc == RAM_BASE + (0 if budget == 0 else 4 + 4 * ((budget - 1) % 3))


def test_many_small_runs_equal_one_large_run() -> None:
    one, many = Guest(SUM_LOOP), Guest(SUM_LOOP)
    one.core.run(10_000)
    for step in range(1, 10_000):
        if many.core.instructions == 10_000:
            break
        many.core.run(min(step, 10_000 - many.core.instructions))
    assert many.core.save() == one.core.save()


def test_straight_code_across_pages_and_a_jump_back() -> None:
    guest = Guest("addi a0, a0, 1\n" * 3000 + "li t0, 0x40000000\nadd t0, t0, t0\njr t0")
    guest.core.run(3004 * 2)
    assert guest.core.x[10] == 6000


def test_instruction_across_a_page_boundary() -> None:
    guest = Guest("nop")
    start = RAM_BASE + 0xFFE
    guest.put(start, (0x00150513).to_bytes(4, "little"))  # addi a0, a0, 1
    guest.put(start + 4, (0xFFDFF06F).to_bytes(4, "little"))  # jal x0, -4
    guest.core.pc = start
    guest.core.run(1000)
    assert guest.core.x[10] == 500
    assert guest.core.pc == start


@pytest.mark.parametrize("distance", [-4, -4096, -4098, -6000, -8190, 4094, 8000])
def test_jump_across_a_page_boundary_to_any_page(distance: int) -> None:
    guest = Guest("nop")
    start = RAM_BASE + 0x3FFE
    guest.put(start, encode("jal", rd=1, imm=distance).to_bytes(4, "little"))
    guest.put(start + distance, encode("addi", rd=10, imm=7).to_bytes(4, "little"))
    guest.core.pc = start
    guest.core.run(2)
    assert (guest.core.pc, guest.core.x[1], guest.core.x[10]) == (start + distance + 4, start + 4, 7)


def handler_guest(body: str, *, firmware_emulated: bool = False) -> Guest:
    guest = Guest(body, firmware_emulated=firmware_emulated)
    guest.core.set_csr(STVEC if firmware_emulated else MTVEC, HANDLER)
    guest.put(HANDLER, (0x0000006F).to_bytes(4, "little"))  # j .
    return guest


@pytest.mark.parametrize(
    ("body", "cause", "value"),
    [
        (".word 0xffffffff", 2, 0xFFFFFFFF),
        (".half 0", 2, 0),
        ("csrrw x0, cycle, x0", 2, 0xC0001073),
        ("ebreak", 3, RAM_BASE),
        ("ecall", 11, 0),
        ("li a0, 0x70000000\nadd a0, a0, a0\nld a1, 0(a0)", 5, 0xE0000000),
        ("li a0, 0x70000000\nadd a0, a0, a0\nsd a1, 0(a0)", 7, 0xE0000000),
        ("li a0, 0x70000000\nadd a0, a0, a0\njr a0", 1, 0xE0000000),
        ("auipc a0, 0\namoadd.w a1, a2, (a0)\naddi a0, a0, 2\nlr.w a1, (a0)", 4, RAM_BASE + 2),
        ("auipc a0, 0\naddi a0, a0, 4\namoswap.d a1, a2, (a0)", 6, RAM_BASE + 4),
    ],
)
def test_exceptions_are_precise(body: str, cause: int, value: int) -> None:
    guest = handler_guest(body)
    guest.core.run(10)
    assert (guest.core.csr(MCAUSE), guest.core.csr(MTVAL)) == (cause, value)
    before = guest.core.instructions
    assert guest.core.csr(MEPC) >= RAM_BASE and guest.core.pc == HANDLER
    assert guest.core.csr(MSTATUS) >> 11 & 3 == 3
    guest.core.run(5)
    assert guest.core.instructions == before + 5


def test_a_trap_does_not_write_the_destination() -> None:
    guest = handler_guest("li a0, 0x70000000\nadd a0, a0, a0\nli a1, 77\nld a1, 0(a0)")
    guest.core.run(10)
    assert guest.core.x[11] == 77


def test_a_handler_that_cannot_be_fetched_is_a_fault() -> None:
    guest = Guest("ecall", firmware_emulated=False)
    guest.core.set_csr(MTVEC, 0x1000)
    assert guest.core.run(1000) is ExitReason.FAULT
    assert "0x1000" in guest.core.fault


def test_x0_is_zero_whatever_writes_it() -> None:
    guest = Guest("addi x0, x0, 5\nauipc x0, 1\nld x0, 0(x0)\nmv a0, x0")
    guest.core.run(2)
    guest.core.pc = RAM_BASE + 12
    guest.core.run(1)
    guest.core.x[0] = 9
    assert (guest.core.x[10], guest.core.x[0]) == (0, 0)


@pytest.mark.parametrize(
    ("load", "answer", "result"),
    [
        ("lb", 0x80, (1 << 64) - 128),
        ("lbu", 0x180, 0x80),
        ("lh", 0x8000, (1 << 64) - 0x8000),
        ("lw", 0x80000000, 0xFFFFFFFF80000000),
        ("lwu", 0x80000000, 0x80000000),
        ("ld", 1 << 63, 1 << 63),
    ],
)
def test_device_load(load: str, answer: int, result: int) -> None:
    guest = Guest(f"li a0, 0x10000000\n{load} a1, 8(a0)\nnop")
    assert guest.core.run(10) is ExitReason.MMIO_LOAD
    assert guest.core.exit_address == 0x10000008
    assert guest.core.exit_width == {"b": 1, "h": 2, "w": 4, "d": 8}[load[1]]
    retired = guest.core.instructions
    guest.core.complete_load(answer)
    assert guest.core.x[11] == result
    assert guest.core.instructions == retired + 1
    assert guest.core.pc == RAM_BASE + 12


def test_complete_load_takes_no_interrupt_before_the_load_retires() -> None:
    guest = handler_guest("li a0, 0x10000000\nlw a1, 0(a0)\nnop", firmware_emulated=True)
    guest.core.set_csr(SIE, 1 << 9)
    guest.core.set_csr(SSTATUS, 2)
    assert guest.core.run(10) is ExitReason.MMIO_LOAD
    guest.core.set_interrupt(9, True)
    guest.core.complete_load(42)
    assert guest.core.x[11] == 42
    guest.core.run(1)
    assert guest.core.csr(SEPC) == RAM_BASE + 12


def test_complete_load_without_a_load_is_refused() -> None:
    guest = Guest("nop\nnop")
    with pytest.raises(RuntimeError, match="without a load"):
        guest.core.complete_load(1)


def test_a_request_to_exit_does_not_lose_the_answer_of_a_device() -> None:
    guest = Guest("li a0, 0x10000000\nlw a1, 0(a0)\nnop")
    assert guest.core.run(10) is ExitReason.MMIO_LOAD
    guest.core.request_exit()
    guest.core.complete_load(42)
    assert guest.core.x[11] == 42
    assert guest.core.run(10) is ExitReason.REQUESTED


def test_device_store_has_retired() -> None:
    guest = Guest("li a0, 0x10000000\nli a1, -2\nsh a1, 4(a0)\nnop")
    assert guest.core.run(10) is ExitReason.MMIO_STORE
    assert (guest.core.exit_address, guest.core.exit_width, guest.core.exit_value) == (0x10000004, 2, 0xFFFE)
    assert guest.core.instructions == 4
    assert guest.core.pc == RAM_BASE + 16


def test_environment_call_of_emulated_firmware() -> None:
    guest = Guest("li a7, 16\necall\nmv a2, a0", firmware_emulated=True)
    assert guest.core.privilege == 1
    assert guest.core.run(10) is ExitReason.ENVIRONMENT_CALL
    assert (guest.core.x[17], guest.core.pc) == (16, RAM_BASE + 8)
    guest.core.x[10] = 123
    guest.core.run(1)
    assert guest.core.x[12] == 123


def test_wait_and_the_virtual_timer() -> None:
    guest = handler_guest("li a0, 32\ncsrw sie, a0\ncsrrsi x0, sstatus, 2\nwfi\nnop", firmware_emulated=True)
    guest.core.set_timer(50_000)
    assert guest.core.run(1000) is ExitReason.WAIT
    remaining = guest.core.wait_deadline_ns()
    assert remaining is not None and 4_990_000 < remaining <= 5_000_000
    guest.core.skip_to_deadline()
    assert guest.core.time == 50_000
    guest.core.run(1)
    assert guest.core.csr(SCAUSE) == 1 << 63 | 5
    assert guest.core.csr(SEPC) == RAM_BASE + 16


@pytest.mark.parametrize("run", [1, 17, 1000, 1 << 20])
def test_the_virtual_timer_fires_at_the_same_instruction_however_the_run_is_cut(run: int) -> None:
    guest = handler_guest(
        "li a0, 32\ncsrw sie, a0\ncsrrsi x0, sstatus, 2\n" + SUM_LOOP, firmware_emulated=True
    )
    guest.core.set_timer(9_000)
    while not guest.core.csr(SCAUSE):
        guest.core.run(min(run, 100_000))
    assert guest.core.csr(SCAUSE) == 1 << 63 | 5
    assert guest.core.x[10] == 29_999 and guest.core.csr(SEPC) == RAM_BASE + 24


def test_the_timer_can_be_disarmed_and_never_fires() -> None:
    guest = Guest("wfi", firmware_emulated=True)
    guest.core.set_timer(0)
    assert guest.core.csr(SIP) & 32
    assert guest.core.wait_deadline_ns() is None  # masked: it would not wake the hart
    guest.core.set_csr(SIE, 32)
    assert guest.core.wait_deadline_ns() == 0
    guest.core.set_timer((1 << 64) - 1)
    assert not guest.core.csr(SIP) & 32
    assert guest.core.wait_deadline_ns() is None


def test_external_interrupt_is_a_level_and_software_interrupt_a_latch() -> None:
    guest = Guest("csrrci x0, sip, 2\nnop", firmware_emulated=True)
    guest.core.set_interrupt(9, True)
    guest.core.set_interrupt(1, True)
    assert guest.core.csr(SIP) == 1 << 9 | 1 << 1
    guest.core.run(1)
    assert guest.core.csr(SIP) == 1 << 9
    guest.core.set_interrupt(9, False)
    assert guest.core.csr(SIP) == 0


def test_interrupts_have_the_specified_priority() -> None:
    guest = handler_guest("nop\nnop")
    guest.core.set_csr(MIE, 0xAAA)
    guest.core.set_csr(MSTATUS, 8)
    for bit in (1, 9, 7, 3, 11):
        guest.core.set_interrupt(bit, True)
    taken = []
    for bit in (11, 3, 7, 9, 1):
        guest.core.set_csr(MSTATUS, 8)
        guest.core.run(1)
        taken.append(guest.core.csr(MCAUSE) & 63)
        guest.core.set_interrupt(bit, False)
    assert taken == [11, 3, 7, 9, 1]


def test_request_exit_from_another_thread() -> None:
    guest = Guest(SUM_LOOP, clock=ClockSource.REAL)
    timer = threading.Timer(0.05, guest.core.request_exit)
    timer.start()
    started = time.monotonic()
    reason = guest.core.run(1 << 60)
    timer.join()
    assert reason is ExitReason.REQUESTED
    assert time.monotonic() - started < 5
    assert guest.core.run(10) is ExitReason.BUDGET


def test_real_time_runs_and_advances_on_request() -> None:
    core = Guest("nop", clock=ClockSource.REAL).core
    first = core.time
    core.advance_time(1_000_000_000)
    assert core.time - first >= 10_000_000
    assert first < 10_000_000  # starts near zero
    with pytest.raises(ValueError, match="run back"):
        core.advance_time(-1)


def test_sstc_register_drives_the_timer() -> None:
    guest = handler_guest(
        "li a0, 100\ncsrw stimecmp, a0\nli a0, 32\ncsrw sie, a0\n" + SUM_LOOP, firmware_emulated=True
    )
    guest.core.set_csr(SSTATUS, 2)
    guest.core.run(2000)
    assert guest.core.csr(SCAUSE) == 1 << 63 | 5
    assert guest.core.pc == HANDLER


def test_unsupported_satp_mode_changes_nothing() -> None:
    guest = Guest("nop", firmware_emulated=True)
    guest.core.set_csr(0x180, 8 << 60 | 0x80200)
    for mode in (9, 10, 1):
        guest.core.set_csr(0x180, mode << 60 | 0x12345)
        assert guest.core.csr(0x180) == 8 << 60 | 0x80200
    guest.core.set_csr(0x180, 8 << 60 | 0xFFFF << 44 | 5)
    assert guest.core.csr(0x180) == 8 << 60 | 5  # no ASID bits


def test_unknown_and_read_only_csrs_are_refused() -> None:
    core = Guest("nop").core
    with pytest.raises(ValueError, match="no CSR 0x7c0"):
        core.csr(0x7C0)
    with pytest.raises(ValueError, match="read-only"):
        core.set_csr(0xC00, 1)


def test_ram_must_be_whole_pages() -> None:
    with pytest.raises(ValueError, match="multiple of 4096"):
        Core(memoryview(bytearray(5000)))
    with pytest.raises(ValueError, match="writable"):
        Core(memoryview(bytes(4096)))


def test_user_mode_may_not_touch_the_supervisor() -> None:
    guest = handler_guest("csrr a0, sstatus", firmware_emulated=True)
    guest.core.privilege = 0
    guest.core.run(1)
    assert (guest.core.csr(SCAUSE), guest.core.privilege) == (2, 1)
    assert guest.core.csr(STVAL) == 0x10002573


def test_counters_count_retired_instructions_only() -> None:
    guest = handler_guest("nop\nnop\necall")
    guest.core.run(3)
    assert guest.core.instructions == 2
    assert guest.core.csr(0xB02) == 2
    assert guest.core.csr(MIP) == 0
