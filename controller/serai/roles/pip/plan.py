"""From an embedded virtual link to the segments that realise it. Pure: what is needed comes in, plans go out.

A link on the path n0 .. nk is one segment at each of these nodes. Between neighbours it carries a label of
its own, 64 random bits, so that links never meet on the way. Emulated delay is added once for each substrate
link, at the node before it; the delay of a border half by each side. Bandwidth is shaped where frames enter
from a guest, at each end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from serai.roles.names import random_label64, unique_label
from serai.roles.pip.records import End, LinkPlacement, Parts, SegmentPlan
from serai.v1.infrastructure_pb2 import SliceLink, SliceLinkEnd
from serai.v1.link_pb2 import AttachmentPoint, BridgePort, GuestPort, PeerLabel, Segment

_BRIDGE = "bridge:"


@dataclass(frozen=True, slots=True)
class Station:
    """A node as its neighbours reach it: ``alpha/a1`` and the address of its gRPC server."""

    name: str
    control_address: str


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is around the links of a provider: its nodes, its links' delays, and who is behind its borders."""

    stations: Mapping[str, Station]
    delay_ms: Mapping[frozenset[str], float]
    border_delay_ms: Mapping[str, float]
    beyond: Mapping[str, Station]
    """The other side's border node by border."""


def plan_link(
    link: SliceLink,
    path: Sequence[str],
    around: Surroundings,
    occupied: Collection[End] = (),
    new_label: Callable[[], int] = random_label64,
) -> LinkPlacement:
    """The placement of `link` on `path`, which leads from its end a to its end b.

    A segment with an end in `occupied` waits: it is made inactive there, beside the one in use.
    """
    labels = [new_label() for _ in pairwise(path)]
    segments = []
    for position, node in enumerate(path):
        before = (
            _link_end(link.a, around)
            if position == 0
            else _peer(around.stations[path[position - 1]], labels[position - 1])
        )
        last = position == len(path) - 1
        after = (
            _link_end(link.b, around)
            if last
            else _peer(around.stations[path[position + 1]], labels[position])
        )
        delay = _border_share(link.a, around) if position == 0 else 0.0
        delay += (
            _border_share(link.b, around)
            if last
            else around.delay_ms.get(frozenset((node, path[position + 1])), 0.0)
        )
        enters = bool(before.virtual_node or after.virtual_node)
        segments.append(
            SegmentPlan(
                node=node,
                segment_id=unique_label(f"s-{link.id}"),
                a=before,
                b=after,
                bandwidth_bps=link.bandwidth_bps if enters else 0,
                delay_ms=delay,
                active=before not in occupied and after not in occupied,
            )
        )
    total = sum(segment.delay_ms for segment in segments)
    return LinkPlacement(link=link, path=list(path), delay_ms=total, segments=segments)


def occupied_ends(parts: Parts) -> set[End]:
    """Every end that a segment of `parts` uses."""
    return {
        end
        for placement in parts.links.values()
        for segment in placement.segments
        for end in (segment.a, segment.b)
    }


def segment_message(plan: SegmentPlan, guest_uids: Mapping[str, str]) -> Segment:
    """The segment as its agent is asked to make it; `guest_uids` by virtual node."""
    return Segment(
        a=_point(plan.a, guest_uids),
        b=_point(plan.b, guest_uids),
        bandwidth_bps=plan.bandwidth_bps,
        delay_ms=plan.delay_ms,
        active=plan.active,
    )


def bridge_uid(node: str) -> str:
    """Takes the place of a guest's uid for the bridge of a link; no guest's looks like it."""
    return f"{_BRIDGE}{unique_label(node)}"


def _point(end: End, guest_uids: Mapping[str, str]) -> AttachmentPoint:
    if end.virtual_node and guest_uids[end.virtual_node].startswith(_BRIDGE):
        bridge = BridgePort(bridge=guest_uids[end.virtual_node], port=end.interface)
        return AttachmentPoint(bridge=bridge)
    if end.virtual_node:
        port = GuestPort(guest_uid=guest_uids[end.virtual_node], interface=end.interface)
        return AttachmentPoint(port=port)
    peer = PeerLabel(node=end.peer, control_address=end.control_address, label=end.label)
    return AttachmentPoint(peer=peer)


def _link_end(end: SliceLinkEnd, around: Surroundings) -> End:
    if end.HasField("interface"):
        return End(virtual_node=end.interface.node, interface=end.interface.interface)
    return _peer(around.beyond[end.border.border], end.border.label)


def _peer(station: Station, label: int) -> End:
    return End(peer=station.name, control_address=station.control_address, label=label)


def _border_share(end: SliceLinkEnd, around: Surroundings) -> float:
    if not end.HasField("border"):
        return 0.0
    return around.border_delay_ms.get(end.border.border, 0.0) / 2
