"""The native decoder, generated from the table: a switch on the opcode, then match and mask."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from serai.machine.isa import compressed  # noqa: F401 - completes the table
from serai.machine.isa.formats import FORMATS, Field, Immediate
from serai.machine.isa.table import COMPRESSED, INSTRUCTIONS, Effect, Instruction
from serai.machine.native.interpreter import handler_name, is_direct
from serai.machine.native.layout import PAGE

__all__ = ["Encoding", "decode_in_python", "decoder_ir", "encodings"]

NO_REGISTER = 32  # x[32]: where results for x0 go


@dataclass(frozen=True, slots=True)
class Encoding:
    """One bit pattern of either length, and the instruction it means."""

    name: str
    mask: int
    match: int
    format: str
    nonzero: int
    length: int
    target: Instruction

    @property
    def key(self) -> int:
        """The value that the decoder switches on."""
        if self.length == 4:
            return self.match & 0x7F
        return self.match & 3 | self.match >> 13 << 2

    def matches(self, word: int) -> bool:
        """Whether an instruction word has this encoding."""
        return word & self.mask == self.match and (not self.nonzero or word & self.nonzero != 0)


@functools.cache
def encodings() -> list[Encoding]:
    """Every encoding, the most specific of overlapping patterns first."""
    found = [Encoding(i.name, i.mask, i.match, i.format, 0, 4, i) for i in INSTRUCTIONS.values()] + [
        Encoding(c.name, c.mask, c.match, c.format, c.nonzero, 2, INSTRUCTIONS[c.target])
        for c in COMPRESSED.values()
    ]
    return sorted(found, key=lambda encoding: -encoding.mask.bit_count())


def decode_in_python(word: int) -> Encoding | None:
    """The encoding of an instruction word, None if it is illegal (for tools and tests)."""
    length = 4 if word & 3 == 3 else 2
    return next((e for e in encodings() if e.length == length and e.matches(word)), None)


class _Writer:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.count = 0

    def assign(self, expression: str) -> str:
        self.count += 1
        self.lines.append(f"  %t{self.count} = {expression}")
        return f"%t{self.count}"

    def bits(self, high: int, low: int, position: int) -> str:
        """Bits high..low of the word, moved to ``position``."""
        value = self.assign(f"lshr i64 %word, {low}") if low else "%word"
        value = self.assign(f"and i64 {value}, {(1 << (high - low + 1)) - 1}")
        return self.assign(f"shl i64 {value}, {position}") if position else value

    def register(self, place: Field, *, destination: bool) -> str:
        if place.high < 0:
            return str(NO_REGISTER if destination and place.base == 0 else place.base)
        number = self.bits(place.high, place.low, 0)
        if place.base:
            return self.assign(f"add i64 {number}, {place.base}")
        if not destination:
            return number
        zero = self.assign(f"icmp eq i64 {number}, 0")
        return self.assign(f"select i1 {zero}, i64 {NO_REGISTER}, i64 {number}")

    def immediate(self, immediate: Immediate) -> str:
        value = "0"
        for high, low, position in immediate.pieces:
            value = self.assign(f"or i64 {value}, {self.bits(high, low, position)}")
        if immediate.signed_bits:
            shift = 64 - immediate.signed_bits
            value = self.assign(f"shl i64 {value}, {shift}")
            value = self.assign(f"ashr i64 {value}, {shift}")
        return value

    def store(self, type_: str, value: str, position: int) -> None:
        pointer = self.assign(f"getelementptr i8, ptr %slot, i64 {position}")
        narrow = self.assign(f"trunc i64 {value} to {type_}") if type_ != "i64" else value
        self.lines.append(f"  store {type_} {narrow}, ptr {pointer}")

    def store_handler(self, handler: str) -> None:
        """Write the handler of the slot, as its distance from the one that decodes."""
        number = self.assign(f"ptrtoint ptr {handler} to i64")
        distance = self.assign(f"sub i64 {number}, ptrtoint (ptr @h.decode to i64)")
        self.store("i64", distance, 0)

    def fill(self, encoding: Encoding) -> None:
        """Write the slot of an instruction."""
        layout = FORMATS[encoding.format]
        target = encoding.target
        imm = self.immediate(layout.immediate)
        integer = target.effect in (Effect.INTEGER, Effect.JUMP, Effect.SYSTEM)
        self.store("i32", imm, 8)
        self.store("i8", self.register(layout.rd, destination=integer), 12)
        for place, position in ((layout.rs1, 13), (layout.rs2, 14), (layout.extra, 15)):
            self.store("i8", self.register(place, destination=False), position)
        handler = f"@{handler_name(target.name, encoding.length)}"
        if is_direct(target):
            near = f"@{handler_name(target.name, encoding.length, near=True)}"
            reach = self.assign(f"add i64 %offset, {imm}")
            inside = self.assign(f"icmp ult i64 {reach}, {PAGE}")
            handler = self.assign(f"select i1 {inside}, ptr {near}, ptr {handler}")
        self.store_handler(handler)
        self.lines.append(f"  ret i64 {encoding.length}")

    def chain(self, label: str, candidates: list[Encoding]) -> None:
        """Test the candidates of one opcode in order."""
        for position, encoding in enumerate(candidates):
            self.lines.append(f"{label}.{position}:")
            masked = self.assign(f"and i64 %word, {encoding.mask}")
            fits = self.assign(f"icmp eq i64 {masked}, {encoding.match}")
            if encoding.nonzero:
                some = self.assign(f"and i64 %word, {encoding.nonzero}")
                other = self.assign(f"icmp ne i64 {some}, 0")
                fits = self.assign(f"and i1 {fits}, {other}")
            self.lines.append(
                f"  br i1 {fits}, label %{label}.{position}.fill, label %{label}.{position + 1}"
            )
            self.lines.append(f"{label}.{position}.fill:")
            self.fill(encoding)
        self.lines.append(f"{label}.{len(candidates)}:\n  br label %illegal")


def _groups(length: int) -> Iterator[tuple[int, list[Encoding]]]:
    groups: defaultdict[int, list[Encoding]] = defaultdict(list)
    for encoding in encodings():
        if encoding.length == length:
            groups[encoding.key].append(encoding)
    yield from sorted(groups.items())


def decoder_ir() -> str:
    """Return ``decode_word(word, slot, offset)``: fills the slot, returns the length (0 if illegal)."""
    writer = _Writer()
    lines = writer.lines
    lines.append("define i64 @decode_word(i64 %word, i64 %slot.number, i64 %offset) #0 {\nentry:")
    lines.append("  %slot = inttoptr i64 %slot.number to ptr")
    quadrant = writer.assign("and i64 %word, 3")
    long = writer.assign(f"icmp eq i64 {quadrant}, 3")
    lines.append(f"  br i1 {long}, label %long, label %short")
    cases = {length: list(_groups(length)) for length in (4, 2)}
    lines.append("long:")
    key = writer.assign("and i64 %word, 127")
    targets = " ".join(f"i64 {k}, label %l{k}.0" for k, _ in cases[4])
    lines.append(f"  switch i64 {key}, label %illegal [ {targets} ]")
    lines.append("short:")
    upper = writer.assign("lshr i64 %word, 13")
    upper = writer.assign(f"shl i64 {upper}, 2")
    key = writer.assign(f"or i64 {upper}, {quadrant}")
    targets = " ".join(f"i64 {k}, label %s{k}.0" for k, _ in cases[2])
    lines.append(f"  switch i64 {key}, label %illegal [ {targets} ]")
    for length, letter in ((4, "l"), (2, "s")):
        for key_value, candidates in cases[length]:
            writer.chain(f"{letter}{key_value}", candidates)
    lines.append("illegal:")
    writer.store_handler("@h.illegal")
    lines.append("  ret i64 0\n}")
    return "\n".join(lines)
