"""Proofs that a request cannot be embedded: necessary conditions that fail, each naming the resource that is
short.

Each is a relaxation of the problem, so a failure is a proof and its absence says nothing (embedding is
NP-hard).
"""

from __future__ import annotations

from collections.abc import Callable

from serai.embedding.model import Infeasible, Request, RequestLink, RequestNode, Substrate, SubstrateNode
from serai.embedding.paths import fastest, widest

Candidates = dict[str, tuple[str, ...]]
"""Virtual node -> the substrate nodes that could hold it alone."""


def find_candidates(substrate: Substrate, request: Request) -> Candidates | Infeasible:
    """The places of every virtual node, or why one of them has none."""
    result: Candidates = {}
    for node in request.nodes:
        found = _external(substrate, node) if node.external else _places(substrate, node)
        if isinstance(found, Infeasible):
            return found
        result[node.name] = found
    return result


def prove_infeasible(
    substrate: Substrate, request: Request, candidates: Candidates, revisitation: bool
) -> Infeasible | None:
    """The first necessary condition that fails, or None."""
    return (
        _distinct(request, candidates, revisitation)
        or _total(substrate, request, candidates)
        or _links(substrate, request, candidates)
    )


def _external(substrate: Substrate, node: RequestNode) -> tuple[str, ...] | Infeasible:
    if node.node in substrate.node:
        return (node.node,)
    place = node.node or "no node"
    return Infeasible(
        "node", node.name, f"the external end {node.name!r} is fixed to {place!r}, which does not exist"
    )


def _places(substrate: Substrate, node: RequestNode) -> tuple[str, ...] | Infeasible:
    """Narrow step by step; the step after which nothing is left names what is missing."""
    found = [item for item in substrate.nodes if not node.node or item.name == node.node]
    if not found:
        return Infeasible(
            "node", node.name, f"{node.name!r} must be on the node {node.node!r}, which does not exist"
        )
    steps: list[tuple[str, str, Callable[[SubstrateNode], bool]]] = [
        ("node", "no node takes guests now", lambda item: item.schedulable),
        ("location", f"no node is at {node.location!r}", lambda item: node.location in ("", item.location)),
        (
            "image",
            f"no node there has the image {node.image!r}",
            lambda item: not node.image or item.images is None or node.image in item.images,
        ),
    ]
    for resource, message, holds in steps:
        found = [item for item in found if holds(item)]
        if not found:
            return Infeasible(resource, node.name, f"{node.name!r} has no place: {message}")
    return _roomy(node, found)


def _roomy(node: RequestNode, found: list[SubstrateNode]) -> tuple[str, ...] | Infeasible:
    vcpus = max(item.vcpus for item in found)
    memory = max(item.memory_bytes for item in found)
    who, where = f"{node.name!r} asks for", "a single node"
    if node.vcpus > vcpus:
        return _short("vcpus", node.name, f"{who} {node.vcpus} vCPUs; {where}", node.vcpus, vcpus)
    asks = f"{who} {node.memory_bytes} bytes of memory; {where}"
    if node.memory_bytes > memory:
        return _short("memory", node.name, asks, node.memory_bytes, memory)
    fitting = [item for item in found if node.vcpus <= item.vcpus]
    roomy = tuple(item.name for item in fitting if node.memory_bytes <= item.memory_bytes)
    if roomy:
        return roomy
    best = max(item.memory_bytes for item in fitting)
    return _short("memory", node.name, f"{asks} with {node.vcpus} vCPUs", node.memory_bytes, best)


def _short(resource: str, element: str, message: str, asked: int, available: int) -> Infeasible:
    message += f" has at most {available} free"
    return Infeasible(resource, element, message, asked, available)


def _distinct(request: Request, candidates: Candidates, revisitation: bool) -> Infeasible | None:
    """Without revisitation every node needs a place of its own: a bipartite matching (Hall's condition)."""
    if revisitation:
        return None
    guests = [node.name for node in request.nodes if not node.external]
    owner: dict[str, str] = {}
    for count, name in enumerate(guests):
        if not _augment(name, candidates, owner):
            message = f"no node is left for {name!r}: every virtual node was asked to be on a node of its own"
            return Infeasible("nodes", name, message, len(guests), count)
    return None


def _augment(name: str, candidates: Candidates, owner: dict[str, str]) -> bool:
    """Breadth-first search for an augmenting path from `name`."""
    reached_from: dict[str, str] = {}
    queue = [name]
    for guest in queue:
        for place in candidates[guest]:
            if place in reached_from:
                continue
            reached_from[place] = guest
            if place not in owner:
                _shift(place, name, reached_from, owner)
                return True
            queue.append(owner[place])
    return False


def _shift(place: str, name: str, reached_from: dict[str, str], owner: dict[str, str]) -> None:
    while True:
        guest = reached_from[place]
        left = next((old for old, who in owner.items() if who == guest), "")
        owner[place] = guest
        if guest == name:
            return
        place = left


def _total(substrate: Substrate, request: Request, candidates: Candidates) -> Infeasible | None:
    places = {place for found in candidates.values() for place in found}
    usable = [substrate.node[name] for name in sorted(places) if substrate.node[name].schedulable]
    vcpus, memory = sum(i.vcpus for i in request.nodes), sum(i.memory_bytes for i in request.nodes)
    free_vcpus, free_memory = sum(i.vcpus for i in usable), sum(i.memory_bytes for i in usable)
    where = "the total of all suitable nodes"
    if vcpus > free_vcpus:
        message = f"the request asks for {vcpus} vCPUs; {where}"
        return _short("vcpus", "", message, vcpus, free_vcpus)
    if memory > free_memory:
        message = f"the request asks for {memory} bytes of memory; {where}"
        return _short("memory", "", message, memory, free_memory)
    return None


def _links(substrate: Substrate, request: Request, candidates: Candidates) -> Infeasible | None:
    free = {link.name: link.capacity_bps for link in substrate.links}
    for link in request.links:
        sources, targets = set(candidates[link.a]), set(candidates[link.b])
        if sources.isdisjoint(targets):
            short = _link(substrate, free, link, sources, targets)
            if short is not None:
                return short
    return None


def _link(
    substrate: Substrate, free: dict[str, int], link: RequestLink, sources: set[str], targets: set[str]
) -> Infeasible | None:
    ends = f"the link {link.name!r} from {link.a!r} to {link.b!r}"
    width = widest(substrate, free, sources, targets)
    if width is None:
        return Infeasible(
            "path", link.name, f"{ends}: no path leads from any place of one to any place of the other"
        )
    if width < link.bandwidth_bps:
        message = (
            f"{ends} asks for {link.bandwidth_bps} bit/s; the most that any path has free is {width} bit/s"
        )
        return Infeasible("bandwidth", link.name, message, link.bandwidth_bps, width)
    delay = fastest(substrate, free, sources, targets, link.bandwidth_bps)
    if link.max_delay_ns and delay is not None and delay > link.max_delay_ns:
        message = (
            f"{ends} may take {link.max_delay_ns / 1e6:g} ms; the fastest path with "
            f"{link.bandwidth_bps} bit/s free takes {delay / 1e6:g} ms"
        )
        return Infeasible("delay", link.name, message, link.max_delay_ns, delay)
    return None
