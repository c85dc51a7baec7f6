"""What tells two descriptions apart, and what each change costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from tests.vnet.strategies import descriptions

from serai.vnet import Action, Effect, Topology, VnetDescription, check, compile_vnet, diff, parse
from serai.vnet.diagnostics import Severity

BASE = """
<vnet xmlns="urn:serai:vnet:1" name="demo">
  <node name="a" provider="alpha">
    <interface name="eth0" address="10.0.0.1/24"/><interface name="eth1"/>
  </node>
  <node name="b"><interface name="eth0" address="10.0.0.2/24"/></node>
  <link name="wire" bandwidth="1Mbit/s">
    <end node="a" interface="eth0"/><end node="b" interface="eth0"/>
  </link>
</vnet>
"""


def compiled(document: str) -> Topology:
    return compile_vnet(parse(document.encode()).require())


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('name="b">', 'name="b" memory="256MiB">', [("node", "b", "memory", Effect.RESTART)]),
        ('name="b">', 'name="b" image="other">', [("node", "b", "image", Effect.RESTART)]),
        ('name="b">', 'name="b" provider="beta">', [("node", "b", "provider", Effect.MOVE)]),
        (' provider="alpha"', "", [("node", "a", "provider", Effect.NONE)]),
        ('bandwidth="1Mbit/s"', 'bandwidth="2Mbit/s"', [("link", "wire", "bandwidth", Effect.RELINK)]),
        ('name="wire"', 'name="wire" delay="5ms"', [("link", "wire", "delay", Effect.RELINK)]),
        (
            '<end node="a" interface="eth0"/>',
            '<end node="a" interface="eth1"/>',
            [("link", "wire", "ends", Effect.RELINK)],
        ),
        (
            "10.0.0.2",
            "10.0.0.3",
            [
                ("node", "b", "interface eth0", Effect.RESTART),
                ("node", "b", "file /etc/serai/startup", Effect.RESTART),
            ],
        ),
    ],
)
def test_a_change_names_field_and_effect(
    old: str, new: str, expected: list[tuple[str, str, str, Effect]]
) -> None:
    assert old in BASE
    found = diff(compiled(BASE), compiled(BASE.replace(old, new))).changes
    assert [(item.kind, item.name, item.field, item.effect) for item in found] == expected
    assert {item.action for item in found} == {Action.CHANGE}
    assert all(item.old != item.new for item in found)


def test_which_end_comes_first_is_no_difference() -> None:
    topology = compiled(BASE)
    link = topology.links[0]
    assert not diff(topology, replace(topology, links=(replace(link, a=link.b, b=link.a),)))


def test_a_node_that_moves_and_restarts_only_restarts() -> None:
    other = BASE.replace('name="b">', 'name="b" provider="beta" vcpus="2">')
    found = diff(compiled(BASE), compiled(other))
    assert (found.restarted(), found.moved()) == (["b"], [])


def _valid(description: VnetDescription) -> Topology | None:
    if any(finding.severity is Severity.ERROR for finding in check(description)):
        return None
    return compile_vnet(description)


@given(descriptions(), descriptions())
def test_a_difference_is_empty_for_the_same_and_says_what_comes_and_goes(
    one: VnetDescription, other: VnetDescription
) -> None:
    old, new = _valid(one), _valid(other)
    if old is None or new is None:
        return
    assert not diff(old, old)
    for kind in ("node", "link"):
        before = {item.name for item in getattr(old, f"{kind}s")}
        after = {item.name for item in getattr(new, f"{kind}s")}
        changes = [item for item in diff(old, new).changes if item.kind == kind]
        assert {item.name for item in changes if item.action is Action.ADD} == after - before
        assert {item.name for item in changes if item.action is Action.REMOVE} == before - after
