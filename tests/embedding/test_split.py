"""Splitting between providers: as few crossings as possible, or the reason why not."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serai.embedding import (
    Advertisement,
    Border,
    Infeasible,
    NotFound,
    Request,
    RequestLink,
    RequestNode,
    Split,
    split,
)

MS = 10**6


def provider(name: str, *borders: Border, vcpus: int = 8, memory: int = 8, **more: object) -> Advertisement:
    return replace(Advertisement(name, vcpus, memory, vcpus, memory, borders=borders), **more)  # type: ignore[arg-type]


ALPHA = provider("alpha", Border("ab", "beta", 100, 5 * MS), locations=frozenset({"berlin"}))
BETA = provider(
    "beta", Border("ab", "alpha", 100, 5 * MS), Border("bg", "gamma", 100), images=frozenset({"debian"})
)
GAMMA = provider("gamma", Border("bg", "beta", 100))
ALL = (ALPHA, BETA, GAMMA)


def pair(first: str, second: str, bandwidth: int = 10, delay: int = 0) -> Request:
    nodes = (RequestNode("x", 1, 1, provider=first), RequestNode("y", 1, 1, provider=second))
    return Request(nodes, (RequestLink("l", "x", "y", bandwidth, delay),))


def test_two_providers_by_constraint() -> None:
    result = split(ALL, pair("beta", "alpha", delay=25 * MS))
    assert isinstance(result, Split)
    assert result.providers == {"x": "beta", "y": "alpha"}
    crossing = result.crossings["l"]
    assert (crossing.border, crossing.a_provider, crossing.b_provider) == ("ab", "beta", "alpha")
    assert crossing.side_delay_ns == 10 * MS


def test_whole_requests_stay_together() -> None:
    nodes = tuple(RequestNode(f"v{i}", 1, 1) for i in range(6))
    links = tuple(RequestLink(f"l{i}", f"v{i}", f"v{(i + 1) % 6}", 1) for i in range(6))
    result = split(ALL, Request(nodes, links))
    assert isinstance(result, Split)
    assert result.crossings == {}
    assert result.optimal


def test_without_links_the_load_is_even() -> None:
    result = split(ALL, Request(tuple(RequestNode(f"v{i}", 1, 1) for i in range(6))))
    assert isinstance(result, Split)
    assert sorted(result.providers.values()) == sorted(["alpha", "beta", "gamma"] * 2)


def test_parallel_borders_share_the_load() -> None:
    both = (
        provider("alpha", Border("one", "beta", 10), Border("two", "beta", 10)),
        provider("beta", Border("one", "alpha", 10), Border("two", "alpha", 10)),
    )
    nodes = (RequestNode("x", provider="alpha"), RequestNode("y", provider="beta"))
    links = (RequestLink("k", "x", "y", 6), RequestLink("l", "x", "y", 6))
    result = split(both, Request(nodes, links))
    assert isinstance(result, Split)
    assert {crossing.border for crossing in result.crossings.values()} == {"one", "two"}


SHORT = {
    "provider": (Request((RequestNode("v", provider="delta"),)), "provider", "alpha, beta, gamma"),
    "vcpus": (Request((RequestNode("v", 9),)), "vcpus", "the largest node at any provider has 8"),
    "memory": (Request((RequestNode("v", 1, 9, provider="beta"),)), "memory", "largest node at 'beta' has 8"),
    "location": (
        Request((RequestNode("v", location="berlin", provider="beta"),)),
        "location",
        "'berlin' at 'beta'",
    ),
    "image": (Request((RequestNode("v", image="x", provider="beta"),)), "image", "no image 'x' at 'beta'"),
    "total": (
        Request(tuple(RequestNode(f"v{i}", 7) for i in range(4))),
        "vcpus",
        "28 vCPUs; all providers together",
    ),
    "one provider": (
        Request(tuple(RequestNode(f"v{i}", 3, provider="beta") for i in range(3))),
        "vcpus",
        "the nodes for 'beta' ask for vcpus 9; it has 8 free",
    ),
    "border": (pair("alpha", "gamma"), "border", "'x' (alpha) to 'y' (gamma) cannot be made"),
    "bandwidth": (pair("alpha", "beta", 101), "bandwidth", "101 bit/s; the widest border has 100 bit/s"),
    "delay": (
        pair("alpha", "beta", 1, 4 * MS),
        "delay",
        "may take 4 ms; the fastest border that is wide enough takes 5 ms",
    ),
    "packing": (
        Request(tuple(RequestNode(f"v{i}", 5) for i in range(4))),
        "placement",
        "finds no provider with room",
    ),
}


@pytest.mark.parametrize(("request_", "resource", "message"), SHORT.values(), ids=SHORT)
def test_the_short_resource_is_named(request_: Request, resource: str, message: str) -> None:
    result = split(ALL, request_)
    assert isinstance(result, Infeasible)
    assert result.resource == resource
    assert message in result.message


def test_stepping_back_frees_the_border() -> None:
    """The big node goes to beta first, over the border that the other one needs."""
    three = (
        provider("alpha", Border("ab", "beta", 6, 1), Border("ag", "gamma", 6, 5), vcpus=0),
        provider("beta", Border("ab", "alpha", 6, 1), memory=3),
        provider("gamma", Border("ag", "alpha", 6, 5), memory=3),
    )
    nodes = (RequestNode("f", provider="alpha"), RequestNode("big", 1, 3), RequestNode("small", 1, 1))
    links = (RequestLink("k", "f", "big", 6), RequestLink("l", "f", "small", 6, 1))
    result = split(three, Request(nodes, links))
    assert isinstance(result, Split)
    assert result.providers == {"f": "alpha", "big": "gamma", "small": "beta"}


def test_borders_that_are_full_together_are_no_proof() -> None:
    nodes = (RequestNode("x", provider="alpha"), RequestNode("y", provider="beta"))
    links = (RequestLink("k", "x", "y", 60), RequestLink("l", "x", "y", 60))
    result = split(ALL, Request(nodes, links))
    assert isinstance(result, NotFound)
    assert "'alpha' and 'beta' have no border with the bandwidth" in result.message


def test_a_border_counts_only_when_both_sides_know_it_and_as_the_worse_view() -> None:
    onesided = (provider("alpha", Border("ab", "beta", 100)), provider("beta"))
    result = split(onesided, pair("alpha", "beta"))
    assert isinstance(result, Infeasible)
    assert result.resource == "border"
    unequal = (
        provider("alpha", Border("ab", "beta", 100, 1)),
        provider("beta", Border("ab", "alpha", 20, 9)),
    )
    assert isinstance(split(unequal, pair("alpha", "beta", 20, 9)), Split)
    assert isinstance(split(unequal, pair("alpha", "beta", 21)), Infeasible)
    assert isinstance(split(unequal, pair("alpha", "beta", 1, 8)), Infeasible)


@st.composite
def instances(draw: st.DrawFn) -> tuple[tuple[Advertisement, ...], Request]:
    providers = ["p", "q", "r"][: draw(st.integers(1, 3))]
    borders: dict[str, list[Border]] = {name: [] for name in providers}
    for number, (a, b) in enumerate(itertools.combinations(providers, 2)):
        if draw(st.sampled_from([True] * 5 + [False])):
            free, delay = draw(st.sampled_from([3, 6, 9])), draw(st.integers(0, 3))
            borders[a].append(Border(f"b{number}", b, free, delay))
            borders[b].append(Border(f"b{number}", a, free, delay))
    advertisements = tuple(
        provider(name, *borders[name], vcpus=draw(st.sampled_from([2, 3, 4])), memory=9) for name in providers
    )
    count = draw(st.integers(1, 4))
    nodes = tuple(
        RequestNode(f"v{i}", draw(st.integers(0, 2)), 1, provider=draw(st.sampled_from(["", "", *providers])))
        for i in range(count)
    )
    ends = st.integers(0, count - 1)
    delays = st.sampled_from([0, 0, 0, 2])
    links = tuple(
        RequestLink(f"l{i}", f"v{draw(ends)}", f"v{draw(ends)}", draw(st.integers(0, 6)), draw(delays))
        for i in range(draw(st.integers(0, 5)))
    )
    return advertisements, Request(nodes, links)


def crossings_of(
    advertisements: tuple[Advertisement, ...], request: Request, providers: dict[str, str]
) -> int | None:
    """How many links cross; None if anything is violated. Pairs have one border at most here."""
    by_name = {item.provider: item for item in advertisements}
    for name, item in by_name.items():
        own = [node for node in request.nodes if providers[node.name] == name]
        if (
            sum(node.vcpus for node in own) > item.vcpus
            or sum(node.memory_bytes for node in own) > item.memory_bytes
        ):
            return None
    if any(node.provider and providers[node.name] != node.provider for node in request.nodes):
        return None
    used: dict[str, int] = {}
    count = 0
    for link in request.links:
        a, b = providers[link.a], providers[link.b]
        if a == b:
            continue
        border = next((border for border in by_name[a].borders if border.peer == b), None)
        if border is None or (link.max_delay_ns and border.delay_ns > link.max_delay_ns):
            return None
        used[border.name] = used.get(border.name, 0) + link.bandwidth_bps
        if used[border.name] > border.available_bps:
            return None
        count += 1
    return count


@given(instances())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_splits_are_valid_and_cross_least(instance: tuple[tuple[Advertisement, ...], Request]) -> None:
    advertisements, request = instance
    names = [item.provider for item in advertisements]
    best = None
    for choice in itertools.product(names, repeat=len(request.nodes)):
        providers = dict(zip([node.name for node in request.nodes], choice, strict=True))
        count = crossings_of(advertisements, request, providers)
        if count is not None and (best is None or count < best):
            best = count
    result = split(advertisements, request)
    if isinstance(result, Split):
        assert crossings_of(advertisements, request, result.providers) == len(result.crossings) == best
        for link in request.links:
            ends = (result.providers[link.a], result.providers[link.b])
            assert (link.name in result.crossings) == (ends[0] != ends[1])
    else:
        # One border a pair: the greedy choice between borders cannot miss anything.
        assert best is None


def test_scale_and_limits() -> None:
    """A thousand nodes are split in the time allowed, perhaps not optimally."""
    big = tuple(replace(item, vcpus=600, memory_bytes=600) for item in (ALPHA, BETA))
    wide = tuple(
        replace(item, borders=tuple(replace(b, available_bps=10**6) for b in item.borders)) for item in big
    )
    nodes = tuple(RequestNode(f"v{i}", 1, 1) for i in range(1000))
    links = tuple(RequestLink(f"l{i}", f"v{i}", f"v{i + 1}", 1) for i in range(999))
    start = time.monotonic()
    result = split(wide, Request(nodes, links), time_limit=1)
    assert isinstance(result, Split)
    assert not result.optimal
    assert len(result.crossings) < 50
    assert time.monotonic() - start < 5
    assert isinstance(split(wide, Request(nodes, links), max_steps=10), NotFound)
