"""What is reserved: sums over the records, so that it can never drift from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from serai.roles.pip.records import LinkPlacement, PeerConnection, SliceRecord
from serai.v1.infrastructure_pb2 import BorderLabel, SliceLink

Pair = frozenset[str]
"""The two ends of a substrate link."""


@dataclass
class Usage:
    """Reserved at nodes, on links and at borders."""

    vcpus: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    memory_bytes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    link_bps: dict[Pair, int] = field(default_factory=lambda: defaultdict(int))
    border_bps: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def border_labels(link: SliceLink) -> list[BorderLabel]:
    """The ends of `link` that lie at a border."""
    return [end.border for end in (link.a, link.b) if end.HasField("border")]


def compute_usage(slices: Iterable[SliceRecord], connections: Iterable[PeerConnection]) -> Usage:
    """All that is reserved.

    A link over a border is known here twice, by our slice and by the peer's connection; it counts once.
    """
    usage = Usage()
    crossing: dict[tuple[str, int], int] = {
        (connection.border, connection.label): connection.bandwidth_bps for connection in connections
    }
    for record in slices:
        for parts in (record.parts, record.pending):
            for node in parts.nodes.values():
                if node.takes_room:
                    usage.vcpus[node.node] += node.spec.guest.vcpus
                    usage.memory_bytes[node.node] += node.spec.guest.memory_bytes
            for placement in parts.links.values():
                _add_path(usage, placement)
                for end in border_labels(placement.link):
                    key = (end.border, end.label)
                    crossing[key] = max(crossing.get(key, 0), placement.link.bandwidth_bps)
    for (border, _), bandwidth in crossing.items():
        usage.border_bps[border] += bandwidth
    return usage


def _add_path(usage: Usage, placement: LinkPlacement) -> None:
    for pair in pairwise(placement.path):
        usage.link_bps[frozenset(pair)] += placement.link.bandwidth_bps


def used_labels(slices: Iterable[SliceRecord], border: str, *, beside: str = "") -> set[int]:
    """Labels that our slices use at `border`; those of the slice `beside` do not count."""
    return {
        end.label
        for record in slices
        if record.name != beside
        for parts in (record.parts, record.pending)
        for placement in parts.links.values()
        for end in border_labels(placement.link)
        if end.border == border
    }
