"""An independent check of a mapping, written from the definition of the problem.

It shares no code with any algorithm - not the paths, not the bookkeeping, not the graph's adjacency - so that
a defect there cannot hide here.

Definition (after Fischer et al., "Virtual Network Embedding: A Survey", IEEE COMST 2013, with unsplittable
paths): a mapping sends every virtual node to one substrate node that meets its constraints, and every virtual
link to one walk between the places of its ends, such that no node and no link is used beyond its capacity and
no walk is slower than the link allows.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

from serai.embedding.model import Mapping, Path, Request, RequestLink, RequestNode, Substrate, SubstrateNode


def check(
    substrate: Substrate, request: Request, mapping: Mapping, *, revisitation: bool = True
) -> tuple[str, ...]:
    """Everything that `mapping` violates, in words; empty for a valid mapping."""
    violations: list[str] = []
    _check_completeness(request, mapping, violations)
    _check_nodes(substrate, request, mapping, revisitation, violations)
    _check_links(substrate, request, mapping, violations)
    return tuple(violations)


def _check_completeness(request: Request, mapping: Mapping, violations: list[str]) -> None:
    nodes, links = {node.name for node in request.nodes}, {link.name for link in request.links}
    violations += [f"the virtual node {name!r} has no place" for name in sorted(nodes - mapping.nodes.keys())]
    violations += [
        f"{name!r} is no virtual node of the request" for name in sorted(mapping.nodes.keys() - nodes)
    ]
    violations += [f"the virtual link {name!r} has no path" for name in sorted(links - mapping.paths.keys())]
    violations += [
        f"{name!r} is no virtual link of the request" for name in sorted(mapping.paths.keys() - links)
    ]


def _check_nodes(
    substrate: Substrate, request: Request, mapping: Mapping, revisitation: bool, violations: list[str]
) -> None:
    places = {node.name: node for node in substrate.nodes}
    guests: dict[str, list[RequestNode]] = defaultdict(list)
    for node in request.nodes:
        place = mapping.nodes.get(node.name)
        if place is None:
            continue
        if place not in places:
            violations.append(f"{node.name!r} is on {place!r}, which does not exist")
            continue
        _check_constraints(node, places[place], violations)
        if not node.external:
            guests[place].append(node)
    for place, nodes in guests.items():
        vcpus, memory = sum(n.vcpus for n in nodes), sum(n.memory_bytes for n in nodes)
        if vcpus > places[place].vcpus:
            violations.append(f"{place!r} has {places[place].vcpus} vCPUs, {vcpus} are used")
        if memory > places[place].memory_bytes:
            violations.append(
                f"{place!r} has {places[place].memory_bytes} bytes of memory, {memory} are used"
            )
        if len(nodes) > 1 and not revisitation:
            violations.append(f"{place!r} holds {len(nodes)} virtual nodes, one is allowed")


def _check_constraints(node: RequestNode, place: SubstrateNode, violations: list[str]) -> None:
    if (node.external or node.node) and node.node != place.name:
        violations.append(f"{node.name!r} is fixed to {node.node!r} but is on {place.name!r}")
    if node.external:
        return
    if not place.schedulable:
        violations.append(f"{node.name!r} is on {place.name!r}, which takes no guests")
    if node.location and place.location != node.location:
        violations.append(
            f"{node.name!r} must be at {node.location!r} but {place.name!r} is at {place.location!r}"
        )
    if node.image and place.images is not None and node.image not in place.images:
        violations.append(f"{node.name!r} needs the image {node.image!r}, which {place.name!r} lacks")


def _check_links(substrate: Substrate, request: Request, mapping: Mapping, violations: list[str]) -> None:
    used: dict[str, int] = defaultdict(int)
    for link in request.links:
        path = mapping.paths.get(link.name)
        if path is None or not _is_walk(substrate, link, path, violations):
            continue
        _check_ends(link, path, mapping, violations)
        delays = {item.name: item.delay_ns for item in substrate.links}
        delay = sum(delays[name] for name in path.links)
        if link.max_delay_ns and delay > link.max_delay_ns:
            violations.append(
                f"the path of {link.name!r} takes {delay} ns, {link.max_delay_ns} ns are allowed"
            )
        for name in path.links:
            used[name] += link.bandwidth_bps
    for item in substrate.links:
        if used[item.name] > item.capacity_bps:
            violations.append(f"{item.name!r} has {item.capacity_bps} bit/s, {used[item.name]} are used")


def _is_walk(substrate: Substrate, link: RequestLink, path: Path, violations: list[str]) -> bool:
    """Each link of the path joins the nodes that it stands between, nodes in between let frames through."""
    ends = {item.name: {item.a, item.b} for item in substrate.links}
    transit = {item.name: item.transit for item in substrate.nodes}
    before = len(violations)
    if len(path.nodes) != len(path.links) + 1:
        violations.append(
            f"the path of {link.name!r} has {len(path.nodes)} nodes and {len(path.links)} links"
        )
        return False
    for (here, there), name in zip(pairwise(path.nodes), path.links, strict=True):
        if ends.get(name) != {here, there}:
            violations.append(
                f"the path of {link.name!r} is broken: {name!r} does not join {here!r} and {there!r}"
            )
    for node in path.nodes[1:-1]:
        if not transit.get(node, False):
            violations.append(f"the path of {link.name!r} goes through {node!r}, which lets nothing through")
    return len(violations) == before


def _check_ends(link: RequestLink, path: Path, mapping: Mapping, violations: list[str]) -> None:
    wanted = (mapping.nodes.get(link.a), mapping.nodes.get(link.b))
    if (path.nodes[0], path.nodes[-1]) != wanted:
        violations.append(
            f"the path of {link.name!r} joins {path.nodes[0]!r} and {path.nodes[-1]!r}, not {wanted}"
        )
