"""Links with more than two ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.errors import DescriptionError
from serai.vnet import InterfaceReference, Topology, compile_vnet, diff, parse


def document(members: list[str], name: str = "lan", more: str = "") -> bytes:
    nodes = "".join(f'<node name="{node}"/>' for node in members)
    ends = "".join(f'<end node="{node}"/>' for node in members)
    return (
        f'<vnet xmlns="urn:serai:vnet:1" name="x">{nodes}{more}'
        f'<link name="{name}" bandwidth="3Mbit/s" delay="10ms">{ends}</link></vnet>'
    ).encode()


def compiled(document: bytes) -> Topology:
    return compile_vnet(parse(document).require())


def test_a_segment_is_a_star() -> None:
    topology = compiled(document(["a", "b", "c"]))
    assert topology.bridges == ("lan-bridge",)
    assert [link.name for link in topology.links] == ["lan-a", "lan-b", "lan-c"]
    for link in topology.links:
        assert link.a == InterfaceReference(link.name[-1], "eth0")
        assert link.b == InterfaceReference("lan-bridge", f"{link.a.node}.eth0")
        assert (link.bandwidth_bps, link.max_delay_ns) == (3_000_000, 5_000_000), "half of the way"


def test_two_ends_are_a_cable() -> None:
    topology = compiled(document(["a", "b"]))
    assert topology.bridges == () and [link.name for link in topology.links] == ["lan"]


@given(st.lists(st.text("abc", min_size=1, max_size=60), min_size=3, max_size=8, unique=True))
def test_names_are_labels_and_nobody_has_them(members: list[str]) -> None:
    taken = "n" * 57
    more = f'<node name="{taken[:7]}-bridge"/>'
    topology = compiled(document(members, name=taken[:7], more=more))
    nodes = [node.name for node in topology.nodes] + list(topology.bridges)
    links = [link.name for link in topology.links]
    assert len(set(nodes)) == len(nodes) and len(set(links)) == len(links) == len(members)
    assert all(len(name) <= 63 for name in (*nodes, *links))


def test_a_further_end_is_one_more_arm() -> None:
    found = diff(compiled(document(["a", "b", "c"])), compiled(document(["a", "b", "x", "c"])))
    assert [str(change) for change in found.changes] == ["add node x", "add link lan-x"]


def test_one_end_is_none() -> None:
    with pytest.raises(DescriptionError):
        compiled(document(["a"]))
