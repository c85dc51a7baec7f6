"""Several harts: HSM, IPIs, reservations, code and translations across harts, turns, reproducibility."""

from __future__ import annotations

import hashlib
import mmap

import pytest
from tests.machine.isa.guests import SV39, A, D, Guest, R, V, W, X, map_page

from serai.machine.board import RAM_BASE, MachineConfig
from serai.machine.core_factory import make_hart
from serai.machine.hart import ClockSource
from serai.machine.harts import SLICE_STEPS
from serai.machine.isa.assembler import assemble
from serai.machine.machine import Machine, MachineExit

MEMORY = 4 << 20
MAIL = RAM_BASE + 0x100000
HSM, IPI = 0x48534D, 0x735049
EVERYTHING = (1 << 64) - 1


def program(number: int) -> int:
    """Where the program of a hart lies."""
    return RAM_BASE + number * 0x10000


def li(register: str, value: int) -> str:
    """A constant of up to 32 bits, not sign-extended as `li` of the assembler has it."""
    if value < 1 << 31:
        return f"li {register}, {value}"
    return f"li {register}, {value >> 2}\nslli {register}, {register}, 2"


def call(extension: int, function: int, *arguments: int) -> str:
    loads = [li(f"a{position}", argument) for position, argument in enumerate(arguments)]
    return "\n".join([*loads, f"li a6, {function}", f"li a7, {extension}", "ecall"])


def start(number: int, opaque: int = 0) -> str:
    return call(HSM, 0, number, program(number), opaque)


def mail(register: str, slot: int) -> str:
    return f"{li('t6', MAIL + 8 * slot)}\nsd {register}, 0(t6)"


def wait_for(slot: int, label: str, *, relax: str = "pause") -> str:
    return f"{li('t6', MAIL + 8 * slot)}\n{label}:\n{relax}\nld t5, 0(t6)\nbeq t5, x0, {label}"


def machine(*programs: str, vcpus: int = 2, maximum: int = 0) -> Machine:
    config = MachineConfig(memory_bytes=MEMORY, vcpus=vcpus, maximum_vcpus=maximum, clock=ClockSource.VIRTUAL)
    made = Machine(config, memoryview(mmap.mmap(-1, MEMORY)), make_hart)
    for number, source in enumerate(programs):
        made.memory.write(program(number), assemble(source, program(number)))
    made.harts.boot(RAM_BASE, 0, 0)
    return made


def letter(made: Machine, slot: int) -> int:
    value = made.memory.read_u64(MAIL + 8 * slot)
    return value - (1 << 64) if value >> 63 else value


def finish(made: Machine, steps: int = 2_000_000) -> None:
    """Run until every hart waits."""
    assert made.run(steps) is MachineExit.WAIT, made.fault
    assert made.harts.next() is None


SLEEP = "csrw sie, x0\nwfi"


def test_hart_states() -> None:
    first = "\n".join(
        [
            *(call(HSM, 2, 1), mail("a1", 0)),
            *(call(HSM, 0, 1, 16, 0), mail("a0", 1)),
            *(call(HSM, 0, 7, RAM_BASE, 0), mail("a0", 2)),
            *(start(1, 4711), mail("a0", 3)),
            *(start(1), mail("a0", 4)),
            *(call(HSM, 2, 1), mail("a1", 5)),
            wait_for(8, "other"),
            *("stopped:", call(HSM, 2, 1), "beq a1, x0, stopped", mail("a1", 6)),
            SLEEP,
        ]
    )
    second = "\n".join([mail("a0", 9), mail("a1", 10), "li a2, 1", mail("a2", 8), call(HSM, 1), "ebreak"])
    made = machine(first, second)
    finish(made)
    assert [letter(made, slot) for slot in range(7)] == [1, -5, -3, 0, -6, 0, 1]
    assert (letter(made, 9), letter(made, 10)) == (1, 4711), "the number in a0, the opaque value in a1"
    assert made.harts.started == 1


def test_no_more_harts_than_allowed() -> None:
    first = "\n".join([start(1), mail("a0", 0), wait_for(1, "later"), start(1), mail("a0", 2), SLEEP])
    made = machine(first, SLEEP, vcpus=1, maximum=2)
    made.run(1000)
    assert letter(made, 0) == -4
    made.allow_vcpus(2)
    made.memory.write(MAIL + 8, b"\1")
    finish(made)
    assert (letter(made, 2), made.harts.started) == (0, 2)


def test_an_ipi_wakes_a_waiting_hart() -> None:
    second = "\n".join(
        ["li t0, 2", "csrw sie, t0", "li a0, 1", mail("a0", 0), "wfi", "csrr a0, sip", mail("a0", 1), SLEEP]
    )
    first = "\n".join([start(1), wait_for(0, "ready"), call(IPI, 0, 2, 0), mail("a0", 2), SLEEP])
    made = machine(first, second)
    finish(made)
    assert (letter(made, 1), letter(made, 2)) == (2, 0)


def test_a_store_by_another_hart_breaks_a_reservation_even_with_the_old_value() -> None:
    reserve = f"{li('s0', MAIL + 800)}\nlr.d a0, (s0)\npause\nli a1, 5\nsc.d a2, a1, (s0)"
    alone = machine(f"{reserve}\n{mail('a2', 0)}\n{SLEEP}")
    finish(alone)
    assert (letter(alone, 0), letter(alone, 100)) == (0, 5), "nobody else stored"

    storing = f"{li('s0', MAIL + 800)}\nli a0, 1\n{mail('a0', 1)}\nback:\nsd x0, 0(s0)\nj back"
    first = "\n".join([start(1), wait_for(1, "ready"), reserve, mail("a2", 0), "spin:", "j spin"])
    made = machine(first, storing)
    made.run(5 * SLICE_STEPS)
    assert (letter(made, 0), letter(made, 100)) == (1, 0), "the SC failed and stored nothing"


def test_lr_sc_loops_of_two_harts_lose_nothing() -> None:
    loop = "\n".join(
        [
            f"{li('s0', MAIL + 800)}\nli s1, 30000",
            "again:\nlr.d a0, (s0)\naddi a0, a0, 1\nsc.d a1, a0, (s0)\nbne a1, x0, again",
            "addi s1, s1, -1\nbne s1, x0, again",
            SLEEP,
        ]
    )
    made = machine(f"{start(1)}\n{loop}", loop)
    made.harts.slice_steps = 101
    finish(made)
    assert letter(made, 100) == 60_000


def test_code_that_another_hart_rewrites_is_decoded_anew() -> None:
    function = program(2)
    returns = [int.from_bytes(assemble(f"li a0, {value}"), "little") for value in (1, 2)]
    called = f"{li('s0', function)}\njalr ra, 0(s0)"
    second = "\n".join([called, mail("a0", 0), wait_for(1, "go"), called, mail("a0", 2), SLEEP])
    rewrite = f"{li('s0', function)}\nli s1, {returns[1]}\nsw s1, 0(s0)"
    # The first store gives hart 0 the right to write the page before hart 1 decodes it.
    first = "\n".join(
        [
            f"{li('s0', function)}\nlw s1, 0(s0)\nsw s1, 0(s0)",
            *(start(1), wait_for(0, "called"), rewrite, "li a0, 1", mail("a0", 1), SLEEP),
        ]
    )
    made = machine(first, second, "li a0, 1\njalr x0, 0(ra)")
    finish(made)
    assert (letter(made, 0), letter(made, 2)) == (1, 2)


def test_a_remote_fence_forgets_its_range_and_nothing_else() -> None:
    guest = Guest("loop:\nld a1, 0(a0)\nj loop", firmware_emulated=True)
    root, data = RAM_BASE + 0x100000, RAM_BASE + 0x5000
    flags = V | R | W | X | A | D
    map_page(guest, root, RAM_BASE, RAM_BASE, flags)
    map_page(guest, root, data, RAM_BASE + 0x20000, flags)
    guest.put(RAM_BASE + 0x20000, b"\1")
    guest.put(RAM_BASE + 0x21000, b"\2")
    core = guest.core
    core.set_csr(0x180, SV39 | root >> 12)
    core.x[10] = data

    def seen() -> int:
        core.run(4)
        return core.x[11]

    assert seen() == 1
    map_page(guest, root, data, RAM_BASE + 0x21000, flags)
    assert seen() == 1, "no fence yet: the old translation stands"
    core.fence(data + 0x1000, 4096)
    assert seen() == 1
    core.fence(data + 8, 8)
    assert seen() == 2
    for start_, size in ((0, EVERYTHING), (EVERYTHING - 4095, 8192), (0, 1 << 40)):
        map_page(guest, root, data, RAM_BASE + 0x20000, flags)
        core.fence(start_, size)
        assert seen() == 1
        map_page(guest, root, data, RAM_BASE + 0x21000, flags)
        core.fence(data, 4096)
        assert seen() == 2


COUNTING = "count:\naddi s0, s0, 1\nj count"


def test_a_hart_that_spins_starves_nobody() -> None:
    made = machine(f"{start(1)}\n{COUNTING}", COUNTING)
    made.run(20 * SLICE_STEPS)
    counts = [hart.x[8] for hart in made.harts.all]
    assert min(counts) > 0.4 * sum(counts)


def test_a_hart_that_pauses_gives_its_time_away() -> None:
    made = machine(f"{start(1)}\nrelax:\npause\nj relax", COUNTING)
    made.run(20 * SLICE_STEPS)
    assert made.harts.all[1].steps > 0.99 * sum(hart.steps for hart in made.harts.all)


def test_the_first_timer_of_all_waiting_harts_counts() -> None:
    def sleeper(ticks: int, slot: int) -> str:
        return "\n".join(
            [
                f"li t0, 32\ncsrw sie, t0\nli t0, {ticks}\ncsrw stimecmp, t0",
                *("wfi", "csrr a0, time", mail("a0", slot), SLEEP),
            ]
        )

    made = machine(f"{start(1)}\n{sleeper(90_000, 0)}", sleeper(50_000, 1))
    assert made.run(10_000) is MachineExit.WAIT
    ticks = made.hart.time
    assert made.harts.wait_deadline_ns() == (50_000 - ticks) * 100
    made.harts.skip_to_deadline()
    assert made.run(10_000) is MachineExit.WAIT
    assert (letter(made, 0), letter(made, 1)) == (0, 50_000)
    made.harts.skip_to_deadline()
    finish(made)
    assert letter(made, 0) == 90_000, "time is one for all harts"


def _busy() -> Machine:
    """Four harts that add to a counter, some of them pausing, and mix in what the clock says."""
    bodies = [
        f"{li('s0', MAIL + 800)}\nwork:\namoadd.d a0, s1, (s0)\ncsrr a1, time\nxor s2, s2, a1\n"
        f"sd s2, {8 * (number + 1)}(s0)\nadd s1, s1, a0\n{'pause' if number % 2 else 'nop'}\nj work"
        for number in range(4)
    ]
    starts = "\n".join(start(number) for number in (1, 2, 3))
    return machine(f"{starts}\n{bodies[0]}", *bodies[1:], vcpus=4)


def _digest(made: Machine) -> str:
    return hashlib.sha256(made.save() + bytes(made.memory.ram)).hexdigest()


def test_cuts_and_moves_change_nothing() -> None:
    whole = _busy()
    whole.run(1_500_000)
    expected = _digest(whole)

    cut = _busy()
    for _ in range(1_500_000 // 3_000):
        cut.run(3_000)
    assert _digest(cut) == expected

    moved_from: set[int] = set()
    here = _busy()
    for steps in (130_001, 45_000, 50_000, 55_000, 219_999, 1_000_000):
        here.run(steps)
        moved_from.add(here.harts.current)
        there = _busy()
        there.run(70_000)  # what was there before leaves no trace
        there.memory.ram[:] = here.memory.ram
        there.restore(here.save())
        here = there
    assert _digest(here) == expected
    assert len(moved_from) > 1, "moves while different harts had their turn"


def test_a_fresh_machine_goes_on_with_any_hart() -> None:
    here = _busy()
    while here.harts.current != 2:
        here.run(1_000)
    there = _busy()
    there.memory.ram[:] = here.memory.ram
    there.restore(here.save())
    here.run(400_000)
    there.run(400_000)
    assert _digest(there) == _digest(here)


@pytest.mark.parametrize("size", [1, 3])
def test_the_dirty_log_sees_every_hart(size: int) -> None:
    programs = [f"{li('s0', RAM_BASE + 0x200000 + 4096 * n)}\nsd x0, 0(s0)\n{SLEEP}" for n in range(size)]
    starts = [start(number) for number in range(1, size)]
    made = machine("\n".join([*starts, programs[0]]), *programs[1:], vcpus=size)
    made.start_dirty_log()
    finish(made)
    log = made.take_dirty_log()
    first = 0x200000 // 4096
    assert [log[n // 8] >> n % 8 & 1 for n in range(first, first + size + 1)] == [1] * size + [0]
