"""IEEE 754 arithmetic in integers: exact results and flags in all five rounding modes. Native code.

Unprivileged ISA chapters 21 and 22; IEEE 754-2008/2019: tininess is detected after rounding, results that
are NaN are the canonical NaN. ``d`` chooses the format: 1 is binary64, 0 is binary32. Numbers are raw bits.
Addition, subtraction and multiplication are cases of the fused multiply-add, which is the only place that
aligns and cancels.

The host's unit is used only where it cannot differ (see serai.machine.isa.float_): portable, and equal
bit for bit on every host, as a guest may migrate between them.
"""

# ruff: noqa: PLR0911, PLR0912, PLR0917, SIM108 - the restricted language has no tables, tuples or built-ins
from serai.machine.native.intrinsics import high64, leading_zeros, low64, mul128, sar, sge, sgt, sle, wide
from serai.machine.native.language import native, u128
from serai.machine.native.layout import State

FLAG_NX = 1
FLAG_UF = 2
FLAG_OF = 4
FLAG_DZ = 8
FLAG_NV = 16
RNE = 0
RTZ = 1
RDN = 2
RUP = 3
RMM = 4
HALF = 1 << 63
NAN64 = 0x7FF8 << 48
NAN32 = 0x7FC00000


@native
def precision(d: int) -> int:
    """Stored significand bits."""
    return 52 if d else 23


@native
def bias(d: int) -> int:
    """Exponent bias."""
    return 1023 if d else 127


@native
def infinity(sign: int, d: int) -> int:
    """An infinity."""
    if d:
        return sign << 63 | 0x7FF << 52
    return sign << 31 | 0xFF << 23


@native
def zero(sign: int, d: int) -> int:
    """A zero."""
    return sign << 63 if d else sign << 31


@native
def canonical_nan(d: int) -> int:
    """The canonical NaN (Unprivileged ISA 21.3)."""
    return NAN64 if d else NAN32


@native
def sign_of(a: int, d: int) -> int:
    """The sign bit."""
    return a >> 63 if d else a >> 31 & 1


@native
def fraction(a: int, d: int) -> int:
    """The stored significand."""
    return a & ((1 << 52) - 1) if d else a & ((1 << 23) - 1)


@native
def exponent_field(a: int, d: int) -> int:
    """The biased exponent."""
    return a >> 52 & 0x7FF if d else a >> 23 & 0xFF


@native
def is_special(a: int, d: int) -> int:
    """Infinity or NaN."""
    return exponent_field(a, d) == (0x7FF if d else 0xFF)


@native
def is_nan(a: int, d: int) -> int:
    """Any NaN."""
    return is_special(a, d) and fraction(a, d) != 0


@native
def is_signaling(a: int, d: int) -> int:
    """A signaling NaN: the top bit of the significand is clear."""
    return is_nan(a, d) and not fraction(a, d) >> (precision(d) - 1)


@native
def is_infinite(a: int, d: int) -> int:
    """An infinity."""
    return is_special(a, d) and fraction(a, d) == 0


@native
def is_zero(a: int, d: int) -> int:
    """A zero of either sign."""
    return a << 1 == 0 if d else a << 33 == 0


@native
def significand(a: int, d: int) -> int:
    """The significand of a finite nonzero number, its leading one at bit 63."""
    m = fraction(a, d)
    if exponent_field(a, d) == 0:
        return m << leading_zeros(m)
    return (m | 1 << precision(d)) << (63 - precision(d))


@native
def exponent(a: int, d: int) -> int:
    """The exponent of that significand: the value is significand * 2**(exponent - 63)."""
    field = exponent_field(a, d)
    if field == 0:
        return 1 - bias(d) - (leading_zeros(fraction(a, d)) - (63 - precision(d)))
    return field - bias(d)


@native
def invalid(s: State, d: int) -> int:
    """Raise the invalid flag; the result is the canonical NaN."""
    s.fflags = s.fflags | FLAG_NV
    return canonical_nan(d)


@native
def rounds_up(significand_: int, extra: int, sign: int, rm: int) -> int:
    """Whether dropping the low ``extra`` bits rounds the magnitude up."""
    rest = significand_ & ((1 << extra) - 1)
    half = 1 << (extra - 1)
    if rm == RNE:
        return rest > half or (rest == half and significand_ >> extra & 1)
    if rm == RTZ:
        return 0
    if rm == RDN:
        return sign and rest != 0
    if rm == RUP:
        return not sign and rest != 0
    return rest >= half


@native
def overflow(s: State, sign: int, rm: int, d: int) -> int:
    """The result of an overflow (IEEE 754, 7.4): infinity or the largest finite number."""
    s.fflags = s.fflags | (FLAG_OF | FLAG_NX)
    if rm == RTZ or (rm == RDN and not sign) or (rm == RUP and sign):
        return infinity(sign, d) - 1
    return infinity(sign, d)


@native
def round_pack(s: State, sign: int, exponent_: int, significand_: int, rm: int, d: int) -> int:
    """Round significand * 2**(exponent - 63), leading one at bit 63, lowest bit sticky; set the flags."""
    p = precision(d)
    extra = 63 - p
    field = exponent_ + bias(d)
    tiny = 0
    if sle(field, 0):
        tiny = 1
        if field == 0 and (significand_ >> extra) + rounds_up(significand_, extra, sign, rm) == 2 << p:
            tiny = 0
        shift = 1 - field
        if shift > 63:
            significand_ = 1
        else:
            significand_ = significand_ >> shift | (significand_ << (64 - shift) != 0)
        field = 1
    inexact = significand_ & ((1 << extra) - 1)
    # The leading one, where there is one, adds one to the exponent field; so does a carry out of rounding.
    result = ((field - 1) << p) + (significand_ >> extra) + rounds_up(significand_, extra, sign, rm)
    if result >> p >= exponent_field(infinity(0, d), d):
        return overflow(s, sign, rm, d)
    if inexact:
        s.fflags = s.fflags | (FLAG_NX | FLAG_UF if tiny else FLAG_NX)
    return zero(sign, d) | result


@native
def soft_fma(s: State, a: int, b: int, c: int, rm: int, d: int) -> int:
    """a * b + c with one rounding."""
    sign = sign_of(a, d) ^ sign_of(b, d)
    if is_special(a, d) or is_special(b, d) or is_special(c, d):
        return fma_special(s, a, b, c, sign, d)
    if is_zero(a, d) or is_zero(b, d):
        if not is_zero(c, d) or sign == sign_of(c, d):
            return c
        return zero(rm == RDN, d)
    product: u128 = mul128(significand(a, d), significand(b, d))
    exponent_ = exponent(a, d) + exponent(b, d)
    if high64(product) >> 63:
        exponent_ += 1
    else:
        product = product << 1
    if is_zero(c, d):
        return round_pack(s, sign, exponent_, high64(product) | (low64(product) != 0), rm, d)
    return fma_align(s, sign, exponent_, high64(product), low64(product), c, rm, d)


@native
def fma_special(s: State, a: int, b: int, c: int, sign: int, d: int) -> int:
    """Fused multiply-add with an infinity or a NaN among the operands (IEEE 754, 7.2)."""
    if (is_infinite(a, d) and is_zero(b, d)) or (is_zero(a, d) and is_infinite(b, d)):
        return invalid(s, d)
    if is_signaling(a, d) or is_signaling(b, d) or is_signaling(c, d):
        return invalid(s, d)
    if is_nan(a, d) or is_nan(b, d) or is_nan(c, d):
        return canonical_nan(d)
    if is_infinite(c, d):
        if (is_infinite(a, d) or is_infinite(b, d)) and sign != sign_of(c, d):
            return invalid(s, d)
        return c
    return infinity(sign, d)


@native
def fma_align(s: State, sign: int, exponent_: int, upper: int, lower: int, c: int, rm: int, d: int) -> int:
    """Add a nonzero number to a product whose leading one is at bit 127.

    Both have at least 22 zero bits at the low end: bits are lost (into the sticky bit) only by shifts so far
    that at most one leading bit can cancel.
    """
    product: u128 = (wide(upper) << 64 | wide(lower)) >> 1
    addend: u128 = wide(significand(c, d)) << 63
    difference = exponent_ - exponent(c, d)
    lost: u128 = 0
    if sge(difference, 0):
        if difference > 126:
            addend = wide(1)
        elif difference:
            lost = addend << (128 - difference)
            addend = addend >> difference | wide(lost != 0)
    else:
        difference = -difference
        exponent_ = exponent(c, d)
        if difference > 126:
            product = wide(1)
        else:
            lost = product << (128 - difference)
            product = product >> difference | wide(lost != 0)
    total: u128 = product + addend
    if sign != sign_of(c, d):
        if product == addend:
            return zero(rm == RDN, d)
        if product > addend:
            total = product - addend
        else:
            total = addend - product
            sign = sign ^ 1
    shift: u128 = leading_zeros(total)
    total = total << shift
    return round_pack(s, sign, exponent_ + 1 - low64(shift), high64(total) | (low64(total) != 0), rm, d)


@native
def soft_add(s: State, a: int, b: int, rm: int, d: int) -> int:
    """a + b."""
    return soft_fma(s, a, bias(d) << precision(d), b, rm, d)


@native
def negate(a: int, d: int) -> int:
    """The number with its sign bit flipped."""
    return a ^ zero(1, d)


@native
def soft_mul(s: State, a: int, b: int, rm: int, d: int) -> int:
    """a * b: the fused multiply-add of a zero that has the product's sign."""
    return soft_fma(s, a, b, zero(sign_of(a, d) ^ sign_of(b, d), d), rm, d)


@native
def soft_div(s: State, a: int, b: int, rm: int, d: int) -> int:
    """a / b by long division."""
    sign = sign_of(a, d) ^ sign_of(b, d)
    if is_signaling(a, d) or is_signaling(b, d):
        return invalid(s, d)
    if is_nan(a, d) or is_nan(b, d):
        return canonical_nan(d)
    if is_infinite(a, d):
        return invalid(s, d) if is_infinite(b, d) else infinity(sign, d)
    if is_infinite(b, d):
        return zero(sign, d)
    if is_zero(b, d):
        if is_zero(a, d):
            return invalid(s, d)
        s.fflags = s.fflags | FLAG_DZ
        return infinity(sign, d)
    if is_zero(a, d):
        return zero(sign, d)
    divisor: u128 = wide(significand(b, d))
    rest: u128 = wide(significand(a, d))
    exponent_ = exponent(a, d) - exponent(b, d)
    if rest < divisor:
        rest = rest << 1
        exponent_ -= 1
    quotient = 0
    count = 0
    while count < 64:
        quotient = quotient << 1
        if rest >= divisor:
            rest = rest - divisor
            quotient = quotient | 1
        rest = rest << 1
        count += 1
    return round_pack(s, sign, exponent_, quotient | (rest != 0), rm, d)


@native
def soft_sqrt(s: State, a: int, rm: int, d: int) -> int:
    """The square root, digit by digit."""
    if is_signaling(a, d):
        return invalid(s, d)
    if is_nan(a, d):
        return canonical_nan(d)
    if is_zero(a, d):
        return a
    if sign_of(a, d):
        return invalid(s, d)
    if is_infinite(a, d):
        return a
    exponent_ = exponent(a, d)
    rest: u128 = wide(significand(a, d)) << (63 + (exponent_ & 1))
    root: u128 = 0
    bit: u128 = wide(1) << 126
    while bit != 0:
        if rest >= root + bit:
            rest = rest - (root + bit)
            root = (root >> 1) + bit
        else:
            root = root >> 1
        bit = bit >> 2
    return round_pack(s, 0, sar(exponent_, 1), low64(root) | (rest != 0), rm, d)


@native
def saturated(s: State, negative: int, is_unsigned: int, bits: int) -> int:
    """The result of an invalid conversion to an integer (Unprivileged ISA, table of FCVT limits)."""
    s.fflags = s.fflags | FLAG_NV
    if is_unsigned:
        return 0 if negative else -1
    smallest = -1 << (bits - 1)
    return smallest if negative else ~smallest


@native
def soft_to_int(s: State, a: int, rm: int, is_unsigned: int, bits: int, d: int) -> int:
    """Convert to a 32- or 64-bit integer; the result is sign-extended by the caller."""
    negative = sign_of(a, d)
    if is_special(a, d):
        return saturated(s, 0 if is_nan(a, d) else negative, is_unsigned, bits)
    if is_zero(a, d):
        return 0
    m = significand(a, d)
    e = exponent(a, d)
    if sgt(e, 63):
        return saturated(s, negative, is_unsigned, bits)
    whole = 0
    rest = 1  # below one half, not zero
    if sge(e, 0):
        whole = m >> (63 - e)
        rest = m << e << 1
    elif e == -1:
        rest = m
    up: int = 0
    if rm == RNE:
        up = rest > HALF or (rest == HALF and whole & 1)
    elif rm == RDN:
        up = rest != 0 and negative
    elif rm == RUP:
        up = rest != 0 and not negative
    elif rm == RMM:
        up = rest >= HALF
    whole = whole + up
    limit = 1 << (bits - 1)
    if is_unsigned:
        if (negative and whole != 0) or (bits == 32 and whole >> 32):
            return saturated(s, negative, is_unsigned, bits)
    elif whole > limit or (whole == limit and not negative):
        return saturated(s, negative, is_unsigned, bits)
    if rest:
        s.fflags = s.fflags | FLAG_NX
    return -whole if negative else whole


@native
def soft_from_int(s: State, magnitude: int, sign: int, rm: int, d: int) -> int:
    """Convert an integer given as sign and magnitude."""
    if magnitude == 0:
        return 0
    shift = leading_zeros(magnitude)
    return round_pack(s, sign, 63 - shift, magnitude << shift, rm, d)


@native
def soft_convert(s: State, a: int, rm: int, d: int) -> int:
    """Convert between the formats; ``d`` is the format of the result."""
    source = d ^ 1
    if is_signaling(a, source):
        return invalid(s, d)
    if is_nan(a, source):
        return canonical_nan(d)
    if is_infinite(a, source):
        return infinity(sign_of(a, source), d)
    if is_zero(a, source):
        return zero(sign_of(a, source), d)
    return round_pack(s, sign_of(a, source), exponent(a, source), significand(a, source), rm, d)


@native
def ordered_below(a: int, b: int, d: int) -> int:
    """Whether a precedes b with -0 before +0; neither is a NaN."""
    if sign_of(a, d) != sign_of(b, d):
        return sign_of(a, d)
    if sign_of(a, d):
        return b < a
    return a < b


@native
def soft_less(s: State, a: int, b: int, or_equal: int, d: int) -> int:
    """FLT and FLE: signaling comparisons."""
    if is_nan(a, d) or is_nan(b, d):
        s.fflags = s.fflags | FLAG_NV
        return 0
    if a == b or (is_zero(a, d) and is_zero(b, d)):
        return or_equal
    return ordered_below(a, b, d)


@native
def soft_equal(s: State, a: int, b: int, d: int) -> int:
    """FEQ: a quiet comparison."""
    if is_nan(a, d) or is_nan(b, d):
        if is_signaling(a, d) or is_signaling(b, d):
            s.fflags = s.fflags | FLAG_NV
        return 0
    return a == b or (is_zero(a, d) and is_zero(b, d))


@native
def soft_min_max(s: State, a: int, b: int, maximum: int, d: int) -> int:
    """minimumNumber and maximumNumber (IEEE 754-2019, 9.6)."""
    if is_signaling(a, d) or is_signaling(b, d):
        s.fflags = s.fflags | FLAG_NV
    if is_nan(a, d):
        return canonical_nan(d) if is_nan(b, d) else b
    if is_nan(b, d):
        return a
    return a if ordered_below(a, b, d) != maximum else b


@native
def soft_class(a: int, d: int) -> int:
    """FCLASS: one of ten bits (Unprivileged ISA, table of FCLASS results)."""
    sign = sign_of(a, d)
    if is_nan(a, d):
        return 1 << 8 if is_signaling(a, d) else 1 << 9
    if is_infinite(a, d):
        return 1 if sign else 1 << 7
    if is_zero(a, d):
        return 1 << 3 if sign else 1 << 4
    if exponent_field(a, d) == 0:
        return 1 << 2 if sign else 1 << 5
    return 1 << 1 if sign else 1 << 6
