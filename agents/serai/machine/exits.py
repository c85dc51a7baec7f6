"""Exits by cause with their cost, and the events that native code serves without leaving.

An *exit* leaves the guest for this process's Python: a device register, a firmware call, a wait. Each is
timed. Traps, interrupts and TLB fills are served in native code, where counters stand; page walks are timed
by sampling. Counts travel with the guest; costs are of the host it is on and begin anew there, which is why
a cost carries the number of events it was measured over.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from serai.machine.hart import Counters

EXCEPTION_NAMES: Mapping[int, str] = {
    0: "instruction-misaligned",
    1: "fetch-access-fault",
    2: "illegal-instruction",
    3: "breakpoint",
    4: "load-misaligned",
    5: "load-access-fault",
    6: "store-misaligned",
    7: "store-access-fault",
    8: "call-from-u",
    9: "call-from-s",
    11: "call-from-m",
    12: "fetch-page-fault",
    13: "load-page-fault",
    15: "store-page-fault",
}
"""Exception codes of mcause (Privileged ISA, table "Machine cause register values")."""

INTERRUPT_NAMES: Mapping[int, str] = {
    1: "s-software",
    3: "m-software",
    5: "s-timer",
    7: "m-timer",
    9: "s-external",
    11: "m-external",
}


@dataclass(slots=True)
class Cost:
    """Time spent on events of one cause: `nanoseconds` over `events`."""

    events: int = 0
    nanoseconds: int = 0


class ExitCosts:
    """Costs by cause since this process took the guest."""

    def __init__(self) -> None:
        self.costs: dict[str, Cost] = {}

    def add(self, cause: str, nanoseconds: int) -> None:
        """An exit was served in that time."""
        cost = self.costs.get(cause)
        if cost is None:
            cost = self.costs[cause] = Cost()
        cost.events += 1
        cost.nanoseconds += nanoseconds


class CycleScale:
    """Converts the host's cycle counter to nanoseconds; the longer it lives, the better it knows."""

    def __init__(self, cycles: int) -> None:
        self._cycles = cycles
        self._nanoseconds = time.perf_counter_ns()

    def nanoseconds(self, cycles: int, now: int) -> int:
        """`cycles` in nanoseconds; `now` is the counter's present value."""
        passed = now - self._cycles
        return cycles * (time.perf_counter_ns() - self._nanoseconds) // passed if passed > 0 else 0


def name_events(counters: Counters) -> dict[str, int]:
    """A hart's native counters under the names that people see; those that are zero are left out."""
    events = {f"trap:{name}": counters.exceptions[code] for code, name in EXCEPTION_NAMES.items()}
    events |= {f"interrupt:{name}": counters.interrupts[code] for code, name in INTERRUPT_NAMES.items()}
    events["tlb:data-fill"] = counters.data_fills
    events["tlb:fetch-fill"] = counters.fetch_fills
    events["page-walk"] = counters.page_walks
    return {name: count for name, count in events.items() if count}
