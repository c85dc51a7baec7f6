"""Traps, interrupts, time and slices. Native code (restricted language).

Privileged ISA 3.1.6 (mstatus), 3.1.8 (delegation), 3.1.9 (interrupts), 3.1.14 to 3.1.16 (mepc, mcause,
mtval), 3.3.2 (MRET, SRET). A trap counts as a step of the budget but not as a retired instruction, so that
a guest that only traps cannot keep ``run`` from returning.
"""

# ruff: noqa: PLR1730 - the restricted language has no tables, tuples or built-ins
from serai.machine.native.intrinsics import call_pointer, host_load
from serai.machine.native.language import native
from serai.machine.native.layout import (
    EXIT_BUDGET,
    EXIT_FAULT,
    EXIT_REQUESTED,
    NEVER,
    NO_TRAP,
    OK,
    SLICE,
    TRAPPED,
    State,
)
from serai.machine.native.runtime.fetch import locate
from serai.machine.native.runtime.memory import FETCH, is_ram, translate

STATUS_SIE = 1 << 1
STATUS_MIE = 1 << 3
STATUS_SPIE = 1 << 5
STATUS_MPIE = 1 << 7
STATUS_SPP = 1 << 8
STATUS_MPP = 3 << 11
STATUS_FS = 3 << 13
STATUS_MPRV = 1 << 17
SUPERVISOR_TIMER = 1 << 5
MACHINE_TIMER = 1 << 7
STCE = 1 << 63
STEPS_PER_TICK = 10  # the virtual clock: 10 MHz ticks of 10 instructions each
TICKS_PER_SECOND = 10_000_000
CLOCK_MONOTONIC = 1


@native
def clock_ticks(s: State) -> int:
    """The clock behind the guest's: ticks of 100 ns, real (CLOCK_MONOTONIC) or of retired steps."""
    if s.virtual_clock:
        return (s.steps + s.clock_base) // STEPS_PER_TICK
    call_pointer(s.clock_gettime, CLOCK_MONOTONIC, s.timespec)
    return s.timespec[0] * TICKS_PER_SECOND + s.timespec[1] // 100


@native
def guest_time(s: State) -> int:
    """The guest's time register; never runs back."""
    now = clock_ticks(s) + s.time_offset
    if now < s.last_time:
        return s.last_time
    s.last_time = now
    return now


@native
def timer_is_ours(s: State) -> int:
    """Whether stimecmp drives STIP: firmware emulated by the VMM, or Sstc enabled by menvcfg.STCE."""
    return s.firmware_emulated | s.menvcfg >> 63


@native
def update_timer(s: State) -> int:
    """Compare the timers and set or clear STIP and, on a bare board, MTIP."""
    s.last_clock_steps = s.steps
    if timer_is_ours(s):
        if s.stimecmp != NEVER and guest_time(s) >= s.stimecmp:
            s.lines = s.lines | SUPERVISOR_TIMER
        else:
            s.lines = s.lines & ~SUPERVISOR_TIMER
    if s.machine_timer:
        if s.mtimecmp != NEVER and guest_time(s) >= s.mtimecmp:
            s.lines = s.lines | MACHINE_TIMER
        else:
            s.lines = s.lines & ~MACHINE_TIMER
    return 0


@native
def take_trap(s: State, cause: int, value: int, interrupt: int) -> int:
    """Enter the trap handler: the state moves to S or M and s.pc to the vector."""
    if interrupt:
        s.interrupts[cause] = s.interrupts[cause] + 1
    else:
        s.exceptions[cause] = s.exceptions[cause] + 1
    delegated = s.mideleg if interrupt else s.medeleg
    status: int = s.mstatus
    offset = 0
    if s.privilege != 3 and delegated >> cause & 1:
        enabled = status >> 1 & 1
        status = status & ~(STATUS_SPP | STATUS_SPIE | STATUS_SIE)
        s.mstatus = status | s.privilege << 8 | enabled << 5
        s.sepc = s.pc
        s.scause = interrupt << 63 | cause
        s.stval = value
        s.privilege = 1
        if interrupt and s.stvec & 1:
            offset = cause << 2
        s.pc = (s.stvec & ~3) + offset
        return 0
    enabled = status >> 3 & 1
    status = status & ~(STATUS_MPP | STATUS_MPIE | STATUS_MIE)
    s.mstatus = status | s.privilege << 11 | enabled << 7
    s.mepc = s.pc
    s.mcause = interrupt << 63 | cause
    s.mtval = value
    s.privilege = 3
    if interrupt and s.mtvec & 1:
        offset = cause << 2
    s.pc = (s.mtvec & ~3) + offset
    return 0


@native
def highest(pending: int) -> int:
    """The interrupt of highest priority, by Privileged ISA 3.1.9: MEI, MSI, MTI, SEI, SSI, STI."""
    if pending >> 11 & 1:
        return 11
    if pending >> 3 & 1:
        return 3
    if pending >> 7 & 1:
        return 7
    if pending >> 9 & 1:
        return 9
    if pending >> 1 & 1:
        return 1
    return 5


@native
def take_interrupt(s: State) -> int:
    """Take an interrupt that is pending and enabled."""
    pending = (s.mip | s.lines) & s.mie
    if not pending:
        return 0
    machine = pending & ~s.mideleg
    if machine and (s.privilege < 3 or s.mstatus & STATUS_MIE):
        return take_trap(s, highest(machine), 0, 1)
    supervisor = pending & s.mideleg
    if supervisor and (s.privilege == 0 or (s.privilege == 1 and s.mstatus & STATUS_SIE)):
        return take_trap(s, highest(supervisor), 0, 1)
    return 0


@native
def exception(s: State) -> int:
    """Deliver the recorded exception of the instruction at s.pc; 1 if the guest can make no progress.

    That is also so when its bytes lie in a page that has not arrived yet: the exit says which.
    """
    if s.trap_cause == NO_TRAP:
        return 1
    retired = s.step_limit - s.slice_budget - s.traps
    if s.fault_pc == s.pc and s.fault_steps == retired:
        s.exit_reason = EXIT_FAULT
        return 1
    s.fault_pc = s.pc
    s.fault_steps = retired
    take_trap(s, s.trap_cause, s.trap_value, 0)
    s.slice_budget = s.slice_budget - 1
    s.traps = s.traps + 1
    return 0


@native
def new_slice(s: State) -> int:
    """Between slices: requests, clock, timer, interrupts; 1 to leave native code."""
    s.recheck = 0
    steps = s.steps
    if steps >= s.run_limit:
        s.exit_reason = EXIT_BUDGET
        return 1
    if s.request and not s.mmio_ready:
        s.request = 0
        s.exit_reason = EXIT_REQUESTED
        return 1
    budget = SLICE
    if s.virtual_clock:
        update_timer(s)
        budget = steps_to_deadline(s)
    elif steps - s.last_clock_steps >= SLICE // 2:
        update_timer(s)
    if s.run_limit - steps < budget:
        budget = s.run_limit - steps
    s.step_limit = steps + budget
    s.slice_budget = budget
    if not s.mmio_ready:
        take_interrupt(s)
    return 0


@native
def steps_to_deadline(s: State) -> int:
    """On the virtual clock: the length of a slice that ends exactly when the timer fires."""
    deadline = NEVER
    if timer_is_ours(s) and not s.lines & SUPERVISOR_TIMER:
        deadline = s.stimecmp
    if s.machine_timer and not s.lines & MACHINE_TIMER and s.mtimecmp < deadline:
        deadline = s.mtimecmp
    if deadline == NEVER:
        return SLICE
    ticks = deadline - guest_time(s)
    if ticks > SLICE:
        return SLICE
    steps = ticks * STEPS_PER_TICK - (s.steps + s.clock_base) % STEPS_PER_TICK
    if steps < SLICE:
        return steps
    return SLICE


@native
def proceed(s: State) -> int:
    """Find where to go on at s.pc with s.slice_budget left; 1 to leave native code."""
    while True:
        if s.slice_budget == 0 or s.recheck:
            s.steps = s.step_limit - s.slice_budget
            if new_slice(s):
                return 1
        if locate(s) == OK:
            return 0
        if exception(s):
            return 1


@native
def fetch_half(s: State, address: int) -> int:
    """The 16 bits at a virtual address, 0 where they cannot be fetched."""
    if translate(s, address, FETCH, s.privilege):
        return 0
    if not is_ram(s, s.result):
        return 0
    return host_load(s.result + s.ram_delta, 2)


@native
def illegal(s: State) -> int:
    """Record an illegal-instruction exception of the instruction at s.pc; the value is its bits."""
    bits = fetch_half(s, s.pc)
    if bits & 3 == 3:
        bits |= fetch_half(s, s.pc + 2) << 16
    s.trap_cause = 2
    s.trap_value = bits
    return TRAPPED
