"""Rules about IP addresses: on one link, in one node, in the VNet, and gateways of routes."""

from __future__ import annotations

from collections.abc import Iterator

from serai.vnet.diagnostics import Finding, Location, Severity
from serai.vnet.interfaces import Interfaces
from serai.vnet.model import Interface, Link, Node, VnetDescription
from serai.vnet.values import Address


def check_links(description: VnetDescription, interfaces: Interfaces) -> Iterator[Finding]:
    """The two ends of a link: never the same address, and better the same subnet."""
    for index, link in enumerate(description.links):
        addresses = [
            _end_addresses(link, index, end_index, interfaces) for end_index in range(len(link.ends))
        ]
        if len(addresses) != 2 or not addresses[0] or not addresses[1]:
            continue
        shared = {address.ip for address in addresses[0]} & {address.ip for address in addresses[1]}
        for ip in sorted(shared, key=str):
            yield Finding(Severity.ERROR, ("links", index), f"both ends of the link have the address {ip}")
        yield from _subnets(index, addresses[0], addresses[1])


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
    """Within a node, an address and a subnet belong to one interface; within the VNet, an address to one
    node.
    """
    owner: dict[object, str] = {}
    for index, node in enumerate(description.nodes):
        yield from _node_addresses(index, node)
        for ip in {address.ip for _, address in _addresses(node)}:
            if owner.get(ip, node.name) != node.name and not _linked(description, node.name, owner[ip]):
                yield Finding(
                    Severity.WARNING,
                    ("nodes", index),
                    f"nodes {owner[ip]!r} and {node.name!r} both have the address {ip}",
                    "fine for anycast only",
                )
            owner.setdefault(ip, node.name)


def _linked(description: VnetDescription, first: str, second: str) -> bool:
    """A link between the two has then been reported as an error already."""
    return any({end.node for end in link.ends} == {first, second} for link in description.links)


def _addresses(node: Node) -> Iterator[tuple[int, Address]]:
    for position, interface in enumerate(node.interfaces):
        for address in interface.addresses:
            yield position, address


def _node_addresses(index: int, node: Node) -> Iterator[Finding]:
    seen: list[tuple[int, Address]] = []
    for position, address in _addresses(node):
        place: Location = ("nodes", index, "interfaces", position, "addresses")
        if any(address.ip == other.ip for _, other in seen):
            yield Finding(Severity.ERROR, place, f"node {node.name!r} has the address {address.ip} twice")
        elif any(where != position and _overlap(address, other) for where, other in seen):
            yield Finding(
                Severity.WARNING,
                place,
                f"two interfaces of node {node.name!r} are in the subnet {address.network}",
                "a subnet belongs to one link; give the other link its own",
            )
        seen.append((position, address))


def _overlap(first: Address, second: Address) -> bool:
    return first.version == second.version and (first.ip in second.network or second.ip in first.network)


def check_routes(index: int, node: Node, interfaces: dict[str, Interface]) -> Iterator[Finding]:
    """A gateway lies in a subnet of the node and is another node's; a destination has one route."""
    addresses = [address for interface in interfaces.values() for address in interface.addresses]
    seen: set[object] = set()
    for position, route in enumerate(node.routes):
        place: Location = ("nodes", index, "routes", position)
        destination = (route.to, route.via.version)
        if destination in seen:
            yield Finding(
                Severity.ERROR,
                (*place, "to"),
                f"node {node.name!r} has two routes to {route.to or 'default'}",
            )
        seen.add(destination)
        if route.to is not None and route.to.version != route.via.version:
            yield Finding(
                Severity.ERROR,
                place,
                f"a route to {route.to} cannot go via {route.via}",
                "mixed IPv4 and IPv6",
            )
        elif any(route.via == address.ip for address in addresses):
            yield Finding(
                Severity.ERROR,
                (*place, "via"),
                f"the gateway {route.via} is node {node.name!r} itself",
                "name the neighbour",
            )
        elif not any(route.via in address.network for address in addresses):
            subnets = ", ".join(str(address.network) for address in addresses) or "none: it has no address"
            yield Finding(
                Severity.ERROR,
                (*place, "via"),
                f"node {node.name!r} cannot reach the gateway {route.via}",
                f"its subnets are {subnets}",
            )
