"""The life of a VNet."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass

from serai import vnet
from serai.errors import NotFoundError, SeraiError
from serai.roles.directory import Directory
from serai.roles.names import check_label, unique_label
from serai.roles.operations import Operations, Progress
from serai.roles.remote_operations import follow
from serai.roles.requests import Requests
from serai.roles.settings import VnoSettings
from serai.roles.vno.describe import compile_document, topology_message
from serai.roles.vno.grants import Grants
from serai.roles.vno.records import VnetRecord, VnetState
from serai.roles.vno.upstream import Upstream
from serai.roles.vno.views import view_vnet
from serai.store import Collection, Database
from serai.v1.operation_pb2 import Operation
from serai.v1.operator_pb2 import CreateVnetRequest, MigrateVnetNodeRequest, Vnet
from serai.v1.provider_pb2 import (
    CreateNetworkRequest,
    DeleteNetworkRequest,
    MigrateNetworkNodeRequest,
    NetworkNodeRequest,
)
from serai.wire.bus import EventBus

log = logging.getLogger(__name__)

CREATE_STEPS = ("describe", "match", "split", "embed", "allocate", "provision", "configure")
SEEN_SECONDS = 10.0
"""How long after the VNP's acknowledgement the nodes may take to be heard on the watch."""

RETRY_SECONDS = 1.0


@dataclass
class VnoState:
    """Settings, records and connections of one VNO."""

    settings: VnoSettings
    database: Database
    directory: Directory
    bus: EventBus
    operations: Operations
    requests: Requests
    vnets: Collection[VnetRecord]
    upstream: Upstream
    grants: Grants


class Vnets:
    """Everything that happens to VNets."""

    def __init__(self, state: VnoState) -> None:
        self._state = state
        self._compiled: dict[str, vnet.Topology] = {}

    def view(self, record: VnetRecord) -> Vnet:
        """The VNet as it is now."""
        upstream = self._state.upstream
        network = upstream.networks.get(record.network)
        return view_vnet(record, self.compiled(record), network, reachable=upstream.reachable)

    def compiled(self, record: VnetRecord) -> vnet.Topology:
        """What its description compiles to."""
        if record.name not in self._compiled:
            self._compiled[record.name] = compile_document(record.document, record.id)
        return self._compiled[record.name]

    async def begin(self, request: CreateVnetRequest, owner: str) -> VnetRecord:
        """Check the description and take the name. DescriptionError has every error at once."""
        compiled = compile_document(request.document, request.vnet_id)
        identifier = check_label(compiled.name, "VNet id")
        record = VnetRecord(
            name=f"vnets/{identifier}",
            owner=owner,
            state=VnetState.CREATING,
            document=request.document,
            network=f"networks/{unique_label(identifier)}",
            create_time=time.time(),
        )
        self._compiled.pop(record.name, None)
        return await self._state.vnets.create(record)

    async def create(self, name: str, request: CreateVnetRequest, progress: Progress) -> None:
        """Have the VNP make it; any failure leaves nothing."""
        state = self._state
        try:
            record = state.vnets.get(name)
            async with progress.step("describe"):
                compiled = self.compiled(record)
            operation = await state.upstream.provider.CreateNetwork(
                CreateNetworkRequest(
                    network_id=record.network.partition("/")[2],
                    topology=topology_message(compiled),
                    request_id=record.network,
                    validate_only=request.validate_only,
                )
            )
            await follow(state.upstream.channel, operation, progress.mirror)
            if request.validate_only:
                await progress.skip_rest()
                await self._forget(name)
                return
            async with progress.step("configure"):
                await self._wait_ready(record)
            await state.vnets.update(name, _become_running)
        except BaseException:
            await asyncio.shield(self._abandon(name))
            raise

    async def _wait_ready(self, record: VnetRecord) -> None:
        """Every node has configured itself from its files and has said so, seen from here."""

        def seen() -> bool:
            network = self._state.upstream.networks.get(record.network)
            return network is not None and all(node.ready for node in network.nodes)

        with contextlib.suppress(TimeoutError), self._state.vnets.watch() as watcher:
            async with asyncio.timeout(SEEN_SECONDS):
                while not seen():
                    await watcher.changes()

    async def _abandon(self, name: str) -> None:
        if name not in self._state.vnets:
            return
        await self._state.vnets.update(name, lambda it: setattr(it, "state", VnetState.DELETING))
        with contextlib.suppress(SeraiError):
            await self._delete_network(name)

    async def delete(self, name: str) -> None:
        """End it, for as long as that takes. What it is doing is cancelled first."""
        for operation in self._state.operations.running(name, but="DeleteVnet"):
            with contextlib.suppress(SeraiError):
                await self._state.operations.cancel(operation.name)
                await self._state.operations.wait(operation.name)
        if name in self._state.vnets:
            await self._state.vnets.update(name, lambda it: setattr(it, "state", VnetState.DELETING))
            await self._delete_network(name)

    async def _delete_network(self, name: str) -> None:
        record = self._state.vnets.get(name)
        upstream = self._state.upstream

        async def ignore(_: Operation) -> None:
            return

        with contextlib.suppress(NotFoundError):
            operation = await upstream.provider.DeleteNetwork(DeleteNetworkRequest(name=record.network))
            await follow(upstream.channel, operation, ignore)
        await self._forget(name)

    def described_anew(self, name: str) -> None:
        """Its description is another one now."""
        self._compiled.pop(name, None)

    async def _forget(self, name: str) -> None:
        await self._state.vnets.delete(name)
        await self._state.grants.sweep(self._state.vnets)
        self._compiled.pop(name, None)

    async def sweep_forever(self) -> None:
        """Finish deletions that nobody waits for any more."""
        while True:
            await self._state.grants.sweep(self._state.vnets)
            for record in self._state.vnets:
                if record.state is VnetState.DELETING and not self._state.operations.running(record.name):
                    try:
                        await self._delete_network(record.name)
                    except SeraiError as error:
                        log.info("%s is still to be deleted: %s", record.name, error)
            await asyncio.sleep(RETRY_SECONDS)

    async def delete_node(self, name: str, node: str) -> None:
        """Remove a node and its links from a running VNet."""
        upstream = self._state.upstream
        handle = await self.handle(name, node)
        operation = await upstream.provider.DeleteNetworkNode(NetworkNodeRequest(handle=handle))

        async def ignore(_: Operation) -> None:
            return

        await follow(upstream.channel, operation, ignore)

    async def migrate(
        self, name: str, node: str, request: MigrateVnetNodeRequest, progress: Progress
    ) -> None:
        """Live migration; the operation mirrors the VNP's, report included."""
        upstream = self._state.upstream
        provider, _, place = request.destination.partition("/")
        operation = await upstream.provider.MigrateNetworkNode(
            MigrateNetworkNodeRequest(
                handle=await self.handle(name, node),
                provider=provider,
                node=place,
                options=request.options,
                request_id=unique_label("migrate"),
            )
        )
        await follow(upstream.channel, operation, progress.mirror)

    async def handle(self, name: str, node: str) -> str:
        """The VNP's handle of a node; NotFoundError."""
        record = self._state.vnets.get(name)
        if node not in {item.name for item in self.compiled(record).nodes}:
            known = ", ".join(item.name for item in self.compiled(record).nodes)
            raise NotFoundError(f"{name} has no node {node!r}", hint=f"its nodes are {known}", resource=node)
        return (await self._state.upstream.find_node(record.network, node)).handle


def _become_running(record: VnetRecord) -> None:
    record.state = VnetState.RUNNING
    record.running_time = time.time()
