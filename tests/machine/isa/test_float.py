"""F and D against exact rational arithmetic: every rounding mode, flags, special values."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from tests.machine.isa.guests import RAM_BASE, Guest

from serai.machine.isa.assembler import assemble

NX, UF, OF, DZ, NV = 1, 2, 4, 8, 16
RNE, RTZ, RDN, RUP, RMM = range(5)
BOX = 0xFFFFFFFF << 32


class Format:
    """An IEEE 754 binary format with the numbers the tests need."""

    def __init__(self, width: int, exponent_bits: int) -> None:
        self.width = width
        self.p = width - exponent_bits - 1  # stored significand bits
        self.bias = (1 << (exponent_bits - 1)) - 1
        self.top = (1 << exponent_bits) - 1
        self.infinity = self.top << self.p
        self.nan = self.infinity | 1 << (self.p - 1)
        self.sign = 1 << (width - 1)

    def value(self, bits: int) -> Fraction:
        field, fraction = bits >> self.p & self.top, bits & ((1 << self.p) - 1)
        magnitude = Fraction(fraction, 1 << self.p) + (field != 0)
        magnitude *= Fraction(2) ** (max(field, 1) - self.bias)
        return -magnitude if bits & self.sign else magnitude

    def round(self, exact: Fraction, rm: int) -> tuple[int, int]:
        """The nearest number in the direction of ``rm``, and the flags."""
        negative, magnitude = exact < 0, abs(exact)
        whole, inexact = self.quantise(magnitude, negative, rm, 1 - self.bias)
        flags = NX if inexact else 0
        unbounded, _ = self.quantise(magnitude, negative, rm, -(1 << 20))
        if inexact and unbounded < Fraction(2) ** (1 - self.bias):
            flags |= UF
        if whole >= Fraction(2) ** (self.bias + 1):
            to_infinity = rm in (RNE, RMM) or (rm == RUP and not negative) or (rm == RDN and negative)
            return (self.sign if negative else 0) | (self.infinity - (not to_infinity)), OF | NX
        return (self.sign if negative else 0) | self.pack(whole), flags

    def quantise(self, magnitude: Fraction, negative: bool, rm: int, lowest: int) -> tuple[Fraction, bool]:
        exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
        while Fraction(2) ** exponent > magnitude:
            exponent -= 1
        while Fraction(2) ** (exponent + 1) <= magnitude:
            exponent += 1
        unit = Fraction(2) ** (max(exponent, lowest) - self.p)
        steps, rest = divmod(magnitude, unit)
        half = unit / 2
        up = {
            RNE: rest > half or (rest == half and steps % 2 == 1),
            RTZ: False,
            RDN: negative and rest != 0,
            RUP: not negative and rest != 0,
            RMM: rest >= half,
        }[rm]
        return (steps + up) * unit, rest != 0

    def pack(self, magnitude: Fraction) -> int:
        """The bits of a magnitude that is a number of the format."""
        bits = magnitude / Fraction(2) ** (1 - self.bias - self.p)
        assert bits.denominator == 1
        whole = bits.numerator
        shift = max(0, whole.bit_length() - self.p - 1)
        return (shift << self.p) + (whole >> shift)

    def sample(self, source: random.Random) -> int:
        """Numbers of all kinds, finite and not zero, with many at the edges."""
        fraction = source.choice(
            [
                0,
                1,
                (1 << self.p) - 1,
                1 << (self.p - 1),
                source.getrandbits(self.p),
                source.getrandbits(self.p),
            ]
        )
        middle = self.bias + source.randrange(-30, 30)
        field = source.choice([0, 1, 2, self.top - 1, middle, middle, middle, source.randrange(self.top)])
        return source.getrandbits(1) * self.sign | field << self.p | (fraction or field == 0)


SINGLE, DOUBLE = Format(32, 8), Format(64, 11)
FORMATS = {"s": SINGLE, "d": DOUBLE}


class Unit:
    """Executes single instructions on given registers."""

    def __init__(self) -> None:
        self.guest = Guest("nop")
        self.guest.core.set_csr(0x300, 3 << 13)
        self.words: dict[str, bytes] = {}

    def __call__(self, text: str, *operands: int, flags: int = 0, rm: int = 0) -> tuple[int, int]:
        core = self.guest.core
        if text not in self.words:
            self.words[text] = assemble(text)
        self.guest.put(RAM_BASE, self.words[text])
        core.dma_wrote(RAM_BASE, 4)
        for number, operand in enumerate(operands, 10):
            core.f[number] = operand
        core.set_csr(3, rm << 5 | flags)
        core.pc = RAM_BASE
        core.run(1)
        assert core.pc == RAM_BASE + 4, f"{text} trapped"
        return core.f[1] if " f1," in text else core.x[1], core.csr(1)


@pytest.fixture(scope="module")
def unit() -> Unit:
    return Unit()


def boxed(bits: int, suffix: str) -> int:
    return bits | BOX if suffix == "s" else bits


OPERATIONS = {"fadd": 2, "fsub": 2, "fmul": 2, "fdiv": 2, "fmadd": 3, "fmsub": 3, "fnmadd": 3, "fnmsub": 3}


def exact_result(name: str, values: list[Fraction]) -> Fraction:
    a, b, *rest = values
    if name == "fdiv":
        return a / b
    if name in ("fadd", "fsub"):
        return a + b if name == "fadd" else a - b
    if name == "fmul":
        return a * b
    c = rest[0]
    return {"fmadd": a * b + c, "fmsub": a * b - c, "fnmadd": -(a * b) - c, "fnmsub": -(a * b) + c}[name]


@pytest.mark.parametrize("suffix", ["s", "d"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_arithmetic_is_exact_in_every_rounding_mode(unit: Unit, name: str, suffix: str) -> None:
    source = random.Random(f"{name}{suffix}")
    number_format = FORMATS[suffix]
    registers = ", ".join(f"f{number}" for number in range(10, 10 + OPERATIONS[name]))
    for _ in range(120):
        operands = [number_format.sample(source) for _ in range(OPERATIONS[name])]
        if OPERATIONS[name] == 3 and source.random() < 0.4:  # massive cancellation
            near = number_format.round(
                number_format.value(operands[0]) * number_format.value(operands[1]), 0
            )[0]
            operands[2] = (
                near ^ number_format.sign if near & ~number_format.sign < number_format.infinity else 1
            )
        exact = exact_result(name, [number_format.value(bits) for bits in operands])
        for rm in range(5):
            if exact:
                expected = number_format.round(exact, rm)
            else:
                expected = (number_format.sign if rm == RDN else 0, 0)
                if name == "fmul":
                    raise AssertionError("samples are not zero")
            for before in (0, NX):  # the second lets the host's unit take part
                result, flags = unit(
                    f"{name}.{suffix} f1, {registers}",
                    *(boxed(bits, suffix) for bits in operands),
                    rm=rm,
                    flags=before,
                )
                assert (result, flags) == (boxed(expected[0], suffix), expected[1] | before), (
                    f"{name}.{suffix} rm={rm} {[hex(bits) for bits in operands]}: {result:#x} {flags}"
                )


@pytest.mark.parametrize("suffix", ["s", "d"])
def test_square_root(unit: Unit, suffix: str) -> None:
    source, number_format = random.Random(7), FORMATS[suffix]
    for _ in range(150):
        operand = number_format.sample(source) & ~number_format.sign
        if source.random() < 0.3:  # an exact square
            root = number_format.round(Fraction(source.randrange(1, 4000)), 0)[0]
            operand = number_format.round(number_format.value(root) ** 2, 0)[0]
        value = number_format.value(operand)
        for rm in range(5):
            result, flags = unit(f"fsqrt.{suffix} f1, f10", boxed(operand, suffix), rm=rm)
            found = number_format.value(result & (2 * number_format.sign - 1))
            unit_below = number_format.value((result & (2 * number_format.sign - 1)) - 1)
            unit_above = number_format.value((result & (2 * number_format.sign - 1)) + 1)
            assert flags == (NX if found**2 != value else 0)
            if rm in (RTZ, RDN):
                assert found**2 <= value < unit_above**2
            elif rm == RUP:
                assert unit_below**2 < value <= found**2
            else:
                assert ((unit_below + found) / 2) ** 2 <= value <= ((found + unit_above) / 2) ** 2


@pytest.mark.parametrize("suffix", ["s", "d"])
@pytest.mark.parametrize(
    ("kind", "bits", "is_signed"), [("w", 32, 1), ("wu", 32, 0), ("l", 64, 1), ("lu", 64, 0)]
)
def test_conversion_to_integer_saturates(
    unit: Unit, suffix: str, kind: str, bits: int, is_signed: int
) -> None:
    source, number_format = random.Random(kind + suffix), FORMATS[suffix]
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if is_signed else (0, (1 << bits) - 1)

    def register(value: int) -> int:
        value &= (1 << bits) - 1
        return (value | -(value >> 31) << 32) & (1 << 64) - 1 if bits == 32 else value

    for edge in range(400):
        operand = number_format.sample(source)
        if edge % 2:
            around = source.choice([low, high, 0, 1, -1]) + Fraction(source.randrange(-8, 9), 4)
            operand = number_format.round(around, 0)[0] if around else 1
        value = number_format.value(operand)
        for rm in range(5):
            sign, magnitude = value < 0, abs(value)
            steps, rest = divmod(magnitude, 1)
            up = {
                RNE: rest > Fraction(1, 2) or (rest == Fraction(1, 2) and steps % 2 == 1),
                RTZ: False,
                RDN: sign and rest != 0,
                RUP: not sign and rest != 0,
                RMM: rest >= Fraction(1, 2),
            }[rm]
            rounded = -(steps + up) if sign else steps + up
            expected = (register(rounded), NX if rest else 0)
            if not low <= rounded <= high:
                expected = (register(low if sign else high), NV)
            text = f"fcvt.{kind}.{suffix} ra, f10"
            assert unit(text, boxed(operand, suffix), rm=rm) == expected, f"{text} {operand:#x} rm={rm}"


def test_conversion_from_integer_and_between_formats(unit: Unit) -> None:
    source = random.Random(3)
    for _ in range(300):
        value = source.getrandbits(64) >> source.randrange(64)
        for rm in range(5):
            unit.guest.core.x[10] = value
            assert unit("fcvt.s.lu f1, a0", rm=rm)[0] == BOX | (
                SINGLE.round(Fraction(value), rm)[0] if value else 0
            )
            signed = value - (value >> 63 << 64)
            expected = DOUBLE.round(Fraction(signed), rm) if signed else (0, 0)
            assert unit("fcvt.d.l f1, a0", rm=rm) == expected
            double = DOUBLE.sample(source)
            bits, flags = SINGLE.round(DOUBLE.value(double), rm)
            assert unit("fcvt.s.d f1, f10", double, rm=rm) == (bits | BOX, flags)
            single = SINGLE.sample(source)
            assert unit("fcvt.d.s f1, f10", single | BOX, rm=rm) == DOUBLE.round(SINGLE.value(single), rm)


INF, NAN, SNAN, ONE, NEG = DOUBLE.infinity, DOUBLE.nan, DOUBLE.infinity | 1, 0x3FF << 52, DOUBLE.sign


@pytest.mark.parametrize(
    ("text", "operands", "result", "flags"),
    [
        ("fadd.d f1, f10, f11", (INF, INF | NEG), NAN, NV),
        ("fadd.d f1, f10, f11", (NAN | NEG | 5, ONE), NAN, 0),
        ("fadd.d f1, f10, f11", (SNAN, ONE), NAN, NV),
        ("fadd.d f1, f10, f11", (NEG, NEG), NEG, 0),
        ("fadd.d f1, f10, f11", (NEG, 0), 0, 0),
        ("fmul.d f1, f10, f11", (INF, 0), NAN, NV),
        ("fmul.d f1, f10, f11", (NEG, ONE), NEG, 0),
        ("fdiv.d f1, f10, f11", (ONE, NEG), INF | NEG, DZ),
        ("fdiv.d f1, f10, f11", (0, 0), NAN, NV),
        ("fdiv.d f1, f10, f11", (INF, INF), NAN, NV),
        ("fdiv.d f1, f10, f11", (ONE | NEG, INF), NEG, 0),
        ("fsqrt.d f1, f10", (NEG,), NEG, 0),
        ("fsqrt.d f1, f10", (ONE | NEG,), NAN, NV),
        ("fmadd.d f1, f10, f11, f12", (INF, 0, NAN), NAN, NV),
        ("fmadd.d f1, f10, f11, f12", (INF, ONE, INF | NEG), NAN, NV),
        ("fmadd.d f1, f10, f11, f12", (ONE, ONE, INF | NEG), INF | NEG, 0),
        ("fmin.d f1, f10, f11", (0, NEG), NEG, 0),
        ("fmax.d f1, f10, f11", (NEG, 0), 0, 0),
        ("fmin.d f1, f10, f11", (SNAN, ONE), ONE, NV),
        ("fmax.d f1, f10, f11", (NAN, SNAN), NAN, NV),
        ("feq.d ra, f10, f11", (NAN, ONE), 0, 0),
        ("feq.d ra, f10, f11", (SNAN, ONE), 0, NV),
        ("feq.d ra, f10, f11", (NEG, 0), 1, 0),
        ("flt.d ra, f10, f11", (NAN, ONE), 0, NV),
        ("flt.d ra, f10, f11", (NEG, 0), 0, 0),
        ("fle.d ra, f10, f11", (INF | NEG, ONE | NEG), 1, 0),
        ("fcvt.w.d ra, f10", (NAN | NEG,), 0x7FFFFFFF, NV),
        ("fcvt.lu.d ra, f10", (INF | NEG,), 0, NV),
        ("fcvt.wu.d ra, f10", (INF,), (1 << 64) - 1, NV),
        ("fcvt.s.d f1, f10", (SNAN,), BOX | SINGLE.nan, NV),
        # A binary32 operand that is not NaN-boxed is the canonical NaN.
        ("fadd.s f1, f10, f11", (0x3F800000, BOX | 0x3F800000), BOX | SINGLE.nan, 0),
        ("fsgnj.s f1, f10, f11", (0x3F800000, BOX | SINGLE.sign), BOX | SINGLE.nan | SINGLE.sign, 0),
        ("fmv.x.w ra, f10", (0x123_80000000,), 0xFFFFFFFF_80000000, 0),
        ("fclass.d ra, f10", (SNAN,), 1 << 8, 0),
        ("fclass.d ra, f10", (1 | NEG,), 1 << 2, 0),
        ("fclass.s ra, f10", (0,), 1 << 9, 0),
    ],
)
def test_special_values(unit: Unit, text: str, operands: tuple[int, ...], result: int, flags: int) -> None:
    assert unit(text, *operands) == (result, flags)


def test_reserved_rounding_mode_is_illegal() -> None:
    guest = Guest("fadd.d f1, f2, f3")
    guest.core.set_csr(0x300, 3 << 13)
    guest.core.set_csr(0x305, RAM_BASE + 0x100)
    guest.core.set_csr(2, 5)
    guest.core.run(1)
    assert guest.core.csr(0x342) == 2
    assert guest.core.csr(0x343) == guest.get(RAM_BASE, 4)


def test_float_is_illegal_while_off_and_dirty_after_use() -> None:
    guest = Guest("fmv.d.x f1, x0")
    guest.core.set_csr(0x305, RAM_BASE + 0x100)
    guest.core.run(1)
    assert guest.core.csr(0x342) == 2
    guest.core.pc = RAM_BASE
    guest.core.set_csr(0x300, 1 << 13)
    guest.core.run(1)
    assert guest.core.pc == RAM_BASE + 4
    assert guest.core.csr(0x300) >> 13 & 3 == 3
    assert guest.core.csr(0x300) >> 63 == 1
