"""A description with everything decided that can be decided without a provider: what the roles work with.

Whatever a description leaves open inside a VNet is filled in here, always in the same way: compiling the same
description twice, anywhere, gives the same topology, MAC addresses included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from serai.errors import DescriptionError
from serai.vnet.check import check
from serai.vnet.diagnostics import Severity
from serai.vnet.guest import GuestFile, guest_files
from serai.vnet.interfaces import Interfaces, assign_interfaces
from serai.vnet.model import Node, VnetDescription
from serai.vnet.values import Address

_MAX_LABEL = 63


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
    bridges: tuple[str, ...] = ()
    """Names that stand beside those of the nodes: the middles of links with more than two ends.

    Such a link is a star: each of its ends has a link of its own to the bridge.
    """


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
    return Topology(vnet, nodes, *_links(description, interfaces))


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


def _links(
    description: VnetDescription, interfaces: Interfaces
) -> tuple[tuple[VirtualLink, ...], tuple[str, ...]]:
    taken = {link.name for link in description.links}
    nodes = {node.name for node in description.nodes}
    links: list[VirtualLink] = []
    bridges: list[str] = []
    for index, link in enumerate(description.links):
        name = link.name or _free_name(index, taken)
        taken.add(name)
        ends = [
            InterfaceReference(end.node, interfaces.of_end[index, end_index])
            for end_index, end in enumerate(link.ends)
        ]
        if len(ends) == 2:
            links.append(VirtualLink(name, ends[0], ends[1], link.bandwidth_bps, link.delay_ns or 0))
            continue
        bridge = _unique(f"{name}-bridge", nodes)
        nodes.add(bridge)
        bridges.append(bridge)
        for end in ends:
            arm = _unique(f"{name}-{end.node}", taken)
            taken.add(arm)
            port = InterfaceReference(bridge, f"{end.node}.{end.interface}")
            links.append(VirtualLink(arm, end, port, link.bandwidth_bps, (link.delay_ns or 0) // 2))
    return tuple(links), tuple(bridges)


def _unique(wanted: str, taken: Collection[str | None]) -> str:
    """`wanted` as a label of at most 63 characters that nobody has, always the same for the same."""
    name = wanted
    while len(name) > _MAX_LABEL or name in taken:
        name = f"{wanted[:50].rstrip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


def _free_name(index: int, taken: set[str | None]) -> str:
    """link1 for the first; a later number where somebody has called another link so."""
    number = index + 1
    while f"link{number}" in taken:
        number += 1
    return f"link{number}"
