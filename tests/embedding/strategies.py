"""Small random substrates and requests, and brute force to compare with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from hypothesis import strategies as st

from serai.embedding import (
    Mapping,
    Path,
    Request,
    RequestLink,
    RequestNode,
    Substrate,
    SubstrateLink,
    SubstrateNode,
    check,
)

LOCATIONS = ["", "north", "south"]
IMAGES = ["debian", "openwrt"]


@st.composite
def substrates(draw: st.DrawFn, max_nodes: int = 5) -> Substrate:
    count = draw(st.integers(2, max_nodes))
    mostly = st.sampled_from([True] * 6 + [False])
    nodes = tuple(
        SubstrateNode(
            name=f"s{index}",
            vcpus=draw(st.integers(0, 6)),
            memory_bytes=draw(st.integers(0, 6)),
            location=draw(st.sampled_from(LOCATIONS)),
            images=draw(st.sampled_from([None, None, frozenset(IMAGES), frozenset({"debian"})])),
            schedulable=draw(mostly),
            transit=draw(mostly),
        )
        for index in range(count)
    )
    links = []
    for index in range(draw(st.integers(0, 8))):
        first, second = draw(st.permutations(range(count)))[:2]
        capacity, delay = draw(st.sampled_from([0, 1, 5, 6, 9])), draw(st.integers(0, 5))
        links.append(SubstrateLink(f"l{index}", f"s{first}", f"s{second}", capacity, delay))
    return Substrate(nodes, tuple(links))


@st.composite
def requests(draw: st.DrawFn, substrate: Substrate, max_nodes: int = 3) -> Request:
    nodes = []
    count = draw(st.integers(1, max_nodes))
    for index in range(count):
        fixed = draw(st.sampled_from(["", "", "", *[node.name for node in substrate.nodes]]))
        if fixed and draw(st.booleans()):
            nodes.append(RequestNode(f"v{index}", node=fixed, external=True))
            continue
        nodes.append(
            RequestNode(
                f"v{index}",
                vcpus=draw(st.integers(0, 3)),
                memory_bytes=draw(st.integers(0, 3)),
                image=draw(st.sampled_from(["", "", *IMAGES])),
                location=draw(st.sampled_from(["", "", "", *LOCATIONS])),
                node=fixed,
            )
        )
    ends = st.integers(0, count - 1)
    links = tuple(
        RequestLink(
            f"e{index}", f"v{draw(ends)}", f"v{draw(ends)}", draw(st.integers(0, 6)), draw(st.integers(0, 8))
        )
        for index in range(draw(st.integers(0, 3)))
    )
    return Request(tuple(nodes), links)


def simple_paths(substrate: Substrate, source: str, target: str) -> Iterator[Path]:
    def extend(nodes: list[str], links: list[str]) -> Iterator[Path]:
        if nodes[-1] == target:
            yield Path(tuple(nodes), tuple(links))
            return
        for link in substrate.links:
            for here, there in ((link.a, link.b), (link.b, link.a)):
                if here == nodes[-1] and there not in nodes:
                    yield from extend([*nodes, there], [*links, link.name])

    yield from extend([source], [])


def brute_force(substrate: Substrate, request: Request, revisitation: bool) -> Mapping | None:
    """The first mapping that the checker accepts, among all there are."""
    return next(all_mappings(substrate, request, revisitation), None)


def all_mappings(substrate: Substrate, request: Request, revisitation: bool) -> Iterator[Mapping]:
    """Every mapping that the checker accepts."""
    places = [node.name for node in substrate.nodes]
    bare = Request(request.nodes)
    for choice in itertools.product(places, repeat=len(request.nodes)):
        nodes = dict(zip([node.name for node in request.nodes], choice, strict=True))
        if check(substrate, bare, Mapping(nodes), revisitation=revisitation):
            continue
        options = [list(simple_paths(substrate, nodes[link.a], nodes[link.b])) for link in request.links]
        for paths in itertools.product(*options):
            mapping = Mapping(nodes, dict(zip([link.name for link in request.links], paths, strict=True)))
            if not check(substrate, request, mapping, revisitation=revisitation):
                yield mapping
