"""The methods of ``serai.v1.GuestService`` about snapshots; thin: what they do is in `Snapshots`."""

from __future__ import annotations

import asyncio
from typing import Any

from serai.agent.pages import paginate
from serai.agent.snapshots import Snapshots
from serai.agent.spec import guest_name, parse_guest_name
from serai.errors import NotFoundError
from serai.v1 import guest_pb2
from serai.v1.guest_pb2_grpc import GuestServiceServicer


class SnapshotMethods(GuestServiceServicer):
    """Part of `GuestService`, which sets `_snapshots`."""

    _snapshots: Snapshots

    async def CreateSnapshot(
        self, request: guest_pb2.CreateSnapshotRequest, context: Any
    ) -> guest_pb2.Snapshot:
        """Of a running guest."""
        guest = guest_name(parse_guest_name(request.guest))
        return await self._snapshots.create(guest, request.snapshot_id, keep=request.keep)

    async def GetSnapshot(self, request: guest_pb2.GetSnapshotRequest, context: Any) -> guest_pb2.Snapshot:
        """One snapshot."""
        return self._snapshots.get(request.name)

    async def ListSnapshots(
        self, request: guest_pb2.ListSnapshotsRequest, context: Any
    ) -> guest_pb2.ListSnapshotsResponse:
        """Snapshots by name."""
        page, token = paginate(
            await asyncio.to_thread(self._snapshots.list, request.guest),
            lambda snapshot: snapshot.name,
            request.page_size,
            request.page_token,
        )
        return guest_pb2.ListSnapshotsResponse(snapshots=page, next_page_token=token)

    async def DeleteSnapshot(
        self, request: guest_pb2.DeleteSnapshotRequest, context: Any
    ) -> guest_pb2.DeleteSnapshotResponse:
        """Guests copied from it go on."""
        try:
            await self._snapshots.delete(request.name)
        except NotFoundError:
            if not request.allow_missing:
                raise
        return guest_pb2.DeleteSnapshotResponse()

    async def RestoreSnapshot(
        self, request: guest_pb2.RestoreSnapshotRequest, context: Any
    ) -> guest_pb2.Guest:
        """The guest goes on from there."""
        return (await self._snapshots.restore(request.name)).describe()

    async def CloneGuest(self, request: guest_pb2.CloneGuestRequest, context: Any) -> guest_pb2.Guest:
        """A new guest from a snapshot."""
        return (await self._snapshots.clone(request)).describe()
