"""Options of ``serai vm trace``."""

from __future__ import annotations

from pathlib import Path

import pytest

from serai.cli.trace import function_range, trace_request
from serai.errors import InvalidInputError, NotFoundError
from serai.v1.guest_pb2 import TraceGuestRequest

SYMBOLS = """
ffffffff80002000 T _start
ffffffff80002100 t schedule
ffffffff80002180 D data
ffffffff80002200 T last
"""


@pytest.fixture
def symbols(tmp_path: Path) -> Path:
    (tmp_path / "map").write_text(SYMBOLS)
    return tmp_path / "map"


def request(
    low: str = "", high: str = "", function: str = "", symbols: Path | None = None
) -> TraceGuestRequest:
    return trace_request("n", count=5, steps=9, low=low, high=high, function=function, symbols=symbols)


def test_functions_end_where_the_next_begins(symbols: Path) -> None:
    assert function_range(symbols, "schedule") == (0xFFFFFFFF80002100, 0xFFFFFFFF80002200)
    assert function_range(symbols, "last")[1] == (1 << 64) - 1
    made = request(function="_start", symbols=symbols)
    assert (made.low, made.high, made.count, made.steps) == (0xFFFFFFFF80002000, 0xFFFFFFFF80002100, 5, 9)


def test_addresses_default_to_everything() -> None:
    assert (request().low, request().high) == (0, (1 << 64) - 1)
    assert request("0x80000000", "2147483652").high == 0x8000_0004


def test_what_cannot_be_is_refused(symbols: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="not an address"):
        request("main")
    with pytest.raises(InvalidInputError, match="no address lies"):
        request("8", "8")
    with pytest.raises(InvalidInputError, match="needs a list of symbols"):
        request(function="schedule")
    with pytest.raises(NotFoundError, match="no function"):
        request(function="data", symbols=symbols)
    with pytest.raises(NotFoundError, match="cannot read"):
        request(function="x", symbols=tmp_path / "none")
