"""The exact algorithm: a mixed-integer program with one path per link (binary flows), solved by HiGHS."""

from __future__ import annotations

import time
from dataclasses import dataclass

from serai.embedding import joint
from serai.embedding.bounds import find_candidates, prove_infeasible
from serai.embedding.checker import check
from serai.embedding.flow_model import build
from serai.embedding.graph import SubstrateGraph
from serai.embedding.linear_program import Status
from serai.embedding.model import Infeasible, Mapping, NotFound, Request, Result, Substrate


@dataclass(frozen=True, slots=True)
class Optimum:
    """`cost` is bandwidth times hops in units of the request's mean bandwidth, and none is below `bound`;
    they are equal (to 1e-6) when `optimal`.
    """

    result: Result
    cost: float
    bound: float
    optimal: bool


def embed(
    substrate: Substrate,
    request: Request,
    *,
    revisitation: bool = True,
    seed: int = 0,
    time_limit: float = 5.0,
) -> Result:
    """The mapping that takes the least bandwidth, or the best that was found in `time_limit` seconds.

    Raises UnavailableError without HiGHS.
    """
    return minimise(substrate, request, revisitation=revisitation, seed=seed, time_limit=time_limit).result


def minimise(
    substrate: Substrate,
    request: Request,
    *,
    revisitation: bool = True,
    seed: int = 0,
    time_limit: float = 5.0,
) -> Optimum:
    """As `embed`, with the bound; begins with the mapping of `joint`, which may use half of the time."""
    deadline = time.monotonic() + time_limit
    candidates = find_candidates(substrate, request)
    if isinstance(candidates, Infeasible):
        return _none(candidates)
    proof = prove_infeasible(substrate, request, candidates, revisitation)
    if proof is not None:
        return _none(proof)
    first = joint.embed(substrate, request, revisitation=revisitation, seed=seed, time_limit=time_limit / 2)
    graph = SubstrateGraph(substrate)
    model = build(graph, request, candidates, revisitation=revisitation, integer=True, balance=False)
    start = model.start(first) if isinstance(first, Mapping) else None
    left = deadline - time.monotonic()
    solved = model.program.solve(seed=seed, time_limit=left, start=start)
    if solved.status is Status.INFEASIBLE and start is None:
        message = "the solver proves that no placement has paths for all links at once"
        return _none(Infeasible("placement", "", message))
    if solved.values is None:
        fallback = first if isinstance(first, Mapping) else NotFound("the solver ran out of time", 0)
        return Optimum(fallback, solved.objective, solved.bound, False)
    mapping = model.mapping(solved.values)
    if check(substrate, request, mapping, revisitation=revisitation):
        # Within the solver's tolerance is not within capacity.
        return Optimum(
            NotFound("the solver's solution is not exact", 0), solved.objective, solved.bound, False
        )
    return Optimum(mapping, solved.objective, solved.bound, solved.status is Status.OPTIMAL)


def _none(result: Result) -> Optimum:
    return Optimum(result, float("inf"), float("inf"), True)
