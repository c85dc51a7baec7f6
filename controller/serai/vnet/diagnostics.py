"""What is wrong with a description: all of it at once, each with place, message and next step."""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable
from dataclasses import dataclass

Location = tuple[str | int, ...]
"""A place in a description's model, as pydantic names it: ``("nodes", 2, "memory_bytes")``."""


class Severity(enum.Enum):
    """An error makes a description unusable; a warning is probably not what was meant."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong at a place of the model, which has no lines."""

    severity: Severity
    location: Location
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """Something wrong at a place of a document; line 0 where there is no document."""

    severity: Severity
    line: int
    path: str
    """XPath-like: ``/vnet/node[2]/@memory``."""
    message: str
    hint: str = ""

    def __str__(self) -> str:
        hint = f" ({self.hint})" if self.hint else ""
        return f"line {self.line}: {self.path}: {self.severity.value}: {self.message}{hint}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint that names the closest known name, or the known names, or nothing where none are known."""
    choices = sorted(set(known))
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    if not choices:
        return ""
    shown = ", ".join(choices[:8])
    return f"known here: {shown}" + (", ..." if len(choices) > 8 else "")
