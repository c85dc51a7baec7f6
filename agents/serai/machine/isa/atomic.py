"""A: Unprivileged ISA chapter 14. Aligned RAM only; all orderings are sequentially consistent here.

SC succeeds if the location still holds the value that LR read (compare and exchange), which is what several
harts on shared RAM need and the architecture allows.
"""

# ruff: noqa: D103 - the clause in the table says what a semantics function does
from serai.machine.isa.table import instruction
from serai.machine.native.intrinsics import (
    compare_exchange,
    exchange,
    fetch_add,
    fetch_and,
    fetch_max,
    fetch_min,
    fetch_or,
    fetch_umax,
    fetch_umin,
    fetch_xor,
    host_load,
    read_pointer,
    sext32,
    write_pointer,
)
from serai.machine.native.layout import NO_RESERVATION, State


def atomic(funct5: str, width: str) -> str:
    return f"{funct5} .. ..... ..... {width} ..... 0101111"


W = "010"
D = "011"


@instruction("00010 .. 00000 ..... 010 ..... 0101111", "R", clause="14.2")
def lr_w(s: State, rs1: int) -> int:
    pointer = read_pointer(rs1, 4)
    value = host_load(pointer, 4)
    s.reservation = pointer - s.ram_delta
    s.reservation_value = value
    return sext32(value)


@instruction("00010 .. 00000 ..... 011 ..... 0101111", "R", clause="14.2")
def lr_d(s: State, rs1: int) -> int:
    pointer = read_pointer(rs1, 8)
    value = host_load(pointer, 8)
    s.reservation = pointer - s.ram_delta
    s.reservation_value = value
    return value


@instruction(atomic("00011", W), "R", clause="14.2")
def sc_w(s: State, rs1: int, rs2: int) -> int:
    pointer = write_pointer(rs1, 4)
    reserved = s.reservation
    s.reservation = NO_RESERVATION
    if reserved != pointer - s.ram_delta:
        return 1
    return compare_exchange(pointer, s.reservation_value, rs2, 4) ^ 1


@instruction(atomic("00011", D), "R", clause="14.2")
def sc_d(s: State, rs1: int, rs2: int) -> int:
    pointer = write_pointer(rs1, 8)
    reserved = s.reservation
    s.reservation = NO_RESERVATION
    if reserved != pointer - s.ram_delta:
        return 1
    return compare_exchange(pointer, s.reservation_value, rs2, 8) ^ 1


@instruction(atomic("00001", W), "R", clause="14.4")
def amoswap_w(rs1: int, rs2: int) -> int:
    return sext32(exchange(write_pointer(rs1, 4), rs2, 4))


@instruction(atomic("00001", D), "R", clause="14.4")
def amoswap_d(rs1: int, rs2: int) -> int:
    return exchange(write_pointer(rs1, 8), rs2, 8)


@instruction(atomic("00000", W), "R", clause="14.4")
def amoadd_w(rs1: int, rs2: int) -> int:
    return sext32(fetch_add(write_pointer(rs1, 4), rs2, 4))


@instruction(atomic("00000", D), "R", clause="14.4")
def amoadd_d(rs1: int, rs2: int) -> int:
    return fetch_add(write_pointer(rs1, 8), rs2, 8)


@instruction(atomic("00100", W), "R", clause="14.4")
def amoxor_w(rs1: int, rs2: int) -> int:
    return sext32(fetch_xor(write_pointer(rs1, 4), rs2, 4))


@instruction(atomic("00100", D), "R", clause="14.4")
def amoxor_d(rs1: int, rs2: int) -> int:
    return fetch_xor(write_pointer(rs1, 8), rs2, 8)


@instruction(atomic("01100", W), "R", clause="14.4")
def amoand_w(rs1: int, rs2: int) -> int:
    return sext32(fetch_and(write_pointer(rs1, 4), rs2, 4))


@instruction(atomic("01100", D), "R", clause="14.4")
def amoand_d(rs1: int, rs2: int) -> int:
    return fetch_and(write_pointer(rs1, 8), rs2, 8)


@instruction(atomic("01000", W), "R", clause="14.4")
def amoor_w(rs1: int, rs2: int) -> int:
    return sext32(fetch_or(write_pointer(rs1, 4), rs2, 4))


@instruction(atomic("01000", D), "R", clause="14.4")
def amoor_d(rs1: int, rs2: int) -> int:
    return fetch_or(write_pointer(rs1, 8), rs2, 8)


@instruction(atomic("10000", W), "R", clause="14.4")
def amomin_w(rs1: int, rs2: int) -> int:
    return sext32(fetch_min(write_pointer(rs1, 4), rs2, 4))


@instruction(atomic("10000", D), "R", clause="14.4")
def amomin_d(rs1: int, rs2: int) -> int:
    return fetch_min(write_pointer(rs1, 8), rs2, 8)


@instruction(atomic("10100", W), "R", clause="14.4")
def amomax_w(rs1: int, rs2: int) -> int:
    return sext32(fetch_max(write_pointer(rs1, 4), rs2, 4))


@instruction(atomic("10100", D), "R", clause="14.4")
def amomax_d(rs1: int, rs2: int) -> int:
    return fetch_max(write_pointer(rs1, 8), rs2, 8)


@instruction(atomic("11000", W), "R", clause="14.4")
def amominu_w(rs1: int, rs2: int) -> int:
    return sext32(fetch_umin(write_pointer(rs1, 4), rs2, 4))


@instruction(atomic("11000", D), "R", clause="14.4")
def amominu_d(rs1: int, rs2: int) -> int:
    return fetch_umin(write_pointer(rs1, 8), rs2, 8)


@instruction(atomic("11100", W), "R", clause="14.4")
def amomaxu_w(rs1: int, rs2: int) -> int:
    return sext32(fetch_umax(write_pointer(rs1, 4), rs2, 4))


@instruction(atomic("11100", D), "R", clause="14.4")
def amomaxu_d(rs1: int, rs2: int) -> int:
    return fetch_umax(write_pointer(rs1, 8), rs2, 8)
