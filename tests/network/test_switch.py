"""The switch and its shaping, in virtual time."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from serai.errors import AlreadyExistsError, InvalidInputError, NotFoundError
from serai.network.shaping import MIN_BURST_BYTES, MIN_QUEUE_BYTES, Shaper
from serai.network.switch import AttachmentPoint, GuestPort, PeerLabel, SegmentConfig, Switch

WEB, DB = GuestPort("web", "eth0"), GuestPort("db", "eth0")
TO_B, TO_C = PeerLabel("alpha/b", 7), PeerLabel("alpha/c", 7)
FRAME = bytes(60)


def switch_with(*segments: SegmentConfig) -> Switch:
    switch = Switch()
    for config in segments:
        switch.create(config)
        switch.check()
    return switch


def out(switch: Switch, point: AttachmentPoint, now: float = 0.0) -> AttachmentPoint | None:
    delivery = switch.forward(point, [FRAME], now)
    return delivery.destination if delivery else None


def test_a_segment_carries_both_ways() -> None:
    switch = switch_with(SegmentConfig("s", WEB, TO_B))
    assert out(switch, WEB) == TO_B
    assert out(switch, TO_B) == WEB
    assert out(switch, DB) is None
    assert out(switch, PeerLabel("alpha/b", 8)) is None
    assert out(switch, PeerLabel("alpha/c", 7)) is None
    assert switch.unconnected == 3
    segment = switch.get("s")
    assert (segment.a_to_b.frames, segment.a_to_b.bytes) == (1, 60)
    assert (segment.b_to_a.frames, segment.b_to_a.bytes) == (1, 60)


def test_make_before_break() -> None:
    switch = switch_with(SegmentConfig("old", WEB, TO_B), SegmentConfig("new", WEB, TO_C))
    assert out(switch, WEB) == TO_B
    assert out(switch, TO_C) == WEB  # arrives over the segment that is not active yet
    assert not switch.is_active(switch.get("new"))
    switch.activate("new")
    switch.check()
    assert out(switch, WEB) == TO_C
    assert out(switch, TO_B) == WEB  # what is still on the old way arrives too
    switch.delete("old")
    switch.check()
    assert out(switch, TO_B) is None
    assert out(switch, WEB) == TO_C


def test_deleting_the_active_falls_back_to_the_latest() -> None:
    first, second = SegmentConfig("first", WEB, TO_B), SegmentConfig("second", WEB, DB)
    third = SegmentConfig("third", WEB, TO_C)
    switch = switch_with(first, second, third)
    switch.delete("first")
    switch.check()
    assert out(switch, WEB) == TO_C
    switch.delete("third")
    assert out(switch, WEB) == DB


def test_names() -> None:
    switch = switch_with(SegmentConfig("s", WEB, TO_B))
    segment = switch.get("s")
    assert switch.create(SegmentConfig("s", WEB, TO_B)) is segment
    with pytest.raises(AlreadyExistsError, match="s exists"):
        switch.create(SegmentConfig("s", WEB, TO_C))
    for missing in (switch.delete, switch.activate, switch.get):
        with pytest.raises(NotFoundError):
            missing("t")
    switch.check()


@pytest.mark.parametrize(
    "config",
    [
        SegmentConfig("s", WEB, WEB),
        SegmentConfig("s", WEB, TO_B, bandwidth_bps=-1),
        SegmentConfig("s", WEB, TO_B, delay_seconds=-0.1),
        SegmentConfig("s", WEB, TO_B, delay_seconds=float("nan")),
        SegmentConfig("s", WEB, TO_B, delay_seconds=11),
        SegmentConfig("s", WEB, PeerLabel("alpha/b", 0)),
        SegmentConfig("s", WEB, PeerLabel("alpha/b", 1 << 64)),
    ],
)
def test_nonsense_is_refused(config: SegmentConfig) -> None:
    with pytest.raises(InvalidInputError):
        Switch().create(config)


def test_delay() -> None:
    switch = switch_with(SegmentConfig("s", WEB, DB, delay_seconds=0.05))
    assert switch.forward(WEB, [b"a" * 60, b"b" * 60], 1.0) is None
    assert switch.next_release == pytest.approx(1.05)
    assert switch.release(1.049) == []
    (delivery,) = switch.release(1.05)
    assert (delivery.destination, [frame[:1] for frame in delivery.frames]) == (DB, [b"a", b"b"])
    assert switch.next_release is None


def test_what_waits_in_a_deleted_segment_still_arrives_if_it_can() -> None:
    switch = switch_with(SegmentConfig("old", WEB, DB, delay_seconds=0.05), SegmentConfig("new", DB, TO_C))
    switch.forward(WEB, [FRAME], 0.0)
    switch.forward(DB, [FRAME], 0.0)
    switch.delete("old")
    assert [delivery.destination for delivery in switch.release(1.0)] == [DB]
    assert switch.unconnected == 1  # WEB is connected to nothing any more


@given(
    bandwidth=st.integers(100_000, 10_000_000_000),
    sizes=st.lists(st.integers(60, 65_000), min_size=1, max_size=200),
    gaps=st.lists(st.floats(0, 0.01), min_size=1, max_size=20),
)
def test_never_faster_than_the_bandwidth_and_in_order(
    bandwidth: int, sizes: list[int], gaps: list[float]
) -> None:
    shaper = Shaper(bandwidth)
    now, sent, left = 0.0, list[bytes](), list[tuple[float, bytes]]()
    for number, (size, gap) in enumerate(zip(sizes, itertools.cycle(gaps), strict=False)):
        frame = number.to_bytes(4) + bytes(size - 4)
        now += gap
        sent.append(frame)
        left += [(now, each) for each in shaper.pass_through([frame], now)]
    while shaper.next_release is not None:
        now = max(now, shaper.next_release)
        left += [(now, each) for each in shaper.release(now)]
    order = [sent.index(frame) for _, frame in left]
    assert order == sorted(order)
    assert len(left) + shaper.dropped == len(sent)
    # Any window: at most the burst, one frame, and bandwidth times its length.
    burst = max(MIN_BURST_BYTES, bandwidth / 8 * 0.005) + 65_000
    for start in range(len(left)):
        total = 0
        for time, frame in left[start:]:
            total += len(frame)
            assert total <= burst + (time - left[start][0]) * bandwidth / 8 + 1


def test_full_bandwidth_is_used_and_the_queue_is_bounded() -> None:
    shaper = Shaper(80_000_000)  # 10 MB/s
    frames = [bytes(1500)] * 1000
    left = len(shaper.pass_through(frames, 0.0))
    assert left * 1500 <= 5e-3 * 10e6 + 1500  # the bucket
    queued = len(shaper) * 1500
    assert max(MIN_QUEUE_BYTES, 0.1 * 10e6) <= queued <= 0.1 * 10e6 + 3000
    assert shaper.dropped == 1000 - left - len(shaper)
    assert len(shaper.release(0.05)) * 1500 == pytest.approx(0.05 * 10e6, rel=0.01)


class TwoNetworks(RuleBasedStateMachine):
    """Two VNets on one node, with the same interface names and labels. A model says what may reach what."""

    @initialize()
    def start(self) -> None:
        self.switch = Switch()
        self.now = 0.0
        self.names = itertools.count()
        self.net_of: dict[str, int] = {}

    def points(self, net: int) -> list[AttachmentPoint]:
        guests: list[AttachmentPoint] = [GuestPort(f"net{net}-{guest}", "eth0") for guest in range(3)]
        return guests + [PeerLabel(peer, 10 * net + label) for peer in ("p/a", "p/b") for label in (1, 2)]

    @rule(
        net=st.integers(1, 2),
        pair=st.permutations(range(7)),
        delay=st.sampled_from([0.0, 0.01]),
        rate=st.sampled_from([0, 10**6]),
    )
    def create(self, net: int, pair: list[int], delay: float, rate: int) -> None:
        points, name = self.points(net), f"s{next(self.names)}"
        self.switch.create(SegmentConfig(name, points[pair[0]], points[pair[1]], rate, delay))
        self.net_of[name] = net

    @rule(data=st.data(), delete=st.booleans())
    def change(self, data: st.DataObject, delete: bool) -> None:
        if not self.net_of:
            return
        name = data.draw(st.sampled_from(sorted(self.net_of)))
        if delete:
            self.switch.delete(name)
            del self.net_of[name]
        else:
            self.switch.activate(name)
            assert self.switch.is_active(self.switch.get(name))

    @rule(net=st.integers(1, 2), index=st.integers(0, 6), count=st.integers(1, 30))
    def send(self, net: int, index: int, count: int) -> None:
        point = self.points(net)[index]
        frames = [bytes([net]) + bytes(1499)] * count
        before = self.switch.is_connected(point)
        delivery = self.switch.forward(point, frames, self.now)
        if delivery is not None:
            assert before
            assert delivery.destination != point
            self.expect(delivery.destination, delivery.frames)

    @rule(seconds=st.floats(0, 0.05))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for delivery in self.switch.release(self.now):
            self.expect(delivery.destination, delivery.frames)
        assert self.switch.next_release is None or self.switch.next_release > self.now

    def expect(self, destination: AttachmentPoint, frames: object) -> None:
        assert self.switch.is_connected(destination)
        assert isinstance(frames, list)
        nets = {frame[0] for frame in frames}
        assert len(nets) == 1
        assert destination in self.points(nets.pop())

    @invariant()
    def consistent(self) -> None:
        if hasattr(self, "switch"):
            self.switch.check()
            assert {segment.config.name for segment in self.switch.segments()} == self.net_of.keys()


TestTwoNetworks = TwoNetworks.TestCase
TestTwoNetworks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
