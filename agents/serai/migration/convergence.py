"""When to stop copying and freeze: decided from what was measured, with no clock and no I/O.

After Clark et al., "Live Migration of Virtual Machines" (NSDI 2005), section 5.3, with the rule of today's
hypervisors: freeze as soon as what is left fits into the downtime allowed at the rate measured.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from serai.hypervisor.driver import PAGE_SIZE

FEW_PAGES = 64
"""So little is left that another round cannot make it less."""

MEASURABLE_BYTES = 1 << 20
"""A round that carried less says nothing about the rate: its time is all latency."""


WORTH = 0.75
"""Another round is worth its while when it is expected to leave at most this share of what it sends."""

STUCK_ROUNDS = 3
"""So many rounds in a row that left no less than they sent: the guest writes faster than the link carries."""


class Mode(enum.StrEnum):
    """How a guest is moved."""

    AUTO = "auto"
    """Pre-copy, and post-copy when that does not converge."""
    PRE_COPY = "pre-copy"
    POST_COPY = "post-copy"
    HYBRID = "hybrid"
    """One round of pre-copy, then post-copy."""
    OFFLINE = "offline"
    """The guest stands still while everything is sent."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the caller allows."""

    max_downtime_s: float = 0.1
    max_rounds: int = 30
    deadline_s: float = 120.0
    mode: Mode = Mode.AUTO


@dataclass(frozen=True, slots=True)
class Round:
    """One pass over the pages that were dirty; `dirtied_pages` were written by the guest meanwhile."""

    number: int
    pages: int
    zero_pages: int
    bytes: int
    seconds: float
    dirtied_pages: int


class Decision(enum.Enum):
    """What comes after a round."""

    CONTINUE = "continue"
    FREEZE = "freeze"
    SWITCH = "switch"
    """Freeze now and send the rest after the guest has moved (post-copy)."""
    GIVE_UP = "give up"


class Convergence:
    """Judges each round as it ends."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._rate = 0.0
        self._elapsed = 0.0
        self._stuck = 0

    @property
    def rate(self) -> float:
        """Bytes a second that the link carried lately, 0 before anything was measured."""
        return self._rate

    def expected_downtime_s(self, pages: int) -> float:
        """How long `pages` take at the measured rate."""
        return pages * PAGE_SIZE / self._rate if self._rate else 0.0

    def judge(self, last: Round) -> Decision:
        """Look at the round that just ended."""
        self._elapsed += last.seconds
        if last.bytes >= MEASURABLE_BYTES and last.seconds > 0:
            measured = last.bytes / last.seconds
            # Half old, half new: one slow round on a busy host does not rule the next decision.
            self._rate = measured if not self._rate else (self._rate + measured) / 2
        if last.dirtied_pages <= FEW_PAGES:
            return Decision.FREEZE
        if self.limits.mode is Mode.HYBRID:
            return Decision.SWITCH
        shrinking = last.dirtied_pages <= WORTH * (last.pages + last.zero_pages)
        self._stuck = 0 if shrinking else self._stuck + 1
        fits = self._rate and self.expected_downtime_s(last.dirtied_pages) <= self.limits.max_downtime_s
        if fits and not shrinking:
            return Decision.FREEZE
        over = last.number >= self.limits.max_rounds or self._elapsed >= self.limits.deadline_s
        if over and fits:
            return Decision.FREEZE
        if self.limits.mode is Mode.AUTO and (over or self._stuck >= STUCK_ROUNDS):
            return Decision.SWITCH
        return Decision.GIVE_UP if over else Decision.CONTINUE

    def explain(self, last: Round) -> str:
        """Why it does not converge, in figures."""
        written = last.dirtied_pages * PAGE_SIZE / last.seconds if last.seconds else 0.0
        return (
            f"after {last.number} rounds and {self._elapsed:.1f} s the guest writes {written / 1e6:.0f} MB/s,"
            f" the link carries {self._rate / 1e6:.0f} MB/s, and what is left would take"
            f" {self.expected_downtime_s(last.dirtied_pages) * 1000:.0f} ms,"
            f" more than the {self.limits.max_downtime_s * 1000:.0f} ms allowed"
        )
