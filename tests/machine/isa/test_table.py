"""The table, the decoder made from it, and the assembler agree with each other and with the manual."""

from __future__ import annotations

import ctypes
import random

import pytest

from serai.machine.isa.assembler import AssemblyError, assemble, encode
from serai.machine.isa.formats import FORMATS
from serai.machine.isa.table import COMPRESSED, INSTRUCTIONS, Effect
from serai.machine.native.build import load_machine
from serai.machine.native.decoder import Encoding, decode_in_python, encodings
from serai.machine.native.interpreter import is_direct


@pytest.fixture(scope="module")
def native_decode() -> object:
    prototype = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)
    return prototype(load_machine().symbols["decode_word"])


def slot_of(native_decode: object, word: int, offset: int) -> tuple[int, int, int, int, int, int, int]:
    """Length, handler, imm, rd, rs1, rs2, rs3 as the native decoder writes them."""
    slot = (ctypes.c_uint8 * 16)()
    assert callable(native_decode)
    length = native_decode(word, ctypes.addressof(slot), offset)
    raw = bytes(slot)
    handler = int.from_bytes(raw[:8], "little")
    return (
        length,
        handler,
        int.from_bytes(raw[8:12], "little", signed=True),
        raw[12],
        raw[13],
        raw[14],
        raw[15],
    )


def expected_operands(encoding: Encoding, word: int) -> tuple[int, int, int, int, int]:
    layout = FORMATS[encoding.format]
    rd = layout.rd.extract(word)
    if rd == 0 and encoding.target.effect in (Effect.INTEGER, Effect.JUMP, Effect.SYSTEM):
        rd = 32
    imm = layout.immediate.extract(word)
    return imm, rd, layout.rs1.extract(word), layout.rs2.extract(word), layout.extra.extract(word)


def check(native_decode: object, word: int, handlers: dict[object, int]) -> None:
    encoding = decode_in_python(word)
    length, handler, *operands = slot_of(native_decode, word, 2048)
    if encoding is None:
        assert length == 0, f"{word:#x} should be illegal"
        assert handlers.setdefault("illegal", handler) == handler
        return
    assert length == encoding.length, f"{word:#x} should be {encoding.name}"
    expected = expected_operands(encoding, word)
    assert tuple(operands) == expected, f"{word:#x} {encoding.name}"
    near = is_direct(encoding.target) and 0 <= 2048 + expected[0] < 4096
    key = (encoding.target.name, length, near)
    assert handlers.setdefault(key, handler) == handler, f"{word:#x} {encoding.name}"


def test_native_decoder_agrees_on_every_compressed_word(native_decode: object) -> None:
    handlers: dict[object, int] = {}
    for word in range(65536):
        if word & 3 != 3:
            check(native_decode, word, handlers)
    assert len(set(handlers.values())) == len(handlers)


def test_native_decoder_agrees_on_random_words(native_decode: object) -> None:
    random_bits = random.Random(20).getrandbits
    handlers: dict[object, int] = {}
    for instruction in INSTRUCTIONS.values():
        for _ in range(20):
            check(native_decode, instruction.match | random_bits(32) & ~instruction.mask, handlers)
    for _ in range(3000):
        check(native_decode, random_bits(32) | 3, handlers)
    assert len(set(handlers.values())) == len(handlers)


def test_overlapping_encodings_are_ordered_by_specificity() -> None:
    listed = encodings()
    for position, first in enumerate(listed):
        for second in listed[position + 1 :]:
            common = first.mask & second.mask
            if first.length == second.length and first.match & common == second.match & common:
                assert first.mask & second.mask == second.mask, (
                    f"{first.name} and {second.name} are ambiguous"
                )


def test_all_zero_and_all_one_words_are_illegal(native_decode: object) -> None:
    assert slot_of(native_decode, 0, 0)[0] == 0
    assert slot_of(native_decode, 0xFFFFFFFF, 0)[0] == 0


@pytest.mark.parametrize(
    ("text", "word"),
    [  # from the tables of the Unprivileged ISA, checked with GNU objdump
        ("addi a1, a1, 1", 0x00158593),
        ("ld a2, 8(sp)", 0x00813603),
        ("sd a2, -8(sp)", 0xFEC13C23),
        ("fadd.d fa0, fa1, fa2", 0x02C5F553),
        ("fmadd.s fa0, fa1, fa2, fa3, rtz", 0x68C59543),
        ("amoadd.w a0, a1, (a2)", 0x00B6252F),
        ("lr.d a0, (a1)", 0x1005B52F),
        ("csrrwi x0, mscratch, 5", 0x3402D073),
        ("slli a0, a0, 40", 0x02851513),
        ("sraiw a0, a0, 4", 0x4045551B),
        ("jalr ra, 4(a0)", 0x004500E7),
        ("sfence.vma a0, a1", 0x12B50073),
        ("mret", 0x30200073),
    ],
)
def test_assembler(text: str, word: int) -> None:
    assert assemble(text) == word.to_bytes(4, "little")


def test_assembled_words_decode_to_themselves() -> None:
    for name in INSTRUCTIONS:
        found = decode_in_python(encode(name))
        assert found is not None and found.name == name


def test_assembler_names_the_line() -> None:
    with pytest.raises(AssemblyError, match=r"line 2: .*frobnicate"):
        assemble("nop\nfrobnicate a0")
    with pytest.raises(AssemblyError, match="does not fit"):
        assemble("addi a0, a0, 5000")


def test_every_instruction_cites_its_clause() -> None:
    assert all(instruction.clause for instruction in INSTRUCTIONS.values())
    assert all(encoding.clause for encoding in COMPRESSED.values())
