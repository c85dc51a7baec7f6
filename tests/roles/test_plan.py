"""The pure parts: segments of a path, books, splits of links."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.embedding import Crossing as SplitCrossing
from serai.embedding import Split
from serai.errors import StateError
from serai.roles.pip.ledger import compute_usage
from serai.roles.pip.plan import Station, Surroundings, occupied_ends, plan_link
from serai.roles.pip.records import (
    LinkPlacement,
    NodePlacement,
    Parts,
    PeerConnection,
    SliceRecord,
    SliceState,
)
from serai.roles.vnp.plan import links_of, plan_change, plan_move, realise_links, slice_link
from serai.roles.vnp.records import NetworkRecord, NetworkState, NodeEntry
from serai.v1.guest_pb2 import GuestSpec
from serai.v1.infrastructure_pb2 import Advertisement, Border, BorderLabel, SliceLink, SliceLinkEnd, SliceNode
from serai.v1.node_pb2 import NodeResources
from serai.v1.topology_pb2 import InterfaceReference, Topology, VirtualLink, VirtualNode

STATIONS = {f"a{n}": Station(f"alpha/a{n}", f"127.0.0.1:{n}") for n in range(8)}


def around(delay: float = 1.0) -> Surroundings:
    delays = {frozenset((f"a{n}", f"a{n + 1}")): delay for n in range(7)}
    return Surroundings(STATIONS, delays, {"ab": 4.0}, {"ab": Station("beta/b1", "127.0.0.1:99")})


def interface(node: str) -> SliceLinkEnd:
    return SliceLinkEnd(interface=InterfaceReference(node=node, interface="eth0"))


def border(label: int) -> SliceLinkEnd:
    return SliceLinkEnd(border=BorderLabel(border="ab", label=label))


@given(hops=st.integers(0, 6), left=st.booleans(), right=st.booleans())
def test_a_path_of_segments_joins_its_ends(hops: int, left: bool, right: bool) -> None:
    labels = count(1)
    a, b = (border(1001) if left else interface("x")), (border(1002) if right else interface("y"))
    path = [f"a{n}" for n in range(hops + 1)]
    link = SliceLink(id="l", a=a, b=b, bandwidth_bps=1000)
    placed = plan_link(link, path, around(), new_label=lambda: next(labels))
    assert [segment.node for segment in placed.segments] == path
    for here, there in zip(placed.segments, placed.segments[1:], strict=False):
        assert (here.b.label, here.b.peer) == (there.a.label, f"alpha/{there.node}")
        assert there.a.peer == f"alpha/{here.node}"
    first, last = placed.segments[0], placed.segments[-1]
    assert (first.a.peer == "beta/b1") == left and (last.b.peer == "beta/b1") == right
    assert placed.delay_ms == hops * 1.0 + 2.0 * (left + right)
    for segment in placed.segments:
        shaped = bool(segment.a.virtual_node or segment.b.virtual_node)
        assert (segment.bandwidth_bps == 1000) == shaped


def test_what_is_in_use_stays_in_use() -> None:
    link = SliceLink(id="l", a=interface("x"), b=border(5))
    old = plan_link(link, ["a0", "a1"], around())
    used = occupied_ends(Parts(links={"l": old}))
    new = plan_link(link, ["a3", "a2", "a1"], around(), used)
    # The guest's interface and the label at the border are in use; what lies between is not.
    assert [segment.active for segment in new.segments] == [False, True, False]


def node(name: str, place: str) -> NodePlacement:
    spec = SliceNode(id=name, guest=GuestSpec(vcpus=2, memory_bytes=100))
    return NodePlacement(spec=spec, handle=name, node=place, guest_id=name)


def test_the_books_count_each_thing_once() -> None:
    link = SliceLink(id="l", a=interface("x"), b=border(5), bandwidth_bps=10)
    placed = LinkPlacement(link=link, path=["a0", "a1"])
    moved = LinkPlacement(link=link, path=["a2", "a1"])
    record = SliceRecord(
        name="slices/s",
        owner="o",
        state=SliceState.RUNNING,
        parts=Parts(nodes={"x": node("x", "a0")}, links={"l": placed}),
        pending=Parts(nodes={"x": node("x", "a2")}, links={"l": moved}),
    )
    mine = PeerConnection(name="ab/5", border="ab", label=5, owner="beta", bandwidth_bps=10)
    other = PeerConnection(name="ab/6", border="ab", label=6, owner="beta", bandwidth_bps=7)
    usage = compute_usage([record], [mine, other])
    assert dict(usage.vcpus) == {"a0": 2, "a2": 2}
    assert dict(usage.link_bps) == {frozenset(("a0", "a1")): 10, frozenset(("a1", "a2")): 10}
    assert dict(usage.border_bps) == {"ab": 17}


def topology() -> tuple[list[VirtualNode], list[VirtualLink]]:
    spec = GuestSpec(vcpus=1, memory_bytes=100)
    nodes = [VirtualNode(id=name, guest=spec) for name in "xyz"]
    pairs = [("x", "y"), ("y", "z"), ("x", "z")]
    links = [
        VirtualLink(
            id=a + b,
            a=InterfaceReference(node=a, interface=f"to-{b}"),
            b=InterfaceReference(node=b, interface=f"to-{a}"),
            bandwidth_bps=10,
        )
        for a, b in pairs
    ]
    return nodes, links


def network(places: dict[str, str]) -> NetworkRecord:
    nodes, links = topology()
    crossings = {
        link.id: SplitCrossing(link.id, "ab", places[link.a.node], places[link.b.node])
        for link in links
        if places[link.a.node] != places[link.b.node]
    }
    found = Split(places, crossings)
    return NetworkRecord(
        name="networks/n",
        owner="o",
        state=NetworkState.RUNNING,
        nodes={item.id: NodeEntry(node=item, handle=item.id, provider=places[item.id]) for item in nodes},
        links=realise_links(links, found, lambda link: f"{link}-g1"),
        slices=dict.fromkeys(places.values(), "slices/s"),
        create_time=0.0,
    )


def test_who_stays_may_have_been_resized_but_is_no_other_guest() -> None:
    record = network(dict.fromkeys("xyz", "alpha"))
    nodes, links = topology()
    record.nodes["x"].node.guest.memory_bytes = 200
    change = plan_change(record, Topology(nodes=nodes[:2], links=links[:1]), [advertisement("alpha", "beta")])
    assert (change.gone_nodes, sorted(change.gone_links)) == (["z"], ["xz", "yz"])
    assert not change.nodes and not change.links and not change.new_slices
    nodes[0].guest.image = "other"
    with pytest.raises(StateError):
        plan_change(record, Topology(nodes=nodes, links=links), [advertisement("alpha", "beta")])


def advertisement(name: str, peer: str) -> Advertisement:
    room = NodeResources(vcpus=10, memory_bytes=10_000)
    borders = [Border(name="ab", peer_provider=peer, available_bps=1000)]
    return Advertisement(provider=name, available=room, largest_node=room, borders=borders)


@given(st.tuples(*[st.sampled_from(["alpha", "beta"])] * 3), st.sampled_from("xyz"))
def test_a_move_re_homes_exactly_the_links_of_the_node(places: tuple[str, ...], moving: str) -> None:
    record = network(dict(zip("xyz", places, strict=True)))
    source = record.nodes[moving].provider
    destination = {"alpha": "beta", "beta": "alpha"}[source]
    offers = [advertisement("alpha", "beta"), advertisement("beta", "alpha")]
    move = plan_move(record, moving, destination, offers)
    assert move.links.keys() == links_of(record.links, moving).keys()
    for key, entry in move.links.items():
        assert entry.slice_link == f"{key}-g2"
        ends = [
            destination if end.node == moving else record.nodes[end.node].provider
            for end in (entry.link.a, entry.link.b)
        ]
        if ends[0] == ends[1]:
            assert entry.crossing is None and entry.provider == ends[0]
            continue
        assert entry.crossing is not None
        halves = [slice_link(entry, provider) for provider in ends]
        assert halves[0].a == interface_of(entry.link.a) and halves[1].b == interface_of(entry.link.b)
        assert halves[0].b.border == halves[1].a.border
        assert halves[0].b.border.label == entry.crossing.label != 0


def interface_of(reference: InterfaceReference) -> SliceLinkEnd:
    return SliceLinkEnd(interface=reference)
