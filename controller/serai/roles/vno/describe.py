"""From descriptions to contract messages. Pure."""

from __future__ import annotations

from serai import vnet
from serai.errors import InvalidInputError
from serai.roles.names import resource_id
from serai.v1.guest_pb2 import GuestFile, GuestInterface, GuestSpec
from serai.v1.operator_pb2 import Diagnostic, ValidateDescriptionResponse
from serai.v1.topology_pb2 import InterfaceReference, NodeConstraints, Topology, VirtualLink, VirtualNode

MS = 1_000_000
"""Nanoseconds in a millisecond."""

_SEVERITIES = {vnet.Severity.ERROR: Diagnostic.ERROR, vnet.Severity.WARNING: Diagnostic.WARNING}


def compile_document(document: bytes, name: str = "") -> vnet.Topology:
    """The VNet that `document` describes; DescriptionError with every error at once."""
    return vnet.compile_vnet(vnet.parse(document).require(), name=name)


def validate(document: bytes) -> ValidateDescriptionResponse:
    """All diagnostics, and what it compiles to where there is no error."""
    result = vnet.parse(document)
    response = ValidateDescriptionResponse(
        diagnostics=[
            Diagnostic(
                severity=_SEVERITIES[item.severity],
                line=item.line,
                path=item.path,
                message=item.message,
                hint=item.hint,
            )
            for item in result.diagnostics
        ]
    )
    if result.description is not None:
        compiled = vnet.compile_vnet(result.description)
        response.topology.CopyFrom(topology_message(compiled))
        response.vnet_id = compiled.name
    return response


def topology_message(compiled: vnet.Topology) -> Topology:
    """The topology as the VNP is asked for it."""
    return Topology(
        nodes=[
            *(_node(node) for node in compiled.nodes),
            *(VirtualNode(id=name, bridge=True) for name in compiled.bridges),
        ],
        links=[
            VirtualLink(
                id=link.name,
                a=InterfaceReference(node=link.a.node, interface=link.a.interface),
                b=InterfaceReference(node=link.b.node, interface=link.b.interface),
                bandwidth_bps=link.bandwidth_bps,
                max_delay_ms=link.max_delay_ns / MS,
            )
            for link in compiled.links
        ],
    )


def _node(node: vnet.VirtualNode) -> VirtualNode:
    spec = GuestSpec(
        image=node.image,
        vcpus=node.vcpus,
        memory_bytes=node.memory_bytes,
        interfaces=[GuestInterface(name=item.name, mac=item.mac) for item in node.interfaces],
        files=[GuestFile(path=file.path, content=file.content, mode=file.mode) for file in node.files],
        clock=GuestSpec.REAL,
        mode=guest_mode(node),
    )
    constraints = NodeConstraints(provider=node.provider, location=node.location)
    return VirtualNode(id=node.name, guest=spec, constraints=constraints)


def guest_mode(node: vnet.VirtualNode) -> GuestSpec.Mode:
    """The mode of virtualization as the contract has it."""
    return GuestSpec.FULL if node.mode == "full" else GuestSpec.PARAVIRTUAL


def parse_node_name(name: str) -> tuple[str, str]:
    """``vnets/VNET/nodes/NODE`` to the VNet's name and the node's id; InvalidInputError for another shape."""
    parts = resource_id(name, "vnets").split("/")
    if len(parts) != 3 or parts[1] != "nodes":
        raise InvalidInputError(
            f"{name[:120]!r} is not the name of a virtual node", hint="write vnets/VNET/nodes/NODE"
        )
    return f"vnets/{parts[0]}", parts[2]
