"""Greedy embedding in one stage: place a node, route its links to what is placed already, step back where
that fails.

The order of nodes and places follows the usual rank of residual capacity times adjacent bandwidth (Yu et al.,
CCR 2008, "Rethinking Virtual Network Embedding"), divided by the distance to placed neighbours. Where
revisitation is allowed it is the last resort: emulated guests are bound by CPU, so a request is spread over
nodes first.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from serai.embedding.bounds import Candidates, find_candidates, prove_infeasible
from serai.embedding.model import (
    Infeasible,
    Mapping,
    NotFound,
    Path,
    Request,
    RequestLink,
    RequestNode,
    Result,
    Substrate,
)
from serai.embedding.paths import find_path
from serai.embedding.residual import Residual

MAX_STEPS = 20_000


def embed(
    substrate: Substrate,
    request: Request,
    *,
    revisitation: bool = True,
    seed: int = 0,
    time_limit: float = 5.0,
    max_steps: int = MAX_STEPS,
) -> Result:
    """Place `request` on what is free of `substrate`.

    `revisitation` allows several virtual nodes on one substrate node; `seed` breaks ties; `time_limit` is
    seconds, and a step is one attempt to place one node. The same arguments give the same result unless time
    runs out.
    """
    candidates = find_candidates(substrate, request)
    if isinstance(candidates, Infeasible):
        return candidates
    proof = prove_infeasible(substrate, request, candidates, revisitation)
    if proof is not None:
        return proof
    return _Search(substrate, request, candidates, revisitation, seed).run(time_limit, max_steps)


@dataclass(slots=True)
class _Frame:
    """One virtual node in the search: the places still to be tried, and what the current one holds."""

    node: RequestNode
    places: Iterator[str]
    place: str = ""
    paths: dict[str, Path] = field(default_factory=dict)


class _LimitReachedError(Exception):
    """Leaves the search, never this module."""


class _Search:
    def __init__(
        self, substrate: Substrate, request: Request, candidates: Candidates, revisitation: bool, seed: int
    ) -> None:
        self._substrate = substrate
        self._request = request
        self._candidates = candidates
        self._revisitation = revisitation
        self._random = random.Random(seed)
        self._residual = Residual(substrate)
        self._placed: dict[str, str] = {}
        self._distances: dict[str, dict[str, int]] = {}
        self._guests_on: dict[str, int] = {}
        self._unrouted = ""
        self._steps = 0
        self._total_vcpus = max(1, sum(node.vcpus for node in substrate.nodes))
        self._total_memory = max(1, sum(node.memory_bytes for node in substrate.nodes))

    def run(self, time_limit: float, max_steps: int) -> Result:
        self._deadline = time.monotonic() + time_limit
        self._max_steps = max_steps
        order = self._order()
        frames: list[_Frame] = []
        try:
            while len(frames) < len(order):
                frames.append(self._frame(order[len(frames)]))
                while not self._advance(frames[-1]):
                    frames.pop()
                    if not frames:
                        return self._exhausted()
        except _LimitReachedError:
            return NotFound(f"nothing found in {self._steps} steps; it may still exist", self._steps)
        paths = {name: path for frame in frames for name, path in frame.paths.items()}
        return Mapping(dict(self._placed), paths)

    def _count_step(self) -> None:
        if self._steps >= self._max_steps or time.monotonic() > self._deadline:
            raise _LimitReachedError
        self._steps += 1

    def _exhausted(self) -> Result:
        if not self._unrouted:
            # Places were tried in all combinations and no link ever failed: this is a proof.
            message = "the virtual nodes fit one by one, but not all together, on the nodes that suit them"
            return Infeasible("placement", "", message)
        message = f"no place found where the link {self._unrouted!r} finds a path beside the others"
        return NotFound(message, self._steps)

    # Order

    def _order(self) -> list[RequestNode]:
        """Fixed nodes first; then always the highest rank among the neighbours of what is there."""
        waiting = {node.name: node for node in self._request.nodes}
        order: list[RequestNode] = []
        near: set[str] = set()
        ranks = {node.name: self._demand(node) for node in self._request.nodes}
        while waiting:
            name = max(waiting, key=lambda n: (bool(waiting[n].node), n in near, ranks[n], n))
            order.append(waiting.pop(name))
            for link in self._request.links_of[name]:
                near.add(_other_end(link, name))
        return order

    def _demand(self, node: RequestNode) -> float:
        share = node.vcpus / self._total_vcpus + node.memory_bytes / self._total_memory
        return share * (1 + sum(link.bandwidth_bps for link in self._request.links_of[node.name]))

    def _frame(self, node: RequestNode) -> _Frame:
        fitting = [place for place in self._candidates[node.name] if self._residual.fits(node, place)]
        if not self._revisitation and not node.external:
            fitting = [place for place in fitting if not self._guests_on.get(place)]
        ranked = sorted(fitting, key=lambda place: self._rank(node, place), reverse=True)
        return _Frame(node, iter(ranked))

    def _rank(self, node: RequestNode, place: str) -> tuple[int, float, float]:
        substrate_node = self._substrate.node[place]
        vcpus = (self._residual.vcpus[place] - node.vcpus) / max(1, substrate_node.vcpus)
        memory = (self._residual.memory_bytes[place] - node.memory_bytes) / max(
            1, substrate_node.memory_bytes
        )
        bandwidth = sum(
            self._residual.bandwidth_bps[link.name] for _, link in self._substrate.adjacent[place]
        )
        hops = 0
        for link in self._request.links_of[node.name]:
            neighbour = self._placed.get(_other_end(link, node.name))
            if neighbour is not None:
                hops += self._hops(neighbour).get(place, len(self._substrate.nodes))
        score = (0.01 + min(vcpus, memory)) * (1 + bandwidth) / (1 + hops)
        return -self._guests_on.get(place, 0), score, self._random.random()

    def _hops(self, source: str) -> dict[str, int]:
        if source not in self._distances:
            distance = {source: 0}
            queue = deque([source])
            while queue:
                node = queue.popleft()
                for neighbour, _ in self._substrate.adjacent[node]:
                    if neighbour not in distance:
                        distance[neighbour] = distance[node] + 1
                        queue.append(neighbour)
            self._distances[source] = distance
        return self._distances[source]

    # Steps

    def _advance(self, frame: _Frame) -> bool:
        """Take the frame's next place that works, giving back the one before."""
        self._undo(frame)
        for place in frame.places:
            self._count_step()
            self._take(frame, place)
            if self._route(frame):
                return True
            self._undo(frame)
        return False

    def _take(self, frame: _Frame, place: str) -> None:
        self._residual.take_node(frame.node, place)
        frame.place = place
        self._placed[frame.node.name] = place
        if not frame.node.external:
            self._guests_on[place] = self._guests_on.get(place, 0) + 1

    def _undo(self, frame: _Frame) -> None:
        if not frame.place:
            return
        for name, path in frame.paths.items():
            self._residual.give_path(path, self._request.link[name].bandwidth_bps)
        frame.paths.clear()
        self._residual.give_node(frame.node, frame.place)
        if not frame.node.external:
            self._guests_on[frame.place] -= 1
        del self._placed[frame.node.name]
        frame.place = ""

    def _route(self, frame: _Frame) -> bool:
        """Route the links from this node to those that are placed: bounded delays first, then the widest."""
        links = [
            link
            for link in self._request.links_of[frame.node.name]
            if _other_end(link, frame.node.name) in self._placed
        ]
        for link in sorted(links, key=lambda link: (not link.max_delay_ns, -link.bandwidth_bps)):
            path = find_path(
                self._substrate,
                self._residual.bandwidth_bps,
                self._placed[link.a],
                self._placed[link.b],
                bandwidth_bps=link.bandwidth_bps,
                max_delay_ns=link.max_delay_ns,
            )
            if path is None:
                self._unrouted = link.name
                return False
            self._residual.take_path(path, link.bandwidth_bps)
            frame.paths[link.name] = path
        return True


def _other_end(link: RequestLink, node: str) -> str:
    return link.b if link.a == node else link.a
