"""``serai vm exits``: why a guest left its instructions, how often, and what it cost."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from serai.cli.output import NONE, Column, Format, print_table, show_data, stdout
from serai.v1.guest_pb2 import GuestStatistics

Fetch = Callable[[], Awaitable[GuestStatistics]]


@dataclass(frozen=True)
class ExitRow:
    """One cause. `rate` is per second since the last look, None in the first."""

    cause: str
    kind: str
    count: int
    nanoseconds_each: float | None
    rate: float | None


_COLUMNS = (
    Column[ExitRow]("CAUSE", lambda row: row.cause),
    Column[ExitRow]("KIND", lambda row: row.kind),
    Column[ExitRow]("COUNT", lambda row: row.count, right=True),
    Column[ExitRow](
        "NS-EACH",
        lambda row: NONE if row.nanoseconds_each is None else f"{row.nanoseconds_each:.0f}",
        right=True,
    ),
    Column[ExitRow](
        "MS-TOTAL",
        lambda row: NONE if row.nanoseconds_each is None else f"{row.nanoseconds_each * row.count / 1e6:.1f}",
        right=True,
    ),
)
_RATE = Column[ExitRow]("PER-SECOND", lambda row: NONE if row.rate is None else f"{row.rate:.0f}", right=True)


def exit_rows(
    statistics: GuestStatistics, before: GuestStatistics | None = None, seconds: float = 0.0
) -> list[ExitRow]:
    """Exits, then events served natively, each the most frequent first.

    `before` and the `seconds` since then give rates; after a move to another node a count may have begun
    anew, which shows as a rate of 0.
    """
    rows = []
    for kind, counts, earlier in (
        ("exit", statistics.exits, before.exits if before else {}),
        ("native", statistics.events, before.events if before else {}),
    ):
        for cause, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            cost = statistics.costs.get(cause)
            rate = max(0, count - earlier.get(cause, 0)) / seconds if before and seconds > 0 else None
            each = cost.nanoseconds / cost.events if cost is not None and cost.events else None
            rows.append(ExitRow(cause, kind, count, each, rate))
    return rows


async def show_exits(fetch: Fetch, output: Format, *, watch: bool, interval: float) -> None:
    """Print the table once, or again every `interval` seconds until interrupted."""
    statistics = await fetch()
    _print(exit_rows(statistics), output, rates=False)
    clock = asyncio.get_running_loop().time
    then = clock()
    while watch:
        await asyncio.sleep(interval)
        before, statistics = statistics, await fetch()
        now = clock()
        if sys.stdout.isatty() and output is Format.TABLE:
            stdout.clear()
        _print(exit_rows(statistics, before, now - then), output, rates=True)
        then = now


def _print(rows: list[ExitRow], output: Format, *, rates: bool) -> None:
    if output is Format.TABLE:
        print_table(rows, (*_COLUMNS, _RATE) if rates else _COLUMNS)
        return
    show_data(
        [
            {
                "cause": row.cause,
                "kind": row.kind,
                "count": row.count,
                "nanoseconds_each": row.nanoseconds_each,
                **({"per_second": row.rate} if rates else {}),
            }
            for row in rows
        ],
        output,
    )
