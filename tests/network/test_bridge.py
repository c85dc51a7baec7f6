"""The bridge in the middle of a segment."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serai.network.bridge import AGEING_SECONDS, MAX_ADDRESSES, Bridge

EVERYBODY = b"\xff" * 6


def mac(number: int) -> bytes:
    return b"\2" + number.to_bytes(5, "big")


def frame(to: bytes, source: bytes, data: bytes = b"") -> bytes:
    return to + source + b"\x88\xb5" + data


def bridge(*ports: str) -> Bridge:
    made = Bridge()
    for port in ports:
        made.add(port)
    return made


def test_unknown_goes_everywhere_else_and_known_to_its_port() -> None:
    it = bridge("a", "b", "c")
    first = frame(mac(2), mac(1))
    assert it.forward("a", [first], 0.0) == {"b": [first], "c": [first]}
    back = frame(mac(1), mac(2))
    assert it.forward("b", [back], 0.0) == {"a": [back]}
    assert it.forward("a", [first], 0.0) == {"b": [first]}
    assert it.forward("b", [frame(mac(2), mac(3))], 0.0) == {}, "it is where it came from"


def test_groups_always_go_everywhere_else() -> None:
    it = bridge("a", "b", "c")
    for to in (EVERYBODY, b"\x33\x33\0\0\0\1"):
        assert it.forward("a", [frame(to, mac(1))], 0.0).keys() == {"b", "c"}
    # A group's address is nobody's source.
    it.forward("a", [frame(mac(9), EVERYBODY)], 0.0)
    assert it.forward("b", [frame(EVERYBODY, mac(2))], 0.0).keys() == {"a", "c"}


def test_addresses_age_move_and_go_with_their_port() -> None:
    it = bridge("a", "b", "c")
    it.forward("a", [frame(EVERYBODY, mac(1))], 0.0)
    to = frame(mac(1), mac(2))
    assert it.forward("b", [to], AGEING_SECONDS - 1).keys() == {"a"}
    assert it.forward("b", [to], AGEING_SECONDS + 1).keys() == {"a", "c"}
    it.forward("c", [frame(EVERYBODY, mac(1))], 500.0)
    assert it.forward("b", [to], 500.0).keys() == {"c"}
    it.remove("c")
    assert it.forward("b", [to], 500.0).keys() == {"a"}


def test_a_flood_of_addresses_costs_a_bounded_table_and_no_frame() -> None:
    it = bridge("a", "b", "c")
    it.forward("a", [frame(EVERYBODY, mac(number)) for number in range(MAX_ADDRESSES + 100)], 0.0)
    assert len(it._learned) == MAX_ADDRESSES
    assert it.forward("b", [frame(mac(MAX_ADDRESSES + 50), mac(1 << 30))], 0.0).keys() == {"a", "c"}
    it.forward("b", [frame(EVERYBODY, mac(1 << 30))], AGEING_SECONDS + 1)
    assert it.forward("a", [frame(mac(1 << 30), mac(1))], AGEING_SECONDS + 1).keys() == {"b"}


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 4), st.integers(0, 4)), max_size=30))
def test_a_frame_reaches_whom_it_is_for_once_and_never_returns(steps: list[tuple[str, int, int]]) -> None:
    it = bridge(*"abcd")
    at: dict[int, str] = {}
    for port, source, to in steps:
        at[source] = port
        out = it.forward(port, [frame(mac(to), mac(source))], 0.0)
        assert port not in out
        if at.get(to, port) != port:
            assert list(out) == [at[to]]
        assert all(len(frames) == 1 for frames in out.values())
