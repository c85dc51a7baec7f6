"""Moving a node of a network, within its provider or to another one, with its links following."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from serai.errors import NotFoundError, SeraiError, StateError
from serai.roles.names import unique_label
from serai.roles.operations import Progress
from serai.roles.remote_operations import follow
from serai.roles.settling import settle
from serai.roles.vnp.networks import Networks
from serai.roles.vnp.plan import links_of, plan_move, providers_of, slice_link, slice_node
from serai.roles.vnp.providers import Provider, choose
from serai.roles.vnp.records import LinkEntry, Move, NetworkRecord, NetworkState, NodeEntry
from serai.roles.vnp.state import VnpState
from serai.v1.guest_pb2 import Guest
from serai.v1.infrastructure_pb2 import (
    Advertisement,
    AllocateSliceRequest,
    DepartSliceNodeRequest,
    GetSliceRequest,
    RelocateSliceNodeRequest,
    Slice,
    SliceLink,
    SliceNode,
    UpdateSliceRequest,
)
from serai.v1.migration_pb2 import MigrationOptions
from serai.v1.operation_pb2 import ListOperationsRequest, Operation, Step
from serai.v1.operation_pb2_grpc import OperationServiceStub
from serai.v1.provider_pb2 import MigrateNetworkNodeRequest

log = logging.getLogger(__name__)

MOVE_STEPS = ("reserve", "prepare", "stream", "freeze", "hand-over", "resume", "drain", "release", "clean up")
_MIRRORED = MOVE_STEPS[1:-1]
_OWNED = (Guest.RUNNING, Guest.PAUSED, Guest.STOPPED, Guest.FAILED)
_SETTLE_POLL_S = 0.3


class NetworkMoves:
    """Moves of nodes."""

    def __init__(self, state: VnpState, networks: Networks) -> None:
        self._state = state
        self._networks = networks
        self._settling: set[asyncio.Task[None]] = set()

    async def migrate(self, request: MigrateNetworkNodeRequest, progress: Progress) -> None:
        """Live migration; the operation carries the report."""
        record, _ = self._state.find_node(request.handle)
        async with self._state.locks[record.name]:
            record, entry = self._state.find_node(request.handle)
            if record.state is not NetworkState.RUNNING:
                raise StateError(f"{record.name} is {record.state}", hint="wait until it runs")
            if entry.node.bridge:
                raise StateError(
                    f"{entry.node.id} is the bridge of a link", hint="move the nodes at its ends"
                )
            destination = await self._choose(record, entry, request)
            if destination == entry.provider:
                await self._relocate(entry, request, progress)
            else:
                await self._transfer(record.name, entry.node.id, destination, request, progress)

    async def _choose(
        self, record: NetworkRecord, entry: NodeEntry, request: MigrateNetworkNodeRequest
    ) -> str:
        if request.provider:
            if request.provider not in self._state.providers:
                raise NotFoundError(
                    f"provider {request.provider!r} is not known here",
                    hint=f"known: {', '.join(sorted(self._state.providers))}",
                )
            return request.provider
        if request.node:
            return entry.provider
        others = [
            item
            for item in await self._state.advertisements()
            if item.provider != entry.provider and _has_room(item, entry)
        ]
        others.sort(key=lambda item: -item.largest_node.memory_bytes)
        return others[0].provider if others else entry.provider

    async def _relocate(
        self, entry: NodeEntry, request: MigrateNetworkNodeRequest, progress: Progress
    ) -> None:
        provider = choose(self._state.providers, entry.provider)
        async with progress.step("reserve", f"at {entry.provider}"):
            operation = await provider.infrastructure.RelocateSliceNode(
                RelocateSliceNodeRequest(
                    handle=entry.provider_handle,
                    node=request.node,
                    options=request.options,
                    request_id=unique_label("relocate"),
                )
            )

        async def mirror(changed: Operation) -> None:
            await progress.mirror(changed, _MIRRORED)

        await follow(provider.channel, operation, mirror)
        await progress.skip_rest()

    async def _transfer(
        self,
        name: str,
        node: str,
        destination: str,
        request: MigrateNetworkNodeRequest,
        progress: Progress,
    ) -> None:
        record = await self._note_uid(name, node)
        async with progress.step("reserve", f"at {destination}"):
            advertisements = await self._state.advertisements()
            move = plan_move(record, node, destination, advertisements)
            record = await self._state.networks.update(name, lambda it: _begin(it, move))
        try:
            await self._reserve(record, move, request.node)
            await self._depart(record, move, request.options, progress)
        except BaseException:
            if not await asyncio.shield(self._conclude(name)):
                raise
        async with progress.step("clean up"):
            try:
                await self._settle(name)
            except asyncio.CancelledError:
                self._settle_later(name)
                raise

    async def _conclude(self, name: str) -> bool:
        """After a failure: True if the guest has moved all the same, else the move is undone."""
        node = self._state.networks.get(name).move
        try:
            while not await self._try_to_settle(name):  # noqa: ASYNC110 - asks another role
                await asyncio.sleep(_SETTLE_POLL_S)
        except SeraiError as error:
            log.warning("the move in %s is to be settled later: %s", name, error)
            self._settle_later(name)
            return False
        record = self._state.networks.get(name)
        return node is not None and record.nodes[node.node].provider == node.destination

    def _settle_later(self, name: str) -> None:
        task = asyncio.create_task(self.settle_after_restart(name))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def close(self) -> None:
        """Leave what is not settled to the next process."""
        for task in list(self._settling):
            task.cancel()
        await asyncio.gather(*self._settling, return_exceptions=True)

    async def _note_uid(self, name: str, node: str) -> NetworkRecord:
        """What the guest is called is known to its provider since it was created."""
        record = self._state.networks.get(name)
        entry = record.nodes[node]
        provider = choose(self._state.providers, entry.provider)
        there = await provider.infrastructure.GetSlice(GetSliceRequest(name=record.slices[entry.provider]))
        await self._networks.note_handles(name, entry.provider, there)
        return self._state.networks.get(name)

    async def _reserve(self, record: NetworkRecord, move: Move, wanted: str) -> None:
        """The place and the links beside those in use, at everybody concerned."""
        entry = record.nodes[move.node]
        arriving = slice_node(entry, arrival_from=move.source, node=wanted)

        async def add(provider: str) -> None:
            links = [
                slice_link(link, provider, standby=True)
                for link in move.links.values()
                if provider in link.providers
            ]
            nodes = [arriving] if provider == move.destination else []
            if provider == move.destination and move.new_slice:
                await self._new_slice(record, provider, nodes, links)
                return
            await self._update(
                provider,
                UpdateSliceRequest(name=record.slices[provider], add_nodes=nodes, add_links=links),
            )

        await settle(add(provider) for provider in {move.destination, *providers_of(move.links.values())})

    async def _new_slice(
        self, record: NetworkRecord, provider: str, nodes: list[SliceNode], links: list[SliceLink]
    ) -> None:
        name = record.slices[provider]
        there = choose(self._state.providers, provider)
        await there.infrastructure.AllocateSlice(
            AllocateSliceRequest(
                slice_id=name.partition("/")[2],
                nodes=nodes,
                links=links,
                expires_in_s=self._state.settings.reservation_s,
                request_id=name,
            )
        )

        async def ignore(_: Operation) -> None:
            return

        await there.provision(name, ignore)

    async def _depart(
        self, record: NetworkRecord, move: Move, options: MigrationOptions, progress: Progress
    ) -> None:
        source = choose(self._state.providers, move.source)
        arriving = await self._get_node(record, move.destination, move.node)
        if arriving is None:
            raise StateError(f"provider {move.destination} lost the place for {move.node!r}")
        operation = await source.infrastructure.DepartSliceNode(
            DepartSliceNodeRequest(
                handle=record.nodes[move.node].provider_handle,
                destination_provider=move.destination,
                destination_handle=arriving.handle,
                options=options,
                request_id=unique_label("depart"),
            )
        )
        rehoming: asyncio.Task[None] | None = None

        async def mirror(changed: Operation) -> None:
            nonlocal rehoming
            await progress.mirror(changed, _MIRRORED)
            if rehoming is None and _handed_over(changed):
                # At once, while the source still passes on what reaches it.
                rehoming = asyncio.create_task(self._activate(record, move))

        try:
            await follow(source.channel, operation, mirror)
        finally:
            if rehoming is not None:
                await asyncio.gather(rehoming, return_exceptions=True)

    async def _activate(self, record: NetworkRecord, move: Move) -> None:
        async def activate(provider: str) -> None:
            links = [link.slice_link for link in move.links.values() if provider in link.providers]
            await self._update(
                provider, UpdateSliceRequest(name=record.slices[provider], activate_links=links)
            )

        await settle(activate(provider) for provider in providers_of(move.links.values()))

    async def finish(self, name: str) -> None:
        """The guest is at its destination: its links run there, and nothing stays behind."""
        record = self._state.networks.get(name)
        move = record.move
        if move is None:
            return
        old = move.old
        if old is None:
            old = links_of(record.links, move.node)
            await self._activate(record, move)
            await self._settle_down(record, move, old)
        await self._remove(record, old, {move.source: [move.node]})
        await self._state.networks.update(name, lambda it: setattr(it, "move", None))
        await self._networks.release_empty(name)

    async def _settle_down(self, record: NetworkRecord, move: Move, old: dict[str, LinkEntry]) -> None:
        arrived = await self._get_node(record, move.destination, move.node)

        def change(changed: NetworkRecord) -> None:
            entry = changed.nodes[move.node]
            entry.provider = move.destination
            if arrived is not None:
                entry.provider_handle = arrived.handle
            changed.links.update(move.links)
            changed.move = move.model_copy(update={"old": old})

        await self._state.networks.update(record.name, change)

    async def undo(self, name: str) -> None:
        """The guest stays at its source: nothing of the move stays anywhere."""
        record = self._state.networks.get(name)
        move = record.move
        if move is None:
            return
        nodes = {} if move.new_slice else {move.destination: [move.node]}
        await self._remove(record, move.links, nodes, skip=move.destination if move.new_slice else "")
        await self._state.networks.update(name, lambda it: setattr(it, "move", None))
        await self._networks.release_empty(name)

    async def _remove(
        self,
        record: NetworkRecord,
        links: Mapping[str, LinkEntry],
        nodes: Mapping[str, list[str]],
        skip: str = "",
    ) -> None:
        async def remove(provider: str) -> None:
            gone = [link.slice_link for link in links.values() if provider in link.providers]
            request = UpdateSliceRequest(
                name=record.slices[provider], remove_links=gone, remove_nodes=nodes.get(provider, [])
            )
            try:
                await self._update(provider, request)
            except SeraiError as error:
                log.warning("%s at %s keeps parts of a move: %s", record.name, provider, error)

        concerned = {*nodes, *providers_of(links.values())} - {skip}
        await settle(remove(provider) for provider in sorted(concerned))

    async def settle_after_restart(self, name: str) -> None:
        """A move that the last process left: the guest decides where it is, then it is finished or undone."""
        async with self._state.locks[name]:
            await self._settle(name)

    async def _settle(self, name: str) -> None:
        """Try until it is settled: whoever does not answer now is asked again."""
        while True:
            try:
                if await self._try_to_settle(name):
                    return
            except SeraiError as error:
                log.info("the move in %s cannot be settled yet: %s", name, error)
            await asyncio.sleep(_SETTLE_POLL_S)

    async def _try_to_settle(self, name: str) -> bool:
        """Finish or undo, as the guest has decided; False while its source is still at it."""
        record = self._state.networks.find(name)
        move = record.move if record is not None else None
        if record is None or move is None:
            return True
        if move.old is not None or await self._has_arrived(name):
            await self.finish(name)
            return True
        source = choose(self._state.providers, move.source)
        listed = await OperationServiceStub(source.channel).ListOperations(
            ListOperationsRequest(page_size=1000)
        )
        slice_name = record.slices[move.source]
        if any(
            not item.done and item.target == slice_name and item.verb == "DepartSliceNode"
            for item in listed.operations
        ):
            return False
        # It may have arrived between the two questions.
        if await self._has_arrived(name):
            await self.finish(name)
        else:
            await self.undo(name)
        return True

    async def _has_arrived(self, name: str) -> bool:
        record = self._state.networks.get(name)
        if record.move is None:
            return False
        node = await self._get_node(record, record.move.destination, record.move.node)
        return node is not None and node.state in _OWNED

    async def _get_node(self, record: NetworkRecord, provider: str, node: str) -> SliceNode | None:
        there = choose(self._state.providers, provider)
        try:
            found: Slice = await there.infrastructure.GetSlice(GetSliceRequest(name=record.slices[provider]))
        except NotFoundError:
            return None
        return next((item for item in found.nodes if item.id == node), None)

    async def _update(self, provider: str, request: UpdateSliceRequest) -> None:
        there: Provider = choose(self._state.providers, provider)
        await there.infrastructure.UpdateSlice(request)


def _begin(record: NetworkRecord, move: Move) -> None:
    record.move = move
    if move.new_slice:
        record.slices[move.destination] = f"slices/{unique_label(record.id)}"


def _has_room(item: Advertisement, entry: NodeEntry) -> bool:
    spec = entry.node.guest
    return item.largest_node.vcpus >= spec.vcpus and item.largest_node.memory_bytes >= spec.memory_bytes


def _handed_over(operation: Operation) -> bool:
    return any(step.name == "hand-over" and step.state == Step.DONE for step in operation.steps)
