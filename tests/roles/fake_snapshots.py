# ruff: noqa: N802
"""The part of the agents' stand-in that keeps snapshots: a guest's state and labels as they were."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from serai.errors import AlreadyExistsError, NotFoundError, SeraiError, StateError
from serai.v1 import guest_pb2
from serai.v1.guest_pb2 import Guest
from serai.v1.guest_pb2_grpc import GuestServiceServicer

METHODS = "CreateSnapshot GetSnapshot ListSnapshots DeleteSnapshot RestoreSnapshot CloneGuest"


class FakeSnapshots(GuestServiceServicer):
    """Mixed into `FakeAgent`."""

    guests: dict[str, Guest]
    snapshots: dict[str, guest_pb2.Snapshot]
    fail: dict[str, SeraiError]
    changed: Callable[[], None]

    def _fail_if_told(self, method: str) -> None:
        if (error := self.fail.pop(method, None)) is not None:
            raise error

    def _guest(self, name: str) -> Guest:
        if name not in self.guests:
            raise NotFoundError(f"{name} is not here")
        return self.guests[name]

    def _snapshot(self, name: str) -> guest_pb2.Snapshot:
        if name not in self.snapshots:
            raise NotFoundError(f"{name} is not here")
        return self.snapshots[name]

    async def CreateSnapshot(
        self, request: guest_pb2.CreateSnapshotRequest, context: Any
    ) -> guest_pb2.Snapshot:
        self._fail_if_told("CreateSnapshot")
        guest, name = self._guest(request.guest), f"snapshots/{request.snapshot_id}"
        if name in self.snapshots:
            raise AlreadyExistsError(f"{name} exists")
        if guest.state != Guest.RUNNING:
            raise StateError(f"{guest.name} does not run")
        snapshot = guest_pb2.Snapshot(name=name, guest=guest.name, guest_uid=guest.uid, spec=guest.spec)
        self.snapshots[name] = snapshot
        return snapshot

    async def GetSnapshot(self, request: guest_pb2.GetSnapshotRequest, context: Any) -> guest_pb2.Snapshot:
        return self._snapshot(request.name)

    async def ListSnapshots(
        self, request: guest_pb2.ListSnapshotsRequest, context: Any
    ) -> guest_pb2.ListSnapshotsResponse:
        found = [item for item in self.snapshots.values() if request.guest in ("", item.guest)]
        return guest_pb2.ListSnapshotsResponse(snapshots=found)

    async def DeleteSnapshot(
        self, request: guest_pb2.DeleteSnapshotRequest, context: Any
    ) -> guest_pb2.DeleteSnapshotResponse:
        if not request.allow_missing or request.name in self.snapshots:
            self._snapshot(request.name)
            del self.snapshots[request.name]
        return guest_pb2.DeleteSnapshotResponse()

    async def RestoreSnapshot(self, request: guest_pb2.RestoreSnapshotRequest, context: Any) -> Guest:
        guest = self._guest(self._snapshot(request.name).guest)
        guest.state, guest.ready = Guest.RUNNING, True
        self.changed()
        return guest

    async def CloneGuest(self, request: guest_pb2.CloneGuestRequest, context: Any) -> Guest:
        self._fail_if_told("CloneGuest")
        snapshot, name = self._snapshot(request.snapshot), f"guests/{request.guest_id}"
        guest = Guest(name=name, uid=str(uuid.uuid4()), spec=snapshot.spec, epoch=1, state=Guest.RUNNING)
        guest.ready = True
        if request.interfaces:
            del guest.spec.interfaces[:]
            guest.spec.interfaces.extend(request.interfaces)
        self.guests[name] = guest
        self.changed()
        return guest
