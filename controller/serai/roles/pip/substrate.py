"""Embedding slices onto a PIP's nodes and links. Pure: settings, reports and records in, placements out.

A border is, for the embedding, one more node behind our border node, which takes no guest and lets nothing
through. The link to it has the border's capacity. Its delay is the VNP's business: what a half link may take
is meant up to the border.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from serai.embedding import Mapping as Embedding
from serai.embedding import (
    Request,
    RequestLink,
    RequestNode,
    Substrate,
    SubstrateLink,
    SubstrateNode,
    check,
    solve,
)
from serai.errors import CapacityError
from serai.roles.pip.ledger import Usage
from serai.roles.settings import PipSettings
from serai.v1.infrastructure_pb2 import SliceLink, SliceLinkEnd, SliceNode
from serai.v1.node_pb2 import Node

MS = 1_000_000
"""Nanoseconds in a millisecond."""


@dataclass(frozen=True, slots=True)
class Placements:
    """Where an embedding puts things: node id -> substrate node, link id -> substrate nodes from a to b."""

    embedding: Embedding
    nodes: dict[str, str]
    paths: dict[str, list[str]]


def free_substrate(settings: PipSettings, states: Mapping[str, Node], usage: Usage) -> Substrate:
    """What may be reserved now. `states` holds the nodes that are reachable, as they report themselves."""
    nodes = []
    for node in settings.nodes:
        state = states.get(node.name)
        if state is None:
            nodes.append(
                SubstrateNode(node.name, 0, 0, location=node.location, schedulable=False, transit=False)
            )
            continue
        # What the agent says it has promised lags behind by a heartbeat; our own books are exact.
        vcpus = state.capacity.vcpus - usage.vcpus[node.name]
        memory = state.capacity.memory_bytes - usage.memory_bytes[node.name]
        nodes.append(
            SubstrateNode(
                node.name,
                max(0, vcpus),
                max(0, memory),
                location=node.location,
                images=frozenset(state.images),
            )
        )
    links = [
        SubstrateLink(
            f"{link.a}--{link.b}",
            link.a,
            link.b,
            max(0, link.capacity - usage.link_bps[frozenset((link.a, link.b))]),
            int(link.delay * MS),
        )
        for link in settings.links
    ]
    for border in settings.borders:
        outside = _border_node(border.name)
        nodes.append(SubstrateNode(outside, 0, 0, schedulable=False, transit=False))
        free = max(0, border.capacity - usage.border_bps[border.name])
        links.append(SubstrateLink(outside, border.node, outside, free))
    return Substrate(tuple(nodes), tuple(links))


def build_request(
    nodes: Iterable[SliceNode],
    links: Iterable[SliceLink],
    *,
    fixed: Mapping[str, str],
    pinned: Mapping[str, str],
) -> Request:
    """What is to be embedded.

    `fixed` are virtual nodes that are in place already, where links may end; `pinned` says where some of
    `nodes` must go.
    """
    wanted = [_request_node(node, pinned.get(node.id, "")) for node in nodes]
    wanted_links = [_request_link(link) for link in links]
    ends = {end for link in wanted_links for end in (link.a, link.b)}
    outside = [
        RequestNode(name, node=name, external=True) for name in sorted(ends) if name.startswith(_BORDER)
    ]
    there = [RequestNode(name, node=at, external=True) for name, at in fixed.items() if name in ends]
    return Request((*wanted, *there, *outside), tuple(wanted_links))


def find_placements(substrate: Substrate, request: Request, provider: str) -> Placements:
    """Embed `request`; CapacityError names the resource that is short. The mapping has passed the checker."""
    try:
        return _placements(solve(substrate, request))
    except CapacityError as error:
        refusal = CapacityError(f"provider {provider}: {error.message}", hint=error.hint, reason=error.reason)
        refusal.metadata = {**error.metadata, "provider": provider}
        raise refusal from error


def still_fit(substrate: Substrate, request: Request, found: Placements) -> bool:
    """Whether `found` suits `substrate` too, which has changed since."""
    return not check(substrate, request, found.embedding)


def _placements(result: Embedding) -> Placements:
    paths = {
        name: [node for node in path.nodes if not node.startswith(_BORDER)]
        for name, path in result.paths.items()
    }
    return Placements(result, result.nodes, paths)


def _request_node(node: SliceNode, pinned: str) -> RequestNode:
    return RequestNode(
        node.id,
        vcpus=node.guest.vcpus,
        memory_bytes=node.guest.memory_bytes,
        # A guest that arrives brings its memory along and boots nothing.
        image="" if node.HasField("arrival") else node.guest.image,
        location=node.constraints.location,
        node=pinned or node.constraints.node,
    )


def _request_link(link: SliceLink) -> RequestLink:
    return RequestLink(
        link.id,
        _end_name(link.a),
        _end_name(link.b),
        bandwidth_bps=link.bandwidth_bps,
        max_delay_ns=int(link.max_delay_ms * MS),
    )


_BORDER = "border:"


def _border_node(border: str) -> str:
    # A colon cannot be in the name of a node, which is a DNS label.
    return _BORDER + border


def _end_name(end: SliceLinkEnd) -> str:
    return _border_node(end.border.border) if end.HasField("border") else end.interface.node


def without_node(substrate: Substrate, name: str) -> Substrate:
    """The same with a node that takes no more guests."""
    nodes = tuple(replace(node, schedulable=False) if node.name == name else node for node in substrate.nodes)
    return Substrate(nodes, substrate.links)
