"""Quantities with units, read strictly and exactly, and written so that reading gives the same value.

SI prefixes are decimal and binary ones are IEC 80000-13 (1 KiB = 1024 B). A number without its unit is
refused: whether "128" means bytes, KiB or MiB is exactly what goes wrong otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

NUMBER_PATTERN = r"[0-9]{1,18}(\.[0-9]{1,12})?"


class ValueProblem(ValueError):  # noqa: N818 - an error of a value, reported as a diagnostic, never raised to callers
    """A value that cannot be right; `hint` says what would be."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Quantity:
    """A kind of quantity: its units as multiples of the base unit, and what may be written by mistake."""

    what: str
    base: str
    units: Mapping[str, int]
    example: str

    @property
    def pattern(self) -> str:
        """A regular expression, in the common subset of XML Schema's and Python's, for all that may be
        written.
        """
        return NUMBER_PATTERN + " ?(" + "|".join(self.units) + ")"

    def parse(self, text: str) -> int:
        """The value in base units. Raises ValueProblem for a bad number or unit or one that is not whole."""
        match = re.fullmatch(f"({NUMBER_PATTERN})( ?)(.*)", text, re.ASCII | re.DOTALL)
        if match is None:
            raise ValueProblem(f"{text!r} is not {self.what}", f"write it like {self.example}")
        number, unit = match[1], match[4]
        if unit not in self.units:
            raise ValueProblem(self._unit_message(text, unit), self._unit_hint(number, unit))
        value = Fraction(number) * self.units[unit]
        if value.denominator != 1:
            raise ValueProblem(f"{text!r} is not a whole number of {self.base}", "write it in a smaller unit")
        return int(value)

    def format(self, value: int) -> str:
        """The shortest exact text: the largest unit that divides `value`."""
        fitting = [(size, unit) for unit, size in self.units.items() if value % size == 0 and value >= size]
        size, unit = max(fitting, default=(1, self.base))
        return f"{value // size}{unit}"

    def _unit_message(self, text: str, unit: str) -> str:
        if not unit:
            return f"{text!r} has no unit"
        return f"{text!r} has the unknown unit {unit!r}"

    def _unit_hint(self, number: str, unit: str) -> str:
        same_letters = [known for known in self.units if known.lower() == unit.lower()]
        if same_letters:
            return f"did you mean {number}{same_letters[0]}?"
        return f"units are {', '.join(self.units)}; for example {self.example}"


MEMORY = Quantity(
    what="an amount of memory",
    base="B",
    units={
        "B": 1,
        "kB": 10**3,
        "MB": 10**6,
        "GB": 10**9,
        "KiB": 2**10,
        "MiB": 2**20,
        "GiB": 2**30,
        "TiB": 2**40,
    },
    example="128MiB",
)
BANDWIDTH = Quantity(
    what="a bandwidth",
    base="bit/s",
    units={"bit/s": 1, "kbit/s": 10**3, "Mbit/s": 10**6, "Gbit/s": 10**9, "Tbit/s": 10**12},
    example="10Mbit/s",
)
DELAY = Quantity(
    what="a delay",
    base="ns",
    units={"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9},
    example="5ms",
)
