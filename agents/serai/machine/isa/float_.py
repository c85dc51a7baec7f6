"""F and D: Unprivileged ISA chapters 21 and 22.

Arithmetic is exact in integers (native/runtime/softfloat.py). The host's unit is used where it cannot
differ: round to nearest even, the inexact flag already set, and a result that is normal and above the
smallest normal number, so that neither overflow, underflow nor a NaN is involved.
"""

# ruff: noqa: D103 - the clause in the table says what a semantics function does
from serai.machine.isa.table import Effect, Float, instruction
from serai.machine.native.intrinsics import (
    host_add32,
    host_add64,
    host_div32,
    host_div64,
    host_fma32,
    host_fma64,
    host_mul32,
    host_mul64,
    host_sqrt32,
    host_sqrt64,
    host_sub32,
    host_sub64,
    load,
    sext32,
    sge,
    store,
    zext32,
)
from serai.machine.native.language import native
from serai.machine.native.layout import State
from serai.machine.native.runtime.softfloat import (
    FLAG_NX,
    NAN32,
    RNE,
    negate,
    soft_add,
    soft_class,
    soft_convert,
    soft_div,
    soft_equal,
    soft_fma,
    soft_from_int,
    soft_less,
    soft_min_max,
    soft_mul,
    soft_sqrt,
    soft_to_int,
)

M32 = (1 << 32) - 1
BOX = M32 << 32
SIGN32 = 1 << 31
SIGN64 = 1 << 63
HOST_HAS_FMA = 0  # replaced by the CPU's answer when the machine is compiled


@native
def unbox(value: int) -> int:
    """A binary32 operand: not NaN-boxed is the canonical NaN (Unprivileged ISA 22.2)."""
    return value & M32 if value >= BOX else NAN32


@native
def box(value: int) -> int:
    """A binary32 result in a 64-bit register."""
    return value | BOX


@native
def host_may(s: State, rm: int) -> int:
    """Whether the host's default environment rounds alike and the inexact flag is set anyway."""
    return rm == RNE and s.fflags & FLAG_NX != 0


@native
def is_safe32(result: int) -> int:
    """Normal and above the smallest normal number."""
    return (result >> 23 & 0xFF) - 2 < 0xFF - 2


@native
def is_safe64(result: int) -> int:
    """Normal and above the smallest normal number."""
    return (result >> 52 & 0x7FF) - 2 < 0x7FF - 2


def arithmetic(funct7: str, rs2: str = ".....", funct3: str = "...") -> str:
    return f"{funct7} {rs2} ..... {funct3} ..... 1010011"


@instruction(
    "............ ..... 010 ..... 0000111", "I", clause="21.5", effect=Effect.FLOAT, float_=Float.WRITES
)
def flw(rs1: int, imm: int) -> int:
    return load(rs1 + imm, 4) | BOX


@instruction(
    "............ ..... 011 ..... 0000111", "I", clause="22.3", effect=Effect.FLOAT, float_=Float.WRITES
)
def fld(rs1: int, imm: int) -> int:
    return load(rs1 + imm, 8)


@instruction(
    "....... ..... ..... 010 ..... 0100111", "S", clause="21.5", effect=Effect.NONE, float_=Float.READS
)
def fsw(rs1: int, frs2: int, imm: int) -> None:
    store(rs1 + imm, frs2, 4)


@instruction(
    "....... ..... ..... 011 ..... 0100111", "S", clause="22.3", effect=Effect.NONE, float_=Float.READS
)
def fsd(rs1: int, frs2: int, imm: int) -> None:
    store(rs1 + imm, frs2, 8)


@instruction(arithmetic("0000000"), "R-rm", clause="21.6", effect=Effect.FLOAT, float_=Float.WRITES)
def fadd_s(s: State, frs1: int, frs2: int, rm: int) -> int:
    a = unbox(frs1)
    b = unbox(frs2)
    if host_may(s, rm):
        result = host_add32(a, b)
        if is_safe32(result):
            return box(result)
    return box(soft_add(s, a, b, rm, 0))


@instruction(arithmetic("0000100"), "R-rm", clause="21.6", effect=Effect.FLOAT, float_=Float.WRITES)
def fsub_s(s: State, frs1: int, frs2: int, rm: int) -> int:
    a = unbox(frs1)
    b = unbox(frs2)
    if host_may(s, rm):
        result = host_sub32(a, b)
        if is_safe32(result):
            return box(result)
    return box(soft_add(s, a, negate(b, 0), rm, 0))


@instruction(arithmetic("0001000"), "R-rm", clause="21.6", effect=Effect.FLOAT, float_=Float.WRITES)
def fmul_s(s: State, frs1: int, frs2: int, rm: int) -> int:
    a = unbox(frs1)
    b = unbox(frs2)
    if host_may(s, rm):
        result = host_mul32(a, b)
        if is_safe32(result):
            return box(result)
    return box(soft_mul(s, a, b, rm, 0))


@instruction(arithmetic("0001100"), "R-rm", clause="21.6", effect=Effect.FLOAT, float_=Float.WRITES)
def fdiv_s(s: State, frs1: int, frs2: int, rm: int) -> int:
    a = unbox(frs1)
    b = unbox(frs2)
    if host_may(s, rm):
        result = host_div32(a, b)
        if is_safe32(result):
            return box(result)
    return box(soft_div(s, a, b, rm, 0))


@instruction(arithmetic("0101100", "00000"), "R-rm", clause="21.6", effect=Effect.FLOAT, float_=Float.WRITES)
def fsqrt_s(s: State, frs1: int, rm: int) -> int:
    a = unbox(frs1)
    if host_may(s, rm) and not a >> 31:
        result = host_sqrt32(a)
        if is_safe32(result):
            return box(result)
    return box(soft_sqrt(s, a, rm, 0))


@native
def fused32(s: State, a: int, b: int, c: int, rm: int) -> int:
    """a * b + c with one rounding."""
    if HOST_HAS_FMA:  # noqa: SIM102 - decided when the machine is compiled
        if host_may(s, rm):
            result = host_fma32(a, b, c)
            if is_safe32(result):
                return result
    return soft_fma(s, a, b, c, rm, 0)


@instruction(
    ".....00 ..... ..... ... ..... 1000011", "R4", clause="21.6", effect=Effect.FLOAT, float_=Float.WRITES
)
def fmadd_s(s: State, frs1: int, frs2: int, frs3: int, rm: int) -> int:
    return box(fused32(s, unbox(frs1), unbox(frs2), unbox(frs3), rm))


@instruction(
    ".....00 ..... ..... ... ..... 1000111", "R4", clause="21.6", effect=Effect.FLOAT, float_=Float.WRITES
)
def fmsub_s(s: State, frs1: int, frs2: int, frs3: int, rm: int) -> int:
    return box(fused32(s, unbox(frs1), unbox(frs2), negate(unbox(frs3), 0), rm))


@instruction(
    ".....00 ..... ..... ... ..... 1001011", "R4", clause="21.6", effect=Effect.FLOAT, float_=Float.WRITES
)
def fnmsub_s(s: State, frs1: int, frs2: int, frs3: int, rm: int) -> int:
    return box(fused32(s, negate(unbox(frs1), 0), unbox(frs2), unbox(frs3), rm))


@instruction(
    ".....00 ..... ..... ... ..... 1001111", "R4", clause="21.6", effect=Effect.FLOAT, float_=Float.WRITES
)
def fnmadd_s(s: State, frs1: int, frs2: int, frs3: int, rm: int) -> int:
    return box(fused32(s, negate(unbox(frs1), 0), unbox(frs2), negate(unbox(frs3), 0), rm))


@instruction(
    arithmetic("0010000", funct3="000"), "R", clause="21.7", effect=Effect.FLOAT, float_=Float.WRITES
)
def fsgnj_s(frs1: int, frs2: int) -> int:
    return box(unbox(frs1) & ~SIGN32 | unbox(frs2) & SIGN32)


@instruction(
    arithmetic("0010000", funct3="001"), "R", clause="21.7", effect=Effect.FLOAT, float_=Float.WRITES
)
def fsgnjn_s(frs1: int, frs2: int) -> int:
    return box(unbox(frs1) & ~SIGN32 | ~unbox(frs2) & SIGN32)


@instruction(
    arithmetic("0010000", funct3="010"), "R", clause="21.7", effect=Effect.FLOAT, float_=Float.WRITES
)
def fsgnjx_s(frs1: int, frs2: int) -> int:
    return box(unbox(frs1) ^ unbox(frs2) & SIGN32)


@instruction(
    arithmetic("0010100", funct3="000"), "R", clause="21.6", effect=Effect.FLOAT, float_=Float.WRITES
)
def fmin_s(s: State, frs1: int, frs2: int) -> int:
    return box(soft_min_max(s, unbox(frs1), unbox(frs2), 0, 0))


@instruction(
    arithmetic("0010100", funct3="001"), "R", clause="21.6", effect=Effect.FLOAT, float_=Float.WRITES
)
def fmax_s(s: State, frs1: int, frs2: int) -> int:
    return box(soft_min_max(s, unbox(frs1), unbox(frs2), 1, 0))


@instruction(
    arithmetic("1010000", funct3="000"), "R", clause="21.8", effect=Effect.INTEGER, float_=Float.WRITES
)
def fle_s(s: State, frs1: int, frs2: int) -> int:
    return soft_less(s, unbox(frs1), unbox(frs2), 1, 0)


@instruction(
    arithmetic("1010000", funct3="001"), "R", clause="21.8", effect=Effect.INTEGER, float_=Float.WRITES
)
def flt_s(s: State, frs1: int, frs2: int) -> int:
    return soft_less(s, unbox(frs1), unbox(frs2), 0, 0)


@instruction(
    arithmetic("1010000", funct3="010"), "R", clause="21.8", effect=Effect.INTEGER, float_=Float.WRITES
)
def feq_s(s: State, frs1: int, frs2: int) -> int:
    return soft_equal(s, unbox(frs1), unbox(frs2), 0)


@instruction(
    arithmetic("1110000", "00000", "001"), "R", clause="21.9", effect=Effect.INTEGER, float_=Float.READS
)
def fclass_s(frs1: int) -> int:
    return soft_class(unbox(frs1), 0)


@instruction(
    arithmetic("1100000", "00000"), "R-rm", clause="21.7", effect=Effect.INTEGER, float_=Float.WRITES
)
def fcvt_w_s(s: State, frs1: int, rm: int) -> int:
    return sext32(soft_to_int(s, unbox(frs1), rm, 0, 32, 0))


@instruction(arithmetic("1101000", "00000"), "R-rm", clause="21.7", effect=Effect.FLOAT, float_=Float.WRITES)
def fcvt_s_w(s: State, rs1: int, rm: int) -> int:
    value = sext32(rs1)
    if sge(value, 0):
        return box(soft_from_int(s, value, 0, rm, 0))
    return box(soft_from_int(s, -value, 1, rm, 0))


@instruction(
    arithmetic("1100000", "00001"), "R-rm", clause="21.7", effect=Effect.INTEGER, float_=Float.WRITES
)
def fcvt_wu_s(s: State, frs1: int, rm: int) -> int:
    return sext32(soft_to_int(s, unbox(frs1), rm, 1, 32, 0))


@instruction(arithmetic("1101000", "00001"), "R-rm", clause="21.7", effect=Effect.FLOAT, float_=Float.WRITES)
def fcvt_s_wu(s: State, rs1: int, rm: int) -> int:
    return box(soft_from_int(s, zext32(rs1), 0, rm, 0))


@instruction(
    arithmetic("1100000", "00010"), "R-rm", clause="21.7", effect=Effect.INTEGER, float_=Float.WRITES
)
def fcvt_l_s(s: State, frs1: int, rm: int) -> int:
    return soft_to_int(s, unbox(frs1), rm, 0, 64, 0)


@instruction(arithmetic("1101000", "00010"), "R-rm", clause="21.7", effect=Effect.FLOAT, float_=Float.WRITES)
def fcvt_s_l(s: State, rs1: int, rm: int) -> int:
    value = rs1
    if sge(value, 0):
        return box(soft_from_int(s, value, 0, rm, 0))
    return box(soft_from_int(s, -value, 1, rm, 0))


@instruction(
    arithmetic("1100000", "00011"), "R-rm", clause="21.7", effect=Effect.INTEGER, float_=Float.WRITES
)
def fcvt_lu_s(s: State, frs1: int, rm: int) -> int:
    return soft_to_int(s, unbox(frs1), rm, 1, 64, 0)


@instruction(arithmetic("1101000", "00011"), "R-rm", clause="21.7", effect=Effect.FLOAT, float_=Float.WRITES)
def fcvt_s_lu(s: State, rs1: int, rm: int) -> int:
    return box(soft_from_int(s, rs1, 0, rm, 0))


@instruction(arithmetic("0000001"), "R-rm", clause="22.4", effect=Effect.FLOAT, float_=Float.WRITES)
def fadd_d(s: State, frs1: int, frs2: int, rm: int) -> int:
    if host_may(s, rm):
        result = host_add64(frs1, frs2)
        if is_safe64(result):
            return result
    return soft_add(s, frs1, frs2, rm, 1)


@instruction(arithmetic("0000101"), "R-rm", clause="22.4", effect=Effect.FLOAT, float_=Float.WRITES)
def fsub_d(s: State, frs1: int, frs2: int, rm: int) -> int:
    if host_may(s, rm):
        result = host_sub64(frs1, frs2)
        if is_safe64(result):
            return result
    return soft_add(s, frs1, negate(frs2, 1), rm, 1)


@instruction(arithmetic("0001001"), "R-rm", clause="22.4", effect=Effect.FLOAT, float_=Float.WRITES)
def fmul_d(s: State, frs1: int, frs2: int, rm: int) -> int:
    if host_may(s, rm):
        result = host_mul64(frs1, frs2)
        if is_safe64(result):
            return result
    return soft_mul(s, frs1, frs2, rm, 1)


@instruction(arithmetic("0001101"), "R-rm", clause="22.4", effect=Effect.FLOAT, float_=Float.WRITES)
def fdiv_d(s: State, frs1: int, frs2: int, rm: int) -> int:
    if host_may(s, rm):
        result = host_div64(frs1, frs2)
        if is_safe64(result):
            return result
    return soft_div(s, frs1, frs2, rm, 1)


@instruction(arithmetic("0101101", "00000"), "R-rm", clause="22.4", effect=Effect.FLOAT, float_=Float.WRITES)
def fsqrt_d(s: State, frs1: int, rm: int) -> int:
    if host_may(s, rm) and not frs1 >> 63:
        result = host_sqrt64(frs1)
        if is_safe64(result):
            return result
    return soft_sqrt(s, frs1, rm, 1)


@native
def fused64(s: State, a: int, b: int, c: int, rm: int) -> int:
    """a * b + c with one rounding."""
    if HOST_HAS_FMA:  # noqa: SIM102 - decided when the machine is compiled
        if host_may(s, rm):
            result = host_fma64(a, b, c)
            if is_safe64(result):
                return result
    return soft_fma(s, a, b, c, rm, 1)


@instruction(
    ".....01 ..... ..... ... ..... 1000011", "R4", clause="22.4", effect=Effect.FLOAT, float_=Float.WRITES
)
def fmadd_d(s: State, frs1: int, frs2: int, frs3: int, rm: int) -> int:
    return fused64(s, frs1, frs2, frs3, rm)


@instruction(
    ".....01 ..... ..... ... ..... 1000111", "R4", clause="22.4", effect=Effect.FLOAT, float_=Float.WRITES
)
def fmsub_d(s: State, frs1: int, frs2: int, frs3: int, rm: int) -> int:
    return fused64(s, frs1, frs2, negate(frs3, 1), rm)


@instruction(
    ".....01 ..... ..... ... ..... 1001011", "R4", clause="22.4", effect=Effect.FLOAT, float_=Float.WRITES
)
def fnmsub_d(s: State, frs1: int, frs2: int, frs3: int, rm: int) -> int:
    return fused64(s, negate(frs1, 1), frs2, frs3, rm)


@instruction(
    ".....01 ..... ..... ... ..... 1001111", "R4", clause="22.4", effect=Effect.FLOAT, float_=Float.WRITES
)
def fnmadd_d(s: State, frs1: int, frs2: int, frs3: int, rm: int) -> int:
    return fused64(s, negate(frs1, 1), frs2, negate(frs3, 1), rm)


@instruction(
    arithmetic("0010001", funct3="000"), "R", clause="22.5", effect=Effect.FLOAT, float_=Float.WRITES
)
def fsgnj_d(frs1: int, frs2: int) -> int:
    return frs1 & ~SIGN64 | frs2 & SIGN64


@instruction(
    arithmetic("0010001", funct3="001"), "R", clause="22.5", effect=Effect.FLOAT, float_=Float.WRITES
)
def fsgnjn_d(frs1: int, frs2: int) -> int:
    return frs1 & ~SIGN64 | ~frs2 & SIGN64


@instruction(
    arithmetic("0010001", funct3="010"), "R", clause="22.5", effect=Effect.FLOAT, float_=Float.WRITES
)
def fsgnjx_d(frs1: int, frs2: int) -> int:
    return frs1 ^ frs2 & SIGN64


@instruction(
    arithmetic("0010101", funct3="000"), "R", clause="22.4", effect=Effect.FLOAT, float_=Float.WRITES
)
def fmin_d(s: State, frs1: int, frs2: int) -> int:
    return soft_min_max(s, frs1, frs2, 0, 1)


@instruction(
    arithmetic("0010101", funct3="001"), "R", clause="22.4", effect=Effect.FLOAT, float_=Float.WRITES
)
def fmax_d(s: State, frs1: int, frs2: int) -> int:
    return soft_min_max(s, frs1, frs2, 1, 1)


@instruction(
    arithmetic("1010001", funct3="000"), "R", clause="22.6", effect=Effect.INTEGER, float_=Float.WRITES
)
def fle_d(s: State, frs1: int, frs2: int) -> int:
    return soft_less(s, frs1, frs2, 1, 1)


@instruction(
    arithmetic("1010001", funct3="001"), "R", clause="22.6", effect=Effect.INTEGER, float_=Float.WRITES
)
def flt_d(s: State, frs1: int, frs2: int) -> int:
    return soft_less(s, frs1, frs2, 0, 1)


@instruction(
    arithmetic("1010001", funct3="010"), "R", clause="22.6", effect=Effect.INTEGER, float_=Float.WRITES
)
def feq_d(s: State, frs1: int, frs2: int) -> int:
    return soft_equal(s, frs1, frs2, 1)


@instruction(
    arithmetic("1110001", "00000", "001"), "R", clause="22.7", effect=Effect.INTEGER, float_=Float.READS
)
def fclass_d(frs1: int) -> int:
    return soft_class(frs1, 1)


@instruction(
    arithmetic("1100001", "00000"), "R-rm", clause="22.5", effect=Effect.INTEGER, float_=Float.WRITES
)
def fcvt_w_d(s: State, frs1: int, rm: int) -> int:
    return sext32(soft_to_int(s, frs1, rm, 0, 32, 1))


@instruction(arithmetic("1101001", "00000"), "R-rm", clause="22.5", effect=Effect.FLOAT, float_=Float.WRITES)
def fcvt_d_w(s: State, rs1: int, rm: int) -> int:
    value = sext32(rs1)
    if sge(value, 0):
        return soft_from_int(s, value, 0, rm, 1)
    return soft_from_int(s, -value, 1, rm, 1)


@instruction(
    arithmetic("1100001", "00001"), "R-rm", clause="22.5", effect=Effect.INTEGER, float_=Float.WRITES
)
def fcvt_wu_d(s: State, frs1: int, rm: int) -> int:
    return sext32(soft_to_int(s, frs1, rm, 1, 32, 1))


@instruction(arithmetic("1101001", "00001"), "R-rm", clause="22.5", effect=Effect.FLOAT, float_=Float.WRITES)
def fcvt_d_wu(s: State, rs1: int, rm: int) -> int:
    return soft_from_int(s, zext32(rs1), 0, rm, 1)


@instruction(
    arithmetic("1100001", "00010"), "R-rm", clause="22.5", effect=Effect.INTEGER, float_=Float.WRITES
)
def fcvt_l_d(s: State, frs1: int, rm: int) -> int:
    return soft_to_int(s, frs1, rm, 0, 64, 1)


@instruction(arithmetic("1101001", "00010"), "R-rm", clause="22.5", effect=Effect.FLOAT, float_=Float.WRITES)
def fcvt_d_l(s: State, rs1: int, rm: int) -> int:
    value = rs1
    if sge(value, 0):
        return soft_from_int(s, value, 0, rm, 1)
    return soft_from_int(s, -value, 1, rm, 1)


@instruction(
    arithmetic("1100001", "00011"), "R-rm", clause="22.5", effect=Effect.INTEGER, float_=Float.WRITES
)
def fcvt_lu_d(s: State, frs1: int, rm: int) -> int:
    return soft_to_int(s, frs1, rm, 1, 64, 1)


@instruction(arithmetic("1101001", "00011"), "R-rm", clause="22.5", effect=Effect.FLOAT, float_=Float.WRITES)
def fcvt_d_lu(s: State, rs1: int, rm: int) -> int:
    return soft_from_int(s, rs1, 0, rm, 1)


@instruction(arithmetic("0100000", "00001"), "R-rm", clause="22.5", effect=Effect.FLOAT, float_=Float.WRITES)
def fcvt_s_d(s: State, frs1: int, rm: int) -> int:
    return box(soft_convert(s, frs1, rm, 0))


@instruction(arithmetic("0100001", "00000"), "R-rm", clause="22.5", effect=Effect.FLOAT, float_=Float.WRITES)
def fcvt_d_s(s: State, frs1: int, rm: int) -> int:
    return soft_convert(s, unbox(frs1), rm, 1)


@instruction(
    arithmetic("1110000", "00000", "000"), "R", clause="21.7", effect=Effect.INTEGER, float_=Float.READS
)
def fmv_x_w(frs1: int) -> int:
    return sext32(frs1)


@instruction(
    arithmetic("1110001", "00000", "000"), "R", clause="22.5", effect=Effect.INTEGER, float_=Float.READS
)
def fmv_x_d(frs1: int) -> int:
    return frs1


@instruction(
    arithmetic("1111000", "00000", "000"), "R", clause="21.7", effect=Effect.FLOAT, float_=Float.WRITES
)
def fmv_w_x(rs1: int) -> int:
    return rs1 | BOX


@instruction(
    arithmetic("1111001", "00000", "000"), "R", clause="22.5", effect=Effect.FLOAT, float_=Float.WRITES
)
def fmv_d_x(rs1: int) -> int:
    return rs1
