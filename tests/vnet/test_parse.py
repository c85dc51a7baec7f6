"""Every error at once, each at its place with its hint; and nothing in a document makes the parser raise."""

from __future__ import annotations

import ipaddress
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.errors import DescriptionError
from serai.vnet import Severity, parse
from serai.vnet.document import MAX_DEPTH, MAX_DOCUMENT_BYTES, MAX_ELEMENTS

HEAD = '<vnet xmlns="urn:serai:vnet:1" name="demo">'
TWO = '<node name="a"/><node name="b"/>'


def vnet(inner: str) -> bytes:
    return f"{HEAD}{inner}</vnet>".encode()


def errors(document: bytes) -> list[tuple[str, str, str]]:
    result = parse(document)
    assert (result.description is None) == bool(result.errors)
    return [(item.path, item.message, item.hint) for item in result.errors]


def node(attributes: str = "", inner: str = "") -> bytes:
    return vnet(f'<node name="a" {attributes}>{inner}</node>')


SINGLE_ERRORS = {
    "malformed": (b"<vnet", "/", "malformed XML", ""),
    "not closed": (vnet("<node name='a'>"), "/vnet/node[1]", "malformed XML: mismatched tag", "still open"),
    "empty": (b"", "/", "malformed XML: no element found", ""),
    "undefined entity": (vnet("&x;"), "/vnet", "malformed XML: undefined entity", ""),
    "doctype": (b"<!DOCTYPE vnet><vnet/>", "/", "a DOCTYPE is not allowed", "leave it out"),
    "other document": (b"<lab/>", "/lab", "unknown document element <lab>", "starts with <vnet xmlns="),
    "other version": (
        b'<vnet xmlns="urn:serai:vnet:9"/>',
        "/vnet",
        "unknown namespace",
        "reads urn:serai:vnet:1",
    ),
    "no namespace": (b'<vnet name="a"/>', "/vnet", "no namespace", 'xmlns="urn:serai:vnet:1"'),
    "encoding": (b'<?xml version="1.0" encoding="utf-7"?><vnet/>', "/", "unreadable encoding", "UTF-8"),
    "element": (
        vnet("<nod name='a'/>"),
        "/vnet/nod[1]",
        "unknown element <nod> in <vnet>",
        "did you mean 'node'?",
    ),
    "foreign element": (
        vnet("<node xmlns='urn:x' name='a'/>"),
        "/vnet/node[1]",
        "unknown element <node>",
        "",
    ),
    "attribute": (
        node('vcpu="2"'),
        "/vnet/node[1]/@vcpu",
        "has no attribute 'vcpu'",
        "did you mean 'vcpus'?",
    ),
    "text": (node(inner="hello"), "/vnet/node[1]", "text is not expected in <node>: 'hello'", ""),
    "missing": (vnet("<node/>"), "/vnet/node[1]", "<node> needs the attribute 'name'", 'name="router"'),
    "second startup": (node(inner="<startup/><startup/>"), "/vnet/node[1]/startup[2]", "takes at most 1", ""),
    "no unit": (node('memory="128"'), "/vnet/node[1]/@memory", "'128' has no unit", "128MiB"),
    "unit's case": (
        node('memory="1mib"'),
        "/vnet/node[1]/@memory",
        "unknown unit 'mib'",
        "did you mean 1MiB?",
    ),
    "memory range": (node('memory="2TiB"'), "/vnet/node[1]/@memory", "2TiB is out of range", "1MiB to 1TiB"),
    "memory pages": (node('memory="1048577B"'), "/vnet/node[1]/@memory", "not a multiple of 4KiB", ""),
    "memory fraction": (node('memory="1.1KiB"'), "/vnet/node[1]/@memory", "not a whole number of B", ""),
    "vcpus": (node('vcpus="two"'), "/vnet/node[1]/@vcpus", "'two' is not a whole number", ""),
    "vcpus range": (node('vcpus="0"'), "/vnet/node[1]/@vcpus", "0 virtual CPUs are out of range", "1 to 64"),
    "boolean": (node('forwarding="yes"'), "/vnet/node[1]/@forwarding", "neither true nor false", ""),
    "name": (vnet("<node name='A_1'/>"), "/vnet/node[1]/@name", "'A_1' is not a name", "RFC 1123"),
    "image": (node('image="../x"'), "/vnet/node[1]/@image", "'../x' is not the name of an image", ""),
    "same node": (
        vnet(TWO + '<node name="a"/>'),
        "/vnet/node[3]/@name",
        "two nodes are called 'a'",
        "node[1]",
    ),
    "mac": (
        node(inner='<interface name="eth0" mac="01:00:00:00:00:01"/>'),
        "/vnet/node[1]/interface[1]/@mac",
        "not the address of one interface",
        "even",
    ),
    "network address": (
        node(inner='<interface address="10.1.0.0/24"/>'),
        "/vnet/node[1]/interface[1]/@address",
        "10.1.0.0 is the address of the network",
        "10.1.0.1/24",
    ),
    "netmask": (
        node(inner='<interface address="10.1.0.1/255.255.255.0"/>'),
        "/vnet/node[1]/interface[1]/@address",
        "is not an IP address with prefix",
        "10.1.0.1/24",
    ),
    "scope id": (
        node(inner='<interface address="fe80::1%$(reboot)/64"/>'),
        "/vnet/node[1]/interface[1]/@address",
        "is not an IP address with prefix",
        "",
    ),
    "destination": (
        node(inner='<interface address="10.1.0.1/24"/><route to="10.2.0.5/24" via="10.1.0.2"/>'),
        "/vnet/node[1]/route[1]/@to",
        "has bits set beyond its prefix",
        "did you mean 10.2.0.0/24?",
    ),
    "gateway": (
        node(inner='<interface address="10.1.0.1/24"/><route to="default" via="10.2.0.1"/>'),
        "/vnet/node[1]/route[1]/@via",
        "cannot reach the gateway 10.2.0.1",
        "10.1.0.0/24",
    ),
    "own gateway": (
        node(inner='<interface address="10.1.0.1/24"/><route to="default" via="10.1.0.1"/>'),
        "/vnet/node[1]/route[1]/@via",
        "is node 'a' itself",
        "neighbour",
    ),
    "two defaults": (
        node(
            inner='<interface address="10.1.0.1/24"/>'
            '<route to="default" via="10.1.0.2"/><route to="default" via="10.1.0.3"/>'
        ),
        "/vnet/node[1]/route[2]/@to",
        "two routes to default",
        "",
    ),
    "address twice": (
        node(inner='<interface address="10.1.0.1/24"/><interface address="10.1.0.1/16"/>'),
        "/vnet/node[1]/interface[2]/@address",
        "node 'a' has the address 10.1.0.1 twice",
        "",
    ),
    "gap": (
        node(inner='<interface name="eth1"/>'),
        "/vnet/node[1]",
        "has eth1 but no eth0",
        "did you mean 'eth0'?",
    ),
    "interface name": (
        node(inner='<interface name="en0"/>'),
        "/vnet/node[1]/interface[1]/@name",
        "'en0' is not the name of an interface",
        "eth0, eth1",
    ),
    "reserved file": (
        node(inner='<file path="/etc/serai/startup"/>'),
        "/vnet/node[1]/file[1]/@path",
        "belongs to Serai",
        "",
    ),
    "dotted file": (
        node(inner='<file path="/a/../b"/>'),
        "/vnet/node[1]/file[1]/@path",
        "not a plain path",
        "",
    ),
    "file with a line break": (
        node(inner='<file path="/a&#10;b"/>'),
        "/vnet/node[1]/file[1]/@path",
        "is not an absolute path",
        "printable",
    ),
    "file below file": (
        node(inner='<file path="/a"/><file path="/a/b"/>'),
        "/vnet/node[1]/file[2]/@path",
        "below '/a', which is a file",
        "",
    ),
    "base64": (
        node(inner='<file path="/a" encoding="base64">*</file>'),
        "/vnet/node[1]/file[1]",
        "the content is not base64",
        "",
    ),
    "mode": (
        node(inner='<file path="/a" mode="9"/>'),
        "/vnet/node[1]/file[1]/@mode",
        "not a file mode",
        "octal",
    ),
    "sysctl": (
        node(inner='<sysctl name="kernel" value="1"/>'),
        "/vnet/node[1]/sysctl[1]/@name",
        "not the name of a kernel parameter",
        "",
    ),
    "one end": (
        vnet(TWO + '<link><end node="a"/></link>'),
        "/vnet/link[1]",
        "<link> needs 2 <end>, it has 1",
        "",
    ),
    "a node twice on a segment": (
        vnet(TWO + '<link><end node="a"/><end node="b"/><end node="a"/></link>'),
        "/vnet/link[1]",
        "several ends of the link are at node 'a'",
        "",
    ),
    "one address twice on a segment": (
        vnet(
            "".join(
                f'<node name="{name}"><interface address="10.0.0.{last}/24"/></node>'
                for name, last in (("a", 1), ("b", 2), ("c", 1))
            )
            + '<link><end node="a"/><end node="b"/><end node="c"/></link>'
        ),
        "/vnet/link[1]",
        "several ends of the link have the address 10.0.0.1",
        "",
    ),
    "loop": (vnet(TWO + '<link><end node="a"/><end node="a"/></link>'), "/vnet/link[1]", "both ends", ""),
    "unknown node": (
        vnet('<node name="client"/><node name="b"/><link><end node="clinet"/><end node="b"/></link>'),
        "/vnet/link[1]/end[1]/@node",
        "there is no node 'clinet'",
        "did you mean 'client'?",
    ),
    "unknown interface": (
        vnet(TWO + '<link><end node="a" interface="eth3"/><end node="b"/></link>'),
        "/vnet/node[1]",
        "has eth3 but no eth0",
        "eth0",
    ),
    "interface used twice": (
        vnet(
            TWO + '<link><end node="a" interface="eth0"/><end node="b"/></link>'
            '<link><end node="a" interface="eth0"/><end node="b"/></link>'
        ),
        "/vnet/link[2]/end[1]/@interface",
        "eth0 of node 'a' is used twice",
        "link[1] has it",
    ),
    "same address on a link": (
        vnet(
            '<node name="a"><interface address="10.1.0.1/24"/></node>'
            '<node name="b"><interface address="10.1.0.1/24"/></node>'
            '<link><end node="a"/><end node="b"/></link>'
        ),
        "/vnet/link[1]",
        "both ends of the link have the address 10.1.0.1",
        "",
    ),
    "same mac": (
        vnet(
            '<node name="a"><interface mac="02:00:00:00:00:01"/></node>'
            '<node name="b"><interface mac="02:00:00:00:00:01"/></node>'
        ),
        "/vnet/node[2]/interface[1]/@mac",
        "02:00:00:00:00:01 is used twice",
        "node 'a'",
    ),
    "bandwidth": (
        vnet(TWO + '<link bandwidth="10Mbps"><end node="a"/><end node="b"/></link>'),
        "/vnet/link[1]/@bandwidth",
        "unknown unit 'Mbps'",
        "Mbit/s",
    ),
    "delay": (
        vnet(TWO + '<link delay="-1ms"><end node="a"/><end node="b"/></link>'),
        "/vnet/link[1]/@delay",
        "'-1ms' is not a delay",
        "5ms",
    ),
    "too big": (vnet(" " * MAX_DOCUMENT_BYTES), "/", f"at most {MAX_DOCUMENT_BYTES} are read", "image"),
    "too deep": (
        b"<vnet>" * (MAX_DEPTH + 1),
        "/" + "/".join(["vnet"] + ["vnet[1]"] * (MAX_DEPTH - 1)),
        "deeper",
        "",
    ),
    "too many": (vnet("<a/>" * MAX_ELEMENTS), "/vnet", f"more than {MAX_ELEMENTS} elements", "split"),
}


@pytest.mark.parametrize(("document", "path", "message", "hint"), SINGLE_ERRORS.values(), ids=SINGLE_ERRORS)
def test_one_error_at_its_place(document: bytes, path: str, message: str, hint: str) -> None:
    found = errors(document)
    assert len(found) == 1, found
    assert found[0][0] == path
    assert message in found[0][1]
    assert hint in found[0][2]


ALL_AT_ONCE = b"""<vnet xmlns="urn:serai:vnet:1" name="Demo">
  <node name="a" memory="128" vcpu="2">
    <interface name="eth0" address="10.1.0.0/24 10.1.0.7"/>
    <route to="default" via="10.9.0.1"/>
  </node>
  <node name="b"><intrface/></node>
  <node name="b" memory="1.5mib"/>
  <link bandwidth="10Mbps"><end node="a"/><end node="bb"/></link>
  <link><end node="a"/></link>
  <link><end/><end node="a" interface="eth0"/></link>
  <node name="C"/>
  <link><end node="C"/><end node="b"/></link>
</vnet>
"""


def test_all_errors_at_once_and_none_that_follows_from_another() -> None:
    found = [(item.line, item.path) for item in parse(ALL_AT_ONCE).errors]
    assert found == [
        (1, "/vnet/@name"),
        (2, "/vnet/node[1]/@vcpu"),
        (2, "/vnet/node[1]/@memory"),
        (3, "/vnet/node[1]/interface[1]/@address"),
        (3, "/vnet/node[1]/interface[1]/@address"),
        # Not the gateway of node a: its addresses could not be read.
        (6, "/vnet/node[2]/intrface[1]"),
        (7, "/vnet/node[3]/@memory"),
        (7, "/vnet/node[3]/@name"),
        (8, "/vnet/link[1]/@bandwidth"),
        (8, "/vnet/link[1]/end[2]/@node"),
        (9, "/vnet/link[2]"),
        (10, "/vnet/link[3]/end[1]"),
        (11, "/vnet/node[4]/@name"),
        # One error for the link's end: node C has a bad name, but it is there.
        (12, "/vnet/link[4]/end[1]/@node"),
    ]


def test_require_raises_with_all_errors() -> None:
    with pytest.raises(DescriptionError) as caught:
        parse(ALL_AT_ONCE).require()
    assert caught.value.message.count("\n") == caught.value.message.count("line ") == 14
    assert "did you mean 'interface'?" in caught.value.message


@pytest.mark.parametrize(
    ("inner", "path", "message"),
    [
        ('<node name="a"><interface name="eth0"/></node>', "/vnet/node[1]/interface[1]", "no link uses"),
        (
            '<node name="a"><interface address="10.1.0.1/24"/></node>'
            '<node name="b"><interface address="10.2.0.1/24"/></node>'
            '<link><end node="a"/><end node="b"/></link>',
            "/vnet/link[1]",
            "different subnets",
        ),
        (
            '<node name="a"><interface address="10.1.0.1/24"/><interface address="10.1.0.129/25"/></node>',
            "/vnet/node[1]/interface[2]/@address",
            "two interfaces of node 'a' are in the subnet",
        ),
        (
            '<node name="a"><interface address="10.1.0.1/24"/></node>'
            '<node name="b"><interface address="10.1.0.1/24"/></node>',
            "/vnet/node[2]",
            "both have the address 10.1.0.1",
        ),
    ],
)
def test_warnings_leave_the_description_usable(inner: str, path: str, message: str) -> None:
    result = parse(vnet(inner))
    assert result.description is not None
    assert [(item.severity, item.path) for item in result.diagnostics] == [(Severity.WARNING, path)]
    assert message in result.diagnostics[0].message


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 2**8 - 2), st.integers(25, 31)), max_size=6))
def test_shared_subnets_against_brute_force(drawn: list[tuple[int, int, int]]) -> None:
    """(interface, host, prefix length): every subnet inside one of another interface is told, once."""
    addresses: dict[int, tuple[int, ipaddress.IPv4Interface]] = {}
    for interface, host, length in drawn:
        address = ipaddress.IPv4Interface(f"10.0.0.{host}/{length}")
        if length == 31 or address.ip not in (address.network[0], address.network[-1]):
            addresses[host] = (interface, address)
    texts = [" ".join(str(a) for i, a in addresses.values() if i == interface) for interface in range(3)]
    document = node(inner="".join(f'<interface address="{text}"/>' for text in texts))
    told = [item for item in parse(document).diagnostics if "two interfaces of node" in item.message]
    expected = sum(
        any(
            other != interface
            and address.network.subnet_of(around.network)
            and (address.network != around.network or other < interface)
            for other, around in addresses.values()
        )
        for interface, address in addresses.values()
    )
    assert len(told) == expected


def test_entities_are_never_expanded() -> None:
    bomb = '<!DOCTYPE vnet [<!ENTITY a "x">' + "".join(
        f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 20}">' for i in range(12)
    )
    start = time.monotonic()
    for use in ("&m;", '<node name="&m;"/>'):
        result = parse(f"{bomb}]>{HEAD}{use}</vnet>".encode())
        assert [item.message for item in result.errors] == ["a DOCTYPE is not allowed"]
    external = b'<!DOCTYPE vnet SYSTEM "file:///etc/passwd"><vnet/>'
    assert parse(external).errors[0].message == "a DOCTYPE is not allowed"
    assert time.monotonic() - start < 1


def test_only_so_many_diagnostics_but_errors_first() -> None:
    document = vnet("<node name='a' x='1'/>" * 1000)
    result = parse(document)
    assert len(result.diagnostics) == 201
    assert result.diagnostics[-1].message == "and 1799 more"
    assert all(item.severity is Severity.ERROR for item in result.diagnostics)


def _addresses(count: int) -> str:
    return " ".join(f"10.{i >> 8 & 255}.{i & 255}.1/9" for i in range(count))


HOSTILE = {
    "siblings": vnet("<a/>" * 40_000),
    "attributes": vnet(
        "<node name='a'><interface " + " ".join(f"a{i}=''" for i in range(80_000)) + "/></node>"
    ),
    "comments": vnet("x<!---->" * 100_000),
    "addresses": vnet(
        "".join(
            f"<node name='n{n}'>"
            + f"<interface address='{_addresses(16)}'/>" * 100
            + "".join(f"<route to='11.{i}.0.0/16' via='9.0.0.{i}'/>" for i in range(250))
            + "</node>"
            for n in range(25)
        )
    ),
    "links": vnet(TWO + "<link><end node='a'/><end node='b'/></link>" * 5000),
    "same names": vnet("<node name='a'/>" * 999),
    "numbers": vnet(f"<node name='a' memory='{'9' * 500_000}MiB'/>"),
}


@pytest.mark.parametrize("document", HOSTILE.values(), ids=HOSTILE)
def test_hostile_documents_take_bounded_time(document: bytes) -> None:
    assert len(document) <= MAX_DOCUMENT_BYTES
    start = time.process_time()
    assert parse(document).errors
    assert time.process_time() - start < 5


@given(st.binary(max_size=200) | st.text("<>/&;!=\"' vnetodexmls:1[]#", max_size=200).map(str.encode))
def test_never_raises(document: bytes) -> None:
    result = parse(document)
    assert (result.description is None) == bool(result.errors)
