"""A VNP's gRPC services for VNOs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from serai.roles.operations import Operations, Progress
from serai.roles.ownership import check_owner, may_see, owned
from serai.roles.paging import page
from serai.roles.relay import Place, Relay, first_message
from serai.roles.snapshots import MARGIN_SECONDS, SNAPSHOT_SECONDS, all_renamed, renamed
from serai.roles.vnp.changes import CHANGE_STEPS, NetworkChanges
from serai.roles.vnp.moves import MOVE_STEPS, NetworkMoves
from serai.roles.vnp.networks import CREATE_STEPS, Networks
from serai.roles.vnp.providers import Provider, choose
from serai.roles.vnp.records import NetworkRecord, NodeEntry
from serai.roles.vnp.state import VnpState
from serai.roles.vnp.views import view_network, view_node
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
from serai.v1.infrastructure_pb2 import ResizeSliceNodeRequest, SliceNodeRequest, StopSliceNodeRequest
from serai.v1.link_pb2 import CapturedFrame, CaptureFramesRequest
from serai.v1.operation_pb2 import Operation
from serai.v1.provider_pb2 import (
    CreateNetworkRequest,
    DeleteNetworkRequest,
    GetNetworkRequest,
    ListNetworksRequest,
    ListNetworksResponse,
    MigrateNetworkNodeRequest,
    Network,
    NetworkNode,
    NetworkNodeRequest,
    ResizeNetworkNodeRequest,
    StopNetworkNodeRequest,
    UpdateNetworkRequest,
    WatchNetworksRequest,
    WatchNetworksResponse,
)
from serai.v1.provider_pb2_grpc import ProviderServiceServicer
from serai.wire.identity import Identity
from serai.wire.rpc import caller

RESIZE_TIMEOUT_S = 55.0
"""For the provider's answer, longer than it waits for its agent."""


class ProviderServicer(ProviderServiceServicer):
    """See the contract for each method."""

    def __init__(
        self, state: VnpState, networks: Networks, moves: NetworkMoves, changes: NetworkChanges
    ) -> None:
        self._state = state
        self._networks = networks
        self._moves = moves
        self._changes = changes

    @property
    def _operations(self) -> Operations:
        return self._state.operations

    async def CreateNetwork(self, request: CreateNetworkRequest, context: Any) -> Operation:
        """See the contract."""
        identity = caller(context)

        async def act() -> str:
            record = await self._networks.begin(request, identity.uri)

            async def work(progress: Progress) -> None:
                await self._networks.create(record.name, request, progress)

            operation = await self._operations.start(
                "CreateNetwork", record.name, CREATE_STEPS, work, owner=identity
            )
            return operation.name

        name = await self._state.requests.once(identity, request.request_id, request, act)
        return self._operations.records.get(name).operation

    async def GetNetwork(self, request: GetNetworkRequest, context: Any) -> Network:
        """See the contract."""
        return self._view(self._find(request.name, context))

    async def ListNetworks(self, request: ListNetworksRequest, context: Any) -> ListNetworksResponse:
        """See the contract."""
        mine = owned(self._state.networks, caller(context))
        records, token = page(mine, request.page_size, request.page_token, key=lambda record: record.name)
        return ListNetworksResponse(
            networks=[self._view(record) for record in records], next_page_token=token
        )

    async def WatchNetworks(
        self, request: WatchNetworksRequest, context: Any
    ) -> AsyncIterator[WatchNetworksResponse]:
        """See the contract."""
        identity = caller(context)
        with self._state.networks.watch() as watcher:
            for record in owned(self._state.networks, identity):
                yield WatchNetworksResponse(network=self._view(record))
            yield WatchNetworksResponse(synchronized=True)
            while True:
                for change in await watcher.changes():
                    if not may_see(change.record.owner, identity):
                        continue
                    view = self._view(change.record)
                    if change.deleted:
                        view.state = Network.DELETED
                    yield WatchNetworksResponse(network=view, synchronized=True)

    async def DeleteNetwork(self, request: DeleteNetworkRequest, context: Any) -> Operation:
        """See the contract."""
        self._find(request.name, context)

        async def work(progress: Progress) -> None:
            async with progress.step("release"):
                await self._networks.delete(request.name)

        return await self._operations.start(
            "DeleteNetwork", request.name, ["release"], work, owner=caller(context)
        )

    async def UpdateNetwork(self, request: UpdateNetworkRequest, context: Any) -> Operation:
        """See the contract."""
        identity = caller(context)
        self._find(request.name, context)

        async def work(progress: Progress) -> None:
            await self._changes.update(request, progress)

        async def act() -> str:
            operation = await self._operations.start(
                "UpdateNetwork", request.name, CHANGE_STEPS, work, owner=identity
            )
            return operation.name

        name = await self._state.requests.once(identity, request.request_id, request, act)
        return self._operations.records.get(name).operation

    async def StartNetworkNode(self, request: NetworkNodeRequest, context: Any) -> NetworkNode:
        """See the contract."""
        record, entry, provider = self._find_node(request.handle, context)
        await provider.infrastructure.StartSliceNode(SliceNodeRequest(handle=entry.provider_handle))
        return view_node(record, entry, self._state.providers)

    async def StopNetworkNode(self, request: StopNetworkNodeRequest, context: Any) -> NetworkNode:
        """See the contract."""
        record, entry, provider = self._find_node(request.handle, context)
        await provider.infrastructure.StopSliceNode(
            StopSliceNodeRequest(handle=entry.provider_handle, grace_seconds=request.grace_seconds),
            timeout=request.grace_seconds + 40,
        )
        return view_node(record, entry, self._state.providers)

    async def DeleteNetworkNode(self, request: NetworkNodeRequest, context: Any) -> Operation:
        """See the contract."""
        record, entry, _ = self._find_node(request.handle, context)

        async def work(progress: Progress) -> None:
            async with progress.step("remove"):
                await self._networks.delete_node(record.name, entry.node.id)

        return await self._operations.start(
            "DeleteNetworkNode", record.name, ["remove"], work, owner=caller(context)
        )

    async def GetNetworkNodeStatistics(self, request: NetworkNodeRequest, context: Any) -> GuestStatistics:
        """See the contract."""
        _, entry, provider = self._find_node(request.handle, context)
        statistics: GuestStatistics = await provider.infrastructure.GetSliceNodeStatistics(
            SliceNodeRequest(handle=entry.provider_handle)
        )
        return statistics

    async def TraceNetworkNode(
        self, request: TraceGuestRequest, context: Any
    ) -> AsyncIterator[TraceGuestResponse]:
        """See the contract."""
        _, entry, provider = self._find_node(request.name, context)
        request.name = entry.provider_handle
        async for response in provider.infrastructure.TraceSliceNode(request):
            yield response

    async def ResizeNetworkNode(self, request: ResizeNetworkNodeRequest, context: Any) -> GuestSize:
        """See the contract."""
        record, entry, provider = self._find_node(request.handle, context)
        size: GuestSize = await provider.infrastructure.ResizeSliceNode(
            ResizeSliceNodeRequest(
                handle=entry.provider_handle, vcpus=request.vcpus, memory_bytes=request.memory_bytes
            ),
            timeout=RESIZE_TIMEOUT_S,
        )
        await self._networks.note_size(record.name, entry.node.id, size)
        return size

    async def SnapshotNetworkNode(self, request: NodeSnapshotRequest, context: Any) -> Snapshot:
        """See the contract."""
        _, entry, provider = self._find_node(request.node, context)
        below = NodeSnapshotRequest(node=entry.provider_handle, snapshot=request.snapshot)
        seconds = SNAPSHOT_SECONDS + MARGIN_SECONDS
        return renamed(await provider.infrastructure.SnapshotSliceNode(below, timeout=seconds), request.node)

    async def ListNetworkNodeSnapshots(
        self, request: ListNodeSnapshotsRequest, context: Any
    ) -> ListNodeSnapshotsResponse:
        """See the contract."""
        _, entry, provider = self._find_node(request.node, context)
        below = ListNodeSnapshotsRequest(node=entry.provider_handle)
        return all_renamed(await provider.infrastructure.ListSliceNodeSnapshots(below), request.node)

    async def DeleteNetworkNodeSnapshot(
        self, request: NodeSnapshotRequest, context: Any
    ) -> DeleteSnapshotResponse:
        """See the contract."""
        _, entry, provider = self._find_node(request.node, context)
        below = NodeSnapshotRequest(node=entry.provider_handle, snapshot=request.snapshot)
        answer: DeleteSnapshotResponse = await provider.infrastructure.DeleteSliceNodeSnapshot(below)
        return answer

    async def RestoreNetworkNode(self, request: NodeSnapshotRequest, context: Any) -> NetworkNode:
        """See the contract."""
        record, entry, provider = self._find_node(request.node, context)
        below = NodeSnapshotRequest(node=entry.provider_handle, snapshot=request.snapshot)
        seconds = SNAPSHOT_SECONDS + MARGIN_SECONDS
        await provider.infrastructure.RestoreSliceNode(below, timeout=seconds)
        return view_node(record, entry, self._state.providers)

    async def MigrateNetworkNode(self, request: MigrateNetworkNodeRequest, context: Any) -> Operation:
        """See the contract."""
        identity = caller(context)
        record, _, _ = self._find_node(request.handle, context)

        async def work(progress: Progress) -> None:
            await self._moves.migrate(request, progress)

        async def act() -> str:
            operation = await self._operations.start(
                "MigrateNetworkNode", record.name, MOVE_STEPS, work, owner=identity
            )
            return operation.name

        name = await self._state.requests.once(identity, request.request_id, request, act)
        return self._operations.records.get(name).operation

    def _find(self, name: str, context: Any) -> NetworkRecord:
        record = self._state.networks.get(name)
        check_owner(record.owner, caller(context), "network", name)
        return record

    def _find_node(self, handle: str, context: Any) -> tuple[NetworkRecord, NodeEntry, Provider]:
        record, entry = self._state.find_node(handle)
        check_owner(record.owner, caller(context), "virtual node", handle)
        return record, entry, choose(self._state.providers, entry.provider)

    def _view(self, record: NetworkRecord) -> Network:
        return view_network(record, self._state.providers)


class VnpConsoleServicer(ConsoleServiceServicer):
    """Consoles and captures by handle, at whichever provider the node is."""

    def __init__(self, state: VnpState) -> None:
        self._state = state

    async def OpenConsole(
        self, request: AsyncIterator[ConsoleInput], context: Any
    ) -> AsyncIterator[ConsoleOutput]:
        """See the contract."""
        first = await first_message(request)
        relay = self._relay(first.name, caller(context))
        async for output in relay.console(request, first):
            yield output

    async def CaptureNodeFrames(
        self, request: CaptureFramesRequest, context: Any
    ) -> AsyncIterator[CapturedFrame]:
        """See the contract."""
        async for frame in self._relay(request.name, caller(context)).capture(request):
            yield frame

    def _relay(self, handle: str, identity: Identity) -> Relay:
        record, _ = self._state.find_node(handle)
        check_owner(record.owner, identity, "virtual node", handle)
        return Relay(lambda: self._locate(handle), self._state.networks.watch)

    def _locate(self, handle: str) -> Place:
        record, entry = self._state.find_node(handle)
        stub = choose(self._state.providers, entry.provider).consoles
        return Place(
            key=entry.provider_handle,
            name=entry.provider_handle,
            attach=stub.OpenConsole,
            capture=stub.CaptureNodeFrames,
            moving=record.move is not None and record.move.node == entry.node.id,
        )
