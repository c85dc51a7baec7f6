"""``MigrationService`` for the node's provider; ``MigrationPeerService`` and ``ChannelService`` for nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from serai.agent.arrivals import Arrivals
from serai.agent.departures import Departures
from serai.agent.pages import paginate
from serai.errors import InvalidInputError
from serai.network.dataplane import DataPlane
from serai.v1 import migration_pb2 as pb
from serai.v1.migration_pb2_grpc import (
    ChannelServiceServicer,
    MigrationPeerServiceServicer,
    MigrationServiceServicer,
)
from serai.wire.rpc import caller


class MigrationService(MigrationServiceServicer):
    """Moving guests away, and consenting to arrivals."""

    def __init__(self, departures: Departures, arrivals: Arrivals) -> None:
        self._departures = departures
        self._arrivals = arrivals

    async def MigrateGuest(self, request: pb.MigrateGuestRequest, context: Any) -> pb.Migration:
        """Begin."""
        progress = await self._departures.start(request)
        return progress.copy()

    async def GetMigration(self, request: pb.GetMigrationRequest, context: Any) -> pb.Migration:
        """One migration."""
        return self._departures.get(request.name).copy()

    async def ListMigrations(
        self, request: pb.ListMigrationsRequest, context: Any
    ) -> pb.ListMigrationsResponse:
        """Those that run and the latest that are over."""
        page, token = paginate(
            self._departures.list(), lambda item: item.name, request.page_size, request.page_token
        )
        return pb.ListMigrationsResponse(migrations=[item.copy() for item in page], next_page_token=token)

    async def WatchMigration(
        self, request: pb.GetMigrationRequest, context: Any
    ) -> AsyncIterator[pb.Migration]:
        """Now and after each change, until it is over."""
        async for resource in self._departures.get(request.name).watch():
            yield resource

    async def CancelMigration(self, request: pb.GetMigrationRequest, context: Any) -> pb.Migration:
        """Stop it; the reply comes when the guest goes on here."""
        progress = await self._departures.cancel(request.name)
        return progress.copy()

    async def RecoverMigration(self, request: pb.GetMigrationRequest, context: Any) -> pb.Migration:
        """Try now to send what is to follow."""
        return self._departures.recover(request.name).copy()

    async def PermitArrival(self, request: pb.PermitArrivalRequest, context: Any) -> pb.PermitArrivalResponse:
        """Consent to one arrival."""
        return pb.PermitArrivalResponse(permit=self._arrivals.permit(request))

    async def RevokeArrival(self, request: pb.RevokeArrivalRequest, context: Any) -> pb.RevokeArrivalResponse:
        """Take consent back."""
        self._arrivals.revoke(request.permit)
        return pb.RevokeArrivalResponse()


class MigrationPeerService(MigrationPeerServiceServicer):
    """What a source says to this node, the destination; the caller's certificate says which node it is."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals

    async def PrepareArrival(
        self, request: pb.PrepareArrivalRequest, context: Any
    ) -> pb.PrepareArrivalResponse:
        """Check and make room."""
        return await self._arrivals.prepare(request, caller(context).owner)

    async def VerifyArrival(self, request: pb.VerifyArrivalRequest, context: Any) -> pb.VerifyArrivalResponse:
        """Check what came; the reply is *ready*."""
        return await self._arrivals.get(request.migration, caller(context).owner).verify(request)

    async def CommitArrival(self, request: pb.CommitArrivalRequest, context: Any) -> pb.CommitArrivalResponse:
        """*go*."""
        return await self._arrivals.get(request.migration, caller(context).owner).commit(request)

    async def RecoverArrival(
        self, request: pb.RecoverArrivalRequest, context: Any
    ) -> pb.RecoverArrivalResponse:
        """A new channel for what is to follow."""
        return self._arrivals.recover(request.migration, caller(context).owner)

    async def AbortArrival(self, request: pb.AbortArrivalRequest, context: Any) -> pb.AbortArrivalResponse:
        """Forget."""
        failure = await self._arrivals.abort(request.migration, caller(context).owner, request.reason)
        return pb.AbortArrivalResponse(failure=failure)

    async def QueryOwnership(self, request: pb.QueryOwnershipRequest, context: Any) -> pb.Ownership:
        """Whose the guest is."""
        return await self._arrivals.query(request, caller(context).owner)


class ChannelService(ChannelServiceServicer):
    """Channels for frames between nodes."""

    def __init__(self, data_plane: DataPlane) -> None:
        self.data_address = ""
        self._data_plane = data_plane

    async def OpenChannel(self, request: pb.OpenChannelRequest, context: Any) -> pb.OpenChannelResponse:
        """Agree on one."""
        if request.purpose != pb.OpenChannelRequest.FRAMES:
            raise InvalidInputError(f"purpose {request.purpose} is unknown here", hint="use FRAMES")
        offer = self._data_plane.accept_channel(caller(context).owner)
        return pb.OpenChannelResponse(
            data_address=self.data_address, channel_id=offer.secret.identifier, key=offer.secret.key
        )
