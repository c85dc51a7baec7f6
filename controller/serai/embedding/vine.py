"""D-ViNE and R-ViNE: relax the program, then round node by node, deterministically or at random (Chowdhury,
Rahman, Boutaba: ViNEYard, IEEE/ACM ToN 2012).
"""

from __future__ import annotations

import random
import time
from functools import partial

from serai.embedding.bounds import Candidates, find_candidates, prove_infeasible
from serai.embedding.flow_model import FlowModel, build
from serai.embedding.graph import SubstrateGraph
from serai.embedding.linear_program import Status
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


def embed(
    substrate: Substrate,
    request: Request,
    *,
    revisitation: bool = True,
    seed: int = 0,
    time_limit: float = 5.0,
    randomised: bool = False,
) -> Result:
    """Round the relaxation, then route each link on its shortest path with room, the widest first.

    With `randomised` (R-ViNE) a place is drawn in proportion to its share, otherwise it is the one of the
    greatest share. Raises UnavailableError without HiGHS.
    """
    places = round_nodes(
        substrate,
        request,
        revisitation=revisitation,
        seed=seed,
        time_limit=time_limit,
        randomised=randomised,
    )
    return _route(substrate, request, places) if isinstance(places, dict) else places


def round_nodes(
    substrate: Substrate,
    request: Request,
    *,
    revisitation: bool,
    seed: int,
    time_limit: float,
    randomised: bool,
) -> dict[str, str] | Infeasible | NotFound:
    """The first stage: places for all nodes."""
    deadline = time.monotonic() + time_limit
    candidates = find_candidates(substrate, request)
    if isinstance(candidates, Infeasible):
        return candidates
    proof = prove_infeasible(substrate, request, candidates, revisitation)
    if proof is not None:
        return proof
    graph = SubstrateGraph(substrate)
    model = build(graph, request, candidates, revisitation=revisitation, integer=False, balance=True)
    solved = model.program.solve(seed=seed, time_limit=deadline - time.monotonic())
    if solved.status is Status.INFEASIBLE:
        message = "no placement has room for all links at once, even with split nodes and split paths"
        return Infeasible("bandwidth", "", message)
    if solved.status is not Status.OPTIMAL or solved.values is None:
        return NotFound("the relaxation was not solved in time", 0)
    shares = [model.shares(solved.values, node) for node in range(len(request.nodes))]
    draw = random.Random(seed) if randomised else None
    return _Rounding(model, candidates, revisitation, draw).run(shares)


class _Rounding:
    def __init__(
        self, model: FlowModel, candidates: Candidates, revisitation: bool, draw: random.Random | None
    ) -> None:
        self._model, self._candidates, self._draw = model, candidates, draw
        self._revisitation = revisitation
        self._residual = Residual(model.graph.substrate)
        self._taken: set[str] = set()

    def run(self, shares: list[dict[int, float]]) -> dict[str, str] | NotFound:
        nodes = self._model.request.nodes
        places: dict[str, str] = {}
        for step, i in enumerate(sorted(range(len(nodes)), key=lambda i: not nodes[i].node)):
            place = self._choose(nodes[i], shares[i])
            if place is None:
                return NotFound(f"no place is left for {nodes[i].name!r} after rounding", step)
            places[nodes[i].name] = place
            self._residual.take_node(nodes[i], place)
            if not nodes[i].external:
                self._taken.add(place)
        return places

    def _choose(self, node: RequestNode, shares: dict[int, float]) -> str | None:
        number = self._model.graph.number
        fitting = [
            place
            for place in self._candidates[node.name]
            if self._residual.fits(node, place)
            and (node.external or self._revisitation or place not in self._taken)
        ]
        if not fitting:
            return None
        # The flow on a meta edge is in proportion to the share, and the paper's weight is their product.
        weights = [shares[number[place]] ** 2 for place in fitting]
        if self._draw is None:
            return max(zip(weights, fitting, strict=True), key=lambda pair: pair[0])[1]
        if not sum(weights):
            return self._draw.choice(fitting)
        return self._draw.choices(fitting, weights)[0]


def _route(substrate: Substrate, request: Request, places: dict[str, str]) -> Result:
    residual = Residual(substrate)
    paths: dict[str, Path] = {}
    for step, link in enumerate(
        sorted(request.links, key=lambda link: (not link.max_delay_ns, -link.bandwidth_bps))
    ):
        path = find_path(
            substrate,
            residual.bandwidth_bps,
            places[link.a],
            places[link.b],
            bandwidth_bps=link.bandwidth_bps,
            max_delay_ns=link.max_delay_ns,
        )
        if path is None:
            return NotFound(f"no path is left for the link {link.name!r} after rounding", step)
        residual.take_path(path, link.bandwidth_bps)
        paths[link.name] = path
    return Mapping(places, paths)


deterministic = partial(embed, randomised=False)
randomised = partial(embed, randomised=True)
