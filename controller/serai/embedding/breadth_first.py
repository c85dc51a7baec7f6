"""RW-BFS: random-walk rank and one stage, breadth first, with steps back (Cheng et al., CCR 2011).

Virtual nodes are taken level by level from the one of the highest rank. Each goes near the place of its
parent, at once with its links to what is placed; where none of the nearby places works the node before moves
on. At most `backtracks` such steps, as in the paper, whose limit is three per virtual node.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from serai.embedding import ranking
from serai.embedding.bounds import Candidates, find_candidates, prove_infeasible
from serai.embedding.graph import SubstrateGraph
from serai.embedding.model import (
    Infeasible,
    Mapping,
    NotFound,
    Path,
    Request,
    RequestNode,
    Result,
    Substrate,
)
from serai.embedding.paths import find_path
from serai.embedding.residual import Residual
from serai.embedding.two_stage import rank_request

MAX_HOPS = 3
BACKTRACKS_PER_NODE = 3


def embed(
    substrate: Substrate,
    request: Request,
    *,
    revisitation: bool = True,
    seed: int = 0,
    time_limit: float = 5.0,
) -> Result:
    """Place `request`. Nothing is drawn, so `seed` makes no difference."""
    deadline = time.monotonic() + time_limit
    search = _prepare(substrate, request, revisitation, deadline)
    return search.run() if isinstance(search, _Search) else search


def embed_without_retry(
    substrate: Substrate,
    request: Request,
    *,
    revisitation: bool = True,
    seed: int = 0,
    time_limit: float = 5.0,
) -> Result:
    """The variant that the Virne benchmark measures: virtual nodes go to the substrate nodes as breadth-first
    search from the highest rank visits them, at most five hops deep, and the first that fails ends it.
    """
    deadline = time.monotonic() + time_limit
    search = _prepare(substrate, request, revisitation, deadline)
    return search.run_without_retry() if isinstance(search, _Search) else search


def _prepare(
    substrate: Substrate, request: Request, revisitation: bool, deadline: float
) -> _Search | Infeasible:
    candidates = find_candidates(substrate, request)
    if isinstance(candidates, Infeasible):
        return candidates
    proof = prove_infeasible(substrate, request, candidates, revisitation)
    return proof or _Search(substrate, request, candidates, revisitation, deadline=deadline)


class _Search:
    def __init__(
        self,
        substrate: Substrate,
        request: Request,
        candidates: Candidates,
        revisitation: bool,
        *,
        deadline: float,
    ) -> None:
        self._substrate, self._request, self._candidates = substrate, request, candidates
        self._revisitation, self._deadline = revisitation, deadline
        self._graph = SubstrateGraph(substrate)
        self._residual = Residual(substrate)
        ranks = ranking.random_walk(
            self._graph.vcpus.tolist(), self._graph.ends, self._graph.capacity.tolist()
        )
        self._ranked = [substrate.nodes[i].name for i in np.argsort(-ranks, kind="stable")]
        self._places: dict[str, str] = {}
        self._paths: dict[str, Path] = {}
        self._guests: dict[str, int] = {}
        self._steps = 0

    def run(self) -> Result:
        order, parents = self._order()
        tried: list[Iterator[str]] = []
        backtracks = BACKTRACKS_PER_NODE * len(order)
        while len(self._places) < len(order):
            node = order[len(self._places)]
            if len(tried) == len(self._places):
                tried.append(iter(self._near(node, parents.get(node.name))))
            if self._settle(node, tried[-1]):
                continue
            tried.pop()
            backtracks -= 1
            if not tried or backtracks < 0 or time.monotonic() > self._deadline:
                return NotFound(f"nothing found in {self._steps} steps", self._steps)
            self._remove(order[len(self._places) - 1])
        return Mapping(dict(self._places), dict(self._paths))

    def run_without_retry(self) -> Result:
        order, _ = self._order()
        visits = self._breadth_first(self._ranked[0], 5)
        for node in order:
            place = next(visits, None)
            if place is None or not self._try(node, place):
                return NotFound(f"{node.name!r} does not fit on the next place", self._steps)
        return Mapping(dict(self._places), dict(self._paths))

    def _order(self) -> tuple[list[RequestNode], dict[str, str]]:
        """Virtual nodes level by level, in each level by rank; and each node's parent. Fixed ones first."""
        ranked = [self._request.nodes[i] for i in rank_request(self._request, ranking.random_walk)]
        ranked.sort(key=lambda node: not node.node)
        position = {node.name: i for i, node in enumerate(ranked)}
        order: list[RequestNode] = []
        parents: dict[str, str] = {}
        seen: set[str] = set()
        for root in ranked:
            level = [] if root.name in seen else [root.name]
            seen.update(level)
            while level:
                order += [self._request.node[name] for name in level]
                found: list[str] = []
                for name in level:
                    for link in self._request.links_of[name]:
                        other = link.b if link.a == name else link.a
                        if other not in seen:
                            seen.add(other)
                            parents[other] = name
                            found.append(other)
                level = sorted(found, key=position.__getitem__)
        return order, parents

    def _near(self, node: RequestNode, parent: str | None) -> list[str]:
        """Candidates at most `MAX_HOPS` from the parent's place: nearest first, then by rank."""
        allowed = set(self._candidates[node.name])
        if parent is None:
            return [place for place in self._ranked if place in allowed]
        position = {place: i for i, place in enumerate(self._ranked)}
        reached = dict(self._levels(self._places[parent], MAX_HOPS))
        places = [place for place in reached if place in allowed]
        if node.node or not places:
            places = list(self._candidates[node.name])
        return sorted(places, key=lambda place: (reached.get(place, MAX_HOPS + 1), position[place]))

    def _breadth_first(self, source: str, depth: int) -> Iterator[str]:
        for place, _ in self._levels(source, depth):
            yield place

    def _levels(self, source: str, depth: int) -> Iterator[tuple[str, int]]:
        seen, level = {source}, [source]
        for hops in range(depth + 1):
            yield from ((place, hops) for place in level)
            following = []
            for place in level:
                for neighbour, _ in self._substrate.adjacent[place]:
                    if neighbour not in seen:
                        seen.add(neighbour)
                        following.append(neighbour)
            level = following

    def _settle(self, node: RequestNode, places: Iterator[str]) -> bool:
        for place in places:
            if time.monotonic() > self._deadline:
                return False
            if self._try(node, place):
                return True
        return False

    def _try(self, node: RequestNode, place: str) -> bool:
        self._steps += 1
        taken = self._guests.get(place, 0) and not (self._revisitation or node.external)
        if taken or place not in self._candidates[node.name] or not self._residual.fits(node, place):
            return False
        self._residual.take_node(node, place)
        self._places[node.name] = place
        self._guests[place] = self._guests.get(place, 0) + (not node.external)
        for link in self._request.links_of[node.name]:
            if link.a not in self._places or link.b not in self._places:
                continue
            path = find_path(
                self._substrate,
                self._residual.bandwidth_bps,
                place,
                self._places[link.b if link.a == node.name else link.a],
                bandwidth_bps=link.bandwidth_bps,
                max_delay_ns=link.max_delay_ns,
            )
            if path is None:
                self._remove(node)
                return False
            self._residual.take_path(path, link.bandwidth_bps)
            self._paths[link.name] = path if link.a == node.name else _reversed(path)
        return True

    def _remove(self, node: RequestNode) -> None:
        for link in self._request.links_of[node.name]:
            path = self._paths.pop(link.name, None)
            if path is not None:
                self._residual.give_path(path, link.bandwidth_bps)
        place = self._places.pop(node.name)
        self._residual.give_node(node, place)
        self._guests[place] -= not node.external


def _reversed(path: Path) -> Path:
    return Path(path.nodes[::-1], path.links[::-1])
