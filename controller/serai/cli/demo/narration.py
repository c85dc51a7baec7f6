"""What a person sees during the demo: what happens now, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.text import Text

from serai.cli.demo.report import DemoReport
from serai.cli.operations import describe
from serai.cli.output import stdout
from serai.v1.operation_pb2 import Operation, Step


class Narration:
    """Numbered steps with live detail on a terminal, one line per event elsewhere."""

    def __init__(self) -> None:
        self._number = 0
        self._status = stdout.status("") if stdout.is_terminal else None

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Announce a step; its details may change while it lasts."""
        self._number += 1
        stdout.print(Text.assemble((f"{self._number}. ", "bold cyan"), (title, "bold")))
        if self._status is None:
            yield
            return
        self._status.update("")
        with self._status:
            yield

    def now(self, detail: str) -> None:
        """What is going on this moment; shown on a terminal only."""
        if self._status is not None:
            self._status.update(f"[dim]{detail}")

    def fact(self, text: str) -> None:
        """Something that has been seen to hold."""
        stdout.print(Text.assemble(("   ✓ ", "green"), text))

    def follow(self, operation: Operation) -> None:
        """Show where an operation is."""
        running = [step for step in operation.steps if step.state == Step.RUNNING]
        if running:
            step = running[-1]
            self.now(f"{operation.verb} {operation.target}: {step.name} {step.progress:.0%} {describe(step)}")


def print_summary(report: DemoReport) -> None:
    """The short table at the end."""
    rows = list(_rows(report))
    width = max((len(name) for name, _ in rows), default=0)
    stdout.print()
    for name, value in rows:
        stdout.print(Text.assemble((name.ljust(width + 2), "bold"), value))
    for failure in report.failures:
        stdout.print(Text.assemble(("   ✗ ", "red"), failure))
    verdict = ("all of it held", "bold green") if report.ok else ("not all of it held", "bold red")
    stdout.print(Text.assemble(verdict, f" ({report.seconds:.0f} s)"))


def _rows(report: DemoReport) -> Iterator[tuple[str, str]]:
    if vnet := report.vnet:
        yield (
            "VNet",
            f"{vnet.nodes} guests, {vnet.links} links over {vnet.providers} providers, "
            f"running {vnet.request_to_running_s:.1f} s after the request",
        )
    for guest in report.guests:
        yield (
            f"guest {guest.name}",
            f"{guest.node}: Linux {guest.kernel}, booted in {guest.boot_s:.1f} s, "
            f"{guest.instructions / 1e6:,.0f} M instructions",
        )
    if ping := report.ping:
        yield "ping", f"{ping.received} of {ping.sent} answered, largest gap {ping.max_gap_ms:.0f} ms"
    if transfer := report.transfer:
        yield (
            "TCP",
            f"{transfer.bytes >> 20} MiB in {transfer.seconds:.1f} s, {transfer.sha256_received[:16]}…",
        )
    if isolation := report.isolation:
        yield (
            "isolation",
            f"{isolation.foreign_frames} foreign frames among {isolation.own_frames} in the other VNet",
        )
    if moved := report.migration:
        yield (
            "migration",
            f"{moved.vm} {moved.from_} → {moved.to}: {moved.rounds} rounds, {moved.bytes_sent / 1e6:.1f} MB, "
            f"{moved.total_ms:.0f} ms, down {moved.downtime_ms:.0f} ms, RAM and state equal",
        )
