# ruff: noqa: N802
"""A stand-in for an agent at its gRPC seam: keeps what it is asked for, fails where a test says so."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

from tests.roles.fake_snapshots import METHODS as SNAPSHOT_METHODS
from tests.roles.fake_snapshots import FakeSnapshots

from serai.errors import (
    AlreadyExistsError,
    ForbiddenError,
    MigrationError,
    NotFoundError,
    SeraiError,
    StateError,
)
from serai.v1 import guest_pb2, link_pb2, migration_pb2, node_pb2
from serai.v1.guest_pb2 import Guest
from serai.v1.guest_pb2_grpc import add_GuestServiceServicer_to_server
from serai.v1.link_pb2_grpc import SegmentServiceServicer, add_SegmentServiceServicer_to_server
from serai.v1.migration_pb2 import Migration
from serai.v1.migration_pb2_grpc import MigrationServiceServicer, add_MigrationServiceServicer_to_server
from serai.v1.node_pb2 import Node, NodeResources
from serai.v1.node_pb2_grpc import NodeServiceServicer, add_NodeServiceServicer_to_server
from serai.v1.operation_pb2 import MigrationReport, Step
from serai.wire.identity import Identity, Role
from serai.wire.rpc import Server, create_server
from serai.wire.tls import CertificateAuthority

PHASES = ("prepare", "stream", "freeze", "hand-over", "resume", "drain", "release")


class FakeAgent(
    FakeSnapshots,
    SegmentServiceServicer,
    NodeServiceServicer,
    MigrationServiceServicer,
):
    """One node. `fail[method]` is raised by the next call; `hold[method]` delays calls until it is set."""

    everybody: dict[str, FakeAgent] = {}

    def __init__(self, node: str, *, vcpus: int = 8, memory_bytes: int = 2 << 30) -> None:
        self.node = node
        self.provider, _, self.node_id = node.partition("/")
        self.capacity = NodeResources(vcpus=vcpus, memory_bytes=memory_bytes)
        self.guests: dict[str, Guest] = {}
        self.segments: dict[str, link_pb2.Segment] = {}
        self.snapshots: dict[str, guest_pb2.Snapshot] = {}
        self.permits: dict[bytes, migration_pb2.PermitArrivalRequest] = {}
        self.migrations: dict[str, Migration] = {}
        self.fail: dict[str, SeraiError] = {}
        self.hold: defaultdict[str, asyncio.Event] = defaultdict(_set_event)
        self.reached: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.never_ready = False
        self.created = 0
        self._wakes: set[asyncio.Event] = set()
        self._moves: dict[str, asyncio.Task[None]] = {}
        self.server: Server | None = None
        self.address = ""

    async def start(self, authority: CertificateAuthority, address: str = "127.0.0.1:0") -> None:
        roles = {Role.PIP, Role.ADMIN}
        services: list[tuple[Any, str, str]] = [
            (add_NodeServiceServicer_to_server, "NodeService", "GetNode WatchNode"),
            (
                add_GuestServiceServicer_to_server,
                "GuestService",
                "CreateGuest StartGuest StopGuest DeleteGuest GetGuest ListGuests WatchGuests"
                f" GetGuestStatistics TraceGuest ResizeGuest AttachConsole {SNAPSHOT_METHODS}",
            ),
            (
                add_SegmentServiceServicer_to_server,
                "SegmentService",
                "CreateSegment ActivateSegment DeleteSegment ListSegments CaptureFrames",
            ),
            (
                add_MigrationServiceServicer_to_server,
                "MigrationService",
                "MigrateGuest GetMigration ListMigrations WatchMigration CancelMigration PermitArrival"
                " RevokeArrival",
            ),
        ]
        access = {
            f"/serai.v1.{service}/{name}": roles for _, service, names in services for name in names.split()
        }
        credentials = authority.issue(Identity(Role.AGENT, self.node))
        self.server = await create_server(
            credentials, address, [(add, self) for add, _, _ in services], access
        )
        self.address = self.server.address
        FakeAgent.everybody[self.node] = self

    async def stop(self) -> None:
        """Die: connections break, guests are gone."""
        for move in self._moves.values():
            move.cancel()
        await asyncio.gather(*self._moves.values(), return_exceptions=True)
        if self.server is not None:
            await self.server.close(0)
            self.server = None
        self.guests.clear()
        self.segments.clear()

    @property
    def is_empty(self) -> bool:
        return not self.guests and not self.segments and not self.permits

    def changed(self) -> None:
        for wake in self._wakes:
            wake.set()

    def crash_guest(self, name: str) -> None:
        self.guests[name].state = Guest.FAILED
        self.guests[name].ready = False
        self.guests[name].status_message = "killed by SIGKILL"
        self.changed()

    async def _begin(self, method: str) -> None:
        self.reached[method].set()
        await self.hold[method].wait()
        if method in self.fail:
            raise self.fail.pop(method)

    # NodeService

    async def GetNode(self, request: node_pb2.GetNodeRequest, context: Any) -> Node:
        return self._node()

    async def WatchNode(self, request: node_pb2.WatchNodeRequest, context: Any) -> AsyncIterator[Node]:
        while True:
            await self.hold["WatchNode"].wait()
            yield self._node()
            await asyncio.sleep(0.1)

    def _node(self) -> Node:
        specs = [guest.spec for guest in self.guests.values()]
        return Node(
            name=f"nodes/{self.node_id}",
            provider=self.provider,
            state=Node.READY,
            capacity=self.capacity,
            allocated=NodeResources(
                vcpus=sum(spec.vcpus for spec in specs), memory_bytes=sum(spec.memory_bytes for spec in specs)
            ),
            control_address=self.address,
            images=["debian"],
            guest_count=len(self.guests),
        )

    # GuestService

    async def CreateGuest(self, request: guest_pb2.CreateGuestRequest, context: Any) -> Guest:
        # As a real agent: goes on with what it has begun, whether or not its caller still waits.
        return await asyncio.shield(asyncio.ensure_future(self._create(request)))

    async def _create(self, request: guest_pb2.CreateGuestRequest) -> Guest:
        await self._begin("CreateGuest")
        name = f"guests/{request.guest_id}"
        if name in self.guests:
            raise AlreadyExistsError(f"{name} exists")
        guest = Guest(name=name, uid=uuid.uuid4().hex, spec=request.spec, state=Guest.DEFINED, epoch=1)
        self.guests[name] = guest
        self.created += 1
        self.changed()
        return guest

    async def StartGuest(self, request: guest_pb2.StartGuestRequest, context: Any) -> Guest:
        await self._begin("StartGuest")
        guest = self._find(request.name)
        guest.state = Guest.RUNNING
        guest.start_time.GetCurrentTime()
        if not self.never_ready:
            guest.ready = True
            guest.kernel_release = "fake"
            guest.ready_time.GetCurrentTime()
        self.changed()
        return guest

    async def StopGuest(self, request: guest_pb2.StopGuestRequest, context: Any) -> Guest:
        guest = self._find(request.name)
        guest.state, guest.ready = Guest.STOPPED, False
        self.changed()
        return guest

    async def DeleteGuest(
        self, request: guest_pb2.DeleteGuestRequest, context: Any
    ) -> guest_pb2.DeleteGuestResponse:
        await self._begin("DeleteGuest")
        if request.name not in self.guests and not request.allow_missing:
            raise NotFoundError(f"no {request.name}")
        self.guests.pop(request.name, None)
        self.changed()
        return guest_pb2.DeleteGuestResponse()

    async def GetGuest(self, request: guest_pb2.GetGuestRequest, context: Any) -> Guest:
        return self._find(request.name)

    async def ListGuests(
        self, request: guest_pb2.ListGuestsRequest, context: Any
    ) -> guest_pb2.ListGuestsResponse:
        return guest_pb2.ListGuestsResponse(guests=self.guests.values())

    async def ResizeGuest(self, request: guest_pb2.ResizeGuestRequest, context: Any) -> guest_pb2.GuestSize:
        await self._begin("ResizeGuest")
        spec = self.guests[request.name].spec
        spec.vcpus, spec.memory_bytes = request.vcpus, request.memory_bytes
        self.changed()
        return guest_pb2.GuestSize(vcpus=spec.vcpus, memory_bytes=spec.memory_bytes, guest_vcpus=spec.vcpus)

    async def GetGuestStatistics(
        self, request: guest_pb2.GetGuestRequest, context: Any
    ) -> guest_pb2.GuestStatistics:
        self._find(request.name)
        return guest_pb2.GuestStatistics(instructions=42)

    async def TraceGuest(
        self, request: guest_pb2.TraceGuestRequest, context: Any
    ) -> AsyncIterator[guest_pb2.TraceGuestResponse]:
        self._find(request.name)
        record = guest_pb2.TraceRecord(text="nop")
        yield guest_pb2.TraceGuestResponse(records=[record], steps=request.count, finished=True)

    async def WatchGuests(
        self, request: guest_pb2.WatchGuestsRequest, context: Any
    ) -> AsyncIterator[guest_pb2.WatchGuestsResponse]:
        wake = asyncio.Event()
        self._wakes.add(wake)
        try:
            known = {name: guest.SerializeToString() for name, guest in self.guests.items()}
            for guest in list(self.guests.values()):
                yield guest_pb2.WatchGuestsResponse(guest=guest)
            yield guest_pb2.WatchGuestsResponse(synchronized=True)
            while True:
                await wake.wait()
                wake.clear()
                now = {name: guest.SerializeToString() for name, guest in self.guests.items()}
                for name in known.keys() - now.keys():
                    gone = Guest.FromString(known[name])
                    yield guest_pb2.WatchGuestsResponse(guest=gone, deleted=True, synchronized=True)
                for name in [name for name in now if known.get(name) != now[name]]:
                    guest = Guest.FromString(now[name])
                    yield guest_pb2.WatchGuestsResponse(guest=guest, synchronized=True)
                known = now
        finally:
            self._wakes.discard(wake)

    async def AttachConsole(
        self, requests: AsyncIterator[guest_pb2.ConsoleInput], context: Any
    ) -> AsyncIterator[guest_pb2.ConsoleOutput]:
        """Echoes; ends when the guest is gone from here."""
        name = (await anext(aiter(requests))).name
        guest = self._find(name)
        log = _CONSOLES[guest.uid]
        yield guest_pb2.ConsoleOutput(data=bytes(log), scrollback=True)
        at, wake, ended = len(log), asyncio.Event(), False
        self._wakes.add(wake)

        async def read() -> None:
            nonlocal ended
            async for message in requests:
                log.extend(message.data)
                wake.set()
            ended = True
            wake.set()

        reading = asyncio.create_task(read())
        try:
            while name in self.guests:
                if len(log) > at:
                    data, at = bytes(log[at:]), len(log)
                    yield guest_pb2.ConsoleOutput(data=data)
                if ended:
                    return
                await wake.wait()
                wake.clear()
            raise NotFoundError(f"{name} has left")
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            self._wakes.discard(wake)

    def _find(self, name: str) -> Guest:
        if name not in self.guests:
            raise NotFoundError(f"{self.node} has no {name}")
        return self.guests[name]

    # SegmentService

    async def CreateSegment(self, request: link_pb2.CreateSegmentRequest, context: Any) -> link_pb2.Segment:
        await self._begin("CreateSegment")
        name = f"segments/{request.segment_id}"
        if name in self.segments:
            raise AlreadyExistsError(f"{name} exists")
        segment = link_pb2.Segment()
        segment.CopyFrom(request.segment)
        segment.name = name
        self.segments[name] = segment
        return segment

    async def ActivateSegment(
        self, request: link_pb2.ActivateSegmentRequest, context: Any
    ) -> link_pb2.Segment:
        await self._begin("ActivateSegment")
        chosen = self.segments[request.name]
        points = {chosen.a.SerializeToString(), chosen.b.SerializeToString()}
        for segment in self.segments.values():
            if points & {segment.a.SerializeToString(), segment.b.SerializeToString()}:
                segment.active = False
        chosen.active = True
        return chosen

    async def DeleteSegment(
        self, request: link_pb2.DeleteSegmentRequest, context: Any
    ) -> link_pb2.DeleteSegmentResponse:
        await self._begin("DeleteSegment")
        if request.name not in self.segments and not request.allow_missing:
            raise NotFoundError(f"no {request.name}")
        self.segments.pop(request.name, None)
        return link_pb2.DeleteSegmentResponse()

    async def ListSegments(
        self, request: link_pb2.ListSegmentsRequest, context: Any
    ) -> link_pb2.ListSegmentsResponse:
        return link_pb2.ListSegmentsResponse(segments=self.segments.values())

    async def CaptureFrames(
        self, request: link_pb2.CaptureFramesRequest, context: Any
    ) -> AsyncIterator[link_pb2.CapturedFrame]:
        """One frame that names the node, then nothing until the guest has left."""
        self._find(request.name)
        yield link_pb2.CapturedFrame(data=self.node.encode())
        wake = asyncio.Event()
        self._wakes.add(wake)
        try:
            while request.name in self.guests:
                await wake.wait()
                wake.clear()
        finally:
            self._wakes.discard(wake)
        raise NotFoundError(f"{request.name} has left")

    # MigrationService

    async def GetMigration(self, request: migration_pb2.GetMigrationRequest, context: Any) -> Migration:
        return self.migrations[request.name]

    async def PermitArrival(
        self, request: migration_pb2.PermitArrivalRequest, context: Any
    ) -> migration_pb2.PermitArrivalResponse:
        await self._begin("PermitArrival")
        permit = uuid.uuid4().bytes
        self.permits[permit] = request
        return migration_pb2.PermitArrivalResponse(permit=permit)

    async def RevokeArrival(
        self, request: migration_pb2.RevokeArrivalRequest, context: Any
    ) -> migration_pb2.RevokeArrivalResponse:
        self.permits.pop(request.permit, None)
        return migration_pb2.RevokeArrivalResponse()

    async def MigrateGuest(self, request: migration_pb2.MigrateGuestRequest, context: Any) -> Migration:
        guest = self._find(request.name)
        if guest.state != Guest.RUNNING:
            raise StateError(f"{request.name} does not run")
        there = FakeAgent.everybody[request.destination_node]
        assert there.address == request.destination_address
        permit = there.permits.get(request.permit)
        if permit is None or permit.guest_uid != guest.uid or permit.source_node != self.node:
            raise ForbiddenError(f"{there.node} does not expect {guest.uid}")
        name = f"migrations/{uuid.uuid4().hex}"
        migration = Migration(name=name, guest=request.name, state=Migration.RUNNING)
        migration.steps.extend(Step(name=phase, state=Step.PENDING) for phase in PHASES)
        self.migrations[name] = migration
        self._moves[name] = asyncio.create_task(self._move(migration, guest, there, request.permit))
        return migration

    async def _move(self, migration: Migration, guest: Guest, there: FakeAgent, permit: bytes) -> None:
        try:
            for step in migration.steps:
                step.state = Step.RUNNING
                self.changed()
                await self._begin(step.name)
                if step.name == "hand-over":
                    arrived = Guest()
                    arrived.CopyFrom(guest)
                    arrived.name = f"guests/{there.permits.pop(permit).guest_id}"
                    arrived.epoch += 1
                    there.guests[arrived.name] = arrived
                    del self.guests[guest.name]
                    there.changed()
                step.state = Step.DONE
                self.changed()
        except SeraiError as error:
            self._fail(migration, error)
        except asyncio.CancelledError:
            migration.state = Migration.CANCELLED
            self.changed()
            raise
        else:
            migration.state = Migration.SUCCEEDED
            migration.report.CopyFrom(
                MigrationReport(
                    mode="PRE_COPY",
                    source_node=self.node,
                    destination_node=there.node,
                    rounds=3,
                    downtime_ms=1.5,
                )
            )
            self.changed()

    def _fail(self, migration: Migration, error: SeraiError) -> None:
        migration.state = Migration.FAILED
        migration.failure.code, migration.failure.message = 10, error.message
        self.changed()

    async def WatchMigration(
        self, request: migration_pb2.GetMigrationRequest, context: Any
    ) -> AsyncIterator[Migration]:
        wake = asyncio.Event()
        self._wakes.add(wake)
        try:
            while True:
                migration = self.migrations[request.name]
                yield migration
                if migration.state != Migration.RUNNING:
                    return
                await wake.wait()
                wake.clear()
        finally:
            self._wakes.discard(wake)

    async def RecoverMigration(self, request: migration_pb2.GetMigrationRequest, context: Any) -> Migration:
        raise NotImplementedError

    async def CancelMigration(self, request: migration_pb2.GetMigrationRequest, context: Any) -> Migration:
        migration = self.migrations[request.name]
        if any(step.name == "hand-over" and step.state == Step.DONE for step in migration.steps):
            raise StateError("handed over already")
        self._moves[request.name].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._moves[request.name]
        return migration

    async def ListMigrations(
        self, request: migration_pb2.ListMigrationsRequest, context: Any
    ) -> migration_pb2.ListMigrationsResponse:
        return migration_pb2.ListMigrationsResponse(migrations=self.migrations.values())


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


_CONSOLES: defaultdict[str, bytearray] = defaultdict(bytearray)
"""What guests have printed, by uid: it travels with them."""

__all__ = ["FakeAgent", "MigrationError"]
