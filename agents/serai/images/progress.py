"""How long work tells what it is doing: one callback, no threads."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with the name of the step, the amount done so far and the whole amount, both in bytes.

    `total` is 0 where the amount cannot be known. A step may be reported any number of times; its last report
    has ``done == total``. An exception raised here ends the work as Ctrl-C would: nothing half-built stays.
    """

    def __call__(self, step: str, done: int, total: int, /) -> None:
        """Take one report."""


def silent(step: str, done: int, total: int) -> None:
    """Ignore the report: the default."""
