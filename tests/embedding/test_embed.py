"""Whatever is embedded is valid, whatever is called infeasible is, and the reasons are the true ones."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from serai.embedding import (
    Infeasible,
    Mapping,
    NotFound,
    Path,
    Request,
    RequestLink,
    RequestNode,
    Substrate,
    SubstrateLink,
    SubstrateNode,
    check,
    embed,
    names,
    register,
    solve,
)
from serai.embedding.paths import fastest, find_path, widest
from serai.errors import AlreadyExistsError, CapacityError, InternalError, InvalidInputError, NotFoundError

from .strategies import brute_force, requests, simple_paths, substrates

GIB = 2**30
GBIT = 10**9
MS = 10**6

ALPHA = Substrate(
    nodes=(
        SubstrateNode("a1", 4, 4 * GIB, location="berlin", images=frozenset({"debian"})),
        SubstrateNode("a2", 4, 2 * GIB, location="munich"),
        SubstrateNode("beta", 0, 0, schedulable=False, transit=False),
    ),
    links=(
        SubstrateLink("a1-a2", "a1", "a2", GBIT, MS),
        SubstrateLink("border", "a1", "beta", GBIT // 2, 5 * MS),
    ),
)
CLIENT = RequestNode("client", 1, GIB)
ROUTER = RequestNode("router", 2, GIB)
FAR = RequestNode("far", node="beta", external=True)


@given(st.data(), st.booleans(), st.integers(0, 3))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_mappings_are_valid_and_infeasible_is_infeasible(
    data: st.DataObject, revisitation: bool, seed: int
) -> None:
    substrate = data.draw(substrates())
    request = data.draw(requests(substrate))
    result = embed(substrate, request, revisitation=revisitation, seed=seed)
    if isinstance(result, Mapping):
        assert check(substrate, request, result, revisitation=revisitation) == ()
        assert result == embed(substrate, request, revisitation=revisitation, seed=seed)
    elif isinstance(result, Infeasible):
        assert brute_force(substrate, request, revisitation) is None


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_single_link_is_found_exactly_when_it_exists(data: st.DataObject) -> None:
    """With at most one link nothing is greedy about the search, so it must be complete."""
    substrate = data.draw(substrates())
    request = data.draw(requests(substrate))
    request = Request(request.nodes, request.links[:1])
    result = embed(substrate, request)
    assert isinstance(result, Mapping) == (brute_force(substrate, request, True) is not None)


@given(st.data(), st.integers(0, 9), st.integers(0, 10))
@settings(max_examples=300, deadline=None)
def test_paths_against_brute_force(data: st.DataObject, bandwidth: int, delay: int) -> None:
    substrate = data.draw(substrates())
    source, target = substrate.nodes[0].name, substrate.nodes[-1].name
    free = {link.name: link.capacity_bps for link in substrate.links}

    def passes(path: Path) -> bool:
        return all(substrate.node[name].transit for name in path.nodes[1:-1])

    def total(path: Path) -> int:
        return sum(substrate.link[name].delay_ns for name in path.links)

    paths = [path for path in simple_paths(substrate, source, target) if passes(path)]
    fitting = [
        path
        for path in paths
        if all(free[name] >= bandwidth for name in path.links) and (not delay or total(path) <= delay)
    ]
    found = find_path(substrate, free, source, target, bandwidth_bps=bandwidth, max_delay_ns=delay)
    assert (found is None) == (not fitting)
    if found is not None:
        assert found in fitting
        best = min((len(path.links), total(path)) for path in fitting)
        assert (len(found.links), total(found)) == best
    assume(source != target)
    widths = [min(free[name] for name in path.links) for path in paths]
    assert widest(substrate, free, [source], {target}) == max(widths, default=None)
    delays = [total(path) for path in paths if all(free[name] >= bandwidth for name in path.links)]
    assert fastest(substrate, free, [source], {target}, bandwidth) == min(delays, default=None)


SHORT = {
    "vcpus": ((RequestNode("v", 5),), (), ("vcpus", "v", 5, 4)),
    "memory": ((RequestNode("v", 1, 5 * GIB),), (), ("memory", "v", 5 * GIB, 4 * GIB)),
    "memory there": (
        (RequestNode("v", 1, 3 * GIB, location="munich"),),
        (),
        ("memory", "v", 3 * GIB, 2 * GIB),
    ),
    "vcpus in total": (tuple(RequestNode(f"v{i}", 3) for i in range(3)), (), ("vcpus", "", 9, 8)),
    "location": ((RequestNode("v", location="paris"),), (), ("location", "v", None, None)),
    "image": ((RequestNode("v", image="plan9", location="berlin"),), (), ("image", "v", None, None)),
    "node": ((RequestNode("v", node="a9"),), (), ("node", "v", None, None)),
    "no guests": ((RequestNode("v", node="beta"),), (), ("node", "v", None, None)),
    "border": ((RequestNode("v", node="gone", external=True),), (), ("node", "v", None, None)),
    "bandwidth": (
        (CLIENT, FAR),
        (RequestLink("up", "client", "far", GBIT),),
        ("bandwidth", "up", GBIT, GBIT // 2),
    ),
    "delay": (
        (CLIENT, FAR),
        (RequestLink("up", "client", "far", 1, 4 * MS),),
        ("delay", "up", 4 * MS, 5 * MS),
    ),
    "placement": (tuple(RequestNode(f"v{i}", 0, 3 * GIB // 2) for i in range(4)), (), None),
}


@pytest.mark.parametrize(("nodes", "links", "short"), SHORT.values(), ids=SHORT)
def test_the_short_resource_is_named(
    nodes: tuple[RequestNode, ...], links: tuple[RequestLink, ...], short: tuple[object, ...] | None
) -> None:
    result = embed(ALPHA, Request(nodes, links))
    assert isinstance(result, Infeasible)
    if short is None:
        assert result.resource in ("placement", "memory")
    else:
        assert (result.resource, result.element, result.asked, result.available) == short
        assert all(str(amount) in result.message for amount in short[2:] if amount and short[0] != "delay")
    with pytest.raises(CapacityError) as caught:
        solve(ALPHA, Request(nodes, links))
    assert caught.value.reason == "EMBEDDING_INFEASIBLE"
    assert caught.value.metadata["resource"] == result.resource


def test_no_revisitation_needs_a_node_each() -> None:
    request = Request(tuple(RequestNode(f"v{i}", 1) for i in range(3)))
    assert isinstance(embed(ALPHA, request), Mapping)
    result = embed(ALPHA, request, revisitation=False)
    assert isinstance(result, Infeasible)
    assert (result.resource, result.asked, result.available) == ("nodes", 3, 2)
    two = embed(ALPHA, Request((CLIENT, ROUTER, FAR)), revisitation=False)
    assert isinstance(two, Mapping)
    assert len(set(two.nodes.values())) == 3


def test_guests_are_spread_and_the_far_end_stays_where_it_is() -> None:
    links = (RequestLink("access", "client", "router", 10**8), RequestLink("core", "router", "far", 10**8))
    mapping = solve(ALPHA, Request((CLIENT, ROUTER, FAR), links))
    assert {mapping.nodes["client"], mapping.nodes["router"]} == {"a1", "a2"}
    assert mapping.nodes["far"] == "beta"
    assert mapping.paths["core"].links[-1] == "border"


def test_best_effort_links_reserve_nothing_and_fit_on_full_links() -> None:
    full = Substrate(ALPHA.nodes, tuple(replace(link, capacity_bps=0) for link in ALPHA.links))
    mapping = solve(full, Request((CLIENT, FAR), (RequestLink("up", "client", "far"),)))
    assert mapping.paths["up"].links


def test_links_inside_one_node_need_no_path() -> None:
    lonely = Substrate((SubstrateNode("s", 4, GIB),))
    nodes = (RequestNode("a", 1, 1), RequestNode("b", 1, 1))
    mapping = solve(lonely, Request(nodes, (RequestLink("l", "a", "b", 10**12, 1),)))
    assert mapping.paths["l"] == Path(("s",), ())


def test_a_place_that_is_taken_is_not_taken_again_without_revisitation() -> None:
    """The big node goes to the best place first, which is the only one for the small node."""
    substrate = Substrate((SubstrateNode("s", 9, 9, location="north"), SubstrateNode("t", 8, 8)))
    request = Request((RequestNode("big", 4, 4), RequestNode("small", 1, 1, location="north")))
    assert solve(substrate, request, algorithm="greedy").nodes == {"big": "s", "small": "s"}
    for algorithm in ("greedy", "joint"):
        alone = solve(substrate, request, algorithm=algorithm, revisitation=False)
        assert alone.nodes == {"big": "t", "small": "s"}


def test_a_search_that_fails_over_a_greedy_path_proves_nothing() -> None:
    """The wide link takes the short way, which is the only one for the other."""
    substrate = Substrate(
        (
            SubstrateNode("s", 0, 0),
            SubstrateNode("t", 0, 0),
            SubstrateNode("m", 0, 0),
            SubstrateNode("u", 0, 0),
        ),
        (
            SubstrateLink("short", "s", "t", 5),
            SubstrateLink("round1", "s", "m", 5),
            SubstrateLink("round2", "m", "t", 5),
            SubstrateLink("on", "t", "u", 5),
        ),
    )
    ends = tuple(RequestNode(name, node=name, external=True) for name in "tus")
    wide, bound = RequestLink("wide", "s", "t", 5), RequestLink("bound", "s", "u", 4, 0)
    slow = replace(
        substrate, links=(*substrate.links[:1], replace(substrate.links[1], delay_ns=9), *substrate.links[2:])
    )
    assert brute_force(substrate, Request(ends, (wide, bound)), True) is not None
    assert not isinstance(embed(substrate, Request(ends, (wide, bound))), Infeasible)
    # A bound on the delay leaves less choice, so such links go first.
    tight = replace(bound, max_delay_ns=5)
    assert isinstance(embed(slow, Request(ends, (wide, tight))), Mapping)


def ring(count: int) -> Substrate:
    nodes = tuple(SubstrateNode(f"s{i}", 1, 1) for i in range(count))
    ends = [*pairwise(range(count)), (count - 1, 0)]
    return Substrate(nodes, tuple(SubstrateLink(f"l{a}", f"s{a}", f"s{b}", 10, 1) for a, b in ends))


def clique(count: int, bandwidth: int) -> Request:
    nodes = tuple(RequestNode(f"v{i}", 1, 1) for i in range(count))
    links = tuple(
        RequestLink(f"e{a}-{b}", f"v{a}", f"v{b}", bandwidth) for a in range(count) for b in range(a)
    )
    return Request(nodes, links)


def test_a_hard_request_ends_in_time_and_is_not_called_infeasible() -> None:
    start = time.monotonic()
    result = embed(ring(30), clique(12, 5), time_limit=0.3, max_steps=10**9)
    assert isinstance(result, NotFound)
    assert time.monotonic() - start < 3
    few = embed(ring(30), clique(12, 5), max_steps=50)
    assert isinstance(few, NotFound)
    assert few.steps == 50
    with pytest.raises(CapacityError) as caught:
        solve(ring(30), clique(12, 5), time_limit=0.1)
    assert caught.value.reason == "EMBEDDING_NOT_FOUND"


def test_it_steps_back_from_a_dead_end() -> None:
    """The best-ranked place of the hub is a big node that the leaf's link cannot reach."""
    substrate = Substrate(
        (SubstrateNode("big", 64, 64), SubstrateNode("small", 2, 2), SubstrateNode("leaf", 1, 1)),
        (SubstrateLink("thin", "big", "leaf", 1), SubstrateLink("thick", "small", "leaf", 10)),
    )
    request = Request(
        (RequestNode("hub", 2, 2), RequestNode("end", 1, 1, node="leaf")),
        (RequestLink("l", "hub", "end", 5),),
    )
    assert solve(substrate, request).nodes == {"hub": "small", "end": "leaf"}


def test_scale() -> None:
    """A thousand guests on a hundred nodes, in a chain, in seconds on one core."""
    nodes = tuple(SubstrateNode(f"s{i}", 16, 16 * GIB) for i in range(100))
    links = tuple(
        SubstrateLink(f"l{i}-{j}", f"s{i}", f"s{j}", 100 * GBIT, MS)
        for i in range(100)
        for j in ((i + 1) % 100, (i + 7) % 100)
    )
    guests = tuple(RequestNode(f"v{i}", 1, GIB) for i in range(1000))
    chain = tuple(RequestLink(f"e{i}", f"v{i}", f"v{i + 1}", 10 * 10**6) for i in range(999))
    start = time.process_time()
    mapping = solve(Substrate(nodes, links), Request(guests, chain), time_limit=60)
    assert len(mapping.nodes) == 1000
    assert time.process_time() - start < 20


def test_algorithms_of_ones_own_are_checked() -> None:
    def wrong(
        substrate: Substrate, request: Request, *, revisitation: bool, seed: int, time_limit: float
    ) -> Mapping:
        return Mapping({node.name: substrate.nodes[0].name for node in request.nodes})

    register("wrong", wrong)
    assert "wrong" in names()
    with pytest.raises(AlreadyExistsError):
        register("wrong", wrong)
    with pytest.raises(InternalError, match="4 vCPUs, 6 are used"):
        solve(ALPHA, Request(tuple(RequestNode(f"v{i}", 2) for i in range(3))), algorithm="wrong")
    with pytest.raises(NotFoundError, match="greedy"):
        solve(ALPHA, Request((CLIENT,)), algorithm="nobody")


@pytest.mark.parametrize(
    "build",
    [
        lambda: Substrate((SubstrateNode("a", 1, 1), SubstrateNode("a", 1, 1))),
        lambda: Substrate((SubstrateNode("a", -1, 1),)),
        lambda: Substrate((), (SubstrateLink("l", "a", "b", 1),)),
        lambda: Request((CLIENT,), (RequestLink("l", "client", "nobody"),)),
        lambda: Request((CLIENT, CLIENT)),
        lambda: Request((RequestNode("v", 1, node="a", external=True),)),
    ],
)
def test_impossible_graphs_are_refused(build: object) -> None:
    assert callable(build)
    with pytest.raises(InvalidInputError):
        build()
