"""Changing a running VNet to another description: compare, then do the least."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from serai import vnet
from serai.errors import SeraiError, StateError
from serai.roles.names import unique_label
from serai.roles.operations import Progress
from serai.roles.remote_operations import follow
from serai.roles.vno.describe import compile_document, topology_message
from serai.roles.vno.records import VnetRecord, VnetState
from serai.roles.vno.vnets import Vnets, VnoState
from serai.v1.operation_pb2 import ListOperationsRequest, Operation
from serai.v1.operation_pb2_grpc import OperationServiceStub
from serai.v1.operator_pb2 import UpdateVnetRequest, VnetChange
from serai.v1.provider_pb2 import (
    GetNetworkRequest,
    MigrateNetworkNodeRequest,
    Network,
    UpdateNetworkRequest,
)

log = logging.getLogger(__name__)

_NETWORK_STEPS = ("plan", "reserve", "provision", "activate", "remove")
UPDATE_STEPS = ("compare", "clear", *_NETWORK_STEPS, "move")
RETRY_SECONDS = 1.0


class VnetChanges:
    """Everything that makes a running VNet another one."""

    def __init__(self, state: VnoState, vnets: Vnets) -> None:
        self._state = state
        self._vnets = vnets

    def check(self, request: UpdateVnetRequest) -> None:
        """StateError unless the VNet runs undisturbed; DescriptionError with every error at once."""
        record = self._state.vnets.get(request.name)
        busy = record.target or any(
            operation.verb == "UpdateVnet" for operation in self._state.operations.running(record.name)
        )
        if record.state is not VnetState.RUNNING or busy:
            raise StateError(
                f"{record.name} is {'being changed' if busy else record.state}", hint="wait until it runs"
            )
        compile_document(request.document, record.id)

    async def compare(self, record: VnetRecord, document: bytes) -> vnet.Difference:
        """What tells the VNet as it runs from what `document` describes."""
        wanted = compile_document(document, record.id)
        return _compare(self._vnets.compiled(record), await self._network(record), wanted)

    async def update(self, request: UpdateVnetRequest, progress: Progress) -> None:
        """Make the VNet what the request describes; see the contract."""
        record = self._state.vnets.get(request.name)
        wanted = compile_document(request.document, record.id)
        async with progress.step("compare"):
            network = await self._network(record)
            difference = _compare(self._vnets.compiled(record), network, wanted)
            _refuse_restarts(difference, request)
        if request.validate_only or not difference:
            if not request.validate_only:
                await self._adopt(record.name, request.document)
            elif not difference.restarted():
                await self._update_network(record, wanted, progress, validate_only=True)
            await progress.skip_rest()
            return
        handles = {item.id: item.handle for item in network.nodes}
        replaced = {name: handles[name] for name in difference.restarted()}
        await self._state.vnets.update(record.name, lambda it: _begin(it, request.document, replaced))
        try:
            if replaced:
                async with progress.step("clear", ", ".join(replaced)):
                    cleared = _without(_restrict(self._vnets.compiled(record), network), set(replaced))
                    await self._update_network(record, cleared, None)
            await self._update_network(record, wanted, progress)
            await self._move(record, wanted, difference, progress)
        finally:
            await asyncio.shield(self._settle(record.name))
        await progress.skip_rest()

    async def _network(self, record: VnetRecord) -> Network:
        """As it is now, not as it was last heard."""
        network: Network = await self._state.upstream.provider.GetNetwork(
            GetNetworkRequest(name=record.network)
        )
        return network

    async def _update_network(
        self,
        record: VnetRecord,
        wanted: vnet.Topology,
        progress: Progress | None,
        validate_only: bool = False,
    ) -> None:
        upstream = self._state.upstream
        operation = await upstream.provider.UpdateNetwork(
            UpdateNetworkRequest(
                name=record.network,
                topology=topology_message(wanted),
                request_id=unique_label("update"),
                validate_only=validate_only,
            )
        )

        async def mirror(changed: Operation) -> None:
            if progress is not None:
                await progress.mirror(changed, _NETWORK_STEPS)

        await follow(upstream.channel, operation, mirror)

    async def _move(
        self, record: VnetRecord, wanted: vnet.Topology, difference: vnet.Difference, progress: Progress
    ) -> None:
        moving = set(difference.moved())
        if not moving:
            return
        there = {item.id: item for item in (await self._network(record)).nodes}

        async def ignore(_: Operation) -> None:
            return

        async with progress.step("move", ", ".join(sorted(moving))):
            for node in wanted.nodes:
                if node.name in moving and there[node.name].provider != node.provider:
                    upstream = self._state.upstream
                    operation = await upstream.provider.MigrateNetworkNode(
                        MigrateNetworkNodeRequest(
                            handle=there[node.name].handle,
                            provider=node.provider,
                            request_id=unique_label("migrate"),
                        )
                    )
                    await follow(upstream.channel, operation, ignore)

    async def settle_forever(self) -> None:
        """Settle changes of which nobody knows any more how they ended."""
        while True:
            for record in self._state.vnets:
                if record.target and not self._state.operations.running(record.name):
                    await self._settle(record.name)
            await asyncio.sleep(RETRY_SECONDS)

    async def _settle(self, name: str) -> None:
        """The network decides which description holds; when it cannot be asked, later."""
        record = self._state.vnets.find(name)
        if record is None or not record.target:
            return
        try:
            if await self._is_changing(record):
                return
            network = await self._network(record)
        except SeraiError as error:
            log.warning("%s: how its change ended is not known yet: %s", name, error)
            return
        has_become = _has_become(network, compile_document(record.target, record.id), record.replaced)
        await self._adopt(name, record.target if has_become else record.document)

    async def _adopt(self, name: str, document: bytes) -> None:
        """From here on `document` is what the VNet's description is."""

        def change(it: VnetRecord) -> None:
            it.document, it.target, it.replaced = document, b"", {}

        if name in self._state.vnets:
            self._vnets.described_anew(name)
            await self._state.vnets.update(name, change)

    async def _is_changing(self, record: VnetRecord) -> bool:
        stub = OperationServiceStub(self._state.upstream.channel)
        listed = await stub.ListOperations(ListOperationsRequest(page_size=1000))
        return any(
            not item.done and item.target == record.network and item.verb == "UpdateNetwork"
            for item in listed.operations
        )


def change_message(change: vnet.Change) -> VnetChange:
    """A change as the contract has it."""
    return VnetChange(
        action=change.action.name,
        kind=change.kind,
        element=change.name,
        field=change.field,
        old_value=change.old,
        new_value=change.new,
        effect=change.effect.name,
    )


def _compare(described: vnet.Topology, network: Network, wanted: vnet.Topology) -> vnet.Difference:
    difference = vnet.diff(_restrict(described, network), wanted)
    there = {item.id: item.provider for item in network.nodes}
    known = {(item.name, item.effect) for item in difference.changes}
    # Where a move failed, the description says already where the node should be.
    astray = tuple(
        vnet.Change(
            vnet.Action.CHANGE, "node", node.name, "place", there[node.name], node.provider, vnet.Effect.MOVE
        )
        for node in wanted.nodes
        if node.provider
        and there.get(node.name, "") not in ("", node.provider)
        and (node.name, vnet.Effect.MOVE) not in known
    )
    return vnet.Difference(difference.changes + astray)


def _restrict(described: vnet.Topology, network: Network) -> vnet.Topology:
    """What of `described` there is: nodes may have been removed from the running VNet."""
    nodes = {item.id for item in network.nodes}
    links = {item.id for item in network.links}
    return replace(
        described,
        nodes=tuple(node for node in described.nodes if node.name in nodes),
        links=tuple(link for link in described.links if link.name in links),
    )


def _without(topology: vnet.Topology, nodes: set[str]) -> vnet.Topology:
    return replace(
        topology,
        nodes=tuple(node for node in topology.nodes if node.name not in nodes),
        links=tuple(link for link in topology.links if not {link.a.node, link.b.node} & nodes),
    )


def _refuse_restarts(difference: vnet.Difference, request: UpdateVnetRequest) -> None:
    nodes = difference.restarted()
    if not nodes or request.allow_restart or request.validate_only:
        return
    reasons = [str(item) for item in difference.changes if item.effect is vnet.Effect.RESTART]
    raise StateError(
        "guests would have to be created anew: " + "; ".join(reasons),
        hint="allow that (--restart), or leave these nodes as they are",
        reason="NEEDS_RESTART",
        nodes=",".join(nodes),
    )


def _has_become(network: Network, wanted: vnet.Topology, replaced: dict[str, str]) -> bool:
    message = topology_message(wanted)
    handles = {item.id: item.handle for item in network.nodes}
    links = {item.id: item for item in network.links}
    return (
        handles.keys() == {node.id for node in message.nodes}
        and links == {link.id: link for link in message.links}
        and all(handles[name] != handle for name, handle in replaced.items())
    )


def _begin(record: VnetRecord, document: bytes, replaced: dict[str, str]) -> None:
    record.target = document
    record.replaced = replaced
