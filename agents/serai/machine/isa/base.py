"""RV64I and M: Unprivileged ISA chapters 2, 4 and 13."""

# ruff: noqa: D103 - the clause in the table says what a semantics function does

from serai.machine.isa.table import Effect, instruction
from serai.machine.native.intrinsics import (
    high64,
    load,
    memory_fence,
    mul128,
    sar,
    sdiv,
    sext8,
    sext16,
    sext32,
    sge,
    slt,
    srem,
    store,
    wide,
    widen_signed,
    zext32,
)

M64 = (1 << 64) - 1
INT64_MIN = 1 << 63
INT32_MIN = -(1 << 31)


def register_register(funct7: str, funct3: str, opcode: str = "0110011") -> str:
    return f"{funct7} ..... ..... {funct3} ..... {opcode}"


def immediate(funct3: str, opcode: str = "0010011") -> str:
    return f"............ ..... {funct3} ..... {opcode}"


WORD = "0111011"
WORD_IMMEDIATE = "0011011"


@instruction(".................... ..... 0110111", "U", clause="2.4.1")
def lui(imm: int) -> int:
    return imm


@instruction(".................... ..... 0010111", "U", clause="2.4.1")
def auipc(pc: int, imm: int) -> int:
    return pc + imm


@instruction(".................... ..... 1101111", "J", clause="2.5.1", effect=Effect.JUMP)
def jal(pc: int, imm: int) -> int:
    return pc + imm


@instruction(immediate("000", "1100111"), "I", clause="2.5.1", effect=Effect.JUMP)
def jalr(rs1: int, imm: int) -> int:
    return rs1 + imm & ~1


def branch(funct3: str) -> str:
    return f"....... ..... ..... {funct3} ..... 1100011"


@instruction(branch("000"), "B", clause="2.5.2", effect=Effect.BRANCH)
def beq(rs1: int, rs2: int) -> int:
    return rs1 == rs2


@instruction(branch("001"), "B", clause="2.5.2", effect=Effect.BRANCH)
def bne(rs1: int, rs2: int) -> int:
    return rs1 != rs2


@instruction(branch("100"), "B", clause="2.5.2", effect=Effect.BRANCH)
def blt(rs1: int, rs2: int) -> int:
    return slt(rs1, rs2)


@instruction(branch("101"), "B", clause="2.5.2", effect=Effect.BRANCH)
def bge(rs1: int, rs2: int) -> int:
    return sge(rs1, rs2)


@instruction(branch("110"), "B", clause="2.5.2", effect=Effect.BRANCH)
def bltu(rs1: int, rs2: int) -> int:
    return rs1 < rs2


@instruction(branch("111"), "B", clause="2.5.2", effect=Effect.BRANCH)
def bgeu(rs1: int, rs2: int) -> int:
    return rs1 >= rs2


@instruction(immediate("000", "0000011"), "I", clause="2.6")
def lb(rs1: int, imm: int) -> int:
    return sext8(load(rs1 + imm, 1))


@instruction(immediate("001", "0000011"), "I", clause="2.6")
def lh(rs1: int, imm: int) -> int:
    return sext16(load(rs1 + imm, 2))


@instruction(immediate("010", "0000011"), "I", clause="2.6")
def lw(rs1: int, imm: int) -> int:
    return sext32(load(rs1 + imm, 4))


@instruction(immediate("011", "0000011"), "I", clause="4.3")
def ld(rs1: int, imm: int) -> int:
    return load(rs1 + imm, 8)


@instruction(immediate("100", "0000011"), "I", clause="2.6")
def lbu(rs1: int, imm: int) -> int:
    return load(rs1 + imm, 1)


@instruction(immediate("101", "0000011"), "I", clause="2.6")
def lhu(rs1: int, imm: int) -> int:
    return load(rs1 + imm, 2)


@instruction(immediate("110", "0000011"), "I", clause="4.3")
def lwu(rs1: int, imm: int) -> int:
    return load(rs1 + imm, 4)


def store_pattern(funct3: str) -> str:
    return f"....... ..... ..... {funct3} ..... 0100011"


@instruction(store_pattern("000"), "S", clause="2.6", effect=Effect.NONE)
def sb(rs1: int, rs2: int, imm: int) -> None:
    store(rs1 + imm, rs2, 1)


@instruction(store_pattern("001"), "S", clause="2.6", effect=Effect.NONE)
def sh(rs1: int, rs2: int, imm: int) -> None:
    store(rs1 + imm, rs2, 2)


@instruction(store_pattern("010"), "S", clause="2.6", effect=Effect.NONE)
def sw(rs1: int, rs2: int, imm: int) -> None:
    store(rs1 + imm, rs2, 4)


@instruction(store_pattern("011"), "S", clause="4.3", effect=Effect.NONE)
def sd(rs1: int, rs2: int, imm: int) -> None:
    store(rs1 + imm, rs2, 8)


@instruction(immediate("000"), "I", clause="2.4.1")
def addi(rs1: int, imm: int) -> int:
    return rs1 + imm


@instruction(immediate("010"), "I", clause="2.4.1")
def slti(rs1: int, imm: int) -> int:
    return slt(rs1, imm)


@instruction(immediate("011"), "I", clause="2.4.1")
def sltiu(rs1: int, imm: int) -> int:
    return rs1 < imm


@instruction(immediate("100"), "I", clause="2.4.1")
def xori(rs1: int, imm: int) -> int:
    return rs1 ^ imm


@instruction(immediate("110"), "I", clause="2.4.1")
def ori(rs1: int, imm: int) -> int:
    return rs1 | imm


@instruction(immediate("111"), "I", clause="2.4.1")
def andi(rs1: int, imm: int) -> int:
    return rs1 & imm


@instruction("000000 ...... ..... 001 ..... 0010011", "I-shift", clause="4.2.1")
def slli(rs1: int, imm: int) -> int:
    return rs1 << (imm & 63)


@instruction("000000 ...... ..... 101 ..... 0010011", "I-shift", clause="4.2.1")
def srli(rs1: int, imm: int) -> int:
    return rs1 >> (imm & 63)


@instruction("010000 ...... ..... 101 ..... 0010011", "I-shift", clause="4.2.1")
def srai(rs1: int, imm: int) -> int:
    return sar(rs1, imm & 63)


@instruction(register_register("0000000", "000"), "R", clause="2.4.2")
def add(rs1: int, rs2: int) -> int:
    return rs1 + rs2


@instruction(register_register("0100000", "000"), "R", clause="2.4.2")
def sub(rs1: int, rs2: int) -> int:
    return rs1 - rs2


@instruction(register_register("0000000", "001"), "R", clause="2.4.2")
def sll(rs1: int, rs2: int) -> int:
    return rs1 << (rs2 & 63)


@instruction(register_register("0000000", "010"), "R", clause="2.4.2", name="slt")
def slt_(rs1: int, rs2: int) -> int:
    return slt(rs1, rs2)


@instruction(register_register("0000000", "011"), "R", clause="2.4.2")
def sltu(rs1: int, rs2: int) -> int:
    return rs1 < rs2


@instruction(register_register("0000000", "100"), "R", clause="2.4.2")
def xor(rs1: int, rs2: int) -> int:
    return rs1 ^ rs2


@instruction(register_register("0000000", "101"), "R", clause="2.4.2")
def srl(rs1: int, rs2: int) -> int:
    return rs1 >> (rs2 & 63)


@instruction(register_register("0100000", "101"), "R", clause="2.4.2")
def sra(rs1: int, rs2: int) -> int:
    return sar(rs1, rs2 & 63)


@instruction(register_register("0000000", "110"), "R", clause="2.4.2", name="or")
def or_(rs1: int, rs2: int) -> int:
    return rs1 | rs2


@instruction(register_register("0000000", "111"), "R", clause="2.4.2", name="and")
def and_(rs1: int, rs2: int) -> int:
    return rs1 & rs2


@instruction(immediate("000", WORD_IMMEDIATE), "I", clause="4.2.1")
def addiw(rs1: int, imm: int) -> int:
    return sext32(rs1 + imm)


@instruction("0000000 ..... ..... 001 ..... 0011011", "I-shift-word", clause="4.2.1")
def slliw(rs1: int, imm: int) -> int:
    return sext32(rs1 << (imm & 31))


@instruction("0000000 ..... ..... 101 ..... 0011011", "I-shift-word", clause="4.2.1")
def srliw(rs1: int, imm: int) -> int:
    return sext32(zext32(rs1) >> (imm & 31))


@instruction("0100000 ..... ..... 101 ..... 0011011", "I-shift-word", clause="4.2.1")
def sraiw(rs1: int, imm: int) -> int:
    return sar(sext32(rs1), imm & 31)


@instruction(register_register("0000000", "000", WORD), "R", clause="4.2.2")
def addw(rs1: int, rs2: int) -> int:
    return sext32(rs1 + rs2)


@instruction(register_register("0100000", "000", WORD), "R", clause="4.2.2")
def subw(rs1: int, rs2: int) -> int:
    return sext32(rs1 - rs2)


@instruction(register_register("0000000", "001", WORD), "R", clause="4.2.2")
def sllw(rs1: int, rs2: int) -> int:
    return sext32(rs1 << (rs2 & 31))


@instruction(register_register("0000000", "101", WORD), "R", clause="4.2.2")
def srlw(rs1: int, rs2: int) -> int:
    return sext32(zext32(rs1) >> (rs2 & 31))


@instruction(register_register("0100000", "101", WORD), "R", clause="4.2.2")
def sraw(rs1: int, rs2: int) -> int:
    return sar(sext32(rs1), rs2 & 31)


@instruction("............ ..... 000 ..... 0001111", "none", clause="2.7", effect=Effect.NONE)
def fence() -> None:
    memory_fence()


# Decoded code is invalidated by the stores themselves (native/runtime/pages.py).
@instruction("............ ..... 001 ..... 0001111", "none", clause="6", effect=Effect.NONE)
def fence_i() -> None:
    pass


@instruction(register_register("0000001", "000"), "R", clause="13.1")
def mul(rs1: int, rs2: int) -> int:
    return rs1 * rs2


@instruction(register_register("0000001", "001"), "R", clause="13.1")
def mulh(rs1: int, rs2: int) -> int:
    return high64(mul128(widen_signed(rs1), widen_signed(rs2)))


@instruction(register_register("0000001", "010"), "R", clause="13.1")
def mulhsu(rs1: int, rs2: int) -> int:
    return high64(mul128(widen_signed(rs1), wide(rs2)))


@instruction(register_register("0000001", "011"), "R", clause="13.1")
def mulhu(rs1: int, rs2: int) -> int:
    return high64(mul128(wide(rs1), wide(rs2)))


@instruction(register_register("0000001", "100"), "R", clause="13.2")
def div(rs1: int, rs2: int) -> int:
    if rs2 == 0:
        return M64
    if rs2 == M64:
        return -rs1
    return sdiv(rs1, rs2)


@instruction(register_register("0000001", "101"), "R", clause="13.2")
def divu(rs1: int, rs2: int) -> int:
    if rs2 == 0:
        return M64
    return rs1 // rs2


@instruction(register_register("0000001", "110"), "R", clause="13.2")
def rem(rs1: int, rs2: int) -> int:
    if rs2 == 0:
        return rs1
    if rs2 == M64:
        return 0
    return srem(rs1, rs2)


@instruction(register_register("0000001", "111"), "R", clause="13.2")
def remu(rs1: int, rs2: int) -> int:
    if rs2 == 0:
        return rs1
    return rs1 % rs2


@instruction(register_register("0000001", "000", WORD), "R", clause="13.1")
def mulw(rs1: int, rs2: int) -> int:
    return sext32(rs1 * rs2)


@instruction(register_register("0000001", "100", WORD), "R", clause="13.2")
def divw(rs1: int, rs2: int) -> int:
    if zext32(rs2) == 0:
        return M64
    return sext32(sdiv(sext32(rs1), sext32(rs2)))


@instruction(register_register("0000001", "101", WORD), "R", clause="13.2")
def divuw(rs1: int, rs2: int) -> int:
    if zext32(rs2) == 0:
        return M64
    return sext32(zext32(rs1) // zext32(rs2))


@instruction(register_register("0000001", "110", WORD), "R", clause="13.2")
def remw(rs1: int, rs2: int) -> int:
    if zext32(rs2) == 0:
        return sext32(rs1)
    return sext32(srem(sext32(rs1), sext32(rs2)))


@instruction(register_register("0000001", "111", WORD), "R", clause="13.2")
def remuw(rs1: int, rs2: int) -> int:
    if zext32(rs2) == 0:
        return sext32(rs1)
    return sext32(zext32(rs1) % zext32(rs2))
