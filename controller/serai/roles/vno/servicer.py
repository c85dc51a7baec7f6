"""A VNO's gRPC services for service providers and for `serai`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from serai.errors import NotFoundError
from serai.roles.operations import Operations, Progress
from serai.roles.ownership import check_owner, may_see, owned
from serai.roles.paging import page
from serai.roles.relay import Place, Relay, first_message
from serai.roles.snapshots import MARGIN_SECONDS, SNAPSHOT_SECONDS, all_renamed, renamed
from serai.roles.vno.changes import UPDATE_STEPS, VnetChanges, change_message
from serai.roles.vno.describe import parse_node_name, validate
from serai.roles.vno.grants import view_grant
from serai.roles.vno.records import VnetRecord
from serai.roles.vno.vnets import CREATE_STEPS, Vnets, VnoState
from serai.v1.console_pb2_grpc import ConsoleServiceServicer
from serai.v1.guest_pb2 import (
    ConsoleInput,
    ConsoleOutput,
    DeleteSnapshotResponse,
    GuestSize,
    GuestStatistics,
    ListNodeSnapshotsRequest,
    ListNodeSnapshotsResponse,
    NodeSnapshotRequest,
    Snapshot,
    TraceGuestRequest,
    TraceGuestResponse,
)
from serai.v1.link_pb2 import CapturedFrame, CaptureFramesRequest
from serai.v1.operation_pb2 import Operation
from serai.v1.operator_pb2 import (
    AttachmentGrant,
    CreateVnetRequest,
    DeleteVnetRequest,
    DiffVnetRequest,
    DiffVnetResponse,
    GetVnetRequest,
    GrantAttachmentRequest,
    ListAttachmentGrantsRequest,
    ListAttachmentGrantsResponse,
    ListVnetsRequest,
    ListVnetsResponse,
    MigrateVnetNodeRequest,
    ResizeVnetNodeRequest,
    RevokeAttachmentGrantRequest,
    RevokeAttachmentGrantResponse,
    StopVnetNodeRequest,
    UpdateVnetRequest,
    ValidateDescriptionRequest,
    ValidateDescriptionResponse,
    Vnet,
    VnetNode,
    VnetNodeRequest,
    WatchVnetsRequest,
    WatchVnetsResponse,
)
from serai.v1.operator_pb2_grpc import OperatorServiceServicer
from serai.v1.provider_pb2 import NetworkNodeRequest, ResizeNetworkNodeRequest, StopNetworkNodeRequest
from serai.wire.rpc import caller

RESIZE_TIMEOUT_S = 65.0
"""For the VNP's answer, longer than it waits for its provider."""

_MOVE_STEPS = (
    "reserve", "prepare", "stream", "freeze", "hand-over", "resume", "drain", "release", "clean up"
)  # fmt: skip


class OperatorServicer(OperatorServiceServicer):
    """See the contract for each method."""

    def __init__(self, state: VnoState, vnets: Vnets, changes: VnetChanges) -> None:
        self._state = state
        self._vnets = vnets
        self._changes = changes

    @property
    def _operations(self) -> Operations:
        return self._state.operations

    async def ValidateDescription(
        self, request: ValidateDescriptionRequest, context: Any
    ) -> ValidateDescriptionResponse:
        """See the contract."""
        return validate(request.document)

    async def CreateVnet(self, request: CreateVnetRequest, context: Any) -> Operation:
        """See the contract."""
        identity = caller(context)

        async def act() -> str:
            record = await self._vnets.begin(request, identity.uri)

            async def work(progress: Progress) -> None:
                await self._vnets.create(record.name, request, progress)

            operation = await self._operations.start(
                "CreateVnet", record.name, CREATE_STEPS, work, owner=identity
            )
            return operation.name

        name = await self._state.requests.once(identity, request.request_id, request, act)
        return self._operations.records.get(name).operation

    async def GetVnet(self, request: GetVnetRequest, context: Any) -> Vnet:
        """See the contract."""
        return self._vnets.view(self._find(request.name, context))

    async def ListVnets(self, request: ListVnetsRequest, context: Any) -> ListVnetsResponse:
        """See the contract."""
        mine = owned(self._state.vnets, caller(context))
        records, token = page(mine, request.page_size, request.page_token, key=lambda record: record.name)
        return ListVnetsResponse(
            vnets=[self._vnets.view(record) for record in records], next_page_token=token
        )

    async def WatchVnets(self, request: WatchVnetsRequest, context: Any) -> AsyncIterator[WatchVnetsResponse]:
        """See the contract."""
        identity = caller(context)
        with self._state.vnets.watch() as watcher:
            for record in owned(self._state.vnets, identity):
                yield WatchVnetsResponse(vnet=self._vnets.view(record))
            yield WatchVnetsResponse(synchronized=True)
            while True:
                for change in await watcher.changes():
                    if not may_see(change.record.owner, identity):
                        continue
                    if change.deleted:
                        view = Vnet(name=change.record.name, state=Vnet.DELETED)
                    else:
                        view = self._vnets.view(change.record)
                    yield WatchVnetsResponse(vnet=view, synchronized=True)

    async def DeleteVnet(self, request: DeleteVnetRequest, context: Any) -> Operation:
        """See the contract."""
        if not (request.allow_missing and request.name not in self._state.vnets):
            self._find(request.name, context)

        async def work(progress: Progress) -> None:
            async with progress.step("release"):
                await self._vnets.delete(request.name)

        return await self._operations.start(
            "DeleteVnet", request.name, ["release"], work, owner=caller(context)
        )

    async def DiffVnet(self, request: DiffVnetRequest, context: Any) -> DiffVnetResponse:
        """See the contract."""
        record = self._find(request.name, context)
        difference = await self._changes.compare(record, request.document)
        return DiffVnetResponse(changes=[change_message(item) for item in difference.changes])

    async def UpdateVnet(self, request: UpdateVnetRequest, context: Any) -> Operation:
        """See the contract."""
        identity = caller(context)
        self._find(request.name, context)

        async def act() -> str:
            self._changes.check(request)

            async def work(progress: Progress) -> None:
                await self._changes.update(request, progress)

            operation = await self._operations.start(
                "UpdateVnet", request.name, UPDATE_STEPS, work, owner=identity
            )
            return operation.name

        name = await self._state.requests.once(identity, request.request_id, request, act)
        return self._operations.records.get(name).operation

    async def GrantAttachment(self, request: GrantAttachmentRequest, context: Any) -> AttachmentGrant:
        """See the contract."""
        record, node = self._find_node(request.node, context)
        grant, token = await self._state.grants.create(
            record, self._vnets.compiled(record), node, request.interface, request.lifetime_s
        )
        return view_grant(grant, token)

    async def ListAttachmentGrants(
        self, request: ListAttachmentGrantsRequest, context: Any
    ) -> ListAttachmentGrantsResponse:
        """See the contract."""
        mine = owned(self._state.grants.records, caller(context))
        records, token = page(mine, request.page_size, request.page_token, key=lambda record: record.name)
        return ListAttachmentGrantsResponse(
            grants=[view_grant(record) for record in records], next_page_token=token
        )

    async def RevokeAttachmentGrant(
        self, request: RevokeAttachmentGrantRequest, context: Any
    ) -> RevokeAttachmentGrantResponse:
        """See the contract."""
        grant = self._state.grants.records.find(request.name)
        if grant is not None and may_see(grant.owner, caller(context)):
            await self._state.grants.records.delete(request.name)
        return RevokeAttachmentGrantResponse()

    async def GetVnetNode(self, request: VnetNodeRequest, context: Any) -> VnetNode:
        """See the contract."""
        record, node = self._find_node(request.name, context)
        return self._view_node(record, node)

    async def StartVnetNode(self, request: VnetNodeRequest, context: Any) -> VnetNode:
        """See the contract."""
        record, node = self._find_node(request.name, context)
        handle = await self._vnets.handle(record.name, node)
        await self._state.upstream.provider.StartNetworkNode(NetworkNodeRequest(handle=handle))
        return self._view_node(record, node)

    async def StopVnetNode(self, request: StopVnetNodeRequest, context: Any) -> VnetNode:
        """See the contract."""
        record, node = self._find_node(request.name, context)
        handle = await self._vnets.handle(record.name, node)
        await self._state.upstream.provider.StopNetworkNode(
            StopNetworkNodeRequest(handle=handle, grace_seconds=request.grace_seconds),
            timeout=request.grace_seconds + 50,
        )
        return self._view_node(record, node)

    async def DeleteVnetNode(self, request: VnetNodeRequest, context: Any) -> Operation:
        """See the contract."""
        record, node = self._find_node(request.name, context)

        async def work(progress: Progress) -> None:
            async with progress.step("remove"):
                await self._vnets.delete_node(record.name, node)

        return await self._operations.start(
            "DeleteVnetNode", record.name, ["remove"], work, owner=caller(context)
        )

    async def GetVnetNodeStatistics(self, request: VnetNodeRequest, context: Any) -> GuestStatistics:
        """See the contract."""
        record, node = self._find_node(request.name, context)
        handle = await self._vnets.handle(record.name, node)
        statistics: GuestStatistics = await self._state.upstream.provider.GetNetworkNodeStatistics(
            NetworkNodeRequest(handle=handle)
        )
        return statistics

    async def TraceVnetNode(
        self, request: TraceGuestRequest, context: Any
    ) -> AsyncIterator[TraceGuestResponse]:
        """See the contract."""
        record, node = self._find_node(request.name, context)
        request.name = await self._vnets.handle(record.name, node)
        async for response in self._state.upstream.provider.TraceNetworkNode(request):
            yield response

    async def ResizeVnetNode(self, request: ResizeVnetNodeRequest, context: Any) -> GuestSize:
        """See the contract."""
        record, node = self._find_node(request.name, context)
        handle = await self._vnets.handle(record.name, node)
        size: GuestSize = await self._state.upstream.provider.ResizeNetworkNode(
            ResizeNetworkNodeRequest(handle=handle, vcpus=request.vcpus, memory_bytes=request.memory_bytes),
            timeout=RESIZE_TIMEOUT_S,
        )
        return size

    async def SnapshotVnetNode(self, request: NodeSnapshotRequest, context: Any) -> Snapshot:
        """See the contract."""
        below = await self._snapshot_below(request, context)
        seconds = SNAPSHOT_SECONDS + 2 * MARGIN_SECONDS
        upstream = self._state.upstream.provider
        return renamed(await upstream.SnapshotNetworkNode(below, timeout=seconds), request.node)

    async def ListVnetNodeSnapshots(
        self, request: ListNodeSnapshotsRequest, context: Any
    ) -> ListNodeSnapshotsResponse:
        """See the contract."""
        record, node = self._find_node(request.node, context)
        below = ListNodeSnapshotsRequest(node=await self._vnets.handle(record.name, node))
        found = await self._state.upstream.provider.ListNetworkNodeSnapshots(below)
        return all_renamed(found, request.node)

    async def DeleteVnetNodeSnapshot(
        self, request: NodeSnapshotRequest, context: Any
    ) -> DeleteSnapshotResponse:
        """See the contract."""
        below = await self._snapshot_below(request, context)
        upstream = self._state.upstream.provider
        answer: DeleteSnapshotResponse = await upstream.DeleteNetworkNodeSnapshot(below)
        return answer

    async def RestoreVnetNode(self, request: NodeSnapshotRequest, context: Any) -> VnetNode:
        """See the contract."""
        record, node = self._find_node(request.node, context)
        below = await self._snapshot_below(request, context)
        seconds = SNAPSHOT_SECONDS + 2 * MARGIN_SECONDS
        await self._state.upstream.provider.RestoreNetworkNode(below, timeout=seconds)
        return self._view_node(record, node)

    async def _snapshot_below(self, request: NodeSnapshotRequest, context: Any) -> NodeSnapshotRequest:
        """The request under the handle that the VNP knows."""
        record, node = self._find_node(request.node, context)
        handle = await self._vnets.handle(record.name, node)
        return NodeSnapshotRequest(node=handle, snapshot=request.snapshot)

    async def MigrateVnetNode(self, request: MigrateVnetNodeRequest, context: Any) -> Operation:
        """See the contract."""
        identity = caller(context)
        record, node = self._find_node(request.name, context)

        async def work(progress: Progress) -> None:
            await self._vnets.migrate(record.name, node, request, progress)

        async def act() -> str:
            operation = await self._operations.start(
                "MigrateVnetNode", record.name, _MOVE_STEPS, work, owner=identity
            )
            return operation.name

        name = await self._state.requests.once(identity, request.request_id, request, act)
        return self._operations.records.get(name).operation

    def _find(self, name: str, context: Any) -> VnetRecord:
        record = self._state.vnets.get(name)
        check_owner(record.owner, caller(context), "vnet", name)
        return record

    def _find_node(self, name: str, context: Any) -> tuple[VnetRecord, str]:
        vnet, node = parse_node_name(name)
        record = self._find(vnet, context)
        self._view_node(record, node)
        return record, node

    def _view_node(self, record: VnetRecord, node: str) -> VnetNode:
        view = self._vnets.view(record)
        for item in view.nodes:
            if item.name == f"{record.name}/nodes/{node}":
                return item
        known = ", ".join(item.name.rpartition("/")[2] for item in view.nodes)
        raise NotFoundError(
            f"{record.name} has no node {node!r}", hint=f"its nodes are {known}", resource=node
        )


class VnoConsoleServicer(ConsoleServiceServicer):
    """Consoles and captures by VNet and node."""

    def __init__(self, state: VnoState, vnets: Vnets) -> None:
        self._state = state
        self._vnets = vnets

    async def OpenConsole(
        self, request: AsyncIterator[ConsoleInput], context: Any
    ) -> AsyncIterator[ConsoleOutput]:
        """See the contract."""
        first = await first_message(request)
        relay = await self._relay(first.name, context)
        async for output in relay.console(request, first):
            yield output

    async def CaptureNodeFrames(
        self, request: CaptureFramesRequest, context: Any
    ) -> AsyncIterator[CapturedFrame]:
        """See the contract."""
        relay = await self._relay(request.name, context)
        async for frame in relay.capture(request):
            yield frame

    async def _relay(self, name: str, context: Any) -> Relay:
        vnet, node = parse_node_name(name)
        record = self._state.vnets.get(vnet)
        check_owner(record.owner, caller(context), "vnet", vnet)
        handle = await self._vnets.handle(vnet, node)
        stub = self._state.upstream.consoles

        def locate() -> Place:
            self._state.vnets.get(vnet)
            return Place(key=handle, name=handle, attach=stub.OpenConsole, capture=stub.CaptureNodeFrames)

        return Relay(locate, self._state.vnets.watch)
