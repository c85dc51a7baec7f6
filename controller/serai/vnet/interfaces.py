"""Which interface each end of a link uses, where the description leaves it open."""

from __future__ import annotations

from dataclasses import dataclass, field

from serai.vnet.model import Interface, VnetDescription

MAX_INTERFACES = 100

EndPosition = tuple[int, int]
"""(index of the link, index of the end)."""


@dataclass(frozen=True, slots=True)
class Interfaces:
    """Every interface of every node, in the order eth0, eth1, ... and who uses it."""

    of_node: dict[str, dict[str, Interface]] = field(default_factory=dict)
    of_end: dict[EndPosition, str] = field(default_factory=dict)


def assign_interfaces(description: VnetDescription) -> Interfaces:
    """Name all interfaces: given names stand, others take the lowest free number in document order."""
    result = Interfaces()
    for node in description.nodes:
        result.of_node[node.name] = _named(node.interfaces)
    _assign_ends(description, result)
    for name, interfaces in result.of_node.items():
        result.of_node[name] = dict(sorted(interfaces.items(), key=lambda item: interface_index(item[0])))
    return result


def interface_index(name: str) -> int:
    """0 for eth0."""
    return int(name.removeprefix("eth"))


def _named(declared: tuple[Interface, ...]) -> dict[str, Interface]:
    named = {interface.name: interface for interface in declared if interface.name is not None}
    for interface in declared:
        if interface.name is None:
            named[_first_free(set(named))] = interface
    return named


def _assign_ends(description: VnetDescription, result: Interfaces) -> None:
    used: dict[str, set[str]] = {node.name: set() for node in description.nodes}
    positions = [
        ((link_index, end_index), end)
        for link_index, link in enumerate(description.links)
        for end_index, end in enumerate(link.ends)
        if end.node in used
    ]
    for position, end in positions:
        if end.interface is not None:
            result.of_end[position] = end.interface
            used[end.node].add(end.interface)
    for position, end in positions:
        if end.interface is None:
            result.of_end[position] = _first_free(used[end.node])
            used[end.node].add(result.of_end[position])
    for position, end in positions:
        interface = result.of_end[position]
        result.of_node[end.node].setdefault(interface, Interface.model_construct(name=interface))


def _first_free(taken: set[str]) -> str:
    """The lowest free name; eth100, which no node may have, where all are taken."""
    for index in range(MAX_INTERFACES):
        if f"eth{index}" not in taken:
            return f"eth{index}"
    return f"eth{MAX_INTERFACES}"
