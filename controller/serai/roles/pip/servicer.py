"""A PIP's gRPC services for VNPs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from serai.errors import ForbiddenError, NotFoundError, StateError
from serai.roles.operations import Operations, Progress
from serai.roles.ownership import check_owner, may_see, owned
from serai.roles.paging import page
from serai.roles.pip.moves import MIGRATION_STEPS, Moves
from serai.roles.pip.records import NodePlacement, Presence, SliceRecord
from serai.roles.pip.resize import resize_node
from serai.roles.pip.slices import PROVISION_STEPS, Slices
from serai.roles.pip.snapshots import NodeSnapshots
from serai.roles.pip.state import PipState
from serai.roles.pip.substrate import free_substrate
from serai.roles.pip.views import advertise, view_node, view_slice
from serai.roles.relay import Place, Relay, first_message
from serai.roles.snapshots import all_renamed, renamed
from serai.v1.console_pb2_grpc import ConsoleServiceServicer
from serai.v1.guest_pb2 import (
    ConsoleInput,
    ConsoleOutput,
    DeleteSnapshotResponse,
    GetGuestRequest,
    GuestSize,
    GuestStatistics,
    ListNodeSnapshotsRequest,
    ListNodeSnapshotsResponse,
    NodeSnapshotRequest,
    Snapshot,
    StartGuestRequest,
    StopGuestRequest,
    TraceGuestRequest,
    TraceGuestResponse,
)
from serai.v1.infrastructure_pb2 import (
    Advertisement,
    AllocateSliceRequest,
    DepartSliceNodeRequest,
    GetAdvertisementRequest,
    GetSliceRequest,
    ListNodesRequest,
    ListNodesResponse,
    ListSlicesRequest,
    ListSlicesResponse,
    ProvisionSliceRequest,
    ReleaseSliceRequest,
    RelocateSliceNodeRequest,
    ResizeSliceNodeRequest,
    Slice,
    SliceNode,
    SliceNodeRequest,
    StopSliceNodeRequest,
    UpdateSliceRequest,
    WatchSlicesRequest,
    WatchSlicesResponse,
)
from serai.v1.infrastructure_pb2_grpc import InfrastructureServiceServicer
from serai.v1.link_pb2 import CapturedFrame, CaptureFramesRequest
from serai.v1.node_pb2 import Node
from serai.v1.operation_pb2 import Operation
from serai.wire.identity import Identity, Role
from serai.wire.rpc import caller


class InfrastructureServicer(InfrastructureServiceServicer):
    """See the contract for each method."""

    def __init__(self, state: PipState, slices: Slices, moves: Moves) -> None:
        self._state = state
        self._slices = slices
        self._moves = moves
        self._snapshots = NodeSnapshots(state.agents)

    @property
    def _operations(self) -> Operations:
        return self._state.operations

    async def GetAdvertisement(self, request: GetAdvertisementRequest, context: Any) -> Advertisement:
        """See the contract."""
        usage, nodes = self._state.usage(), self._state.reachable()
        substrate = free_substrate(self._state.settings, nodes, usage)
        images = (image for node in nodes.values() for image in node.images)
        return advertise(self._state.settings, substrate, usage, images)

    async def AllocateSlice(self, request: AllocateSliceRequest, context: Any) -> Slice:
        """See the contract."""
        identity = caller(context)
        for node in request.nodes:
            self._check_placement(node, identity)
        if request.validate_only:
            return self._view(await self._slices.allocate(request, identity.uri))

        async def act() -> str:
            return (await self._slices.allocate(request, identity.uri)).name

        name = await self._state.requests.once(identity, request.request_id, request, act)
        return self._view(self._state.slices.get(name))

    async def ProvisionSlice(self, request: ProvisionSliceRequest, context: Any) -> Operation:
        """See the contract."""
        self._find(request.name, context)

        async def work(progress: Progress) -> None:
            await self._slices.provision(request.name, progress)

        return await self._operations.start(
            "ProvisionSlice", request.name, PROVISION_STEPS, work, owner=caller(context)
        )

    async def UpdateSlice(self, request: UpdateSliceRequest, context: Any) -> Slice:
        """See the contract."""
        identity = caller(context)
        self._find(request.name, context)
        for node in request.add_nodes:
            self._check_placement(node, identity)

        async def act() -> str:
            return (await self._slices.update(request)).name

        await self._state.requests.once(identity, request.request_id, request, act)
        return self._view(self._state.slices.get(request.name))

    async def GetSlice(self, request: GetSliceRequest, context: Any) -> Slice:
        """See the contract."""
        return self._view(self._find(request.name, context))

    async def ListSlices(self, request: ListSlicesRequest, context: Any) -> ListSlicesResponse:
        """See the contract."""
        mine = owned(self._state.slices, caller(context))
        records, token = page(mine, request.page_size, request.page_token, key=lambda record: record.name)
        return ListSlicesResponse(slices=[self._view(record) for record in records], next_page_token=token)

    async def WatchSlices(
        self, request: WatchSlicesRequest, context: Any
    ) -> AsyncIterator[WatchSlicesResponse]:
        """See the contract."""
        identity = caller(context)
        with self._state.slices.watch() as watcher:
            for record in owned(self._state.slices, identity):
                yield WatchSlicesResponse(slice=self._view(record))
            yield WatchSlicesResponse(synchronized=True)
            while True:
                for change in await watcher.changes():
                    if not may_see(change.record.owner, identity):
                        continue
                    view = self._view(change.record)
                    if change.deleted:
                        view.state = Slice.RELEASED
                    yield WatchSlicesResponse(slice=view, synchronized=True)

    async def ReleaseSlice(self, request: ReleaseSliceRequest, context: Any) -> Operation:
        """See the contract."""
        identity = caller(context)
        record = self._state.slices.find(request.name)
        if record is not None:
            check_owner(record.owner, identity, "slice", request.name)

        async def work(progress: Progress) -> None:
            async with progress.step("release"):
                await self._slices.release(request.name)

        return await self._operations.start("ReleaseSlice", request.name, ["release"], work, owner=identity)

    async def StartSliceNode(self, request: SliceNodeRequest, context: Any) -> SliceNode:
        """See the contract."""
        node = self._find_here(request.handle, context)
        stub = self._state.agents[node.node].guest_stub
        await stub.StartGuest(StartGuestRequest(name=node.guest_name))
        return self._view_node(node)

    async def StopSliceNode(self, request: StopSliceNodeRequest, context: Any) -> SliceNode:
        """See the contract."""
        node = self._find_here(request.handle, context)
        stub = self._state.agents[node.node].guest_stub
        await stub.StopGuest(
            StopGuestRequest(name=node.guest_name, grace_seconds=request.grace_seconds),
            timeout=request.grace_seconds + 30,
        )
        return self._view_node(node)

    async def GetSliceNodeStatistics(self, request: SliceNodeRequest, context: Any) -> GuestStatistics:
        """See the contract."""
        node = self._find_here(request.handle, context)
        stub = self._state.agents[node.node].guest_stub
        statistics: GuestStatistics = await stub.GetGuestStatistics(GetGuestRequest(name=node.guest_name))
        return statistics

    async def TraceSliceNode(
        self, request: TraceGuestRequest, context: Any
    ) -> AsyncIterator[TraceGuestResponse]:
        """See the contract."""
        node = self._find_here(request.name, context)
        request.name = node.guest_name
        async for response in self._state.agents[node.node].guest_stub.TraceGuest(request):
            yield response

    async def ResizeSliceNode(self, request: ResizeSliceNodeRequest, context: Any) -> GuestSize:
        """See the contract."""
        self._find_here(request.handle, context)
        return await resize_node(self._state, request)

    async def SnapshotSliceNode(self, request: NodeSnapshotRequest, context: Any) -> Snapshot:
        """See the contract."""
        node = self._find_here(request.node, context)
        return renamed(await self._snapshots.create(node, request.snapshot), request.node)

    async def ListSliceNodeSnapshots(
        self, request: ListNodeSnapshotsRequest, context: Any
    ) -> ListNodeSnapshotsResponse:
        """See the contract."""
        found = await self._snapshots.of_node(self._find_here(request.node, context))
        return all_renamed(ListNodeSnapshotsResponse(snapshots=found), request.node)

    async def DeleteSliceNodeSnapshot(
        self, request: NodeSnapshotRequest, context: Any
    ) -> DeleteSnapshotResponse:
        """See the contract."""
        await self._snapshots.delete(self._find_here(request.node, context), request.snapshot)
        return DeleteSnapshotResponse()

    async def RestoreSliceNode(self, request: NodeSnapshotRequest, context: Any) -> SliceNode:
        """See the contract."""
        node = self._find_here(request.node, context)
        await self._snapshots.restore(node, request.snapshot)
        return self._view_node(node)

    async def RelocateSliceNode(self, request: RelocateSliceNodeRequest, context: Any) -> Operation:
        """See the contract."""
        identity = caller(context)
        record, _ = self._find_node(request.handle, context)

        async def work(progress: Progress) -> None:
            await self._moves.relocate(request, may_choose=identity.role is Role.ADMIN, progress=progress)

        async def act() -> str:
            steps = ("place", *MIGRATION_STEPS)
            operation = await self._operations.start(
                "RelocateSliceNode", record.name, steps, work, owner=identity
            )
            return operation.name

        name = await self._state.requests.once(identity, request.request_id, request, act)
        return self._operations.records.get(name).operation

    async def DepartSliceNode(self, request: DepartSliceNodeRequest, context: Any) -> Operation:
        """See the contract."""
        identity = caller(context)
        record, _ = self._find_node(request.handle, context)

        async def work(progress: Progress) -> None:
            await self._moves.depart(request, progress)

        async def act() -> str:
            steps = ("consent", *MIGRATION_STEPS)
            operation = await self._operations.start(
                "DepartSliceNode", record.name, steps, work, owner=identity
            )
            return operation.name

        name = await self._state.requests.once(identity, request.request_id, request, act)
        return self._operations.records.get(name).operation

    async def ListNodes(self, request: ListNodesRequest, context: Any) -> ListNodesResponse:
        """See the contract."""
        views = [self._view_agent(name) for name in self._state.agents]
        nodes, token = page(views, request.page_size, request.page_token, key=lambda node: node.name)
        return ListNodesResponse(nodes=nodes, next_page_token=token)

    def _view_agent(self, name: str) -> Node:
        agent = self._state.agents[name]
        view = Node(name=f"nodes/{name}", provider=self._state.settings.name, control_address=agent.address)
        if agent.state is not None:
            view.CopyFrom(agent.state)
        if not agent.reachable and view.state != Node.STOPPING:
            view.state = Node.UNREACHABLE
        return view

    def _check_placement(self, node: SliceNode, identity: Identity) -> None:
        if (
            node.constraints.node
            and identity.role is not Role.ADMIN
            and not self._state.settings.accept_placement
        ):
            raise ForbiddenError(
                f"provider {self._state.settings.name} chooses its nodes itself",
                hint="leave the node out, or name a location",
                reason="PLACEMENT_NOT_ACCEPTED",
            )

    def _find(self, name: str, context: Any) -> SliceRecord:
        record = self._state.slices.get(name)
        check_owner(record.owner, caller(context), "slice", name)
        return record

    def _find_node(self, handle: str, context: Any) -> tuple[SliceRecord, NodePlacement]:
        record, node = self._state.find_node(handle)
        check_owner(record.owner, caller(context), "virtual node", handle)
        return record, node

    def _find_here(self, handle: str, context: Any) -> NodePlacement:
        _, node = self._find_node(handle, context)
        if node.presence is not Presence.HERE:
            raise StateError(
                f"the guest of {node.spec.id!r} is {node.presence}", hint="wait until it is here"
            )
        self._state.agents[node.node].expect_reachable()
        return node

    def _view(self, record: SliceRecord) -> Slice:
        disclose = self._state.settings.disclose_placement
        return view_slice(record, self._state.agents, disclose=disclose)

    def _view_node(self, node: NodePlacement) -> SliceNode:
        return view_node(node, self._state.agents, disclose=self._state.settings.disclose_placement)


class PipConsoleServicer(ConsoleServiceServicer):
    """Consoles and captures by handle, wherever in this provider the guest is."""

    def __init__(self, state: PipState) -> None:
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
        return Relay(lambda: self._locate(handle), self._state.slices.watch)

    def _locate(self, handle: str) -> Place:
        record, node = self._state.find_node(handle)
        if node.presence is Presence.DEPARTED:
            raise NotFoundError(
                f"the guest of {node.spec.id!r} went to another provider",
                hint="ask the VNP where it is now",
                reason="DEPARTED",
            )
        agent = self._state.agents[node.node]
        return Place(
            key=f"{node.node}/{node.guest_id}",
            name=node.guest_name,
            attach=agent.guest_stub.AttachConsole,
            capture=agent.segment_stub.CaptureFrames,
            moving=node.spec.id in record.pending.nodes,
        )
