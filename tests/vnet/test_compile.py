"""What a description leaves open is decided, and guests can run what they are given."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings

from serai.errors import DescriptionError
from serai.vnet import End, Link, Node, Topology, VnetDescription, check, compile_vnet, parse
from serai.vnet.guest import HOSTNAME_PATH, STARTUP_PATH, USER_STARTUP_PATH

from .strategies import descriptions

VAGUE = b"""<vnet xmlns="urn:serai:vnet:1" name="demo">
  <node name="a"/>
  <node name="b"><interface name="eth1" address="10.0.0.1/8"/><interface address="192.168.0.1/24"/></node>
  <link><end node="a"/><end node="b" interface="eth1"/></link>
  <link name="link3"><end node="b"/><end node="a"/></link>
  <link><end node="a" interface="eth0"/><end node="b"/></link>
</vnet>"""


def compiled(document: bytes) -> Topology:
    return compile_vnet(parse(document).require())


def test_what_is_left_out_is_decided() -> None:
    topology = compiled(VAGUE)
    links = [
        (link.name, link.a.node, link.a.interface, link.b.node, link.b.interface) for link in topology.links
    ]
    assert links == [
        ("link1", "a", "eth1", "b", "eth1"),
        ("link3", "b", "eth0", "a", "eth2"),
        ("link4", "a", "eth0", "b", "eth2"),
    ]
    a, b = topology.nodes
    assert [interface.name for interface in a.interfaces] == ["eth0", "eth1", "eth2"]
    assert [(i.name, [str(x) for x in i.addresses]) for i in b.interfaces] == [
        ("eth0", ["192.168.0.1/24"]),
        ("eth1", ["10.0.0.1/8"]),
        ("eth2", []),
    ]
    assert (a.image, a.vcpus, a.memory_bytes, a.provider, a.location) == ("debian", 1, 128 * 2**20, "", "")
    assert (topology.links[0].bandwidth_bps, topology.links[0].max_delay_ns) == (0, 0)


def test_macs_depend_on_names_alone() -> None:
    first, again = (
        compiled(VAGUE),
        compiled(VAGUE.replace(b'<node name="a"/>', b'<node name="a" vcpus="2"/>')),
    )
    macs = [i.mac for node in first.nodes for i in node.interfaces]
    assert macs == [i.mac for node in again.nodes for i in node.interfaces]
    assert len(set(macs)) == len(macs)
    assert all(len(mac) == 6 and mac[0] & 3 == 2 for mac in macs)
    other = compile_vnet(parse(VAGUE).require(), name="other")
    assert set(macs).isdisjoint(i.mac for node in other.nodes for i in node.interfaces)
    # Pinned: guests that are moved to a later version of Serai keep their addresses.
    assert first.nodes[0].interfaces[0].mac.hex(":") == "2a:fb:a3:8a:cb:88"


@given(descriptions())
@settings(deadline=None)
def test_every_interface_of_a_link_exists_and_is_used_once(description: VnetDescription) -> None:
    topology = compile_vnet(description)
    known = {(node.name, i.name) for node in topology.nodes for i in node.interfaces}
    used = [(end.node, end.interface) for link in topology.links for end in (link.a, link.b)]
    assert len(set(used)) == len(used)
    assert set(used) <= known
    assert len({link.name for link in topology.links}) == len(topology.links)
    for node in topology.nodes:
        assert [i.name for i in node.interfaces] == [f"eth{n}" for n in range(len(node.interfaces))]


def test_errors_of_descriptions_made_by_a_program() -> None:
    description = VnetDescription(name="x", nodes=(Node(name="a"),), links=(Link(ends=(End(node="a"),)),))
    assert [finding.location for finding in check(description)] == [("links", 0)]
    with pytest.raises(DescriptionError, match=r"links\.0: a link has two ends or more, not 1"):
        compile_vnet(description)


NASTY = b"""<vnet xmlns="urn:serai:vnet:1" name="demo">
  <node name="router" forwarding="true">
    <interface address="10.1.0.1/24 2001:db8::1/64"/>
    <interface address="10.2.0.1/24 10.3.0.1/16"/>
    <route to="default" via="10.3.7.7"/>
    <route to="2001:db8:1::/48" via="2001:db8::2"/>
    <sysctl name="net.ipv4.ip_local_port_range" value="'1' $(touch pwned) &quot;2&quot;"/>
    <file path="/srv/it's $HOME" mode="0600" encoding="base64">AP8=</file>
    <startup>
cat &lt;&lt;'EOF' &gt; "$OUT/user"
it's $HOME
EOF
exit 7
</startup>
  </node>
  <node name="a"/><node name="b"/>
  <link><end node="router"/><end node="a"/></link>
  <link><end node="router"/><end node="b"/></link>
</vnet>"""


def run_startup(tmp_path: Path, document: bytes) -> tuple[int, list[str]]:
    """Run the script of the first node with a real shell; `ip` only writes down what it was asked."""
    files = {file.path: file for file in compiled(document).nodes[0].files}
    out = tmp_path / "out"
    (tmp_path / "bin").mkdir()
    out.mkdir()
    ip = tmp_path / "bin" / "ip"
    ip.write_text('#!/bin/sh\necho "$@" >> "$OUT/ip"\n[ "$*" != "$FAIL" ]\n')
    ip.chmod(0o755)
    user = tmp_path / "startup-user"
    if USER_STARTUP_PATH in files:
        user.write_bytes(files[USER_STARTUP_PATH].content)
        user.chmod(files[USER_STARTUP_PATH].mode)
    script = files[STARTUP_PATH].content.decode()
    script = script.replace(USER_STARTUP_PATH, str(user)).replace("/proc/sys/net", str(out))
    for directory in ("ipv4", "ipv6/conf/all"):
        (out / directory).mkdir(parents=True)
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "OUT": str(out)}
    status = subprocess.run(
        ["sh"], input=script.encode(), env=environment, cwd=out, timeout=10, check=False
    ).returncode
    return status, (out / "ip").read_text().splitlines()


def test_startup_configures_the_network_then_runs_the_users_script(tmp_path: Path) -> None:
    status, calls = run_startup(tmp_path, NASTY)
    assert calls == [
        "link set dev lo up",
        "link set dev eth0 up",
        "addr add 10.1.0.1/24 dev eth0",
        "-6 addr add 2001:db8::1/64 dev eth0",
        "link set dev eth1 up",
        "addr add 10.2.0.1/24 dev eth1",
        "addr add 10.3.0.1/16 dev eth1",
        "route add default via 10.3.7.7 dev eth1",
        "-6 route add 2001:db8:1::/48 via 2001:db8::2 dev eth0",
    ]
    out = tmp_path / "out"
    assert (out / "ipv4/ip_forward").read_text() == "1\n"
    assert (out / "ipv6/conf/all/forwarding").read_text() == "1\n"
    assert (out / "ipv4/ip_local_port_range").read_text() == "'1' $(touch pwned) \"2\"\n"
    assert not (out / "pwned").exists()
    assert (out / "user").read_text() == "it's $HOME\n"
    assert status == 7


def test_startup_stops_at_the_first_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "addr add 10.1.0.1/24 dev eth0")
    status, calls = run_startup(tmp_path, NASTY)
    assert status != 0
    assert calls[-1] == "addr add 10.1.0.1/24 dev eth0"
    assert not (tmp_path / "out" / "user").exists()


def test_a_script_with_its_own_interpreter_is_run_by_it(tmp_path: Path) -> None:
    script = b"""<vnet xmlns="urn:serai:vnet:1" name="demo"><node name="a"><startup>
#!/usr/bin/env python3
raise SystemExit(5)
</startup></node></vnet>"""
    assert run_startup(tmp_path, script)[0] == 5


def test_a_route_takes_the_most_specific_subnet(tmp_path: Path) -> None:
    document = b"""<vnet xmlns="urn:serai:vnet:1" name="demo"><node name="a">
    <interface address="10.0.0.1/8"/><interface address="10.9.0.1/16"/><interface address="10.0.0.2/9"/>
    <route to="default" via="10.9.0.7"/></node></vnet>"""
    assert run_startup(tmp_path, document)[1][-1] == "route add default via 10.9.0.7 dev eth1"


def test_guest_files() -> None:
    files = {file.path: file for file in compiled(NASTY).nodes[0].files}
    assert files[HOSTNAME_PATH].content == b"router\n"
    assert files[STARTUP_PATH].mode == 0o755
    assert (files["/srv/it's $HOME"].content, files["/srv/it's $HOME"].mode) == (b"\x00\xff", 0o600)
    assert USER_STARTUP_PATH not in {file.path for file in compiled(NASTY).nodes[1].files}
