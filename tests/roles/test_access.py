"""Every RPC of every role's server refuses every role that its table does not name."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty
from tests.roles.bench import Bench

from serai.errors import ForbiddenError, NotFoundError, SeraiError
from serai.roles.access import PIP_ACCESS, VNO_ACCESS, VNP_ACCESS
from serai.v1 import (
    attachment_pb2,
    console_pb2,
    infrastructure_pb2,
    operation_pb2,
    operator_pb2,
    peering_pb2,
    provider_pb2,
)
from serai.v1.infrastructure_pb2 import AllocateSliceRequest, GetSliceRequest, ListSlicesRequest
from serai.v1.infrastructure_pb2_grpc import InfrastructureServiceStub
from serai.v1.peering_pb2 import ConnectLinkRequest
from serai.v1.peering_pb2_grpc import PeeringServiceStub
from serai.wire.identity import Identity, Role
from serai.wire.rpc import AccessTable, Channel

SERVERS = [
    (Role.PIP, "alpha", PIP_ACCESS, ["InfrastructureService", "PeeringService"]),
    (Role.VNP, "vnp", VNP_ACCESS, ["ProviderService"]),
    (Role.VNO, "operator", VNO_ACCESS, ["OperatorService"]),
]
OWNERS = {Role.AGENT: "alpha/a1"}
MODULES = (
    attachment_pb2,
    console_pb2, infrastructure_pb2, operation_pb2, operator_pb2, peering_pb2, provider_pb2
)  # fmt: skip


def services() -> dict[str, Any]:
    return {
        f"serai.v1.{name}": service
        for module in MODULES
        for name, service in module.DESCRIPTOR.services_by_name.items()
    }


async def call(channel: Channel, method: str) -> None:
    """Any method with an empty request, of whichever kind."""
    service, _, name = method.removeprefix("/").partition("/")
    kind = services()[service].methods_by_name[name]
    make = channel.stream_stream if kind.client_streaming else channel.unary_stream
    if not kind.server_streaming:
        make = channel.unary_unary
    invoke = make(method, Empty.SerializeToString, Empty.FromString)
    if kind.client_streaming:
        started = invoke()
        await started.done_writing()
        await started.read()
    elif kind.server_streaming:
        await invoke(Empty()).read()
    else:
        await invoke(Empty())


@pytest.mark.parametrize(("server", "owner", "table", "own"), SERVERS, ids=["pip", "vnp", "vno"])
async def test_each_rpc_refuses_every_other_role(
    bench: Bench, server: Role, owner: str, table: AccessTable, own: list[str]
) -> None:
    offered = [
        f"serai.v1.{name}" for name in (*own, "AttachmentService", "ConsoleService", "OperationService")
    ]
    methods = {f"/{name}/{method}" for name in offered for method in services()[name].methods_by_name}
    assert methods == table.keys(), "the table and the services differ"
    for role in Role:
        credentials = bench.authority.issue(Identity(role, OWNERS.get(role, "somebody")))
        channel = bench.channel(server, owner, credentials)
        for method, allowed in table.items():
            if role not in allowed:
                with pytest.raises(ForbiddenError) as caught:
                    await call(channel, method)
                assert caught.value.reason == "ROLE_NOT_ALLOWED", method


async def test_a_vnp_sees_its_own_slices_only(bench: Bench) -> None:
    mine = InfrastructureServiceStub(
        bench.channel(Role.PIP, "alpha", bench.authority.issue(Identity(Role.VNP, "one")))
    )
    theirs = InfrastructureServiceStub(
        bench.channel(Role.PIP, "alpha", bench.authority.issue(Identity(Role.VNP, "two")))
    )
    await mine.AllocateSlice(AllocateSliceRequest(slice_id="private"))
    assert len((await mine.ListSlices(ListSlicesRequest())).slices) == 1
    assert len((await theirs.ListSlices(ListSlicesRequest())).slices) == 0
    with pytest.raises(NotFoundError):
        await theirs.GetSlice(GetSliceRequest(name="slices/private"))
    for request in (
        infrastructure_pb2.ProvisionSliceRequest(name="slices/private"),
        infrastructure_pb2.ReleaseSliceRequest(name="slices/private"),
        infrastructure_pb2.UpdateSliceRequest(name="slices/private"),
    ):
        method = type(request).__name__.removesuffix("Request")
        with pytest.raises(NotFoundError):
            await getattr(theirs, method)(request)


async def test_a_border_is_its_peers_alone(bench: Bench) -> None:
    gamma = bench.authority.issue(Identity(Role.PIP, "gamma"))
    stub = PeeringServiceStub(bench.channel(Role.PIP, "alpha", gamma))
    with pytest.raises(ForbiddenError, match="beta"):
        await stub.ConnectLink(ConnectLinkRequest(border="ab", label=5))


async def test_a_vnp_is_not_told_of_the_topology(bench: Bench) -> None:
    vnp = bench.authority.issue(Identity(Role.VNP, "vnp"))
    stub = InfrastructureServiceStub(bench.channel(Role.PIP, "alpha", vnp))
    advertisement = await stub.GetAdvertisement(infrastructure_pb2.GetAdvertisementRequest())
    for secret in ("a1", "a2", bench.agents["alpha/a1"].address):
        assert secret not in str(advertisement)
    with pytest.raises(SeraiError):
        await stub.ListNodes(infrastructure_pb2.ListNodesRequest())
