"""A PIP as one thing: opened, served, started, closed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any

from serai.errors import SeraiError
from serai.roles.access import PIP_ACCESS
from serai.roles.announce import announce_operations
from serai.roles.directory import Directory
from serai.roles.operations import Operations
from serai.roles.pip.agents import Agent
from serai.roles.pip.attachment import PipAttachmentServicer
from serai.roles.pip.moves import MIGRATION_STEPS, Moves, find_arrived
from serai.roles.pip.peering import Peering, PeeringServicer
from serai.roles.pip.realise import restore_segments
from serai.roles.pip.records import Leftover, PeerConnection, Presence, SliceRecord, SliceState
from serai.roles.pip.servicer import InfrastructureServicer, PipConsoleServicer
from serai.roles.pip.slices import Slices, guest_uids
from serai.roles.pip.state import PipState
from serai.roles.remote_operations import OperationServicer
from serai.roles.requests import Requests
from serai.roles.settings import PipSettings
from serai.store import Collection, Database
from serai.v1.attachment_pb2_grpc import add_AttachmentServiceServicer_to_server
from serai.v1.console_pb2_grpc import add_ConsoleServiceServicer_to_server
from serai.v1.guest_pb2 import DeleteGuestRequest
from serai.v1.infrastructure_pb2_grpc import add_InfrastructureServiceServicer_to_server
from serai.v1.node_pb2 import Node
from serai.v1.operation_pb2_grpc import add_OperationServiceServicer_to_server
from serai.v1.peering_pb2_grpc import add_PeeringServiceServicer_to_server
from serai.wire.bus import EventBus
from serai.wire.events import NodeStateChanged
from serai.wire.identity import Identity, Role
from serai.wire.rpc import AccessTable, Service
from serai.wire.tls import Credentials

log = logging.getLogger(__name__)

SWEEP_SECONDS = 2.0
"""Pause between attempts to remove what is left at hosts that did not answer."""


class Pip:
    """A provider of infrastructure."""

    access: AccessTable = PIP_ACCESS

    def __init__(self, state: PipState, credentials: Credentials) -> None:
        self.state = state
        self.identity = state.settings.identity
        self._peering = Peering(state)
        self._slices = Slices(state, self._peering)
        self._moves = Moves(state, self._slices, self._peering)
        self._tasks: set[asyncio.Task[None]] = set()
        self._said: dict[str, bool] = {}
        for node in state.settings.nodes:
            state.agents[node.name] = Agent(
                state.settings.name,
                node.name,
                node.address,
                credentials,
                deadline_s=state.settings.heartbeat_deadline_s,
                on_change=self._agent_changed,
                on_arrival=self._agent_arrived,
            )

    @classmethod
    async def open(
        cls,
        settings: PipSettings,
        credentials: Credentials,
        database: Database,
        directory: Directory,
        bus: EventBus,
    ) -> Pip:
        """Load the state; nothing is done yet."""
        for operator in settings.operators:
            directory.add(Identity(Role.VNO, operator.name), operator.address)
        for border in settings.borders:
            directory.add(Identity(Role.PIP, border.peer_provider), border.peer_address)
        state = PipState(
            settings=settings,
            database=database,
            directory=directory,
            bus=bus,
            operations=Operations(database),
            requests=Requests(database),
            slices=Collection(database, "slices", SliceRecord, "slice"),
            connections=Collection(database, "connections", PeerConnection, "connection"),
            leftovers=Collection(database, "leftovers", Leftover, "leftover"),
        )
        for collection in (state.slices, state.connections, state.leftovers):
            await collection.load()
        await state.requests.load()
        await state.operations.load()
        announce_operations(state.operations, bus)
        pip = cls(state, credentials)
        await pip.resume_departures()
        return pip

    async def resume_departures(self) -> None:
        """Take up what agents may still be doing; before serving, so that nobody misses the operations."""
        for record in self.state.slices:
            for node in record.parts.nodes.values():
                if node.departing:
                    await self.state.operations.start(
                        "DepartSliceNode",
                        record.name,
                        ("consent", *MIGRATION_STEPS),
                        partial(self._moves.resume_departure, record.name, node),
                        owner=Identity.parse(record.owner),
                    )

    @property
    def services(self) -> Sequence[Service]:
        """What its server offers."""
        infrastructure = InfrastructureServicer(self.state, self._slices, self._moves)
        return [
            (add_InfrastructureServiceServicer_to_server, infrastructure),
            (add_PeeringServiceServicer_to_server, PeeringServicer(self.state)),
            (add_ConsoleServiceServicer_to_server, PipConsoleServicer(self.state)),
            (add_AttachmentServiceServicer_to_server, PipAttachmentServicer(self.state)),
            (add_OperationServiceServicer_to_server, OperationServicer(self.state.operations)),
        ]

    async def start(self) -> None:
        """Watch the agents, and undo or finish what the last process left."""
        for agent in self.state.agents.values():
            agent.start()
        self._spawn(self._slices.expire_forever())
        self._spawn(self._sweep_forever())
        for record in self.state.slices:
            if record.state in (SliceState.PROVISIONING, SliceState.RELEASING):
                await self._slices.dismantle(record.name)
            elif record.pending.nodes or record.pending.links:
                self._spawn(self._settle_move(record.name))

    async def close(self) -> None:
        """Undo what is under way, then stop; guests go on."""
        await self.state.operations.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for agent in self.state.agents.values():
            await agent.close()
        await self.state.directory.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._logged(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _logged(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except SeraiError as error:
            log.error("provider %s: %s", self.state.settings.name, error)

    async def _settle_move(self, name: str) -> None:
        """A move that the last process left: finish it if the guest has come over, else undo it."""
        async with self.state.locks[name]:
            record = self.state.slices.get(name)
            for key, there in record.pending.nodes.items():
                if key not in record.parts.nodes:
                    continue
                await self._moves.last_migration(record.parts.nodes[key])
                agent = self.state.agents[there.node]
                await agent.wait_until(partial(_is_known, agent))
                if find_arrived(agent, there.guest_uid) is not None:
                    await self._moves.finish_move(name, key)
                    return
            await self._slices.drop_pending(name)

    async def _sweep_forever(self) -> None:
        """Remove what could not be removed before, again and again until it is gone."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self._peering.settle_leftovers()
            for agent in self.state.agents.values():
                if agent.reachable:
                    await self.state.remover.settle_with(agent)

    async def _agent_arrived(self, agent: Agent) -> None:
        """Before it counts as reachable: what was left there goes, and links that it lost come back."""
        await self.state.remover.settle_with(agent)
        for record in list(self.state.slices):
            # A change under way sees to its own links, and may be waiting for this very agent.
            if record.state is SliceState.RUNNING and not self.state.locks[record.name].locked():
                # Locked against one that begins: what it removes must not come back behind its back.
                async with self.state.locks[record.name]:
                    await self._restore_links(agent, record)

    async def _restore_links(self, agent: Agent, record: SliceRecord) -> None:
        try:
            links = record.parts.links.values()
            restored = await restore_segments(agent, links, guest_uids(record.parts))
        except SeraiError as error:
            log.warning("links of %s through node %s: %s", record.name, agent.node, error)
            return
        if restored:
            log.warning("node %s had lost %d segments of %s", agent.node, restored, record.name)

    def _agent_changed(self, agent: Agent) -> None:
        self._announce(agent)
        for name in agent.guests:
            if self.state.remover.was_removed(name):
                self._spawn(self._remove_late(agent, name))
        for record in self.state.slices:
            nodes = [node for node in record.parts.nodes.values() if node.node == agent.node]
            arrived = {
                node.spec.id: guest.name
                for node in nodes
                if node.presence is Presence.ARRIVING
                and (guest := find_arrived(agent, node.guest_uid)) is not None
            }
            if arrived:
                self.state.slices.revise(record.name, partial(_note_arrivals, arrived))
            elif nodes:
                self.state.slices.touch(record.name)

    async def _remove_late(self, agent: Agent, guest_name: str) -> None:
        await agent.guest_stub.DeleteGuest(DeleteGuestRequest(name=guest_name, allow_missing=True))

    def _announce(self, agent: Agent) -> None:
        if self._said.get(agent.node) == agent.reachable:
            return
        self._said[agent.node] = agent.reachable
        node = f"{agent.provider}/{agent.node}"
        state = "READY" if agent.reachable else Node.State.Name(Node.UNREACHABLE)
        count = agent.state.guest_count if agent.state is not None else 0
        self.state.bus.publish(
            f"nodes/{agent.node}", NodeStateChanged(node=node, state=state, guest_count=count)
        )


def _is_known(agent: Agent) -> bool:
    return agent.reachable and agent.known


def _note_arrivals(guests: dict[str, str], record: SliceRecord) -> None:
    for key, guest_name in guests.items():
        node = record.parts.nodes[key]
        node.presence = Presence.HERE
        node.guest_id = guest_name.removeprefix("guests/")
