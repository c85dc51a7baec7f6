"""What a VNO shows of its VNets."""

from __future__ import annotations

from serai import vnet
from serai.roles.vno.describe import guest_mode, topology_message
from serai.roles.vno.records import VnetRecord, VnetState
from serai.v1.guest_pb2 import Guest
from serai.v1.operator_pb2 import Vnet, VnetNode
from serai.v1.provider_pb2 import Network, NetworkNode

_STATES = {
    VnetState.CREATING: Vnet.CREATING,
    VnetState.RUNNING: Vnet.RUNNING,
    VnetState.DELETING: Vnet.DELETING,
}


def vnet_state(record: VnetRecord, network: Network | None, *, reachable: bool) -> Vnet.State:
    """DEGRADED when the VNP says so, does not have it any more, or cannot be asked."""
    degraded = not reachable or network is None or network.state in (Network.DEGRADED, Network.FAILED)
    if record.state is VnetState.RUNNING and degraded:
        return Vnet.DEGRADED
    return _STATES[record.state]


def view_vnet(
    record: VnetRecord, compiled: vnet.Topology, network: Network | None, *, reachable: bool
) -> Vnet:
    """The VNet as it was described, with what the VNP says of it."""
    known = {item.id: item for item in network.nodes} if network is not None else {}
    # A node that was removed from the running VNet is gone from the network, not from the description.
    removed = record.state is VnetState.RUNNING and network is not None
    nodes = [node for node in compiled.nodes if not removed or node.name in known]
    names = {node.name for node in nodes} | set(compiled.bridges)
    links = [link for link in topology_message(compiled).links if {link.a.node, link.b.node} <= names]
    view = Vnet(
        name=record.name,
        state=vnet_state(record, network, reachable=reachable),
        nodes=[view_node(record, node, known.get(node.name)) for node in nodes],
        links=links,
        provider_count=network.provider_count if network is not None else 0,
        document=record.document,
    )
    view.create_time.FromNanoseconds(int(record.create_time * 1e9))
    if record.running_time:
        view.running_time.FromNanoseconds(int(record.running_time * 1e9))
    return view


def view_node(record: VnetRecord, node: vnet.VirtualNode, there: NetworkNode | None) -> VnetNode:
    """A node as described, with what the VNP says of it."""
    view = VnetNode(
        name=f"{record.name}/nodes/{node.name}",
        vcpus=node.vcpus,
        memory_bytes=node.memory_bytes,
        image=node.image,
        mode=guest_mode(node),
        addresses={item.name: " ".join(map(str, item.addresses)) for item in node.interfaces},
        macs={item.name: item.mac.hex(":") for item in node.interfaces},
        state=Guest.STATE_UNSPECIFIED,
    )
    if there is None:
        return view
    view.vcpus = there.vcpus or view.vcpus
    view.memory_bytes = there.memory_bytes or view.memory_bytes
    view.state, view.ready = there.state, there.ready
    view.status_message, view.kernel_release = there.status_message, there.kernel_release
    view.provider, view.placement = there.provider, there.placement
    for name in ("start_time", "ready_time"):
        if there.HasField(name):
            getattr(view, name).CopyFrom(getattr(there, name))
    return view
