"""Control and status registers. Native code (restricted language).

Privileged ISA chapters 2 (numbers), 3.1 (machine), 12.1 (supervisor); Unprivileged ISA 7 (Zicsr), 8 (Zicntr),
21.2 (fcsr); Sstc. Fields that have no function here are read-only zero (WARL).
"""

# ruff: noqa: PLR0912, PLR0917 - the restricted language has no tables, tuples or built-ins
from serai.machine.native.language import native
from serai.machine.native.layout import OK, REFRESH, State
from serai.machine.native.runtime.pages import flush_all
from serai.machine.native.runtime.pmp import read_pmp, write_pmp
from serai.machine.native.runtime.traps import (
    STATUS_FS,
    STATUS_MPP,
    STATUS_MPRV,
    SUPERVISOR_TIMER,
    guest_time,
    illegal,
    timer_is_ours,
    update_timer,
)

STATUS_SUM = 1 << 18
STATUS_MXR = 1 << 19
STATUS_TVM = 1 << 20
STATUS_SD = 1 << 63
STATUS_XL = 0xA << 32  # UXL = SXL = 64, read-only
MSTATUS_WRITABLE = 0x7E79AA
SSTATUS_WRITABLE = 0xC6122
SSTATUS_VISIBLE = SSTATUS_WRITABLE | 3 << 32 | STATUS_SD
MISA = 2 << 62 | 1 << 0 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 8 | 1 << 12 | 1 << 18 | 1 << 20
INTERRUPTS = 0xAAA
SUPERVISOR_INTERRUPTS = 0x222
EXCEPTIONS = 0xB3FF
SATP_MODE_SV39 = 8
SATP_PPN = (1 << 44) - 1
MENVCFG_WRITABLE = 1 << 63 | 1

FFLAGS = 0x001
FRM = 0x002
FCSR = 0x003
SSTATUS = 0x100
SIE = 0x104
STVEC = 0x105
SCOUNTEREN = 0x106
SENVCFG = 0x10A
SSCRATCH = 0x140
SEPC = 0x141
SCAUSE = 0x142
STVAL = 0x143
SIP = 0x144
STIMECMP = 0x14D
SATP = 0x180
MSTATUS = 0x300
MISA_NUMBER = 0x301
MEDELEG = 0x302
MIDELEG = 0x303
MIE = 0x304
MTVEC = 0x305
MCOUNTEREN = 0x306
MENVCFG = 0x30A
MCOUNTINHIBIT = 0x320
MSCRATCH = 0x340
MEPC = 0x341
MCAUSE = 0x342
MTVAL = 0x343
MIP = 0x344
MCYCLE = 0xB00
MINSTRET = 0xB02
CYCLE = 0xC00
TIME = 0xC01
INSTRET = 0xC02
MVENDORID = 0xF11
MHARTID = 0xF14
MCONFIGPTR = 0xF15


@native
def status_with_dirty(s: State) -> int:
    """Mstatus with its read-only parts: SD summarises FS."""
    status = s.mstatus | STATUS_XL
    if status & STATUS_FS == STATUS_FS:
        return status | STATUS_SD
    return status


@native
def counter_allowed(s: State, bit: int) -> int:
    """Whether mcounteren and scounteren open a counter to the current privilege."""
    if s.privilege == 3:
        return 1
    if not s.mcounteren >> bit & 1:
        return 0
    return s.privilege == 1 or s.scounteren >> bit & 1


@native
def stimecmp_allowed(s: State) -> int:
    """Sstc: stimecmp is open to S when menvcfg.STCE and mcounteren.TM say so."""
    if s.privilege == 3:
        return 1
    return timer_is_ours(s) & s.mcounteren >> 1 & 1


@native
def is_zero_register(number: int) -> int:
    """Read-only zero machine registers: identification, unused counters, triggers (type 0: none)."""
    if 0x7A0 <= number <= 0x7A3:
        return 1
    if 0xB03 <= number <= 0xB1F or 0x323 <= number <= 0x33F:
        return 1
    return MVENDORID <= number <= MCONFIGPTR or number == MCOUNTINHIBIT


@native
def is_pmp_register(number: int) -> int:
    """pmpcfg0, 2, 4, ... (the odd ones do not exist in RV64) and pmpaddr0..63."""
    return (0x3A0 <= number <= 0x3AF and not number & 1) or 0x3B0 <= number <= 0x3EF


@native
def float_csr(s: State, number: int) -> int:
    """Read fflags, frm or fcsr."""
    if not s.mstatus & STATUS_FS:
        return illegal(s)
    if number == FFLAGS:
        s.result = s.fflags
    elif number == FRM:
        s.result = s.frm
    else:
        s.result = s.frm << 5 | s.fflags
    return OK


@native
def read_supervisor(s: State, number: int) -> int:
    """Read a CSR of the supervisor."""
    if number == SSTATUS:
        s.result = status_with_dirty(s) & SSTATUS_VISIBLE
    elif number == SIE:
        s.result = s.mie & s.mideleg
    elif number == STVEC:
        s.result = s.stvec
    elif number == SCOUNTEREN:
        s.result = s.scounteren
    elif number == SENVCFG:
        s.result = s.senvcfg
    elif number == SSCRATCH:
        s.result = s.sscratch
    elif number == SEPC:
        s.result = s.sepc
    elif number == SCAUSE:
        s.result = s.scause
    elif number == STVAL:
        s.result = s.stval
    elif number == SIP:
        s.result = (s.mip | s.lines) & s.mideleg
    elif number == STIMECMP:
        if not stimecmp_allowed(s):
            return illegal(s)
        s.result = s.stimecmp
    elif number == SATP:
        if s.privilege == 1 and s.mstatus & STATUS_TVM:
            return illegal(s)
        s.result = s.satp
    else:
        return illegal(s)
    return OK


@native
def read_machine(s: State, number: int) -> int:
    """Read a CSR of the machine level."""
    if number == MSTATUS:
        s.result = status_with_dirty(s)
    elif number == MISA_NUMBER:
        s.result = MISA
    elif number == MEDELEG:
        s.result = s.medeleg
    elif number == MIDELEG:
        s.result = s.mideleg
    elif number == MIE:
        s.result = s.mie
    elif number == MTVEC:
        s.result = s.mtvec
    elif number == MCOUNTEREN:
        s.result = s.mcounteren
    elif number == MENVCFG:
        s.result = s.menvcfg
    elif number == MSCRATCH:
        s.result = s.mscratch
    elif number == MEPC:
        s.result = s.mepc
    elif number == MCAUSE:
        s.result = s.mcause
    elif number == MTVAL:
        s.result = s.mtval
    elif number == MIP:
        s.result = s.mip | s.lines
    elif number == MHARTID:
        s.result = s.hart_id
    elif number == MCYCLE:
        s.result = s.steps + s.mcycle_offset
    elif number == MINSTRET:
        s.result = s.steps - s.traps + s.minstret_offset
    elif is_pmp_register(number):
        s.result = read_pmp(s, number)
    elif is_zero_register(number):
        s.result = 0
    else:
        return illegal(s)
    return OK


@native
def read_counter(s: State, number: int) -> int:
    """Read cycle, time or instret."""
    if number > INSTRET or not counter_allowed(s, number - CYCLE):
        return illegal(s)
    if number == CYCLE:
        s.result = s.steps + s.mcycle_offset
    elif number == TIME:
        s.result = guest_time(s)
    else:
        s.result = s.steps - s.traps + s.minstret_offset
    return OK


@native
def csr_read(s: State, number: int) -> int:
    """Read a CSR into s.result; access rights of the level are already checked."""
    level = number >> 8
    if level == 0 and number >= FFLAGS and number <= FCSR:
        return float_csr(s, number)
    if level == 1:
        return read_supervisor(s, number)
    if level == 0xC:
        return read_counter(s, number)
    if level in {3, 7, 11, 15}:
        return read_machine(s, number)
    return illegal(s)


@native
def write_status(s: State, value: int, writable: int) -> int:
    """Write mstatus or sstatus; look again at interrupts and translation only where they may change."""
    if value & STATUS_MPP == 2 << 11:
        writable = writable & ~STATUS_MPP
    old = s.mstatus
    new = old & ~writable | value & writable
    s.mstatus = new
    changed = old ^ new
    if changed & STATUS_MXR:
        flush_all(s)
    if changed & (STATUS_MPRV | STATUS_MPP | STATUS_SUM | STATUS_MXR):
        s.recheck = 1
        return REFRESH
    if (s.mip | s.lines) & s.mie:
        s.recheck = 1
        return REFRESH
    return OK


@native
def write_satp(s: State, value: int) -> int:
    """Write satp: an unsupported mode leaves it unchanged; there are no ASID bits."""
    mode = value >> 60
    if mode not in (0, SATP_MODE_SV39):
        return OK
    s.satp = mode << 60 | value & SATP_PPN
    flush_all(s)
    return REFRESH


@native
def write_interrupt_csr(s: State, number: int, value: int) -> int:
    """Write mie, sie, mip, sip, mideleg or stimecmp: the interrupts to take may change."""
    writable = SUPERVISOR_INTERRUPTS
    if number == MIE:
        s.mie = value & INTERRUPTS
    elif number == SIE:
        s.mie = s.mie & ~s.mideleg | value & s.mideleg
    elif number == MIDELEG:
        s.mideleg = value & SUPERVISOR_INTERRUPTS
    elif number == STIMECMP:
        s.stimecmp = value
        update_timer(s)
    elif number == MIP:
        if timer_is_ours(s):
            writable = writable & ~SUPERVISOR_TIMER
        s.mip = s.mip & ~writable | value & writable
    else:
        writable = s.mideleg & 2
        s.mip = s.mip & ~writable | value & writable
    s.recheck = 1
    return REFRESH


@native
def write_float(s: State, number: int, value: int) -> int:
    """Write fflags, frm or fcsr."""
    s.mstatus = s.mstatus | STATUS_FS
    if number == FFLAGS:
        s.fflags = value & 31
    elif number == FRM:
        s.frm = value & 7
    else:
        s.fflags = value & 31
        s.frm = value >> 5 & 7
    return OK


@native
def write_supervisor(s: State, number: int, value: int) -> int:
    """Write a CSR of the supervisor."""
    if number == SSTATUS:
        return write_status(s, value, SSTATUS_WRITABLE)
    if number == SATP:
        return write_satp(s, value)
    if number in (SIE, SIP, STIMECMP):
        return write_interrupt_csr(s, number, value)
    if number == STVEC:
        s.stvec = value & ~2
    elif number == SCOUNTEREN:
        s.scounteren = value & 7
    elif number == SENVCFG:
        s.senvcfg = value & 1
    elif number == SSCRATCH:
        s.sscratch = value
    elif number == SEPC:
        s.sepc = value & ~1
    elif number == SCAUSE:
        s.scause = value
    elif number == STVAL:
        s.stval = value
    return OK


@native
def write_machine(s: State, number: int, value: int) -> int:
    """Write a CSR of the machine level."""
    if number == MSTATUS:
        return write_status(s, value, MSTATUS_WRITABLE)
    if number in (MIE, MIP, MIDELEG):
        return write_interrupt_csr(s, number, value)
    if number == MEDELEG:
        s.medeleg = value & EXCEPTIONS
    elif number == MTVEC:
        s.mtvec = value & ~2
    elif number == MCOUNTEREN:
        s.mcounteren = value & 7
    elif number == MENVCFG:
        s.menvcfg = value & MENVCFG_WRITABLE
        update_timer(s)
        s.recheck = 1
        return REFRESH
    elif number == MSCRATCH:
        s.mscratch = value
    elif number == MEPC:
        s.mepc = value & ~1
    elif number == MCAUSE:
        s.mcause = value
    elif number == MTVAL:
        s.mtval = value
    elif is_pmp_register(number):
        write_pmp(s, number, value)
        flush_all(s)
        return REFRESH
    elif number == MCYCLE:
        s.mcycle_offset = value - s.steps - 1
    elif number == MINSTRET:
        s.minstret_offset = value - (s.steps - s.traps) - 1
    return OK


@native
def csr_write(s: State, number: int, value: int) -> int:
    """Write a CSR that has been read."""
    level = number >> 8
    if level == 0:
        return write_float(s, number, value)
    if level == 1:
        return write_supervisor(s, number, value)
    return write_machine(s, number, value)


@native
def csr_execute(s: State, number: int, operand: int, operation: int, writes: int, rd: int) -> int:
    """Carry out a CSR instruction: operation 1 writes, 2 sets and 3 clears bits (Unprivileged ISA 7.1)."""
    if number >> 8 & 3 > s.privilege or (writes and number >> 10 == 3):
        return illegal(s)
    status = csr_read(s, number)
    if status:
        return status
    old = s.result
    if writes:
        value = operand
        if operation != 1:
            value = old
            if number in (MIP, SIP):  # external lines must not be latched by a read-modify-write
                value = s.mip
            value = value | operand if operation == 2 else value & ~operand
        status = csr_write(s, number, value)
    s.x[rd] = old
    return status
