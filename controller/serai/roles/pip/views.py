"""What a PIP shows to others: slices as their owners may see them, and what it advertises."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from google.protobuf.timestamp_pb2 import Timestamp

from serai.embedding import Substrate
from serai.roles.pip.agents import Agent
from serai.roles.pip.ledger import Usage
from serai.roles.pip.records import LinkPlacement, NodePlacement, Presence, SliceRecord, SliceState
from serai.roles.settings import PipSettings
from serai.v1.guest_pb2 import Guest
from serai.v1.infrastructure_pb2 import Advertisement, Border, Slice, SliceLink, SliceNode
from serai.v1.node_pb2 import NodeResources

_STATES = {
    SliceState.RESERVED: Slice.RESERVED,
    SliceState.PROVISIONING: Slice.PROVISIONING,
    SliceState.RUNNING: Slice.RUNNING,
    SliceState.RELEASING: Slice.RELEASING,
}


def view_slice(record: SliceRecord, agents: Mapping[str, Agent], *, disclose: bool) -> Slice:
    """The slice as its owner sees it; `disclose` tells where its guests are."""
    nodes = [view_node(node, agents, disclose=disclose) for node in record.parts.nodes.values()]
    view = Slice(name=record.name, state=_STATES[record.state], nodes=nodes)
    view.links.extend(_view_link(link) for link in record.parts.links.values())
    if record.state is SliceState.RUNNING and any(_is_broken(node) for node in nodes):
        view.state = Slice.DEGRADED
    if record.expire_time:
        view.expire_time.FromNanoseconds(int(record.expire_time * 1e9))
    if record.failure is not None:
        view.failure.CopyFrom(record.failure)
    return view


def view_node(node: NodePlacement, agents: Mapping[str, Agent], *, disclose: bool) -> SliceNode:
    """The virtual node with what its agent says of its guest."""
    view = SliceNode()
    view.CopyFrom(node.spec)
    view.handle = node.handle
    view.guest_uid = node.guest_uid
    if disclose and node.presence is not Presence.DEPARTED:
        view.placement = node.node
    agent = agents.get(node.node)
    guest = agent.guests.get(node.guest_name) if agent is not None else None
    if node.presence is Presence.DEPARTED:
        view.state, view.status_message = Guest.OUTGOING, "it went to another provider"
    elif guest is not None:
        _copy_guest(view, guest)
    elif node.presence is Presence.ARRIVING:
        view.state = Guest.INCOMING
    elif node.presence is Presence.HERE and agent is not None and agent.known and agent.reachable:
        view.state, view.status_message = Guest.FAILED, "its guest is not on its node any more"
    elif node.presence is Presence.BRIDGE:
        view.state, view.ready = Guest.RUNNING, True
    if node.presence in (Presence.HERE, Presence.BRIDGE) and (agent is None or not agent.reachable):
        view.state, view.ready, view.status_message = Guest.UNKNOWN, False, "its node is unreachable"
    return view


def _copy_guest(view: SliceNode, guest: Guest) -> None:
    view.state = guest.state
    view.ready = guest.ready
    view.status_message = guest.status_message
    view.kernel_release = guest.kernel_release
    for name in ("start_time", "ready_time"):
        if guest.HasField(name):
            timestamp: Timestamp = getattr(guest, name)
            getattr(view, name).CopyFrom(timestamp)


def _is_broken(node: SliceNode) -> bool:
    return node.state in (Guest.FAILED, Guest.UNKNOWN)


def _view_link(placement: LinkPlacement) -> SliceLink:
    view = SliceLink()
    view.CopyFrom(placement.link)
    view.hops = max(0, len(placement.path) - 1)
    view.delay_ms = placement.delay_ms
    return view


def advertise(
    settings: PipSettings, substrate: Substrate, usage: Usage, images: Iterable[str]
) -> Advertisement:
    """Totals, the largest node, images, places and borders: never the topology."""
    nodes = [node for node in substrate.nodes if node.schedulable]
    return Advertisement(
        provider=settings.name,
        available=NodeResources(
            vcpus=sum(node.vcpus for node in nodes), memory_bytes=sum(node.memory_bytes for node in nodes)
        ),
        largest_node=NodeResources(
            vcpus=max((node.vcpus for node in nodes), default=0),
            memory_bytes=max((node.memory_bytes for node in nodes), default=0),
        ),
        images=sorted(set(images)),
        locations=sorted({node.location for node in nodes if node.location}),
        borders=[
            Border(
                name=border.name,
                peer_provider=border.peer_provider,
                available_bps=max(0, border.capacity - usage.border_bps[border.name]),
                delay_ms=border.delay,
            )
            for border in settings.borders
        ],
    )
