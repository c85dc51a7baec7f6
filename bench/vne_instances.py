"""Online embedding instances: the Waxman setting of the Virne benchmark, and smaller ones of the same kind.

The draws follow the order in which Virne 1.0.0 makes them (arXiv and repository GeminiLight/virne: Waxman
substrate, Erdos-Renyi requests, Poisson intervals, exponential lives), so that equal seeds give equal
instances. Amounts are Virne's own units; bandwidths stand in the place of bit/s.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from serai.embedding import Request, RequestLink, RequestNode, Substrate, SubstrateLink, SubstrateNode

Edge = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Setting:
    """What an instance is drawn from; the defaults are Virne's WX100 with 0.16 arrivals per time unit."""

    substrate_nodes: int = 100
    waxman_beta: float = 0.5
    waxman_alpha: float = 0.2
    capacity: tuple[int, int] = (50, 100)
    requests: int = 1000
    request_nodes: tuple[int, int] = (2, 10)
    link_probability: float = 0.5
    vcpus: tuple[int, int] = (0, 20)
    bandwidth: tuple[int, int] = (0, 50)
    arrival_rate: float = 0.16
    mean_life: float = 500.0


@dataclass(frozen=True)
class Arrival:
    """One request, when it comes and how long it stays."""

    time: float
    life: float
    vcpus: tuple[int, ...]
    links: tuple[tuple[int, int, int], ...]

    def request(self) -> Request:
        nodes = tuple(RequestNode(f"v{i}", vcpus) for i, vcpus in enumerate(self.vcpus))
        links = tuple(
            RequestLink(f"v{a}-v{b}", f"v{a}", f"v{b}", bandwidth) for a, b, bandwidth in self.links
        )
        return Request(nodes, links)


@dataclass(frozen=True)
class Instance:
    """A substrate and the requests that arrive at it."""

    seed: int
    vcpus: tuple[int, ...]
    positions: tuple[tuple[float, float], ...]
    links: tuple[tuple[int, int, int], ...]
    arrivals: tuple[Arrival, ...]

    def substrate(self) -> Substrate:
        nodes = tuple(SubstrateNode(f"s{i}", vcpus, 0) for i, vcpus in enumerate(self.vcpus))
        links = tuple(
            SubstrateLink(f"s{a}-s{b}", f"s{a}", f"s{b}", capacity) for a, b, capacity in self.links
        )
        return Substrate(nodes, links)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), separators=(",", ":")))

    @staticmethod
    def load(path: Path) -> Instance:
        data = json.loads(path.read_text())
        arrivals = tuple(
            Arrival(item["time"], item["life"], tuple(item["vcpus"]), tuple(map(tuple, item["links"])))
            for item in data["arrivals"]
        )
        positions = tuple(map(tuple, data["positions"]))
        links = tuple(map(tuple, data["links"]))
        return Instance(data["seed"], tuple(data["vcpus"]), positions, links, arrivals)


def draw(seed: int, setting: Setting = Setting()) -> Instance:
    """The instance of a seed."""
    topology, amounts = random.Random(seed), np.random.RandomState(seed)
    positions, edges = _waxman(topology, setting)
    vcpus = _uniform(amounts, setting.capacity, setting.substrate_nodes)
    links = _weighted(edges, _uniform(amounts, setting.capacity, len(edges)))
    # Virne seeds anew between the substrate and the requests.
    topology, amounts = random.Random(seed), np.random.RandomState(seed)
    sizes = _uniform(amounts, setting.request_nodes, setting.requests)
    lives = amounts.exponential(setting.mean_life, setting.requests)
    times = np.cumsum(amounts.poisson(1 / setting.arrival_rate, setting.requests))
    arrivals = []
    for size, life, time in zip(sizes, lives, times, strict=True):
        edges = _connected_random(topology, size, setting.link_probability)
        demand = _uniform(amounts, setting.vcpus, size)
        widths = _uniform(amounts, setting.bandwidth, len(edges))
        arrivals.append(Arrival(float(time), float(life), demand, _weighted(edges, widths)))
    return Instance(seed, vcpus, positions, links, tuple(arrivals))


def _uniform(amounts: np.random.RandomState, bounds: tuple[int, int], count: int) -> tuple[int, ...]:
    return tuple(int(amount) for amount in amounts.randint(bounds[0], bounds[1] + 1, count))


def _weighted(edges: list[Edge], amounts: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    return tuple((a, b, amount) for (a, b), amount in zip(edges, amounts, strict=True))


def _waxman(topology: random.Random, setting: Setting) -> tuple[tuple[tuple[float, float], ...], list[Edge]]:
    """Waxman, "Routing of multipoint connections" (IEEE JSAC 1988): nodes in the unit square, joined with the
    probability beta * exp(-distance / (alpha * greatest distance)); drawn until connected.
    """
    count = setting.substrate_nodes
    while True:
        positions = tuple((topology.uniform(0, 1), topology.uniform(0, 1)) for _ in range(count))
        longest = max(math.dist(p, q) for p, q in combinations(positions, 2))
        edges = [
            (a, b)
            for a, b in combinations(range(count), 2)
            if topology.random()
            < setting.waxman_beta
            * math.exp(-math.dist(positions[a], positions[b]) / (setting.waxman_alpha * longest))
        ]
        if _is_connected(count, edges):
            return positions, edges


def _connected_random(topology: random.Random, count: int, probability: float) -> list[Edge]:
    while True:
        edges = [edge for edge in combinations(range(count), 2) if topology.random() < probability]
        if _is_connected(count, edges):
            return edges


def _is_connected(count: int, edges: list[Edge]) -> bool:
    group = list(range(count))
    for a, b in edges:
        first, second = group[a], group[b]
        if first != second:
            group = [first if item == second else item for item in group]
    return len(set(group)) == 1
