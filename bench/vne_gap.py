"""How far algorithms are from the optimum: 50-node substrates under load, beside a mixed-integer program.

Some requests are embedded first and stay, so that what is left is uneven; then every algorithm and the exact
program get the next requests on the same residual substrate. Where the program does not finish in time its
bound stands for the optimum, so that gaps are never understated.
"""

from __future__ import annotations

from statistics import mean

from bench.vne_instances import Arrival, Instance, Setting, draw
from bench.vne_simulation import hops_times_bandwidth

from serai.embedding import Mapping, Residual, check
from serai.embedding.exact import minimise
from serai.embedding.registry import algorithm

SETTING = Setting(substrate_nodes=50, requests=400, request_nodes=(2, 6))
ALGORITHMS = ("joint", "greedy", "grc", "nrm", "rw", "pl", "rw-bfs", "d-vine", "r-vine")


def measure_gap(
    seeds: range, *, loaded: int = 30, measured: int = 10, time_limit: float = 20.0
) -> dict[str, object]:
    gaps: dict[str, list[float]] = {name: [] for name in ALGORITHMS}
    missed = dict.fromkeys(ALGORITHMS, 0)
    optimal = feasible = 0
    for seed in seeds:
        instance = draw(seed, SETTING)
        residual, waiting = _load(instance, loaded)
        for arrival in waiting[:measured]:
            request, free = arrival.request(), residual.as_substrate()
            exact = minimise(free, request, revisitation=False, seed=seed, time_limit=time_limit)
            optimal += exact.optimal
            if not isinstance(exact.result, Mapping):
                continue
            feasible += 1
            unit = max(1.0, sum(link.bandwidth_bps for link in request.links) / len(request.links))
            for name in ALGORITHMS:
                result = algorithm(name)(free, request, revisitation=False, seed=seed, time_limit=5.0)
                if not isinstance(result, Mapping):
                    missed[name] += 1
                    continue
                assert not check(free, request, result, revisitation=False)
                least = max(exact.bound * unit, 1.0)
                gaps[name].append(max(0.0, hops_times_bandwidth(request, result) / least - 1))
            residual.reserve(request, exact.result)
    return {
        "setting": "Waxman 50 nodes, 2-6 virtual nodes, residual of 30 requests that stay",
        "requests": len(seeds) * measured,
        "feasible": feasible,
        "proved_optimal": optimal,
        "algorithms": [
            {"name": name, "gap_mean": mean(found or [0.0]), "gap_max": max(found, default=0.0),
             "missed": missed[name]}
            for name, found in gaps.items()
        ],
    }  # fmt: skip


def _load(instance: Instance, loaded: int) -> tuple[Residual, list[Arrival]]:
    residual = Residual(instance.substrate())
    for i, arrival in enumerate(instance.arrivals[:loaded]):
        request = arrival.request()
        result = algorithm("joint")(
            residual.as_substrate(), request, revisitation=False, seed=i, time_limit=5.0
        )
        if isinstance(result, Mapping):
            residual.reserve(request, result)
    return residual, list(instance.arrivals[loaded:])
