"""A VNO as one thing: opened, served, started, closed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from serai.roles.access import VNO_ACCESS
from serai.roles.announce import announce_operations
from serai.roles.directory import Directory
from serai.roles.operations import Operations
from serai.roles.remote_operations import OperationServicer
from serai.roles.requests import Requests
from serai.roles.settings import VnoSettings
from serai.roles.vno.attachment import VnoAttachmentServicer
from serai.roles.vno.changes import VnetChanges
from serai.roles.vno.grants import Grants
from serai.roles.vno.records import GrantRecord, VnetRecord, VnetState
from serai.roles.vno.servicer import OperatorServicer, VnoConsoleServicer
from serai.roles.vno.upstream import Upstream
from serai.roles.vno.views import vnet_state
from serai.roles.vno.vnets import Vnets, VnoState
from serai.store import Change, Collection, Database
from serai.v1.attachment_pb2_grpc import add_AttachmentServiceServicer_to_server
from serai.v1.console_pb2_grpc import add_ConsoleServiceServicer_to_server
from serai.v1.operation_pb2_grpc import add_OperationServiceServicer_to_server
from serai.v1.operator_pb2 import Vnet
from serai.v1.operator_pb2_grpc import add_OperatorServiceServicer_to_server
from serai.wire.bus import EventBus
from serai.wire.events import VnetStateChanged
from serai.wire.identity import Identity, Role
from serai.wire.rpc import AccessTable, Service


class Vno:
    """An operator of VNets."""

    access: AccessTable = VNO_ACCESS

    def __init__(self, state: VnoState) -> None:
        self.state = state
        self.identity = state.settings.identity
        self._vnets = Vnets(state)
        self._changes = VnetChanges(state, self._vnets)
        self._sweepers: list[asyncio.Task[None]] = []
        self._said: dict[str, str] = {}
        state.vnets.listen(self._announce)

    @classmethod
    async def open(
        cls, settings: VnoSettings, database: Database, directory: Directory, bus: EventBus
    ) -> Vno:
        """Load the state; nothing is done yet."""
        vnp = Identity(Role.VNP, settings.provider.name)
        directory.add(vnp, settings.provider.address)
        vnets = Collection(database, "vnets", VnetRecord, "vnet")

        def network_changed(network: str) -> None:
            for record in vnets:
                if record.network == network:
                    vnets.touch(record.name)

        state = VnoState(
            settings=settings,
            database=database,
            directory=directory,
            bus=bus,
            operations=Operations(database),
            requests=Requests(database),
            vnets=vnets,
            upstream=Upstream(lambda: directory.channel(vnp), network_changed),
            grants=Grants(settings.name, Collection(database, "grants", GrantRecord, "grant")),
        )
        await state.vnets.load()
        await state.grants.records.load()
        await state.requests.load()
        await state.operations.load()
        announce_operations(state.operations, bus)
        return cls(state)

    @property
    def services(self) -> Sequence[Service]:
        """What its server offers."""
        return [
            (add_OperatorServiceServicer_to_server, OperatorServicer(self.state, self._vnets, self._changes)),
            (add_ConsoleServiceServicer_to_server, VnoConsoleServicer(self.state, self._vnets)),
            (add_AttachmentServiceServicer_to_server, VnoAttachmentServicer(self.state, self._vnets)),
            (add_OperationServiceServicer_to_server, OperationServicer(self.state.operations)),
        ]

    async def start(self) -> None:
        """Watch the VNP; what the last process was creating is deleted."""
        self.state.upstream.start()
        for record in self.state.vnets:
            if record.state is VnetState.CREATING:
                await self.state.vnets.update(
                    record.name, lambda it: setattr(it, "state", VnetState.DELETING)
                )
        self._sweepers = [
            asyncio.create_task(self._vnets.sweep_forever()),
            asyncio.create_task(self._changes.settle_forever()),
        ]

    async def close(self) -> None:
        """Undo what is under way, then stop; the VNets go on."""
        await self.state.operations.close()
        for sweeper in self._sweepers:
            sweeper.cancel()
        await asyncio.gather(*self._sweepers, return_exceptions=True)
        await self.state.upstream.close()
        await self.state.directory.close()

    def _announce(self, change: Change[VnetRecord]) -> None:
        record, upstream = change.record, self.state.upstream
        network = upstream.networks.get(record.network)
        now = Vnet.DELETED if change.deleted else vnet_state(record, network, reachable=upstream.reachable)
        state = Vnet.State.Name(now)
        if self._said.get(record.name) == state:
            return
        self._said[record.name] = state
        if change.deleted:
            self._said.pop(record.name, None)
        self.state.bus.publish(record.name, VnetStateChanged(vnet=record.name, state=state))
