"""Rank-based embedding in two stages: all nodes first, by rank, then every link on one of its shortest paths.

Baselines of the literature, as the Virne benchmark runs them (k = 10 paths per link, no steps back). What
they have in common is that places are chosen before anybody looks for a path.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np

from serai.embedding import ranking
from serai.embedding.bounds import Candidates, find_candidates, prove_infeasible
from serai.embedding.graph import Floats, SubstrateGraph
from serai.embedding.model import Infeasible, Mapping, NotFound, Path, Request, Result, Substrate
from serai.embedding.residual import Residual

PATHS = 10


@dataclass(frozen=True, slots=True)
class Stage:
    """What the choice of a place may look at: the graph, what is free, and the places chosen so far."""

    graph: SubstrateGraph
    residual: Residual
    placed: list[int]

    @property
    def vcpus(self) -> list[int]:
        """Free vCPUs per substrate node."""
        return list(self.residual.vcpus.values())

    @property
    def bandwidths(self) -> list[int]:
        """Free bandwidth per substrate link."""
        return list(self.residual.bandwidth_bps.values())


Scores = Callable[[Stage], Floats]
"""How good each place is for the next node."""


def _by_rank(rank: ranking.Rank, stage: Stage) -> Floats:
    """As things were before the first node was placed."""
    graph = stage.graph
    return rank(graph.vcpus.tolist(), graph.ends, graph.capacity.tolist())


def _proximity(stage: Stage) -> Floats:
    """NRM over the hops to all places chosen so far (Fan et al., IEEE TPDS 2021)."""
    hops = np.zeros(stage.graph.nodes)
    for place in stage.placed:
        hops += [len(route) for route in _tree(stage.graph, place)]
    result: Floats = ranking.nrm(stage.vcpus, stage.graph.ends, stage.bandwidths) / (hops + 1e-6)
    return result


def _essentiality(stage: Stage) -> Floats:
    """Degree over the hops to the places chosen so far, times the bandwidth per hop on the way there (Fan et
    al., IEEE TPDS 2023).
    """
    graph, free = stage.graph, stage.bandwidths
    degree = np.array([len(row) for row in graph.rows], dtype=float)
    hops, bandwidth = np.zeros(graph.nodes), np.ones(graph.nodes)
    for place in stage.placed:
        routes = _tree(graph, place)
        hops += [len(route) for route in routes]
        bandwidth += [sum(free[link] for link in route) / (len(route) + 1e-6) for route in routes]
    result: Floats = degree / (1 + hops) * (1 + bandwidth)
    return result


def _tree(graph: SubstrateGraph, source: int) -> list[list[int]]:
    """A route of the fewest hops from `source` to every node; to what cannot be reached, one of all links."""
    routes = [list(range(graph.links))] * graph.nodes
    routes[source] = []
    reached, queue = {source}, [source]
    for node in queue:
        for neighbour, link in graph.rows[node]:
            if neighbour not in reached:
                reached.add(neighbour)
                routes[neighbour] = [*routes[node], link]
                queue.append(neighbour)
    return routes


def embed(
    substrate: Substrate,
    request: Request,
    *,
    revisitation: bool = True,
    seed: int = 0,
    time_limit: float = 5.0,
    order: ranking.Rank,
    scores: Scores,
) -> Result:
    """Take nodes in descending `order`, give each the fitting place of the greatest score, then route.

    Nothing is drawn, so `seed` makes no difference.
    """
    deadline = time.monotonic() + time_limit
    candidates = find_candidates(substrate, request)
    if isinstance(candidates, Infeasible):
        return candidates
    proof = prove_infeasible(substrate, request, candidates, revisitation)
    if proof is not None:
        return proof
    stage = Stage(SubstrateGraph(substrate), Residual(substrate), [])
    places = _place(
        stage,
        request,
        candidates,
        revisitation=revisitation,
        order=rank_request(request, order),
        scores=scores,
    )
    if isinstance(places, NotFound):
        return places
    return _route(stage, request, places, deadline)


def rank_request(request: Request, order: ranking.Rank) -> list[int]:
    """The request's nodes in descending rank, by number."""
    number = {node.name: i for i, node in enumerate(request.nodes)}
    ends = [(number[link.a], number[link.b]) for link in request.links]
    ranks = order(
        [node.vcpus for node in request.nodes], ends, [link.bandwidth_bps for link in request.links]
    )
    return [int(i) for i in np.argsort(-ranks, kind="stable")]


def _place(
    stage: Stage,
    request: Request,
    candidates: Candidates,
    *,
    revisitation: bool,
    order: list[int],
    scores: Scores,
) -> dict[str, str] | NotFound:
    places: dict[str, str] = {}
    taken: set[str] = set()
    fixed_first = sorted(order, key=lambda i: not request.nodes[i].node)
    for step, i in enumerate(fixed_first):
        node = request.nodes[i]
        score = scores(stage)
        fitting = [
            place
            for place in candidates[node.name]
            if stage.residual.fits(node, place) and (node.external or revisitation or place not in taken)
        ]
        if not fitting:
            return NotFound(f"no place is left for {node.name!r} by its rank", step)
        place = max(fitting, key=lambda name: score[stage.graph.number[name]])
        stage.residual.take_node(node, place)
        stage.placed.append(stage.graph.number[place])
        places[node.name] = place
        if not node.external:
            taken.add(place)
    return places


def _route(stage: Stage, request: Request, places: dict[str, str], deadline: float) -> Result:
    graph, residual = stage.graph, stage.residual
    paths: dict[str, Path] = {}
    for step, link in enumerate(request.links):
        source, target = graph.number[places[link.a]], graph.number[places[link.b]]
        for route in shortest_routes(graph, source, target, PATHS):
            if time.monotonic() > deadline:
                return NotFound("the time is over; a mapping may still exist", step)
            wide = all(
                residual.bandwidth_bps[graph.substrate.links[i].name] >= link.bandwidth_bps for i in route
            )
            if wide and (not link.max_delay_ns or int(graph.delay[route].sum()) <= link.max_delay_ns):
                paths[link.name] = graph.path(source, route)
                residual.take_path(paths[link.name], link.bandwidth_bps)
                break
        else:
            return NotFound(f"none of the {PATHS} shortest paths suits the link {link.name!r}", step)
    return Mapping(places, paths)


# Paths


def shortest_routes(graph: SubstrateGraph, source: int, target: int, most: int) -> Iterator[list[int]]:
    """At most `most` loopless routes in the order of hops (Yen, Management Science 1971), as link numbers."""
    first = _shortest(graph, source, target, (), ())
    if first is None:
        return
    order = count()
    found: list[list[int]] = []
    queue = [(len(first), next(order), first)]
    known = {tuple(first)}
    while queue and len(found) < most:
        route = heapq.heappop(queue)[2]
        found.append(route)
        yield route
        nodes = _nodes(graph, source, route)
        for i in range(len(route)):
            root = route[:i]
            closed = {other[i] for other in found if other[:i] == root}
            spur = _shortest(graph, nodes[i], target, nodes[:i], closed)
            if spur is not None and (*root, *spur) not in known:
                known.add((*root, *spur))
                heapq.heappush(queue, (i + len(spur), next(order), root + spur))


def _nodes(graph: SubstrateGraph, source: int, route: list[int]) -> list[int]:
    nodes = [source]
    for link in route:
        a, b = graph.ends[link]
        nodes.append(b if nodes[-1] == a else a)
    return nodes


def _shortest(
    graph: SubstrateGraph, source: int, target: int, avoided: Collection[int], closed: Collection[int]
) -> list[int] | None:
    """Breadth-first search around the nodes and links that are closed."""
    if source == target:
        return []
    before = {source: (-1, -1)}
    queue = [source]
    for node in queue:
        if node != source and not graph.transit[node]:
            continue
        for neighbour, link in graph.rows[node]:
            if neighbour in before or neighbour in avoided or link in closed:
                continue
            before[neighbour] = (node, link)
            if neighbour == target:
                return _walk_back(before, target)
            queue.append(neighbour)
    return None


def _walk_back(before: dict[int, tuple[int, int]], target: int) -> list[int]:
    route: list[int] = []
    node, link = before[target]
    while link >= 0:
        route.append(link)
        node, link = before[node]
    return route[::-1]


grc = partial(embed, order=ranking.grc, scores=partial(_by_rank, ranking.grc))
nrm = partial(embed, order=ranking.nrm, scores=partial(_by_rank, ranking.nrm))
random_walk = partial(embed, order=ranking.random_walk, scores=partial(_by_rank, ranking.random_walk))
proximity = partial(embed, order=ranking.nrm, scores=_proximity)
essentiality = partial(embed, order=ranking.nea, scores=_essentiality)
