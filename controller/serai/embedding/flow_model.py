"""Embedding as a mixed-integer program: which place each virtual node has, and which share of each virtual
link flows over each direction of each substrate link.

This is the multi-commodity flow formulation on the augmented graph of Chowdhury et al. (ViNEYard, IEEE/ACM
ToN 2012) with the flow on a meta edge set equal to the share of the node placed there, which is what it is in
every integer solution; the relaxation is tighter for it. With integer variables a link has one path; relaxed,
it may split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serai.embedding.bounds import Candidates
from serai.embedding.graph import Floats, SubstrateGraph
from serai.embedding.linear_program import LinearProgram
from serai.embedding.model import Mapping, Path, Request

LEAST_COST = 1e-4
"""Of a hop of a best-effort link, so that its path does not wander."""


@dataclass(frozen=True)
class FlowModel:
    """The program and the numbers of its variables.

    `places[v]` maps substrate nodes to variables. `flows[l][2 * e]` is the share of virtual link l that takes
    substrate link e from its `a` to its `b`, and `flows[l][2 * e + 1]` the other way.
    """

    graph: SubstrateGraph
    request: Request
    program: LinearProgram
    places: list[dict[int, int]]
    flows: list[range]

    def shares(self, values: Floats, node: int) -> dict[int, float]:
        """How much of a virtual node is on each substrate node."""
        return {place: max(0.0, float(values[i])) for place, i in self.places[node].items()}

    def start(self, mapping: Mapping) -> list[float]:
        """The values of all variables for a mapping."""
        values = [0.0] * len(self.program.costs)
        for variables, node in zip(self.places, self.request.nodes, strict=True):
            values[variables[self.graph.number[mapping.nodes[node.name]]]] = 1.0
        for flow, link in zip(self.flows, self.request.links, strict=True):
            path = mapping.paths[link.name]
            for here, name in zip(path.nodes, path.links, strict=False):
                step = self.graph.link_number[name]
                forwards = self.graph.ends[step][0] == self.graph.number[here]
                values[flow[2 * step + (not forwards)]] = 1.0
        return values

    def mapping(self, values: Floats) -> Mapping:
        """The mapping of an integer solution; whole cycles beside a path are left out."""
        graph = self.graph
        chosen = [max(variables, key=lambda place: values[variables[place]]) for variables in self.places]
        number = {node.name: i for i, node in enumerate(self.request.nodes)}
        paths = {}
        for flow, link in zip(self.flows, self.request.links, strict=True):
            used = [i for i in range(2 * graph.links) if values[flow[i]] > 0.5]
            paths[link.name] = self._path(used, chosen[number[link.a]], chosen[number[link.b]])
        nodes = {
            node.name: graph.substrate.nodes[place].name
            for node, place in zip(self.request.nodes, chosen, strict=True)
        }
        return Mapping(nodes, paths)

    def _path(self, used: list[int], source: int, target: int) -> Path:
        route, node = list[int](), source
        steps = {arc_ends(self.graph, arc): arc for arc in used}
        onward = {tail: arc for (tail, _), arc in steps.items()}
        while node != target:
            arc = onward[node]
            route.append(arc // 2)
            node = arc_ends(self.graph, arc)[1]
        return self.graph.path(source, route)


def arc_ends(graph: SubstrateGraph, arc: int) -> tuple[int, int]:
    """Tail and head of a direction of a substrate link."""
    a, b = graph.ends[arc // 2]
    return (b, a) if arc % 2 else (a, b)


def build(
    graph: SubstrateGraph,
    request: Request,
    candidates: Candidates,
    *,
    revisitation: bool,
    integer: bool,
    balance: bool,
    divisible: bool = False,
) -> FlowModel:
    """The program of a request.

    It minimises bandwidth times hops in units of the request's mean bandwidth, or with `balance` (the
    objective of D-ViNE and R-ViNE) every amount over what is free there. Unless `divisible`, links that could
    not carry a virtual link whole are closed to it.
    """
    program = LinearProgram(integer=integer)
    vcpus, memory = graph.vcpus.tolist(), graph.memory.tolist()
    places: list[dict[int, int]] = []
    for node in request.nodes:
        variables = {}
        for name in candidates[node.name]:
            place = graph.number[name]
            load = node.vcpus / (vcpus[place] + 1) + node.memory_bytes / (memory[place] + 1)
            variables[place] = program.variable(load if balance else 0.0)
        places.append(variables)
        program.row(list(variables.values()), [1.0] * len(variables), 1.0, 1.0)
    flows = [
        _flow_variables(graph, program, request, link, balance=balance, divisible=divisible)
        for link in range(len(request.links))
    ]
    model = FlowModel(graph, request, program, places, flows)
    _bound_nodes(model, revisitation)
    _bound_links(model)
    _conserve(model)
    if integer and not revisitation:
        _leave_the_node(model)
    return model


def _flow_variables(
    graph: SubstrateGraph,
    program: LinearProgram,
    request: Request,
    link: int,
    *,
    balance: bool,
    divisible: bool,
) -> range:
    bandwidths = [item.bandwidth_bps for item in request.links]
    demand = bandwidths[link]
    mean = max(1.0, sum(bandwidths) / len(bandwidths))
    before = len(program.costs)
    for arc in range(2 * graph.links):
        free = int(graph.capacity[arc // 2])
        a, b = graph.ends[arc // 2]
        cost = demand / (free + 1) if balance else demand / mean
        is_open = a != b and (divisible or free >= demand)
        program.variable(max(cost, LEAST_COST), float(is_open))
    return range(before, len(program.costs))


def _bound_nodes(model: FlowModel, revisitation: bool) -> None:
    graph, nodes = model.graph, model.request.nodes
    for place in range(graph.nodes):
        here = [(v, variables[place]) for v, variables in enumerate(model.places) if place in variables]
        guests = [(v, i) for v, i in here if not nodes[v].external]
        if not guests:
            continue
        columns = [i for _, i in guests]
        for demands, free in (
            ([nodes[v].vcpus for v, _ in guests], int(graph.vcpus[place])),
            ([nodes[v].memory_bytes for v, _ in guests], int(graph.memory[place])),
        ):
            if sum(demands) > free:
                unit = max(demands)
                model.program.row(columns, [demand / unit for demand in demands], upper=free / unit)
        if not revisitation:
            model.program.row(columns, [1.0] * len(columns), upper=1.0)


def _bound_links(model: FlowModel) -> None:
    graph, links = model.graph, model.request.links
    demands = [link.bandwidth_bps for link in links]
    unit = max([1, *demands])
    for step in range(graph.links):
        free = int(graph.capacity[step])
        if sum(demands) > free:
            pairs = [(flow[arc], d) for flow, d in zip(model.flows, demands, strict=True)
                     for arc in (2 * step, 2 * step + 1) if d]  # fmt: skip
            model.program.row([i for i, _ in pairs], [d / unit for _, d in pairs], upper=free / unit)
    for flow, link in zip(model.flows, links, strict=True):
        if link.max_delay_ns:
            delays = np.repeat(graph.delay, 2) / link.max_delay_ns
            model.program.row(list(flow), delays.tolist(), upper=1.0)


def _conserve(model: FlowModel) -> None:
    """What leaves a substrate node less what enters it is the source's share there less the target's."""
    graph = model.graph
    number = {node.name: i for i, node in enumerate(model.request.nodes)}
    leaving: list[list[int]] = [[] for _ in range(graph.nodes)]
    entering: list[list[int]] = [[] for _ in range(graph.nodes)]
    for arc in range(2 * graph.links):
        tail, head = arc_ends(graph, arc)
        if tail != head:
            leaving[tail].append(arc)
            entering[head].append(arc)
    for flow, link in zip(model.flows, model.request.links, strict=True):
        sources, targets = model.places[number[link.a]], model.places[number[link.b]]
        if link.a == link.b:
            sources = targets = {}
        for place in range(graph.nodes):
            out, into = [flow[arc] for arc in leaving[place]], [flow[arc] for arc in entering[place]]
            source, target = _one(sources, place), _one(targets, place)
            columns = [*out, *into, *source, *target]
            signs = [1.0] * len(out) + [-1.0] * len(into) + [-1.0] * len(source) + [1.0] * len(target)
            model.program.row(columns, signs, 0.0, 0.0)
            if not graph.transit[place]:
                model.program.row([*out, *source], [1.0] * len(out) + [-1.0] * len(source), upper=0.0)


def _leave_the_node(model: FlowModel) -> None:
    """Ends on different places are at least one hop apart: true of every mapping, but not of its relaxation,
    where ends may share places half and half and need no flow at all.
    """
    node = model.request.node
    for flow, link in zip(model.flows, model.request.links, strict=True):
        if link.a != link.b and not node[link.a].external and not node[link.b].external:
            model.program.row(list(flow), [1.0] * len(flow), lower=1.0)


def _one(variables: dict[int, int], place: int) -> list[int]:
    return [variables[place]] if place in variables else []
