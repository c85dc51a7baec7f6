"""Guests on the move: to another node of this provider, or to another provider."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from serai.errors import InvalidInputError, MigrationError, SeraiError, StateError, UnavailableError
from serai.roles.failures import failure_to_error
from serai.roles.names import unique_label
from serai.roles.operations import Progress
from serai.roles.pip.agents import Agent
from serai.roles.pip.peering import PERMIT_SECONDS, Peering
from serai.roles.pip.plan import Station, occupied_ends
from serai.roles.pip.realise import activate_segments, create_segments
from serai.roles.pip.records import NodePlacement, Parts, Presence, SliceRecord, SliceState
from serai.roles.pip.slices import Slices, guest_uids
from serai.roles.pip.state import PipState
from serai.v1.guest_pb2 import Guest
from serai.v1.infrastructure_pb2 import DepartSliceNodeRequest, RelocateSliceNodeRequest, SliceNode
from serai.v1.migration_pb2 import (
    GetMigrationRequest,
    ListMigrationsRequest,
    MigrateGuestRequest,
    Migration,
    MigrationOptions,
    PermitArrivalRequest,
)
from serai.v1.operation_pb2 import Operation, Step
from serai.v1.peering_pb2 import AcceptGuestRequest

MIGRATION_STEPS = ("prepare", "stream", "freeze", "hand-over", "resume", "drain", "release")

_FINAL = (Migration.SUCCEEDED, Migration.FAILED, Migration.CANCELLED)
_RETRY_S = 0.5
PATIENCE_SECONDS = 120.0
"""How long the source of a migration may be away before its outcome is decided without it."""
_ARRIVED = (Guest.RUNNING, Guest.PAUSED, Guest.STOPPED, Guest.FAILED)


def handed_over(steps: Any) -> bool:
    """Whether the guest is the destination's, according to the steps of its migration."""
    return any(step.name == "hand-over" and step.state == Step.DONE for step in steps)


class Moves:
    """Relocations and departures."""

    def __init__(self, state: PipState, slices: Slices, peering: Peering) -> None:
        self._state = state
        self._slices = slices
        self._peering = peering

    async def relocate(
        self, request: RelocateSliceNodeRequest, *, may_choose: bool, progress: Progress
    ) -> None:
        """Move a guest to another node of this provider; its links follow, make before break."""
        state = self._state
        record, _ = state.find_node(request.handle)
        async with state.locks[record.name]:
            record, node = state.find_node(request.handle)
            self._check_movable(record, node)
            if request.node and not may_choose and not state.settings.accept_placement:
                raise StateError(
                    f"provider {state.settings.name} chooses its nodes itself", hint="leave the node out"
                )
            async with progress.step("place"):
                await self._reserve_move(record, node, request.node)
            try:
                await self._prepare_move(record.name, node)
                await self._run_move(record.name, node, request.options, progress)
            except BaseException:
                if not await asyncio.shield(self._came_over(record.name, node)):
                    await asyncio.shield(self._slices.drop_pending(record.name))
                    raise
            await asyncio.shield(self.finish_move(record.name, node.spec.id))

    async def _reserve_move(self, record: SliceRecord, node: NodePlacement, destination: str) -> None:
        state = self._state
        if destination and destination not in state.agents:
            raise InvalidInputError(
                f"provider {state.settings.name} has no node {destination!r}",
                hint=f"its nodes are {', '.join(state.agents)}",
            )
        if destination == node.node:
            raise InvalidInputError(f"the guest is on node {destination} already", hint="choose another one")
        links = [
            placement.link
            for placement in record.parts.links.values()
            if node.spec.id in _virtual_ends(placement.link)
        ]
        moving = SliceNode()
        moving.CopyFrom(node.spec)
        moving.arrival.guest_uid = node.guest_uid
        moving.arrival.source_provider = state.settings.name
        if not destination:
            moving.constraints.node = ""
        async with state.embedding:
            pending = await self._slices.embed(
                [moving],
                links,
                beside=record.parts,
                slice_name=record.name,
                pinned={node.spec.id: destination} if destination else {},
                avoid=node.node,
            )
            pending.nodes[node.spec.id].handle = node.handle
            pending.nodes[node.spec.id].spec = node.spec
            await state.slices.update(record.name, lambda it: setattr(it, "pending", pending))

    async def _prepare_move(self, name: str, node: NodePlacement) -> None:
        state = self._state
        record = state.slices.get(name)
        beyond = await self._peering.connect(link.link for link in record.pending.links.values())
        record = await state.slices.update(
            name, lambda it: self._slices.route(it.pending, beyond, occupied_ends(it.parts))
        )
        there = record.pending.nodes[node.spec.id]
        agent = state.agents[there.node]
        agent.expect_reachable()
        permit = await agent.migration_stub.PermitArrival(
            PermitArrivalRequest(
                guest_uid=node.guest_uid,
                source_node=f"{state.settings.name}/{node.node}",
                spec=node.spec.guest,
                guest_id=there.guest_id,
                expires_in_s=PERMIT_SECONDS,
            )
        )

        def remember(changed: SliceRecord) -> None:
            changed.pending.nodes[node.spec.id].permit = permit.permit

        record = await state.slices.update(name, remember)
        uids = guest_uids(record.parts.merged(record.pending))
        await create_segments(state.agents, record.pending.links.values(), uids)

    async def _run_move(
        self, name: str, node: NodePlacement, options: MigrationOptions, progress: Progress
    ) -> None:
        state = self._state
        there = state.slices.get(name).pending.nodes[node.spec.id]
        station = Station(f"{state.settings.name}/{there.node}", state.agents[there.node].address)

        async def follow_links() -> None:
            await activate_segments(state.agents, state.slices.get(name).pending.links.values())

        await self._migrate(
            node, station, there.permit, options, progress=progress, on_hand_over=follow_links
        )

    async def _came_over(self, name: str, node: NodePlacement) -> bool:
        """Whether the destination has the guest, although its migration ended badly here."""
        there = self._state.slices.get(name).pending.nodes.get(node.spec.id)
        return there is not None and find_arrived(self._state.agents[there.node], node.guest_uid) is not None

    async def finish_move(self, name: str, node_id: str) -> None:
        """Put what is pending in the place of what was, and remove that."""
        state = self._state
        record = state.slices.get(name)
        await activate_segments(state.agents, record.pending.links.values())
        old = Parts(
            nodes={node_id: record.parts.nodes[node_id].model_copy(update={"presence": Presence.DEPARTED})},
            links={key: link for key, link in record.parts.links.items() if key in record.pending.links},
        )

        def replace(changed: SliceRecord) -> None:
            changed.pending.nodes[node_id].presence = Presence.HERE
            for placement in changed.pending.links.values():
                for segment in placement.segments:
                    segment.active = True
            changed.parts = changed.parts.merged(changed.pending)
            changed.pending = Parts()

        await state.slices.update(name, replace)
        await state.remover.remove(old)

    async def depart(self, request: DepartSliceNodeRequest, progress: Progress) -> None:
        """Move a guest to another provider; its links stay as they are until they are removed by an update.

        The slice is not locked meanwhile: its VNP re-homes the links while the source drains.
        """
        state = self._state
        record, node = state.find_node(request.handle)
        self._check_movable(record, node)
        async with progress.step("consent"):
            agreed = await self._peering.accept_guest(
                request.destination_provider,
                AcceptGuestRequest(
                    handle=request.destination_handle,
                    guest_uid=node.guest_uid,
                    source_node=f"{state.settings.name}/{node.node}",
                    spec=node.spec.guest,
                ),
            )
        station = Station(agreed.destination_node, agreed.destination_address)

        async def note_departure() -> None:
            await self._note(record.name, node, gone=True)

        await self._note(record.name, node, departing=True)
        try:
            await self._migrate(
                node,
                station,
                agreed.permit,
                request.options,
                progress=progress,
                on_hand_over=note_departure,
            )
        finally:
            await asyncio.shield(self._note(record.name, node, departing=False))

    async def resume_departure(self, name: str, node: NodePlacement, progress: Progress) -> None:
        """Follow a departure that the last process began: agents carry it out without a controller."""
        async with progress.step("consent"):
            migration = await self.last_migration(node)
        try:
            if migration is None or migration.state != Migration.SUCCEEDED:
                raise MigrationError("the migration did not take place; the guest goes on at the source")
            await progress.mirror(Operation(steps=migration.steps, migration=migration.report))
            await self._note(name, node, gone=True)
        finally:
            await asyncio.shield(self._note(name, node, departing=False))

    async def last_migration(self, node: NodePlacement) -> Migration | None:
        """The latest migration of a guest from its node, when that has an outcome."""
        agent = self._state.agents[node.node]
        await agent.wait_until(lambda: agent.reachable and agent.known)
        listed = await agent.migration_stub.ListMigrations(ListMigrationsRequest(page_size=1000))
        found = [item for item in listed.migrations if item.guest == node.guest_name]
        if not found:
            return None
        last = max(found, key=lambda item: item.start_time.ToNanoseconds())
        return [item async for item in _watch(agent, last.name)][-1]

    async def _note(
        self, name: str, node: NodePlacement, *, gone: bool = False, departing: bool | None = None
    ) -> None:
        def change(changed: SliceRecord) -> None:
            placement = changed.parts.nodes.get(node.spec.id)
            if placement is None:
                return
            if gone:
                placement.presence = Presence.DEPARTED
            if departing is not None:
                placement.departing = departing

        if name in self._state.slices:
            await self._state.slices.update(name, change)

    def _check_movable(self, record: SliceRecord, node: NodePlacement) -> None:
        if record.state is not SliceState.RUNNING or node.presence is not Presence.HERE:
            raise StateError(
                f"node {node.spec.id!r} cannot move: its slice is {record.state}, its guest {node.presence}",
                hint="wait until it runs",
                reason="NOT_MOVABLE",
            )
        self._state.agents[node.node].expect_reachable()

    async def _migrate(
        self,
        node: NodePlacement,
        station: Station,
        permit: bytes,
        wanted: MigrationOptions,
        *,
        progress: Progress,
        on_hand_over: Callable[[], Awaitable[None]],
    ) -> None:
        """Have the source agent move the guest; `on_hand_over` once the guest is the destination's.

        Raises MigrationError (or what the agents say) when the guest goes on at the source.
        """
        agent = self._state.agents[node.node]
        options = MigrationOptions(deadline_s=self._state.settings.migration_deadline_s)
        options.MergeFrom(wanted)
        migration: Migration = await agent.migration_stub.MigrateGuest(
            MigrateGuestRequest(
                name=node.guest_name,
                destination_node=station.name,
                destination_address=station.control_address,
                permit=permit,
                options=options,
                request_id=unique_label("migrate"),
            )
        )
        over = False
        try:
            async with contextlib.aclosing(_watch(agent, migration.name)) as changes:
                async for migration in changes:
                    await progress.mirror(Operation(steps=migration.steps, migration=migration.report))
                    if not over and handed_over(migration.steps):
                        over = True
                        await on_hand_over()
        except asyncio.CancelledError:
            migration = await asyncio.shield(_cancel(agent, migration.name))
            if migration.state != Migration.SUCCEEDED:
                raise
        if migration.state != Migration.SUCCEEDED:
            if migration.HasField("failure"):
                raise failure_to_error(migration.failure)
            raise MigrationError("the migration was cancelled; the guest goes on at the source")
        if not over:
            await on_hand_over()


async def _watch(
    agent: Agent, name: str, patience_s: float = PATIENCE_SECONDS
) -> AsyncGenerator[Migration, None]:
    """The migration after each change until it is final; an undecided one is asked about again.

    Raises UnavailableError when its agent, whose durable record decides, does not answer for `patience_s`.
    """
    latest: Migration | None = None
    heard = time.monotonic()
    while latest is None or latest.state not in _FINAL:
        try:
            async for latest in agent.migration_stub.WatchMigration(GetMigrationRequest(name=name)):
                heard = time.monotonic()
                yield latest
        except UnavailableError:
            if time.monotonic() - heard > patience_s:
                raise
        if latest is None or latest.state not in _FINAL:
            await asyncio.sleep(_RETRY_S)


async def _cancel(agent: Agent, name: str) -> Migration:
    with contextlib.suppress(SeraiError):
        await agent.migration_stub.CancelMigration(GetMigrationRequest(name=name))
    changes = [migration async for migration in _watch(agent, name)]
    return changes[-1]


def find_arrived(agent: Agent, guest_uid: str) -> Guest | None:
    """The guest of that uid, if this agent owns it."""
    for guest in agent.guests.values():
        if guest.uid == guest_uid and guest.state in _ARRIVED:
            return guest
    return None


def _virtual_ends(link: Any) -> set[str]:
    return {end.interface.node for end in (link.a, link.b) if end.HasField("interface")}
