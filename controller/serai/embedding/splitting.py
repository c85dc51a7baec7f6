"""Path splitting: a virtual link may be carried by several paths at once, each with its part of the bandwidth
(Yu et al., "Rethinking Virtual Network Embedding", CCR 2008).

Placing is another algorithm's first stage; the links of all its nodes are then routed together as one
multi-commodity flow, a linear program. Serai's data plane gives every virtual link one path, so split
mappings are for comparison and for substrates that can divide flows: they have a type and a checker of their
own, and `solve` never returns one.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass

from serai.embedding import vine
from serai.embedding.bounds import Candidates, find_candidates
from serai.embedding.checker import check
from serai.embedding.flow_model import FlowModel, arc_ends, build
from serai.embedding.graph import Floats, SubstrateGraph
from serai.embedding.linear_program import Status
from serai.embedding.model import (
    Infeasible,
    Mapping,
    NotFound,
    Path,
    Request,
    RequestLink,
    Substrate,
)
from serai.embedding.residual import Residual
from serai.errors import CapacityError

NEGLIGIBLE = 1e-9


@dataclass(frozen=True, slots=True)
class Flow:
    """A part of a virtual link's bandwidth on one path."""

    path: Path
    bandwidth_bps: int


@dataclass(frozen=True)
class SplitMapping:
    """Where every virtual node goes, and the flows of every virtual link, which add up to its bandwidth."""

    nodes: dict[str, str]
    flows: dict[str, tuple[Flow, ...]]


def embed(
    substrate: Substrate,
    request: Request,
    *,
    revisitation: bool = True,
    seed: int = 0,
    time_limit: float = 5.0,
    randomised: bool = False,
) -> SplitMapping | Infeasible | NotFound:
    """D-ViNE, or R-ViNE if `randomised`, with splittable links. Raises UnavailableError without HiGHS."""
    deadline = time.monotonic() + time_limit
    places = vine.round_nodes(
        substrate,
        request,
        revisitation=revisitation,
        seed=seed,
        time_limit=time_limit,
        randomised=randomised,
    )
    if not isinstance(places, dict):
        return places
    return route(substrate, request, places, seed=seed, time_limit=deadline - time.monotonic())


def route(
    substrate: Substrate, request: Request, places: dict[str, str], *, seed: int = 0, time_limit: float = 5.0
) -> SplitMapping | NotFound:
    """Split the links of placed nodes so that they take the least bandwidth in all.

    Flows are whole bit/s. A path that a flow needs may be slower than the link allows; then, as for lack of
    bandwidth or time, the answer is NotFound.
    """
    candidates = find_candidates(substrate, request)
    if isinstance(candidates, Infeasible):
        return NotFound(candidates.message, 0)
    fixed: Candidates = {name: (place,) for name, place in places.items()}
    graph = SubstrateGraph(substrate)
    model = build(graph, request, fixed, revisitation=True, integer=False, balance=False, divisible=True)
    solved = model.program.solve(seed=seed, time_limit=time_limit)
    if solved.status is not Status.OPTIMAL or solved.values is None:
        return NotFound("the links of these places do not fit, however they are split", 0)
    residual = Residual(substrate)
    flows: dict[str, tuple[Flow, ...]] = {}
    for i, link in enumerate(request.links):
        found = _whole_flows(_decompose(model, solved.values, i, places), link, residual)
        if found is None:
            return NotFound(f"the flows of {link.name!r} are too slow, or do not fit as whole bit/s", i)
        flows[link.name] = found
    return SplitMapping(places, flows)


def _decompose(
    model: FlowModel, values: Floats, number: int, places: dict[str, str]
) -> list[tuple[Path, float]]:
    """The paths of a flow and the share of each: always along what is left, until nothing is (flow
    decomposition; at most one path per substrate link and direction).
    """
    graph, link = model.graph, model.request.links[number]
    source, target = graph.number[places[link.a]], graph.number[places[link.b]]
    left = {arc: float(values[i]) for arc, i in enumerate(model.flows[number]) if values[i] > NEGLIGIBLE}
    found: list[tuple[Path, float]] = []
    if source == target:
        return [(graph.path(source, []), 1.0)]
    while (arcs := _walk(graph, left, source, target)) is not None:
        share = min(left[arc] for arc in arcs)
        for arc in arcs:
            left[arc] -= share
            if left[arc] <= NEGLIGIBLE:
                del left[arc]
        found.append((graph.path(source, [arc // 2 for arc in arcs]), share))
    return found


def _walk(graph: SubstrateGraph, left: dict[int, float], source: int, target: int) -> list[int] | None:
    onward: dict[int, list[int]] = defaultdict(list)
    for arc in left:
        onward[arc_ends(graph, arc)[0]].append(arc)
    before: dict[int, int] = {}
    queue = [source]
    for node in queue:
        for arc in onward[node]:
            head = arc_ends(graph, arc)[1]
            if head != source and head not in before:
                before[head] = arc
                queue.append(head)
    if target not in before:
        return None
    arcs: list[int] = []
    node = target
    while node != source:
        arcs.append(before[node])
        node = arc_ends(graph, before[node])[0]
    return arcs[::-1]


def _whole_flows(
    shares: list[tuple[Path, float]], link: RequestLink, residual: Residual
) -> tuple[Flow, ...] | None:
    """Round shares down to whole bit/s and give what is left over to the paths that have room; reserve it."""
    if not shares:
        return None
    delay = {item.name: item.delay_ns for item in residual.substrate.links}
    for path, _ in shares:
        if link.max_delay_ns and sum(delay[name] for name in path.links) > link.max_delay_ns:
            return None
    amounts = [min(int(share * link.bandwidth_bps), _room(path, residual)) for path, share in shares]
    try:
        for (path, _), amount in zip(shares, amounts, strict=True):
            residual.take_path(path, amount)
    except CapacityError:
        return None
    left = link.bandwidth_bps - sum(amounts)
    for i, (path, _) in enumerate(shares):
        extra = max(0, min(left, _room(path, residual)))
        residual.take_path(path, extra)
        amounts[i], left = amounts[i] + extra, left - extra
    if left:
        return None
    flows = [Flow(path, amount) for (path, _), amount in zip(shares, amounts, strict=True)]
    return tuple(flow for flow in flows if flow.bandwidth_bps) or (flows[0],)


def _room(path: Path, residual: Residual) -> int:
    free = [residual.bandwidth_bps[name] for name in path.links]
    return min(free, default=2**63)


# Checking and books


def as_whole(request: Request, mapping: SplitMapping) -> tuple[Request, Mapping]:
    """The same without splitting: a request in which every flow is a link of its own, and its mapping. For
    `Residual.reserve` and `release`, and for the checker.
    """
    links: list[RequestLink] = []
    paths: dict[str, Path] = {}
    for link in request.links:
        for i, flow in enumerate(mapping.flows.get(link.name, ())):
            name = f"{link.name}/{i}"
            links.append(RequestLink(name, link.a, link.b, flow.bandwidth_bps, link.max_delay_ns))
            paths[name] = flow.path
    return Request(request.nodes, tuple(links)), Mapping(mapping.nodes, paths)


def check_split(
    substrate: Substrate, request: Request, mapping: SplitMapping, *, revisitation: bool = True
) -> tuple[str, ...]:
    """Everything that a split mapping violates; flows must add up to what their link asks for."""
    violations = [
        f"{name!r} is no virtual link of the request" for name in mapping.flows if name not in request.link
    ]
    for link in request.links:
        flows = mapping.flows.get(link.name, ())
        carried = sum(flow.bandwidth_bps for flow in flows)
        if not flows or carried != link.bandwidth_bps:
            violations.append(f"the flows of {link.name!r} carry {carried} of {link.bandwidth_bps} bit/s")
    whole, unsplit = as_whole(request, mapping)
    return (*violations, *check(substrate, whole, unsplit, revisitation=revisitation))
