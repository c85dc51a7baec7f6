"""Rules about IP addresses: on one link, in one node, in the VNet, and gateways of routes."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

from serai.vnet.diagnostics import Finding, Location, Severity
from serai.vnet.interfaces import Interfaces
from serai.vnet.model import Interface, Link, Node, VnetDescription
from serai.vnet.subnets import connected_interface, subnets_of
from serai.vnet.values import Address


def check_links(description: VnetDescription, interfaces: Interfaces) -> Iterator[Finding]:
    """The ends of a link: never the same address, and better the same subnet."""
    for index, link in enumerate(description.links):
        addresses = [
            _end_addresses(link, index, end_index, interfaces) for end_index in range(len(link.ends))
        ]
        addressed = [item for item in addresses if item]
        counts = Counter(ip for item in addressed for ip in {address.ip for address in item})
        both = "both" if len(addresses) == 2 else "several"
        for ip in sorted((ip for ip, count in counts.items() if count > 1), key=str):
            yield Finding(Severity.ERROR, ("links", index), f"{both} ends of the link have the address {ip}")
        for other in addressed[1:]:
            yield from _subnets(index, addressed[0], other)


def _end_addresses(link: Link, index: int, end_index: int, interfaces: Interfaces) -> tuple[Address, ...]:
    node = interfaces.of_node.get(link.ends[end_index].node, {})
    interface = node.get(interfaces.of_end.get((index, end_index), ""))
    return interface.addresses if interface is not None else ()


def _subnets(index: int, first: tuple[Address, ...], second: tuple[Address, ...]) -> Iterator[Finding]:
    if {address.version for address in first}.isdisjoint(address.version for address in second):
        return
    if {address.network for address in first}.isdisjoint(address.network for address in second):
        ours, theirs = first[0], second[0]
        yield Finding(
            Severity.WARNING,
            ("links", index),
            f"the ends of the link are in different subnets: {ours} and {theirs}",
            f"give both an address of {ours.network}",
        )


def check_vnet_addresses(description: VnetDescription, interfaces: Interfaces) -> Iterator[Finding]:
    """Within a node an address and a subnet belong to one interface, in the VNet an address to one node."""
    owner: dict[object, str] = {}
    # Where two nodes of one link have the same address, that is an error already.
    linked = {
        frozenset(pair)
        for link in description.links
        for pair in itertools.combinations([end.node for end in link.ends], 2)
    }
    for index, node in enumerate(description.nodes):
        yield from _node_addresses(index, node)
        for ip in {address.ip: None for _, address in _addresses(node)}:
            other = owner.setdefault(ip, node.name)
            if other != node.name and frozenset((other, node.name)) not in linked:
                yield Finding(
                    Severity.WARNING,
                    ("nodes", index),
                    f"nodes {other!r} and {node.name!r} both have the address {ip}",
                    "fine for anycast only",
                )


def _addresses(node: Node) -> Iterator[tuple[int, Address]]:
    for position, interface in enumerate(node.interfaces):
        for address in interface.addresses:
            yield position, address


def _node_addresses(index: int, node: Node) -> Iterator[Finding]:
    seen: set[object] = set()
    for position, address in _addresses(node):
        if address.ip in seen:
            place: Location = ("nodes", index, "interfaces", position, "addresses")
            message = f"node {node.name!r} has the address {address.ip} twice"
            yield Finding(Severity.ERROR, place, message)
        seen.add(address.ip)
    for position, address in _shared_subnets(node):
        yield Finding(
            Severity.WARNING,
            ("nodes", index, "interfaces", position, "addresses"),
            f"two interfaces of node {node.name!r} are in the subnet {address.network}",
            "a subnet belongs to one link; give the other link its own",
        )


def _shared_subnets(node: Node) -> Iterator[tuple[int, Address]]:
    """Addresses whose subnet lies inside a subnet of another interface, by one sweep over the sorted subnets.

    Subnets are either disjoint or nested, so those around the current one form a stack. Neighbours on it
    belong to different interfaces, because what lies inside a subnet of its own interface is not pushed.
    """
    spans = [
        (a.version, int(a.network.network_address), -int(a.network.broadcast_address), position, a)
        for position, a in _addresses(node)
    ]
    around: list[tuple[int, int, int]] = []
    for version, start, negative_end, position, address in sorted(spans, key=lambda span: span[:4]):
        while around and (around[-1][0] != version or around[-1][1] < start):
            around.pop()
        if any(other != position for _, _, other in around[-2:]):
            yield position, address
        if not around or around[-1][2] != position:
            around.append((version, -negative_end, position))


def check_routes(index: int, node: Node, interfaces: dict[str, Interface]) -> Iterator[Finding]:
    """A gateway lies in a subnet of the node and is another node's; a destination has one route."""
    subnets = subnets_of(interfaces)
    own = {address.ip for interface in interfaces.values() for address in interface.addresses}
    seen: set[object] = set()
    for position, route in enumerate(node.routes):
        place: Location = ("nodes", index, "routes", position)
        destination = (route.to, route.via.version)
        if destination in seen:
            message = f"node {node.name!r} has two routes to {route.to or 'default'}"
            yield Finding(Severity.ERROR, (*place, "to"), message)
        seen.add(destination)
        if route.to is not None and route.to.version != route.via.version:
            message = f"a route to {route.to} cannot go via {route.via}"
            yield Finding(Severity.ERROR, place, message, "IPv4 goes via IPv4 and IPv6 via IPv6")
        elif route.via in own:
            message = f"the gateway {route.via} is node {node.name!r} itself"
            yield Finding(Severity.ERROR, (*place, "via"), message, "name the neighbour's address")
        elif not connected_interface(subnets, route.via):
            known = ", ".join(str(subnet.network) for subnet in subnets[:8])
            message = f"node {node.name!r} cannot reach the gateway {route.via}"
            hint = f"its subnets are {known}" if known else "none of its interfaces has an address"
            yield Finding(Severity.ERROR, (*place, "via"), message, hint)
