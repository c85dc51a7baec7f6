"""Requests come and go on one substrate: acceptance, revenue to cost, seconds per request.

Revenue and cost as in Virne's evaluation (docs/source/evaluation/metrics.rst): revenue is the sum of demanded
vCPUs and bandwidths, cost counts every bandwidth once per hop; both weighted by the life of the request.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.vne_instances import Instance

from serai.embedding import Mapping, Request, Residual, Result, Substrate, check

Embedder = Callable[[Substrate, Request, int], Result]


@dataclass
class Outcome:
    """What one algorithm did with one instance."""

    accepted: list[bool] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    revenue: float = 0.0
    cost: float = 0.0

    @property
    def acceptance(self) -> float:
        return sum(self.accepted) / len(self.accepted)

    @property
    def revenue_to_cost(self) -> float:
        return self.revenue / self.cost if self.cost else 0.0


def simulate(instance: Instance, embedder: Embedder, *, requests: int | None = None) -> Outcome:
    """Offer every request in the order of arrival; AssertionError for a mapping that the checker refuses."""
    residual, outcome = Residual(instance.substrate()), Outcome()
    leaving: list[tuple[float, int, Request, Mapping]] = []
    for number, arrival in enumerate(instance.arrivals[:requests]):
        while leaving and leaving[0][0] < arrival.time:
            _, _, request, mapping = heapq.heappop(leaving)
            residual.release(request, mapping)
        request, free = arrival.request(), residual.as_substrate()
        begin, cpu = time.perf_counter(), time.process_time()
        result = embedder(free, request, number)
        outcome.seconds.append(time.perf_counter() - begin)
        outcome.cpu_seconds.append(time.process_time() - cpu)
        outcome.accepted.append(isinstance(result, Mapping))
        if not isinstance(result, Mapping):
            continue
        violations = check(free, request, result, revisitation=False)
        assert not violations, violations
        residual.reserve(request, result)
        heapq.heappush(leaving, (arrival.time + arrival.life, number, request, result))
        vcpus = sum(arrival.vcpus)
        outcome.revenue += arrival.life * (vcpus + sum(link.bandwidth_bps for link in request.links))
        outcome.cost += arrival.life * (vcpus + hops_times_bandwidth(request, result))
    return outcome


def hops_times_bandwidth(request: Request, mapping: Mapping) -> int:
    """The bandwidth that a mapping takes from the substrate."""
    return sum(link.bandwidth_bps * len(mapping.paths[link.name].links) for link in request.links)
