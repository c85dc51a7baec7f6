"""From a topology to what each provider is asked for. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from serai import embedding
from serai.embedding import Infeasible, NotFound, Request, RequestLink, RequestNode, Split
from serai.errors import CapacityError, InvalidInputError, StateError
from serai.roles.names import check_label, new_handle, random_label64
from serai.roles.vnp.records import Change, Crossing, LinkEntry, Move, NetworkRecord, NodeEntry
from serai.v1.guest_pb2 import GuestSpec
from serai.v1.infrastructure_pb2 import (
    Advertisement,
    Arrival,
    BorderLabel,
    SliceLink,
    SliceLinkEnd,
    SliceNode,
)
from serai.v1.topology_pb2 import InterfaceReference, NodeConstraints, Topology, VirtualLink, VirtualNode

MS = 1_000_000
"""Nanoseconds in a millisecond."""


def check_topology(topology: Topology, *, may_be_empty: bool = False) -> None:
    """InvalidInputError unless ids are unique labels and every link ends at two interfaces of its own."""
    interfaces: dict[str, set[str]] = {}
    bridges: set[str] = set()
    for node in topology.nodes:
        if check_label(node.id, "node id") in interfaces:
            raise InvalidInputError(f"the topology has two nodes {node.id!r}")
        interfaces[node.id] = {item.name for item in node.guest.interfaces}
        if node.bridge:
            bridges.add(node.id)
    if not interfaces and not may_be_empty:
        raise InvalidInputError("the topology has no node", hint="describe at least one")
    links: set[str] = set()
    used: set[tuple[str, str]] = set()
    for link in topology.links:
        if check_label(link.id, "link id") in links:
            raise InvalidInputError(f"the topology has two links {link.id!r}")
        links.add(link.id)
        for end in (link.a, link.b):
            if end.interface not in interfaces.get(end.node, ()) and end.node not in bridges:
                raise InvalidInputError(
                    f"link {link.id!r} ends at {end.node}.{end.interface}, which does not exist"
                )
            if (end.node, end.interface) in used:
                raise InvalidInputError(f"two links end at {end.node}.{end.interface}")
            used.add((end.node, end.interface))


def build_request(nodes: Iterable[VirtualNode], links: Iterable[VirtualLink]) -> Request:
    """What is to be split between the providers."""
    return Request(
        tuple(
            RequestNode(
                node.id,
                vcpus=node.guest.vcpus,
                memory_bytes=node.guest.memory_bytes,
                image=node.guest.image,
                location=node.constraints.location,
                provider=node.constraints.provider,
            )
            for node in nodes
        ),
        tuple(_request_link(link) for link in links),
    )


def _request_link(link: VirtualLink) -> RequestLink:
    return RequestLink(
        link.id, link.a.node, link.b.node, link.bandwidth_bps, max_delay_ns=int(link.max_delay_ms * MS)
    )


def split(advertisements: Iterable[Advertisement], request: Request) -> Split:
    """Divide `request`; CapacityError names what is short."""
    result = embedding.split(tuple(_advertisement(item) for item in advertisements), request)
    if isinstance(result, Split):
        return result
    if isinstance(result, Infeasible):
        raise CapacityError(
            result.message,
            hint="ask for less, or wait until something is free",
            reason="SPLIT_INFEASIBLE",
            resource=result.resource,
            element=result.element,
        )
    assert isinstance(result, NotFound)
    raise CapacityError(
        result.message, hint="it is not proved impossible: ask for less", reason="SPLIT_NOT_FOUND"
    )


def _advertisement(message: Advertisement) -> embedding.Advertisement:
    return embedding.Advertisement(
        provider=message.provider,
        vcpus=message.available.vcpus,
        memory_bytes=message.available.memory_bytes,
        largest_vcpus=message.largest_node.vcpus,
        largest_memory_bytes=message.largest_node.memory_bytes,
        images=frozenset(message.images),
        locations=frozenset(message.locations),
        borders=tuple(
            embedding.Border(
                border.name, border.peer_provider, border.available_bps, int(border.delay_ms * MS)
            )
            for border in message.borders
        ),
    )


def realise_links(
    links: Iterable[VirtualLink],
    found: Split,
    name_of: Callable[[str], str],
    new_label: Callable[[], int] = random_label64,
) -> dict[str, LinkEntry]:
    """How each link is realised under the split `found`; `name_of` gives what the slices shall call it."""
    entries = {}
    for link in links:
        crossing = found.crossings.get(link.id)
        entry = LinkEntry(link=link, slice_link=name_of(link.id))
        if crossing is None:
            entry.provider = found.providers[link.a.node]
        else:
            entry.crossing = Crossing(
                border=crossing.border,
                label=new_label(),
                a_provider=crossing.a_provider,
                b_provider=crossing.b_provider,
                side_delay_ms=crossing.side_delay_ns / MS,
            )
        entries[link.id] = entry
    return entries


def slice_node(entry: NodeEntry, *, arrival_from: str = "", node: str = "") -> SliceNode:
    """What a provider is asked to run; with `arrival_from`, to expect from that provider."""
    wanted = SliceNode(
        id=entry.node.id,
        guest=entry.node.guest,
        bridge=entry.node.bridge,
        constraints=NodeConstraints(
            location=entry.node.constraints.location, node=node or entry.node.constraints.node
        ),
    )
    if arrival_from:
        # Its new provider may choose any place: where it was is the old one's business.
        wanted.constraints.CopyFrom(NodeConstraints(node=node))
        wanted.arrival.CopyFrom(Arrival(guest_uid=entry.guest_uid, source_provider=arrival_from))
    return wanted


def slice_link(entry: LinkEntry, provider: str, *, standby: bool = False) -> SliceLink:
    """The part of a link that `provider` is asked for."""
    link, crossing = entry.link, entry.crossing
    part = SliceLink(
        id=entry.slice_link,
        a=_interface(link.a),
        b=_interface(link.b),
        bandwidth_bps=link.bandwidth_bps,
        max_delay_ms=link.max_delay_ms,
        standby=standby,
    )
    if crossing is None:
        return part
    outside = SliceLinkEnd(border=BorderLabel(border=crossing.border, label=crossing.label))
    (part.b if provider == crossing.a_provider else part.a).CopyFrom(outside)
    part.max_delay_ms = crossing.side_delay_ms
    return part


def _interface(reference: InterfaceReference) -> SliceLinkEnd:
    return SliceLinkEnd(interface=reference)


def slice_parts(record: NetworkRecord, provider: str) -> tuple[list[SliceNode], list[SliceLink]]:
    """All that `provider` is asked for at first."""
    nodes = [slice_node(entry) for entry in record.nodes.values() if entry.provider == provider]
    links = [slice_link(entry, provider) for entry in record.links.values() if provider in entry.providers]
    return nodes, links


def links_of(links: Mapping[str, LinkEntry], node: str) -> dict[str, LinkEntry]:
    """The links that end at `node`."""
    return {key: entry for key, entry in links.items() if node in (entry.link.a.node, entry.link.b.node)}


def plan_move(
    record: NetworkRecord,
    node: str,
    destination: str,
    advertisements: Iterable[Advertisement],
    new_label: Callable[[], int] = random_label64,
) -> Move:
    """How the links of `node` will run when it is at `destination`; CapacityError when that is impossible."""
    entry = record.nodes[node]
    incident = links_of(record.links, node)
    moving = VirtualNode(
        id=node,
        guest=GuestSpec(vcpus=entry.node.guest.vcpus, memory_bytes=entry.node.guest.memory_bytes),
        constraints=NodeConstraints(provider=destination),
    )
    ends = {end.node for item in incident.values() for end in (item.link.a, item.link.b)} - {node}
    others = [pinned_node(end, record.nodes[end].provider) for end in sorted(ends)]
    links = [item.link for item in incident.values()]
    found = split(advertisements, build_request([moving, *others], links))

    def next_name(link: str) -> str:
        stem, _, generation = record.links[link].slice_link.rpartition("-g")
        return f"{stem}-g{int(generation) + 1}"

    return Move(
        node=node,
        source=entry.provider,
        destination=destination,
        links=realise_links(links, found, next_name, new_label),
        new_slice=destination not in record.slices,
    )


def plan_change(
    record: NetworkRecord,
    topology: Topology,
    advertisements: Iterable[Advertisement],
    new_label: Callable[[], int] = random_label64,
) -> Change:
    """How the network becomes `topology`; what stays is where it is.

    Raises CapacityError, and StateError for a node that stays but is to be another guest.
    """
    added = [node for node in topology.nodes if node.id not in record.nodes]
    for node in topology.nodes:
        if node.id in record.nodes and _is_other(node, record.nodes[node.id].node):
            raise StateError(
                f"node {node.id!r} runs and cannot become another guest",
                hint="remove it first, then add it as it shall be",
                reason="NODE_RUNS",
                node=node.id,
            )
    known = {key: entry.link for key, entry in record.links.items()}
    links = [link for link in topology.links if known.get(link.id) != link]
    names, entries = unique_names(record, links), {}
    if added or links:
        ends = {end.node for link in links for end in (link.a, link.b)}
        staying = [pinned_node(key, record.nodes[key].provider) for key in sorted(ends & record.nodes.keys())]
        found = split(advertisements, build_request([*added, *staying], links))
        entries = realise_links(links, found, names.__getitem__, new_label)
    wanted_nodes = {node.id for node in topology.nodes}
    wanted_links = {link.id for link in topology.links}
    nodes = {
        node.id: NodeEntry(node=node, handle=new_handle(), provider=found.providers[node.id])
        for node in added
    }
    used = {entry.provider for entry in nodes.values()} | set(providers_of(entries.values()))
    return Change(
        topology=topology,
        nodes=nodes,
        links=entries,
        gone_nodes=[key for key in record.nodes if key not in wanted_nodes],
        gone_links=[key for key in known if key not in wanted_links or key in entries],
        new_slices=sorted(used - record.slices.keys()),
    )


def _is_other(node: VirtualNode, present: VirtualNode) -> bool:
    """Whether it is not the same guest; one that has been resized still is."""
    wanted = GuestSpec()
    wanted.CopyFrom(node.guest)
    wanted.vcpus, wanted.memory_bytes = present.guest.vcpus, present.guest.memory_bytes
    return bool(wanted != present.guest or node.bridge != present.bridge)


def pinned_node(node: str, provider: str) -> VirtualNode:
    """A node for a split that is at `provider` already and needs no room there."""
    return VirtualNode(id=node, constraints=NodeConstraints(provider=provider))


def unique_names(record: NetworkRecord, links: Iterable[VirtualLink]) -> dict[str, str]:
    """What the slices shall call `links`, each as no link of the network is called now."""
    names = {}
    for link in links:
        stem, _, generation = first_name(link.id).rpartition("-g")
        if link.id in record.links:
            stem, _, generation = record.links[link.id].slice_link.rpartition("-g")
            generation = str(int(generation) + 1)
        names[link.id] = f"{stem}-g{generation}"
    return names


def first_name(link: str) -> str:
    """What slices call a link at first."""
    return f"{link[:50].rstrip('-')}-g1"


def providers_of(links: Iterable[LinkEntry]) -> list[str]:
    """Everybody who has a part of one of `links`."""
    return sorted({provider for entry in links for provider in entry.providers})
