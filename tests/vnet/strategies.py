"""Random descriptions without errors."""

from __future__ import annotations

import ipaddress
from typing import Any

from hypothesis import strategies as st

from serai.vnet import End, File, Interface, Link, Node, Route, Sysctl, VnetDescription
from serai.vnet.values import XML_TEXT

names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
texts = st.text(max_size=40).filter(lambda text: XML_TEXT.fullmatch(text) is not None)
paths = st.lists(st.text("abcXYZ .-_'\"$&<>;`\\é", min_size=1, max_size=6), min_size=1, max_size=3).map(
    lambda parts: "/home/" + "/".join(part.replace(".", "x") for part in parts)
)
macs = st.binary(min_size=6, max_size=6).map(lambda raw: bytes([raw[0] & 0xFC | 0x02]) + raw[1:])


@st.composite
def descriptions(draw: st.DrawFn) -> VnetDescription:
    node_names = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    link_names = draw(st.lists(st.none() | names, max_size=6, unique_by=lambda name: name or object()))
    interfaces: dict[str, list[Interface]] = {name: [] for name in node_names}
    routes: dict[str, list[Route]] = {name: [] for name in node_names}
    links = []
    mac_pool = draw(st.lists(macs, min_size=12, max_size=12, unique=True))
    for number, link_name in enumerate(link_names if len(node_names) > 1 else []):
        first, second = draw(st.permutations(node_names))[:2]
        addressed = draw(st.booleans())
        ends = []
        for host, name in ((1, first), (2, second)):
            own = interfaces[name]
            interface = f"eth{len(own)}"
            mac = mac_pool.pop() if draw(st.booleans()) else None
            address = ipaddress.ip_interface(f"10.{number}.0.{host}/24")
            own.append(Interface(name=interface, addresses=(address,) if addressed else (), mac=mac))
            ends.append(End(node=name, interface=interface))
        if addressed and draw(st.booleans()):
            to = ipaddress.ip_network(f"172.16.{number}.0/24")
            routes[first].append(Route(to=to, via=ipaddress.ip_address(f"10.{number}.0.2")))
        links.append(
            Link(
                name=link_name,
                bandwidth_bps=draw(st.integers(0, 10**13)),
                delay_ns=draw(st.none() | st.integers(1, 60 * 10**9)),
                ends=tuple(ends),
            )
        )
    nodes = tuple(draw(_nodes(name, interfaces[name], routes[name])) for name in node_names)
    return VnetDescription(name=draw(names), nodes=nodes, links=tuple(links))


@st.composite
def _nodes(draw: st.DrawFn, name: str, interfaces: list[Interface], routes: list[Route]) -> Node:
    files = draw(
        st.lists(
            st.builds(File.of, paths, st.binary(max_size=20) | texts.map(str.encode), st.integers(0, 0o7777)),
            max_size=3,
            unique_by=lambda file: file.path,
        )
    )
    files = [f for f in files if not any(g.path.startswith(f.path + "/") for g in files)]
    optional: dict[str, Any] = {
        "image": draw(st.sampled_from(["debian", "openwrt-23.05", "A_b"])),
        "vcpus": draw(st.integers(1, 64)),
        "memory_bytes": draw(st.integers(256, 2**28).map(lambda pages: pages * 4096)),
        "provider": draw(st.none() | names),
        "location": draw(st.none() | st.just("de/berlin-1")),
        "mode": draw(st.sampled_from(["paravirtual", "full"])),
        "forwarding": draw(st.booleans()),
        "sysctls": tuple(draw(st.sampled_from([[], [Sysctl(name="net.ipv4.tcp_ecn", value="' \"$(x)<&>")]]))),
        "startup": draw(texts),
    }
    return Node(name=name, interfaces=tuple(interfaces), routes=tuple(routes), files=tuple(files), **optional)
