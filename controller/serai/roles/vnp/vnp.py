"""A VNP as one thing: opened, served, started, closed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from serai.errors import SeraiError
from serai.roles.access import VNP_ACCESS
from serai.roles.announce import announce_operations
from serai.roles.directory import Directory
from serai.roles.operations import Operations
from serai.roles.remote_operations import OperationServicer
from serai.roles.requests import Requests
from serai.roles.settings import VnpSettings
from serai.roles.vnp.attachment import VnpAttachmentServicer
from serai.roles.vnp.changes import NetworkChanges
from serai.roles.vnp.moves import NetworkMoves
from serai.roles.vnp.networks import Networks
from serai.roles.vnp.providers import Provider
from serai.roles.vnp.records import NetworkRecord, NetworkState
from serai.roles.vnp.servicer import ProviderServicer, VnpConsoleServicer
from serai.roles.vnp.state import VnpState
from serai.store import Collection, Database
from serai.v1.attachment_pb2_grpc import add_AttachmentServiceServicer_to_server
from serai.v1.console_pb2_grpc import add_ConsoleServiceServicer_to_server
from serai.v1.operation_pb2_grpc import add_OperationServiceServicer_to_server
from serai.v1.provider_pb2_grpc import add_ProviderServiceServicer_to_server
from serai.wire.bus import EventBus
from serai.wire.identity import Identity, Role
from serai.wire.rpc import AccessTable, Channel, Service

log = logging.getLogger(__name__)


class Vnp:
    """A provider of virtual networks."""

    access: AccessTable = VNP_ACCESS

    def __init__(self, state: VnpState) -> None:
        self.state = state
        self.identity = state.settings.identity
        self._networks = Networks(state)
        self._moves = NetworkMoves(state, self._networks)
        self._changes = NetworkChanges(state, self._networks)
        self._tasks: set[asyncio.Task[None]] = set()
        for peer in state.settings.infrastructure:
            identity = Identity(Role.PIP, peer.name)
            state.directory.add(identity, peer.address)
            state.providers[peer.name] = Provider(peer.name, self._channel(identity), self._slice_changed)

    @classmethod
    async def open(
        cls, settings: VnpSettings, database: Database, directory: Directory, bus: EventBus
    ) -> Vnp:
        """Load the state; nothing is done yet."""
        state = VnpState(
            settings=settings,
            database=database,
            directory=directory,
            bus=bus,
            operations=Operations(database),
            requests=Requests(database),
            networks=Collection(database, "networks", NetworkRecord, "network"),
        )
        await state.networks.load()
        await state.requests.load()
        await state.operations.load()
        announce_operations(state.operations, bus)
        return cls(state)

    @property
    def services(self) -> Sequence[Service]:
        """What its server offers."""
        return [
            (
                add_ProviderServiceServicer_to_server,
                ProviderServicer(self.state, self._networks, self._moves, self._changes),
            ),
            (add_ConsoleServiceServicer_to_server, VnpConsoleServicer(self.state)),
            (add_AttachmentServiceServicer_to_server, VnpAttachmentServicer(self.state)),
            (add_OperationServiceServicer_to_server, OperationServicer(self.state.operations)),
        ]

    async def start(self) -> None:
        """Watch the providers, and undo or finish what the last process left."""
        for provider in self.state.providers.values():
            provider.start()
        for record in self.state.networks:
            if record.state is NetworkState.CREATING:
                await self.state.networks.update(
                    record.name, lambda it: setattr(it, "state", NetworkState.DELETING)
                )
            elif record.move is not None:
                self._spawn(self._moves.settle_after_restart(record.name))
            elif record.change is not None:
                self._spawn(self._changes.settle_after_restart(record.name))
        self._spawn(self._networks.sweep_forever())

    async def close(self) -> None:
        """Undo what is under way, then stop; the networks go on."""
        await self.state.operations.close()
        await self._moves.close()
        await self._changes.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for provider in self.state.providers.values():
            await provider.close()
        await self.state.directory.close()

    def _channel(self, identity: Identity) -> Callable[[], Channel]:
        return lambda: self.state.directory.channel(identity)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._logged(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _logged(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except SeraiError as error:
            log.error("VNP %s: %s", self.state.settings.name, error)

    def _slice_changed(self, slice_name: str) -> None:
        for record in self.state.networks:
            if slice_name in record.slices.values():
                self.state.networks.touch(record.name)
