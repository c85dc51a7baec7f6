"""A description with everything decided that can be decided without a provider: what the roles work with.

Whatever a description leaves open inside a VNet is filled in here, always in the same way: compiling the same
description twice, anywhere, gives the same topology, MAC addresses included.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from serai.errors import DescriptionError
from serai.vnet.check import check
from serai.vnet.diagnostics import Severity
from serai.vnet.guest import GuestFile, guest_files
from serai.vnet.interfaces import Interfaces, assign_interfaces
from serai.vnet.model import Node, VnetDescription
from serai.vnet.values import Address


@dataclass(frozen=True, slots=True)
class VirtualInterface:
    """An interface of a guest."""

    name: str
    mac: bytes
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class VirtualNode:
    """A guest and where it may be; `provider` and `location` are empty where anywhere will do."""

    name: str
    image: str
    vcpus: int
    memory_bytes: int
    provider: str
    location: str
    interfaces: tuple[VirtualInterface, ...]
    """eth0, eth1, ... in this order."""
    files: tuple[GuestFile, ...]
    mode: str = "paravirtual"
    """paravirtual or full."""


@dataclass(frozen=True, slots=True)
class InterfaceReference:
    """An interface of a node."""

    node: str
    interface: str


@dataclass(frozen=True, slots=True)
class VirtualLink:
    """A link; bandwidth 0 means best effort, `max_delay_ns` 0 means any delay."""

    name: str
    a: InterfaceReference
    b: InterfaceReference
    bandwidth_bps: int
    max_delay_ns: int


@dataclass(frozen=True, slots=True)
class Topology:
    """A compiled VNet."""

    name: str
    nodes: tuple[VirtualNode, ...]
    links: tuple[VirtualLink, ...]


def compile_vnet(description: VnetDescription, *, name: str = "") -> Topology:
    """Fill in names, interfaces, MAC addresses and guest files. `name`, where given, replaces the VNet's own.

    Raises DescriptionError for a description with errors (one from `parse` has none).
    """
    errors = [finding for finding in check(description) if finding.severity is Severity.ERROR]
    if errors:
        lines = "\n".join(f"{'.'.join(map(str, error.location))}: {error.message}" for error in errors)
        raise DescriptionError(f"the description has errors:\n{lines}", errors=len(errors))
    vnet = name or description.name
    interfaces = assign_interfaces(description)
    nodes = tuple(_node(vnet, node, interfaces) for node in description.nodes)
    return Topology(vnet, nodes, _links(description, interfaces))


def derive_mac(vnet: str, node: str, interface: str) -> bytes:
    """A locally administered unicast address (IEEE 802: low bits of the first byte 10) from the names."""
    digest = hashlib.sha256(f"{vnet}/{node}/{interface}".encode()).digest()
    return bytes([digest[0] & 0xFC | 0x02]) + digest[1:6]


def _node(vnet: str, node: Node, interfaces: Interfaces) -> VirtualNode:
    own = interfaces.of_node[node.name]
    return VirtualNode(
        name=node.name,
        image=node.image,
        vcpus=node.vcpus,
        memory_bytes=node.memory_bytes,
        provider=node.provider or "",
        location=node.location or "",
        interfaces=tuple(
            VirtualInterface(name, interface.mac or derive_mac(vnet, node.name, name), interface.addresses)
            for name, interface in own.items()
        ),
        files=guest_files(node, own),
        mode=node.mode,
    )


def _links(description: VnetDescription, interfaces: Interfaces) -> tuple[VirtualLink, ...]:
    taken = {link.name for link in description.links}
    links: list[VirtualLink] = []
    for index, link in enumerate(description.links):
        name = link.name or _free_name(index, taken)
        taken.add(name)
        a, b = (
            InterfaceReference(end.node, interfaces.of_end[index, end_index])
            for end_index, end in enumerate(link.ends)
        )
        links.append(VirtualLink(name, a, b, link.bandwidth_bps, link.delay_ns or 0))
    return tuple(links)


def _free_name(index: int, taken: set[str | None]) -> str:
    """link1 for the first; a later number where somebody has called another link so."""
    number = index + 1
    while f"link{number}" in taken:
        number += 1
    return f"link{number}"
