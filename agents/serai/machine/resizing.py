"""Changing a running guest's vCPUs and memory: what the host allows, what it asks, what the guest confirms.

vCPUs come and go through the guest's CPU hotplug, asked for on the host channel (`vcpus N`) and carried out
by HSM calls; memory through the balloon. It is done when harts and balloon are as wanted and the guest itself
reports so (`size vcpus=N memory_total=KB memory_free=KB`). More harts than before are allowed at once, fewer
are enforced once they have stopped: a guest that does not obey keeps what it had.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from serai.machine.errors import MachineError
from serai.machine.machine import Machine

_KIB = 1024


@dataclass(frozen=True, slots=True)
class GuestView:
    """What the guest says of itself: processors online, `MemTotal` and `MemFree` in bytes."""

    vcpus: int
    memory_total: int
    memory_free: int


def parse_view(words: list[str]) -> GuestView | None:
    """The line `size ...` in words, None if it is not whole."""
    values = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    try:
        return GuestView(
            int(values["vcpus"]), int(values["memory_total"]) * _KIB, int(values["memory_free"]) * _KIB
        )
    except (KeyError, ValueError):
        return None


class Resizing:
    """One change at a time; `finished(view)` is called when it is done."""

    def __init__(self, machine: Machine, finished: Callable[[GuestView], None]) -> None:
        self._machine = machine
        self._finished = finished
        self._wanted: tuple[int, int] | None = None
        machine.balloon.changed = self._balloon_changed

    def begin(self, vcpus: int, memory_bytes: int) -> None:
        """Ask the guest.

        Raises ConfigurationError for what the machine cannot have, MachineError when the guest does not read
        what it is told.
        """
        machine = self._machine
        started = machine.harts.started
        machine.allow_vcpus(vcpus)
        machine.aim_at_memory(memory_bytes)
        machine.allow_vcpus(max(vcpus, started))
        self._wanted = (vcpus, memory_bytes)
        if not machine.console.send_line(f"vcpus {vcpus}"):
            raise MachineError("the guest does not read its host channel")

    def _balloon_changed(self) -> None:
        if self._wanted is not None and self._machine.memory_bytes == self._wanted[1]:
            self._machine.console.send_line("report")

    def reported(self, view: GuestView) -> None:
        """The guest says how large it is."""
        if self._wanted is None:
            return
        vcpus, memory_bytes = self._wanted
        machine = self._machine
        if (view.vcpus, machine.harts.started, machine.memory_bytes) == (vcpus, vcpus, memory_bytes):
            machine.allow_vcpus(vcpus)
            self._wanted = None
            self._finished(view)
