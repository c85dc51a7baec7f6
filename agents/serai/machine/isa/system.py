"""Zicsr and the privileged instructions: Unprivileged ISA 2.8 and 7, Privileged ISA 3.3 and 12.2."""

# ruff: noqa: D103 - the clause in the table says what a semantics function does
from serai.machine.isa.table import Effect, instruction
from serai.machine.native.layout import (
    EXIT_ENVIRONMENT_CALL,
    EXIT_PAUSE,
    EXIT_WAIT,
    LEAVE_AFTER,
    OK,
    REDIRECT,
    REFRESH,
    TRAPPED,
    State,
)
from serai.machine.native.runtime.csr import STATUS_TVM, csr_execute
from serai.machine.native.runtime.pages import flush_all, flush_page
from serai.machine.native.runtime.traps import STATUS_MPP, STATUS_MPRV, STATUS_SPP, illegal, update_timer

STATUS_TW = 1 << 21
STATUS_TSR = 1 << 22


def csr_pattern(funct3: str) -> str:
    return f"............ ..... {funct3} ..... 1110011"


@instruction(csr_pattern("001"), "I-csr", clause="7.1", effect=Effect.SYSTEM)
def csrrw(s: State, imm: int, rs1: int, rd_number: int) -> int:
    return csr_execute(s, imm, rs1, 1, 1, rd_number)


@instruction(csr_pattern("010"), "I-csr", clause="7.1", effect=Effect.SYSTEM)
def csrrs(s: State, imm: int, rs1: int, rs1_number: int, rd_number: int) -> int:
    return csr_execute(s, imm, rs1, 2, rs1_number != 0, rd_number)


@instruction(csr_pattern("011"), "I-csr", clause="7.1", effect=Effect.SYSTEM)
def csrrc(s: State, imm: int, rs1: int, rs1_number: int, rd_number: int) -> int:
    return csr_execute(s, imm, rs1, 3, rs1_number != 0, rd_number)


@instruction(csr_pattern("101"), "I-csr", clause="7.1", effect=Effect.SYSTEM)
def csrrwi(s: State, imm: int, rs1_number: int, rd_number: int) -> int:
    return csr_execute(s, imm, rs1_number, 1, 1, rd_number)


@instruction(csr_pattern("110"), "I-csr", clause="7.1", effect=Effect.SYSTEM)
def csrrsi(s: State, imm: int, rs1_number: int, rd_number: int) -> int:
    return csr_execute(s, imm, rs1_number, 2, rs1_number != 0, rd_number)


@instruction(csr_pattern("111"), "I-csr", clause="7.1", effect=Effect.SYSTEM)
def csrrci(s: State, imm: int, rs1_number: int, rd_number: int) -> int:
    return csr_execute(s, imm, rs1_number, 3, rs1_number != 0, rd_number)


@instruction("000000000000 00000 000 00000 1110011", "none", clause="2.8", effect=Effect.SYSTEM)
def ecall(s: State) -> int:
    if s.firmware_emulated and s.privilege == 1:
        s.exit_reason = EXIT_ENVIRONMENT_CALL
        return LEAVE_AFTER
    s.trap_cause = 8 + s.privilege
    s.trap_value = 0
    return TRAPPED


@instruction("000000000001 00000 000 00000 1110011", "none", clause="2.8", effect=Effect.SYSTEM)
def ebreak(s: State, pc: int) -> int:
    s.trap_cause = 3
    s.trap_value = pc
    return TRAPPED


@instruction("0001000 00010 00000 000 00000 1110011", "none", clause="Priv. 3.3.2", effect=Effect.SYSTEM)
def sret(s: State) -> int:
    status: int = s.mstatus
    if s.privilege == 0 or (s.privilege == 1 and status & STATUS_TSR):
        return illegal(s)
    s.privilege = status >> 8 & 1
    status = status & ~(2 | STATUS_SPP) | status >> 4 & 2 | 1 << 5
    s.mstatus = status & ~STATUS_MPRV
    s.pc = s.sepc
    s.recheck = 1
    return REDIRECT


@instruction("0011000 00010 00000 000 00000 1110011", "none", clause="Priv. 3.3.2", effect=Effect.SYSTEM)
def mret(s: State) -> int:
    status: int = s.mstatus
    if s.privilege != 3:
        return illegal(s)
    s.privilege = status >> 11 & 3
    status = status & ~(8 | STATUS_MPP) | status >> 4 & 8 | 1 << 7
    if s.privilege != 3:
        status = status & ~STATUS_MPRV
    s.mstatus = status
    s.pc = s.mepc
    s.recheck = 1
    return REDIRECT


@instruction("0001000 00101 00000 000 00000 1110011", "none", clause="Priv. 3.3.3", effect=Effect.SYSTEM)
def wfi(s: State) -> int:
    if s.privilege == 0 or (s.privilege == 1 and s.mstatus & STATUS_TW):
        return illegal(s)
    update_timer(s)
    if (s.mip | s.lines) & s.mie:
        s.recheck = 1
        return REFRESH
    s.exit_reason = EXIT_WAIT
    return LEAVE_AFTER


# Zihintpause: a FENCE that orders nothing. A hart that spins gives way where another one could run.
@instruction("0000 0001 0000 00000 000 00000 0001111", "none", clause="Zihintpause", effect=Effect.SYSTEM)
def pause(s: State) -> int:
    if s.yields:
        s.exit_reason = EXIT_PAUSE
        return LEAVE_AFTER
    return OK


@instruction("0001001 ..... ..... 000 00000 1110011", "R", clause="Priv. 12.2.1", effect=Effect.SYSTEM)
def sfence_vma(s: State, rs1: int, rs1_number: int) -> int:
    if s.privilege == 0 or (s.privilege == 1 and s.mstatus & STATUS_TVM):
        return illegal(s)
    if rs1_number:
        flush_page(s, rs1)
    else:
        flush_all(s)
    return REFRESH
