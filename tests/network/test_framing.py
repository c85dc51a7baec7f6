"""Frames in records: what is packed is parsed, and nothing else is."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.errors import IntegrityError
from serai.network.framing import (
    BATCH_BYTES,
    BATCH_FRAMES,
    FRAMES,
    REDIRECTED,
    Queue,
    pack_record,
    parse_frames,
    parse_redirected,
)
from serai.network.ports import MAX_FRAME_BYTES
from serai.network.switch import GuestPort

TARGETS = st.one_of(
    st.integers(1, 3),
    st.integers(0, 2**64 - 1),
    st.builds(GuestPort, st.sampled_from(["web", "d\u00e4tabase"]), st.sampled_from(["eth0", "eth1"])),
)


@given(st.lists(st.tuples(TARGETS, st.binary(min_size=14, max_size=90)), max_size=200))
def test_round_trip_in_order(sent: list[tuple[int | GuestPort, bytes]]) -> None:
    queue: Queue = deque(sent)
    payload = memoryview(bytearray(BATCH_BYTES))
    received: list[tuple[int | GuestPort, bytes]] = []
    while queue:
        record = pack_record(queue, payload)
        view = payload[: record.length]
        batch: list[tuple[int | GuestPort, bytes]] = []
        if record.kind == REDIRECTED:
            port, frames = parse_redirected(view)
            batch += [(port, frame) for frame in frames]
        else:
            assert record.kind == FRAMES
            batch += [(label, frame) for label, run in parse_frames(view) for frame in run]
        assert 0 < len(batch) <= BATCH_FRAMES
        assert record.frame_bytes == sum(len(frame) for _, frame in batch)
        received += batch
    assert received == sent


def test_batches_are_bounded_by_bytes_and_take_the_largest_frame() -> None:
    queue: Queue = deque((1, bytes(MAX_FRAME_BYTES)) for _ in range(10))
    payload = memoryview(bytearray(BATCH_BYTES))
    counts = []
    while queue:
        counts.append(pack_record(queue, payload).frame_bytes // MAX_FRAME_BYTES)
    assert counts == [3, 3, 3, 1]


@given(st.binary(max_size=120))
def test_hostile_records_are_refused_or_hold_legal_frames(content: bytes) -> None:
    for parse in (parse_frames, lambda view: [parse_redirected(view)]):
        try:
            runs = parse(memoryview(content))
        except IntegrityError:
            continue
        assert all(14 <= len(frame) <= MAX_FRAME_BYTES for _, frames in runs for frame in frames)


@pytest.mark.parametrize("cut", [1, 11, 12, 13, 40])
def test_a_cut_record_is_refused(cut: int) -> None:
    payload = memoryview(bytearray(BATCH_BYTES))
    length = pack_record(deque([(5, bytes(60))]), payload).length
    with pytest.raises(IntegrityError):
        parse_frames(payload[: length - cut])
