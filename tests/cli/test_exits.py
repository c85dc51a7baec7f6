"""The rows of ``serai vm exits``."""

from __future__ import annotations

from serai.cli.exits import exit_rows
from serai.v1.guest_pb2 import EventCost, GuestStatistics


def statistics(uart: int, walks: int) -> GuestStatistics:
    return GuestStatistics(
        exits={"mmio:uart": uart, "wait": 7},
        events={"page-walk": walks},
        costs={
            "mmio:uart": EventCost(events=uart, nanoseconds=uart * 3000),
            "page-walk": EventCost(events=2, nanoseconds=90),
        },
    )


def test_rows_are_ordered_and_costed() -> None:
    rows = exit_rows(statistics(100, 640))
    assert [(row.cause, row.kind, row.count, row.nanoseconds_each, row.rate) for row in rows] == [
        ("mmio:uart", "exit", 100, 3000.0, None),
        ("wait", "exit", 7, None, None),
        ("page-walk", "native", 640, 45.0, None),
    ]


def test_rates_never_run_backwards() -> None:
    rows = exit_rows(statistics(150, 10), statistics(100, 640), 2.0)
    assert {row.cause: row.rate for row in rows} == {"mmio:uart": 25.0, "wait": 0.0, "page-walk": 0.0}
