"""A mapping in the making, by numbers: what is placed and routed so far, what that costs, and what is still
free.

The cost of a mapping is the bandwidth that it takes from the substrate, hop by hop, in units of the request's
mean bandwidth; unrouted links and crowded places cost so much more that they are only ever a last resort.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serai.embedding.bounds import Candidates
from serai.embedding.graph import Floats, SubstrateGraph
from serai.embedding.model import Mapping, Request
from serai.embedding.paths import find_path

UNROUTED = 1e6
TOO_NARROW = 1e5
CROWDED = 1e2
TIE = 1e-3
LEAST_DEMAND = 1e-3  # best-effort links reserve nothing, yet should not wander

Route = list[int]
"""Link numbers, in order from either end."""


@dataclass(frozen=True, slots=True)
class Options:
    """Where one virtual node could go now: `scores` per substrate node, infinite where it cannot be.

    Row i of `weights` and `costs` belongs to `links[i]`, whose other end is placed.
    """

    scores: Floats
    links: list[int]
    weights: Floats
    costs: Floats


@dataclass(frozen=True, slots=True)
class Taken:
    """What one virtual node held, for putting it back."""

    node: int
    place: int
    routes: list[tuple[int, Route | None]]


class Placement:
    """Virtual nodes are placed, moved and taken away one at a time, each with its links to placed ones."""

    def __init__(
        self, graph: SubstrateGraph, request: Request, candidates: Candidates, revisitation: bool
    ) -> None:
        self.graph, self.request, self.count = graph, request, len(request.nodes)
        self._revisitation = revisitation
        number = {node.name: i for i, node in enumerate(request.nodes)}
        self._ends = [(number[link.a], number[link.b]) for link in request.links]
        self._bandwidth = [link.bandwidth_bps for link in request.links]
        self._max_delay = [link.max_delay_ns for link in request.links]
        mean = max(1.0, sum(self._bandwidth) / max(1, len(self._bandwidth)))
        self._demand = [max(bandwidth / mean, LEAST_DEMAND) for bandwidth in self._bandwidth]
        self._incident: list[list[int]] = [[] for _ in request.nodes]
        for link, (a, b) in enumerate(self._ends):
            if a != b:
                self._incident[a].append(link)
                self._incident[b].append(link)
        for links in self._incident:
            links.sort(key=lambda link: (not self._max_delay[link], -self._bandwidth[link]))
        self.traffic = [sum(self._bandwidth[link] for link in links) for links in self._incident]
        self._allowed = np.zeros((self.count, graph.nodes), dtype=bool)
        for i, node in enumerate(request.nodes):
            self._allowed[i, [graph.number[place] for place in candidates[node.name]]] = True
        self.place = [-1] * self.count
        self._routes: list[Route | None] = [None if a != b else [] for a, b in self._ends]
        self._free, self._vcpus, self._memory = graph.capacity.copy(), graph.vcpus.copy(), graph.memory.copy()
        self._guests = np.zeros(graph.nodes, dtype=np.int64)
        self._hops: Floats = np.append(np.ones(graph.links), np.inf)
        self._delays: Floats = np.append(graph.delay.astype(float), np.inf)
        self._widest = max(1.0, float(graph.adjacent_bandwidth(self._free).max(initial=0)))
        self._most_vcpus = max(1.0, float(graph.vcpus.max(initial=0)))
        self._most_memory = max(1.0, float(graph.memory.max(initial=0)))

    # What there is to choose

    def neighbours(self, node: int) -> list[int]:
        """The virtual nodes at the other ends of its links."""
        return [self._other(link, node) for link in self._incident[node]]

    def is_fixed(self, node: int) -> bool:
        """Whether there is only one place for it."""
        return bool(self._allowed[node].sum() <= 1)

    def _other(self, link: int, node: int) -> int:
        a, b = self._ends[link]
        return b if a == node else a

    def options(self, node: int) -> Options:
        """Score every place for a node that is not placed: the cost of its links to placed nodes, and that of
        what makes the rest of the request harder.
        """
        links = [link for link in self._incident[node] if self.place[self._other(link, node)] >= 0]
        sources = [self.place[self._other(link, node)] for link in links]
        weights = np.tile(self._hops, (len(links), 1))
        demands = np.array([self._bandwidth[link] for link in links], dtype=np.int64)
        weights[:, :-1][self._free < demands[:, None]] = np.inf
        costs = self.graph.costs(weights, sources)
        scores = self._link_scores(links, sources, weights, costs)
        adjacent = self.graph.adjacent_bandwidth(self._free)
        scores += TOO_NARROW * (adjacent < self.traffic[node])
        asks = self.request.nodes[node]
        left = np.minimum(
            (self._vcpus - asks.vcpus) / self._most_vcpus,
            (self._memory - asks.memory_bytes) / self._most_memory,
        )
        scores += TIE * (2 - adjacent / self._widest - left)
        fits = self._allowed[node] & (self._vcpus >= asks.vcpus) & (self._memory >= asks.memory_bytes)
        if not asks.external:
            scores += CROWDED * self._guests
            if not self._revisitation:
                fits &= self._guests == 0
        scores[~fits] = np.inf
        return Options(scores, links, weights, costs)

    def _link_scores(self, links: list[int], sources: list[int], weights: Floats, costs: Floats) -> Floats:
        if not links:
            return np.zeros(self.graph.nodes)
        reachable = np.isfinite(costs)
        bounds = np.array([self._max_delay[link] for link in links], dtype=float)
        if bounds.any():
            delays = np.where(np.isfinite(weights), self._delays, np.inf)
            fastest = self.graph.costs(delays, sources)
            reachable &= (bounds[:, None] == 0) | (fastest <= bounds[:, None])
        demands = np.array([self._demand[link] for link in links])
        scores: Floats = np.where(reachable, costs * demands[:, None], UNROUTED).sum(axis=0)
        return scores

    # Changes

    def put(self, node: int, place: int, options: Options) -> None:
        """Place a node and route its links to placed nodes: bounded delays first, then the widest."""
        self._occupy(node, place, 1)
        for row, link in enumerate(options.links):
            source = self.place[self._other(link, node)]
            route = self._route(link, source, place, options.weights[row], options.costs[row])
            self._routes[link] = route
            if route:
                self._free[route] -= self._bandwidth[link]

    def take(self, node: int) -> Taken:
        """Take a node and its routes away."""
        taken = Taken(node, self.place[node], [(link, self._routes[link]) for link in self._incident[node]])
        for link, route in taken.routes:
            if route:
                self._free[route] += self._bandwidth[link]
            self._routes[link] = None
        self._occupy(node, taken.place, -1)
        return taken

    def put_back(self, taken: Taken) -> None:
        """Undo `take`."""
        self._occupy(taken.node, taken.place, 1)
        for link, route in taken.routes:
            self._routes[link] = route
            if route:
                self._free[route] -= self._bandwidth[link]

    def clear(self) -> None:
        """Take everything away."""
        for node in range(self.count):
            if self.place[node] >= 0:
                self.take(node)

    def _occupy(self, node: int, place: int, sign: int) -> None:
        asks = self.request.nodes[node]
        self.place[node] = place if sign > 0 else -1
        self._vcpus[place] -= sign * asks.vcpus
        self._memory[place] -= sign * asks.memory_bytes
        if not asks.external:
            self._guests[place] += sign

    def _route(self, link: int, source: int, target: int, weights: Floats, costs: Floats) -> Route | None:
        route = self.graph.trace(weights, costs, source, target)
        if route is None:
            return None
        if self._suits(link, route):
            return route
        # A link routed just now took what this one counted on, or the least hops take too long.
        weights = np.append(np.where(self._free >= self._bandwidth[link], 1.0, np.inf), np.inf)
        route = self.graph.trace(weights, self.graph.costs(weights[None], [source])[0], source, target)
        if route is None or self._suits(link, route):
            return route
        return self._within_delay(link, source, target)

    def _suits(self, link: int, route: Route) -> bool:
        if any(self._free[step] < self._bandwidth[link] for step in route):
            return False
        bound = self._max_delay[link]
        return not bound or int(self.graph.delay[route].sum()) <= bound

    def _within_delay(self, link: int, source: int, target: int) -> Route | None:
        substrate = self.graph.substrate
        free = {item.name: int(amount) for item, amount in zip(substrate.links, self._free, strict=True)}
        path = find_path(
            substrate,
            free,
            substrate.nodes[source].name,
            substrate.nodes[target].name,
            bandwidth_bps=self._bandwidth[link],
            max_delay_ns=self._max_delay[link],
        )
        return None if path is None else [self.graph.link_number[name] for name in path.links]

    # What it costs

    def cost_of(self, node: int) -> float:
        """The cost of a placed node's links, and of its company."""
        links = sum(self._cost_of_link(link) for link in self._incident[node])
        if self.request.nodes[node].external:
            return links
        return links + CROWDED * float(self._guests[self.place[node]] - 1)

    def cost(self) -> float:
        """The cost of all; all nodes must be placed."""
        crowd = float((self._guests * (self._guests - 1)).sum() / 2)
        return sum(map(self._cost_of_link, range(len(self._ends)))) + CROWDED * crowd

    def _cost_of_link(self, link: int) -> float:
        route = self._routes[link]
        return UNROUTED if route is None else self._demand[link] * len(route)

    def is_complete(self) -> bool:
        """Whether every link has a route."""
        return all(route is not None for route in self._routes)

    # Results

    def snapshot(self) -> Mapping:
        """Everything that is placed and routed now, by names."""
        names = self.graph.substrate.nodes
        nodes = {
            node.name: names[place].name for node, place in zip(self.request.nodes, self.place, strict=True)
        }
        paths = {}
        for link, (a, _), route in zip(self.request.links, self._ends, self._routes, strict=True):
            if route is not None:
                paths[link.name] = self.graph.path(self.place[a], route)
        return Mapping(nodes, paths)

    def load(self, mapping: Mapping) -> None:
        """Go back to what `snapshot` gave."""
        self.clear()
        for i, node in enumerate(self.request.nodes):
            self._occupy(i, self.graph.number[mapping.nodes[node.name]], 1)
        for i, link in enumerate(self.request.links):
            path = mapping.paths.get(link.name)
            route = None if path is None else [self.graph.link_number[name] for name in path.links]
            self._routes[i] = route
            if route:
                self._free[route] -= self._bandwidth[i]
