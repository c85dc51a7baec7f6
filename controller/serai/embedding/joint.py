"""The default: nodes and links placed together, from several starts, then improved node by node.

A start places the node with the most traffic somewhere good and then, again and again, the node with the
most traffic among the neighbours of what is there: on the place where the least-cost paths to its placed
neighbours, over links that still have the bandwidth, take the least bandwidth in all. That is the difference
from the rank-based algorithms, which choose places first and look for paths afterwards. The best starts are
improved: each node in turn is taken out and put where its links cost least, until none moves (local search
in the one-move neighbourhood). Cost is bandwidth times hops; what is saved is left for later requests.

What each part gives, measured, is in docs/embedding.md.
"""

from __future__ import annotations

import random
import time

import numpy as np

from serai.embedding import greedy
from serai.embedding.bounds import find_candidates, prove_infeasible
from serai.embedding.graph import SubstrateGraph
from serai.embedding.model import Infeasible, Mapping, NotFound, Request, Result, Substrate
from serai.embedding.placement import Placement

STARTS = 6
IMPROVED = 2
MAX_SWEEPS = 6
MAX_STEPS = 100_000
MOVES_TRIED = 2
# Up to so many pairs of virtual node and place, the complete search with steps back is worth its time.
SMALL = 128
IMPROVEMENT = 1e-6


def embed(
    substrate: Substrate,
    request: Request,
    *,
    revisitation: bool = True,
    seed: int = 0,
    time_limit: float = 5.0,
    max_steps: int = MAX_STEPS,
) -> Result:
    """Place `request` on what is free of `substrate`, taking as little bandwidth as can be found.

    `revisitation` allows several virtual nodes on one substrate node, as the last resort; `seed` orders the
    improvement; `time_limit` is seconds, and a step is one attempt to place one node. The same arguments give
    the same result unless time runs out.
    """
    deadline = time.monotonic() + time_limit
    candidates = find_candidates(substrate, request)
    if isinstance(candidates, Infeasible):
        return candidates
    proof = prove_infeasible(substrate, request, candidates, revisitation)
    if proof is not None:
        return proof
    placement = Placement(SubstrateGraph(substrate), request, candidates, revisitation)
    search = Search(placement, seed, deadline, max_steps)
    found = search.run()
    if found is not None:
        return found
    if sum(map(len, candidates.values())) <= SMALL:
        left = max(0.0, deadline - time.monotonic())
        steps = max(0, max_steps - search.steps)
        return greedy.embed(
            substrate, request, revisitation=revisitation, seed=seed, time_limit=left, max_steps=steps
        )
    return NotFound(f"nothing found in {search.steps} steps; it may still exist", search.steps)


class _LimitReachedError(Exception):
    """Leaves the search, never this module."""


class Search:
    """Starts and improvement over one placement."""

    def __init__(self, placement: Placement, seed: int, deadline: float, max_steps: int) -> None:
        self._placement = placement
        self._random = random.Random(seed)
        self._deadline, self._max_steps = deadline, max_steps
        self._best: Mapping | None = None
        self._best_cost = float("inf")
        self.steps = 0

    def run(self) -> Mapping | None:
        """The cheapest complete mapping that was found."""
        try:
            for _, snapshot in self._starts()[:IMPROVED]:
                self._placement.load(snapshot)
                self._improve()
        except _LimitReachedError:
            pass
        return self._best

    def _count_step(self) -> None:
        if self.steps >= self._max_steps or time.monotonic() > self._deadline:
            raise _LimitReachedError
        self.steps += 1

    def _note(self) -> float:
        """Keep the mapping as it is now if it is complete and the cheapest so far; its cost."""
        cost = self._placement.cost()
        if cost < self._best_cost and self._placement.is_complete():
            self._best_cost, self._best = cost, self._placement.snapshot()
        return cost

    # Starts

    def _starts(self) -> list[tuple[float, Mapping]]:
        """Cheapest first. Starts differ in the place of the first node that has a choice."""
        order, pivot = self.order()
        found: list[tuple[float, Mapping]] = []
        for start in range(STARTS):
            if not self.construct(order, pivot, start):
                continue
            found.append((self._note(), self._placement.snapshot()))
            if pivot is None:
                break
        return sorted(found, key=lambda item: item[0])

    def order(self) -> tuple[list[int], int | None]:
        """Nodes without a choice first, then always the one with the most traffic among the neighbours of
        what is there; and the first that has a choice.
        """
        placement = self._placement
        waiting, near, order = set(range(placement.count)), set[int](), list[int]()
        fixed = [placement.is_fixed(node) for node in range(placement.count)]
        vcpus = [node.vcpus for node in placement.request.nodes]
        while waiting:
            node = max(waiting, key=lambda i: (fixed[i], i in near, placement.traffic[i], vcpus[i], -i))
            waiting.remove(node)
            order.append(node)
            near.update(placement.neighbours(node))
        return order, next((node for node in order if not fixed[node]), None)

    def construct(self, order: list[int], pivot: int | None, start: int) -> bool:
        """Place all nodes, the pivot on its `start`-th best place; False where that is not possible."""
        self._placement.clear()
        for node in order:
            self._count_step()
            options = self._placement.options(node)
            place = int(options.scores.argmin())
            if node == pivot and start:
                ranked = np.argsort(options.scores, kind="stable")
                if start >= len(ranked):
                    return False
                place = int(ranked[start])
            if not np.isfinite(options.scores[place]):
                return False
            self._placement.put(node, place, options)
        return True

    # Improvement

    def _improve(self) -> None:
        for _ in range(MAX_SWEEPS):
            order = list(range(self._placement.count))
            self._random.shuffle(order)
            moved = [self.move(node) for node in order]
            if not any(moved):
                return
            self._note()

    def move(self, node: int) -> bool:
        """Put a node where its links cost less, if there is such a place."""
        self._count_step()
        placement = self._placement
        before = placement.cost_of(node)
        taken = placement.take(node)
        options = placement.options(node)
        for place in np.argsort(options.scores, kind="stable")[:MOVES_TRIED].tolist():
            if options.scores[place] >= before - IMPROVEMENT:
                break
            placement.put(node, place, options)
            if placement.cost_of(node) < before - IMPROVEMENT:
                return True
            placement.take(node)
        placement.put_back(taken)
        return False
