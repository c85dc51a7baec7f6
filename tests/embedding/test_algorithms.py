"""What every algorithm promises: valid mappings, true proofs, the same again, in time."""

from __future__ import annotations

import sys
import time
from itertools import pairwise

import numpy as np
import pytest
from bench.vne_instances import Instance, Setting, draw
from bench.vne_simulation import hops_times_bandwidth, simulate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serai.embedding import (
    Infeasible,
    Mapping,
    NotFound,
    Request,
    RequestLink,
    RequestNode,
    Residual,
    Substrate,
    SubstrateLink,
    SubstrateNode,
    check,
    names,
    ranking,
    solve,
)
from serai.embedding.bounds import find_candidates
from serai.embedding.breadth_first import embed_without_retry
from serai.embedding.exact import minimise
from serai.embedding.graph import SubstrateGraph
from serai.embedding.joint import Search, embed
from serai.embedding.paths import find_path
from serai.embedding.placement import Placement
from serai.embedding.registry import algorithm
from serai.embedding.splitting import Flow, SplitMapping, as_whole, check_split, route
from serai.embedding.splitting import embed as embed_splitting
from serai.embedding.two_stage import shortest_routes
from serai.errors import NotFoundError, UnavailableError

from .strategies import all_mappings, brute_force, requests, simple_paths, substrates

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
BUILT_IN = ("d-vine", "exact", "grc", "greedy", "joint", "nea", "nrm", "pl", "r-vine", "rw", "rw-bfs")
SMALL = Setting(substrate_nodes=20, waxman_beta=0.9, requests=12, request_nodes=(2, 5))


def test_the_algorithms_have_names() -> None:
    assert set(BUILT_IN) <= set(names())
    with pytest.raises(NotFoundError, match="joint"):
        algorithm("nobody")


@pytest.mark.parametrize("name", BUILT_IN)
@given(data=st.data(), revisitation=st.booleans(), seed=st.integers(0, 3))
@QUICK
def test_mappings_are_valid_and_proofs_are_true(
    name: str, data: st.DataObject, revisitation: bool, seed: int
) -> None:
    substrate = data.draw(substrates())
    request = data.draw(requests(substrate))
    result = algorithm(name)(substrate, request, revisitation=revisitation, seed=seed, time_limit=5.0)
    again = algorithm(name)(substrate, request, revisitation=revisitation, seed=seed, time_limit=5.0)
    assert result == again
    if isinstance(result, Mapping):
        assert check(substrate, request, result, revisitation=revisitation) == ()
    elif isinstance(result, Infeasible):
        assert brute_force(substrate, request, revisitation) is None


@given(data=st.data(), revisitation=st.booleans())
@QUICK
def test_exact_is_complete_and_the_cheapest(data: st.DataObject, revisitation: bool) -> None:
    substrate = data.draw(substrates(max_nodes=4))
    request = data.draw(requests(substrate))
    best = minimise(substrate, request, revisitation=revisitation, time_limit=20.0)
    costs = [hops_times_bandwidth(request, item) for item in all_mappings(substrate, request, revisitation)]
    assert best.optimal
    assert isinstance(best.result, Mapping) == bool(costs)
    if isinstance(best.result, Mapping):
        assert hops_times_bandwidth(request, best.result) == min(costs)
        assert best.bound <= best.cost + 1e-6


def loaded(seed: int, requests_kept: int) -> tuple[Residual, Instance]:
    instance = draw(seed, SMALL)
    residual = Residual(instance.substrate())
    for arrival in instance.arrivals[:requests_kept]:
        result = algorithm("joint")(
            residual.as_substrate(), arrival.request(), revisitation=False, seed=0, time_limit=5.0
        )
        if isinstance(result, Mapping):
            residual.reserve(arrival.request(), result)
    return residual, instance


def test_joint_is_near_the_optimum_and_finds_what_exists() -> None:
    costs = optimum = 0
    for seed in range(3):
        residual, instance = loaded(seed, 6)
        free = residual.as_substrate()
        for arrival in instance.arrivals[6:8]:
            request = arrival.request()
            best = minimise(free, request, revisitation=False, time_limit=20.0)
            assert best.optimal
            if not isinstance(best.result, Mapping):
                continue
            ours = solve(free, request, revisitation=False)
            assert hops_times_bandwidth(request, ours) >= hops_times_bandwidth(request, best.result)
            costs += hops_times_bandwidth(request, ours)
            optimum += hops_times_bandwidth(request, best.result)
    assert optimum > 0
    assert costs <= 1.1 * optimum


def test_an_improvement_never_makes_it_worse() -> None:
    """Also where links of one node compete, so that its scores are too good."""
    moved = 0
    for seed in range(3):
        instance = draw(
            seed, Setting(substrate_nodes=40, requests=8, request_nodes=(7, 9), bandwidth=(20, 50))
        )
        free = instance.substrate()
        for arrival in instance.arrivals:
            request = arrival.request()
            candidates = find_candidates(free, request)
            assert not isinstance(candidates, Infeasible)
            placement = Placement(SubstrateGraph(free), request, candidates, False)
            search = Search(placement, seed, time.monotonic() + 60, 10**6)
            assert search.construct(*search.order(), 3)
            cost = placement.cost()
            for node in [*range(placement.count)] * 2:
                better = search.move(node)
                assert placement.cost() < cost if better else placement.cost() == pytest.approx(cost)
                cost, moved = placement.cost(), moved + better
    assert moved


def grid(side: int, capacity: int = 100) -> Substrate:
    nodes = tuple(SubstrateNode(f"{x},{y}", 100, 100) for x in range(side) for y in range(side))
    links = tuple(
        SubstrateLink(f"{a.name}-{b}", a.name, b, capacity, 1)
        for a in nodes
        for x, y in [map(int, a.name.split(","))]
        for b in (f"{x + 1},{y}", f"{x},{y + 1}")
        if max(map(int, b.split(","))) < side
    )
    return Substrate(nodes, links)


def clique(count: int, bandwidth: int) -> Request:
    nodes = tuple(RequestNode(f"v{i}", 10, 10) for i in range(count))
    links = tuple(
        RequestLink(f"e{a}-{b}", f"v{a}", f"v{b}", bandwidth, 50) for a in range(count) for b in range(a)
    )
    return Request(nodes, links)


@pytest.mark.parametrize("name", BUILT_IN)
def test_time_is_limited(name: str) -> None:
    """A clique that no grid can carry, far from a proof."""
    substrate, request = grid(12), clique(14, 30)
    begin = time.monotonic()
    result = algorithm(name)(substrate, request, revisitation=False, seed=0, time_limit=0.2)
    assert time.monotonic() - begin < 6
    assert not isinstance(result, Infeasible)


def test_what_was_found_before_the_time_was_over_is_kept() -> None:
    substrate = grid(10)
    chain = tuple(RequestLink(f"e{a}", f"v{a}", f"v{b}", 1) for a, b in pairwise(range(60)))
    request = Request(tuple(RequestNode(f"v{i}", 1, 1) for i in range(60)), chain)
    full = algorithm("joint")(substrate, request, revisitation=False, seed=0, time_limit=60.0)
    assert isinstance(full, Mapping)
    short = embed(substrate, request, revisitation=False, max_steps=70)
    assert isinstance(short, Mapping)
    assert check(substrate, request, short, revisitation=False) == ()
    assert isinstance(embed(substrate, request, revisitation=False, max_steps=59), NotFound)


def test_joint_is_quick_on_small_instances() -> None:
    nodes = tuple(SubstrateNode(f"s{i}", 16, 2**34) for i in range(5))
    links = tuple(SubstrateLink(f"l{i}", f"s{i}", f"s{(i + 1) % 5}", 10**10, 10**6) for i in range(5))
    guests = tuple(RequestNode(f"v{i}", 1, 2**28) for i in range(10))
    ring = tuple(RequestLink(f"e{i}", f"v{i}", f"v{(i + 1) % 10}", 10**8, 10**7) for i in range(10))
    taken = []
    for _ in range(5):
        begin = time.process_time()
        solve(Substrate(nodes, links), Request(guests, ring))
        taken.append(time.process_time() - begin)
    assert min(taken) < 0.02


# Parts


@given(data=st.data())
@QUICK
def test_taking_a_node_away_and_putting_it_back_changes_nothing(data: st.DataObject) -> None:
    substrate = data.draw(substrates())
    request = data.draw(requests(substrate))
    candidates = find_candidates(substrate, request)
    if isinstance(candidates, Infeasible):
        return
    placement = Placement(SubstrateGraph(substrate), request, candidates, True)
    for node in range(placement.count):
        options = placement.options(node)
        place = int(options.scores.argmin())
        if not np.isfinite(options.scores[place]):
            return
        placement.put(node, place, options)
    before, cost = placement.snapshot(), placement.cost()
    node = data.draw(st.integers(0, placement.count - 1))
    placement.put_back(placement.take(node))
    assert (placement.snapshot(), placement.cost()) == (before, cost)
    placement.load(before)
    assert (placement.snapshot(), placement.cost()) == (before, cost)
    if placement.is_complete():
        assert check(substrate, request, before) == ()


def test_nothing_leads_through_a_node_without_transit() -> None:
    nodes = (SubstrateNode("s", 1, 1), SubstrateNode("m", 0, 0, transit=False), SubstrateNode("t", 1, 1))
    line = Substrate(nodes, (SubstrateLink("sm", "s", "m", 9), SubstrateLink("mt", "m", "t", 9)))
    graph = SubstrateGraph(line)
    weights = np.array([[1.0, 1.0, np.inf]])
    assert graph.costs(weights, [0]).tolist() == [[0.0, 1.0, np.inf]]
    # What ends or begins there may.
    assert graph.costs(weights, [1]).tolist() == [[1.0, 0.0, 1.0]]
    pair = Request((RequestNode("a", 1, 1), RequestNode("b", 1, 1)), (RequestLink("l", "a", "b", 1),))
    for name in BUILT_IN:
        result = algorithm(name)(line, pair, revisitation=False, seed=0, time_limit=5.0)
        assert not isinstance(result, Mapping), name
    assert isinstance(minimise(line, pair, revisitation=False).result, Infeasible)
    assert not isinstance(route(line, pair, {"a": "s", "b": "t"}), SplitMapping)


@given(data=st.data())
@QUICK
def test_costs_and_routes_against_search_by_layers(data: st.DataObject) -> None:
    substrate = data.draw(substrates())
    graph = SubstrateGraph(substrate)
    bandwidth = data.draw(st.integers(0, 9))
    weights = np.append(np.where(graph.capacity >= bandwidth, 1.0, np.inf), np.inf)
    free = {link.name: link.capacity_bps for link in substrate.links}
    every = list(range(graph.nodes))
    costs = graph.costs(np.tile(weights, (graph.nodes, 1)), every)
    for source in every:
        for target in every:
            ends = substrate.nodes[source].name, substrate.nodes[target].name
            expected = find_path(substrate, free, *ends, bandwidth_bps=bandwidth)
            links = graph.trace(weights, costs[source], source, target)
            if expected is None:
                assert links is None
                continue
            assert links is not None
            assert len(links) == len(expected.links) == costs[source, target]
            path = graph.path(source, links)
            assert (path.nodes[0], path.nodes[-1]) == ends
            assert graph.path(source, links[::-1]) == path


@given(data=st.data())
@QUICK
def test_shortest_routes_are_all_routes_in_order(data: st.DataObject) -> None:
    substrate = data.draw(substrates(max_nodes=4))
    graph = SubstrateGraph(substrate)
    source, target = (data.draw(st.integers(0, graph.nodes - 1)) for _ in range(2))
    ends = substrate.nodes[source].name, substrate.nodes[target].name
    transit = {node.name: node.transit for node in substrate.nodes}
    expected = {
        path.links for path in simple_paths(substrate, *ends) if all(transit[n] for n in path.nodes[1:-1])
    }
    found = [graph.path(source, links).links for links in shortest_routes(graph, source, target, 100)]
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert [len(links) for links in found] == sorted(len(links) for links in found)


def test_ranks() -> None:
    """A star: the centre leads every rank, equal leaves are equal, and zero amounts are no trouble."""
    ends, widths = [(0, 1), (0, 2), (0, 3)], [10, 10, 10]
    assert ranking.nrm([5, 5, 5, 5], ends, widths).tolist() == [150, 50, 50, 50]
    assert ranking.nea([5, 5, 5, 5], ends, widths).tolist() == [15, 5, 5, 5]
    shares: tuple[ranking.Rank, ...] = (ranking.grc, ranking.random_walk)
    for rank in shares:
        values = rank([5, 5, 5, 5], ends, widths)
        assert values.sum() == pytest.approx(1.0)
        assert values[0] > values[1]
        assert values[1] == pytest.approx(values[3])
    ranks: tuple[ranking.Rank, ...] = (ranking.nrm, ranking.nea, ranking.grc, ranking.random_walk)
    for rank in ranks:
        assert np.isfinite(rank([0, 0], [(0, 1)], [0])).all()


def test_without_the_solver_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highspy", None)
    with pytest.raises(UnavailableError) as caught:
        solve(grid(2), clique(2, 1), algorithm="exact")
    assert "serai[exact]" in str(caught.value.hint)


# Path splitting

FORK = Substrate(
    (SubstrateNode("s", 1, 1), SubstrateNode("t", 1, 1), SubstrateNode("m", 0, 0)),
    (
        SubstrateLink("st", "s", "t", 5, 1),
        SubstrateLink("sm", "s", "m", 4, 1),
        SubstrateLink("mt", "m", "t", 9, 1),
    ),
)
WIDE = Request(
    (RequestNode("a", 1, 1), RequestNode("b", 1, 1)),
    (RequestLink("l", "a", "b", 9),),
)


def test_a_link_wider_than_any_path_is_split() -> None:
    result = route(FORK, WIDE, {"a": "s", "b": "t"})
    assert isinstance(result, SplitMapping)
    assert {(flow.path.links, flow.bandwidth_bps) for flow in result.flows["l"]} == {
        (("st",), 5),
        (("sm", "mt"), 4),
    }
    assert check_split(FORK, WIDE, result, revisitation=False) == ()
    residual = Residual(FORK)
    residual.reserve(*as_whole(WIDE, result))
    assert residual.bandwidth_bps == {"st": 0, "sm": 0, "mt": 5}
    residual.release(*as_whole(WIDE, result))
    assert residual.as_substrate() == FORK


def test_a_split_that_does_not_add_up_is_refused() -> None:
    result = route(FORK, WIDE, {"a": "s", "b": "t"})
    assert isinstance(result, SplitMapping)
    first, second = result.flows["l"]
    short = SplitMapping(result.nodes, {"l": (first,)})
    assert "carry" in check_split(FORK, WIDE, short)[0]
    fat = SplitMapping(result.nodes, {"l": (Flow(first.path, 9), Flow(second.path, 0))})
    assert any("are used" in violation for violation in check_split(FORK, WIDE, fat))


@given(data=st.data(), revisitation=st.booleans(), randomised=st.booleans())
@QUICK
def test_split_mappings_are_valid(data: st.DataObject, revisitation: bool, randomised: bool) -> None:
    substrate = data.draw(substrates())
    request = data.draw(requests(substrate))
    result = embed_splitting(substrate, request, revisitation=revisitation, randomised=randomised)
    if isinstance(result, SplitMapping):
        assert check_split(substrate, request, result, revisitation=revisitation) == ()
        residual = Residual(substrate)
        residual.reserve(*as_whole(request, result))
        residual.release(*as_whole(request, result))
        assert residual.as_substrate() == substrate
    elif isinstance(result, Infeasible):
        assert brute_force(substrate, request, revisitation) is None


# The benchmark's instances


def test_instances_are_those_of_the_benchmark(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Seed 0 of Virne's WX100: its breadth-first solver's published acceptance, to the digit."""
    instance = draw(0)
    file = tmp_path_factory.mktemp("instances") / "0.json"
    instance.save(file)
    assert Instance.load(file) == instance
    outcome = simulate(
        instance,
        lambda substrate, request, number: embed_without_retry(
            substrate, request, revisitation=False, seed=number, time_limit=5.0
        ),
    )
    assert outcome.acceptance == pytest.approx(0.400)
    assert outcome.revenue_to_cost == pytest.approx(0.567, abs=5e-4)
