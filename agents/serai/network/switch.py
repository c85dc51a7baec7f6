"""The switch: which segment a frame leaves over. Pure; ``serai.network.dataplane`` moves the frames.

An *attachment point* is a guest's port on this node, or a label on the channel to a peer. A *segment*
cross-connects two points. Several segments may share a point; exactly one of them is *active* there: frames
that enter at the point leave over it, to the segment's other point. Frames may reach a point over any of its
segments, so a virtual link is moved without a gap: create the new segments, activate them, delete the old
ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from serai.errors import AlreadyExistsError, InvalidInputError, NotFoundError
from serai.network.shaping import Shaper

MAX_DELAY_SECONDS = 10.0
_MAX_LABEL = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class GuestPort:
    """An interface of a guest on this node."""

    guest_uid: str
    interface: str

    def __str__(self) -> str:
        return f"{self.guest_uid}/{self.interface}"


@dataclass(frozen=True, slots=True)
class PeerLabel:
    """A virtual link on the channel to `node` ("alpha/a1"); `label` tells it from others there."""

    node: str
    label: int

    def __str__(self) -> str:
        return f"{self.node}#{self.label:x}"


@dataclass(frozen=True, slots=True)
class BridgePort:
    """A port of a bridge on this node, which exists as long as segments end at it."""

    bridge: str
    port: str

    def __str__(self) -> str:
        return f"{self.bridge}:{self.port}"


AttachmentPoint: TypeAlias = GuestPort | PeerLabel | BridgePort


@dataclass(frozen=True, slots=True)
class SegmentConfig:
    """A segment as it is asked for; bandwidth 0 is no limit.

    Bandwidth and delay hold each way, at this hop.
    """

    name: str
    a: AttachmentPoint
    b: AttachmentPoint
    bandwidth_bps: int = 0
    delay_seconds: float = 0.0

    def check(self) -> None:
        """Raise InvalidInputError for what can never work."""
        if self.a == self.b:
            raise InvalidInputError(f"segment {self.name} connects {self.a} with itself", segment=self.name)
        if self.bandwidth_bps < 0 or not 0 <= self.delay_seconds <= MAX_DELAY_SECONDS:
            raise InvalidInputError(
                f"segment {self.name}: bandwidth {self.bandwidth_bps} bit/s, delay {self.delay_seconds} s",
                hint=f"give a bandwidth of 0 (no limit) or more and a delay of 0 to {MAX_DELAY_SECONDS:g} s",
                segment=self.name,
            )
        for point in (self.a, self.b):
            if isinstance(point, PeerLabel) and not 0 < point.label <= _MAX_LABEL:
                raise InvalidInputError(
                    f"label {point.label} is not between 1 and 2**64 - 1", segment=self.name
                )


@dataclass(slots=True)
class FlowCounters:
    """Of one direction of a segment; what left it, and what its bandwidth or a lost port made it drop."""

    frames: int = 0
    bytes: int = 0
    dropped: int = 0


@dataclass(slots=True)
class _Flow:
    """One direction of a segment."""

    destination: AttachmentPoint
    shaper: Shaper
    counters: FlowCounters = field(default_factory=FlowCounters)

    def delivery(self, frames: Sequence[bytes]) -> Delivery | None:
        self.counters.dropped = self.shaper.dropped
        if not frames:
            return None
        self.counters.frames += len(frames)
        self.counters.bytes += sum(map(len, frames))
        return Delivery(self.destination, frames)


@dataclass(frozen=True, slots=True)
class Delivery:
    """Frames that leave the switch at a point, in order."""

    destination: AttachmentPoint
    frames: Sequence[bytes]


class Segment:
    """A segment in the switch."""

    def __init__(self, config: SegmentConfig) -> None:
        self.config = config
        shape = (config.bandwidth_bps, config.delay_seconds)
        self._flows = {
            config.a: _Flow(config.b, Shaper(*shape)),
            config.b: _Flow(config.a, Shaper(*shape)),
        }

    @property
    def a_to_b(self) -> FlowCounters:
        """What went from a to b."""
        return self._flows[self.config.a].counters

    @property
    def b_to_a(self) -> FlowCounters:
        """What went from b to a."""
        return self._flows[self.config.b].counters

    @property
    def points(self) -> tuple[AttachmentPoint, AttachmentPoint]:
        """Its two ends."""
        return self.config.a, self.config.b

    def flow(self, entered: AttachmentPoint) -> _Flow:
        """The direction of frames that entered at `entered`."""
        return self._flows[entered]

    def flows(self) -> Iterable[_Flow]:
        """Both directions."""
        return self._flows.values()


class Switch:
    """All segments of a node. Times are seconds on any monotonic clock, never going back."""

    def __init__(self) -> None:
        self._segments: dict[str, Segment] = {}
        self._at: dict[AttachmentPoint, list[Segment]] = {}
        self._active: dict[AttachmentPoint, Segment] = {}
        self._waiting: dict[int, _Flow] = {}
        self.unconnected = 0
        """Frames dropped because their point was connected to nothing."""

    # Segments.

    def create(self, config: SegmentConfig) -> Segment:
        """Add a segment, active at those of its points that have none.

        The same again is no error. Raises AlreadyExistsError for another segment of that name,
        InvalidInputError.
        """
        config.check()
        existing = self._segments.get(config.name)
        if existing is not None:
            if existing.config == config:
                return existing
            raise AlreadyExistsError(
                f"segment {config.name} exists and connects {existing.config.a} and {existing.config.b}",
                hint="delete it first, or choose another name",
                segment=config.name,
            )
        segment = self._segments[config.name] = Segment(config)
        for point in segment.points:
            self._at.setdefault(point, []).append(segment)
            self._active.setdefault(point, segment)
        return segment

    def activate(self, name: str) -> Segment:
        """Let frames that enter at its points leave over it from now on. Raises NotFoundError."""
        segment = self.get(name)
        for point in segment.points:
            self._active[point] = segment
        return segment

    def delete(self, name: str) -> Segment:
        """Remove a segment; where it was active, the latest that remains takes over. Raises NotFoundError.

        Frames that wait in it still leave in their time, as long as their destination stays connected.
        """
        segment = self.get(name)
        del self._segments[name]
        for point in segment.points:
            remaining = self._at[point]
            remaining.remove(segment)
            if not remaining:
                del self._at[point], self._active[point]
            elif self._active[point] is segment:
                self._active[point] = remaining[-1]
        return segment

    def get(self, name: str) -> Segment:
        """Raises NotFoundError."""
        try:
            return self._segments[name]
        except KeyError:
            raise NotFoundError(f"there is no segment {name}", segment=name) from None

    def segments(self) -> list[Segment]:
        """All, in the order of their creation."""
        return list(self._segments.values())

    def is_active(self, segment: Segment) -> bool:
        """Whether it is the active one at both its points."""
        return all(self._active.get(point) is segment for point in segment.points)

    def is_connected(self, point: AttachmentPoint) -> bool:
        """Whether any segment ends there."""
        return point in self._at

    # Frames.

    def forward(self, point: AttachmentPoint, frames: Sequence[bytes], now: float) -> Delivery | None:
        """Frames enter at `point`; returns what leaves at once.

        The rest comes out of `release`, or is dropped.
        """
        segment = self._active.get(point)
        if segment is None:
            self.unconnected += len(frames)
            return None
        flow = segment.flow(point)
        leaving = flow.shaper.pass_through(frames, now)
        if len(flow.shaper):
            self._waiting[id(flow)] = flow
        return flow.delivery(leaving)

    @property
    def next_release(self) -> float | None:
        """When `release` has something to do; None if nothing waits."""
        times = (flow.shaper.next_release for flow in self._waiting.values())
        return min((time for time in times if time is not None), default=None)

    def release(self, now: float) -> list[Delivery]:
        """What has waited long enough."""
        out: list[Delivery] = []
        for key, flow in list(self._waiting.items()):
            frames = flow.shaper.release(now)
            if not len(flow.shaper):
                del self._waiting[key]
            if not self.is_connected(flow.destination):
                self.unconnected += len(frames)
                continue
            delivery = flow.delivery(frames)
            if delivery is not None:
                out.append(delivery)
        return out

    def check(self) -> None:
        """Assert what always holds; tests call it after every step."""
        assert self._active.keys() == self._at.keys()
        assert all(segments for segments in self._at.values())
        for point, segment in self._active.items():
            assert segment in self._at[point]
            assert self._segments[segment.config.name] is segment
        ends = {(name, point) for name, segment in self._segments.items() for point in segment.points}
        assert ends == {(segment.config.name, point) for point, at in self._at.items() for segment in at}
