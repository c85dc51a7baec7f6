"""What a VNP shows of its networks."""

from __future__ import annotations

from collections.abc import Mapping

from serai.roles.vnp.providers import Provider
from serai.roles.vnp.records import NetworkRecord, NetworkState, NodeEntry
from serai.v1.guest_pb2 import Guest
from serai.v1.infrastructure_pb2 import Slice
from serai.v1.provider_pb2 import Network, NetworkNode

_STATES = {
    NetworkState.CREATING: Network.CREATING,
    NetworkState.RUNNING: Network.RUNNING,
    NetworkState.DELETING: Network.DELETING,
}


def view_network(record: NetworkRecord, providers: Mapping[str, Provider]) -> Network:
    """The network as its operator sees it."""
    view = Network(
        name=record.name,
        state=_STATES[record.state],
        nodes=[view_node(record, entry, providers) for entry in record.nodes.values()],
        links=[entry.link for entry in record.links.values()],
        provider_count=len(record.slices),
    )
    if record.state is NetworkState.RUNNING and _is_degraded(record, providers):
        view.state = Network.DEGRADED
    view.create_time.FromNanoseconds(int(record.create_time * 1e9))
    if record.running_time:
        view.running_time.FromNanoseconds(int(record.running_time * 1e9))
    return view


def view_node(record: NetworkRecord, entry: NodeEntry, providers: Mapping[str, Provider]) -> NetworkNode:
    """A node with what its provider says of it."""
    view = NetworkNode(
        id=entry.node.id,
        handle=entry.handle,
        vcpus=entry.node.guest.vcpus,
        memory_bytes=entry.node.guest.memory_bytes,
    )
    provider = providers.get(entry.provider)
    if provider is None:
        return view
    if not provider.reachable:
        view.status_message = "its provider cannot be reached"
    there = provider.find_node(record.slices.get(entry.provider, ""), entry.node.id)
    if there is None:
        if record.state is NetworkState.RUNNING and provider.reachable:
            view.state, view.status_message = Guest.FAILED, "its provider does not have it any more"
        return view
    view.state, view.ready = there.state, there.ready
    view.status_message = view.status_message or there.status_message
    view.kernel_release = there.kernel_release
    for name in ("start_time", "ready_time"):
        if there.HasField(name):
            getattr(view, name).CopyFrom(getattr(there, name))
    if there.placement:
        view.provider, view.placement = entry.provider, there.placement
    return view


def _is_degraded(record: NetworkRecord, providers: Mapping[str, Provider]) -> bool:
    for name, slice_name in record.slices.items():
        provider = providers.get(name)
        known = provider.slices.get(slice_name) if provider is not None and provider.reachable else None
        if known is None or known.state in (Slice.DEGRADED, Slice.RELEASING, Slice.RELEASED):
            return True
    return False
