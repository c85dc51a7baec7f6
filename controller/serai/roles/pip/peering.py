"""PIP <-> PIP: links over the borders, and consent to guests that come over."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from serai.errors import AlreadyExistsError, CapacityError, ForbiddenError, SeraiError, StateError
from serai.roles.pip.ledger import border_labels, used_labels
from serai.roles.pip.plan import Station
from serai.roles.pip.records import Leftover, LeftoverKind, PeerConnection, Presence
from serai.roles.pip.state import PipState
from serai.roles.settings import BorderSettings
from serai.roles.settling import settle
from serai.v1.infrastructure_pb2 import BorderLabel, SliceLink
from serai.v1.migration_pb2 import PermitArrivalRequest
from serai.v1.peering_pb2 import (
    AcceptGuestRequest,
    AcceptGuestResponse,
    ConnectLinkRequest,
    ConnectLinkResponse,
    DisconnectLinkRequest,
    DisconnectLinkResponse,
)
from serai.v1.peering_pb2_grpc import PeeringServiceServicer, PeeringServiceStub
from serai.wire.identity import Identity, Role
from serai.wire.rpc import caller

if TYPE_CHECKING:
    from serai.v1.peering_pb2_grpc import PeeringServiceAsyncStub

log = logging.getLogger(__name__)

PERMIT_SECONDS = 300.0
"""How long consent to an arrival holds: longer than any migration may take."""


class Peering:
    """Our side of the borders, towards the other side."""

    def __init__(self, state: PipState) -> None:
        self._state = state

    async def connect(self, links: Iterable[SliceLink]) -> dict[str, Station]:
        """Agree on every border link of `links`; the other side's node by border.

        On an error whatever has been agreed is given up again by `disconnect` of the same links.
        """
        found: dict[str, Station] = {}

        async def agree(end: BorderLabel, bandwidth_bps: int) -> None:
            request = ConnectLinkRequest(border=end.border, label=end.label, bandwidth_bps=bandwidth_bps)
            reply = await self._stub(self._state.border(end.border)).ConnectLink(request)
            found[end.border] = Station(reply.node, reply.control_address)

        await settle(agree(end, link.bandwidth_bps) for link in links for end in border_labels(link))
        return found

    async def disconnect(self, links: Iterable[SliceLink]) -> None:
        """Give up every border link of `links`. Never fails: a peer that does not hear hears later."""

        async def give_up(end: BorderLabel) -> None:
            try:
                await self._disconnect(end.border, end.label)
            except SeraiError as error:
                log.warning("border %s, label %d stays connected for now: %s", end.border, end.label, error)
                name = f"{end.border}/{LeftoverKind.CONNECTION}/{end.label}"
                leftover = Leftover(
                    name=name, kind=LeftoverKind.CONNECTION, place=end.border, item=str(end.label)
                )
                if name not in self._state.leftovers:
                    await self._state.leftovers.create(leftover)

        await settle(give_up(end) for link in links for end in border_labels(link))

    async def settle_leftovers(self) -> None:
        """Give up the connections whose peers have not heard it yet."""
        for leftover in self._state.leftovers:
            if leftover.kind is LeftoverKind.CONNECTION:
                try:
                    await self._disconnect(leftover.place, int(leftover.item))
                    await self._state.leftovers.delete(leftover.name)
                except SeraiError as error:
                    log.debug("%s is still left: %s", leftover.name, error)

    async def accept_guest(self, provider: str, request: AcceptGuestRequest) -> AcceptGuestResponse:
        """The consent of provider `provider` to a guest of ours."""
        border = next(
            (border for border in self._state.settings.borders if border.peer_provider == provider), None
        )
        if border is None:
            raise StateError(
                f"provider {self._state.settings.name} has no border to {provider}",
                hint="guests move between providers that have one",
            )
        response: AcceptGuestResponse = await self._stub(border).AcceptGuest(request)
        return response

    async def _disconnect(self, border: str, label: int) -> None:
        request = DisconnectLinkRequest(border=border, label=label)
        await self._stub(self._state.border(border)).DisconnectLink(request)

    def _stub(self, border: BorderSettings) -> PeeringServiceAsyncStub:
        identity = Identity(Role.PIP, border.peer_provider)
        return PeeringServiceStub(self._state.directory.channel(identity))


class PeeringServicer(PeeringServiceServicer):
    """The other side's requests to us."""

    def __init__(self, state: PipState) -> None:
        self._state = state

    async def ConnectLink(self, request: ConnectLinkRequest, context: Any) -> ConnectLinkResponse:  # noqa: N802
        """CapacityError when the border is full, AlreadyExistsError when the label is taken."""
        state = self._state
        border = self._border(request.border, caller(context))
        name = f"{request.border}/{request.label}"
        known = state.connections.find(name)
        if known is not None and known.bandwidth_bps != request.bandwidth_bps:
            raise AlreadyExistsError(
                f"label {request.label} is in use at border {request.border}",
                hint="choose another label",
                reason="LABEL_IN_USE",
                border=request.border,
            )
        if known is None:
            self._check_room(border, request)
            connection = PeerConnection(
                name=name,
                border=request.border,
                label=request.label,
                owner=caller(context).uri,
                bandwidth_bps=request.bandwidth_bps,
            )
            await state.connections.create(connection)
        agent = state.agents[border.node]
        return ConnectLinkResponse(node=f"{state.settings.name}/{border.node}", control_address=agent.address)

    async def DisconnectLink(  # noqa: N802
        self, request: DisconnectLinkRequest, context: Any
    ) -> DisconnectLinkResponse:
        """See the contract."""
        self._border(request.border, caller(context))
        await self._state.connections.delete(f"{request.border}/{request.label}")
        return DisconnectLinkResponse()

    async def AcceptGuest(self, request: AcceptGuestRequest, context: Any) -> AcceptGuestResponse:  # noqa: N802
        """See the contract."""
        state = self._state
        record, node = state.find_node(request.handle)
        provider = caller(context).owner
        arrival = node.spec.arrival
        expected = (
            node.presence is Presence.ARRIVING
            and arrival.guest_uid == request.guest_uid
            and arrival.source_provider == provider
            and request.source_node.startswith(f"{provider}/")
        )
        if not expected:
            raise ForbiddenError(
                f"provider {state.settings.name} does not expect guest {request.guest_uid} from {provider}",
                hint="its VNP has to reserve a place for it first",
                reason="ARRIVAL_NOT_EXPECTED",
            )
        spec = node.spec.guest
        if request.spec.vcpus > spec.vcpus or request.spec.memory_bytes > spec.memory_bytes:
            raise CapacityError(
                f"guest {request.guest_uid} is larger than the place that is reserved for it",
                hint="reserve as much as the guest has",
            )
        agent = state.agents[node.node]
        agent.expect_reachable()
        permit = await agent.migration_stub.PermitArrival(
            PermitArrivalRequest(
                guest_uid=request.guest_uid,
                source_node=request.source_node,
                spec=request.spec,
                guest_id=node.guest_id,
                expires_in_s=PERMIT_SECONDS,
            )
        )

        def remember(changed: Any) -> None:
            changed.find_node(request.handle).permit = permit.permit

        await state.slices.update(record.name, remember)
        return AcceptGuestResponse(
            destination_node=f"{state.settings.name}/{node.node}",
            destination_address=agent.address,
            permit=permit.permit,
        )

    def _border(self, name: str, peer: Identity) -> BorderSettings:
        border = self._state.border(name)
        if peer.role is not Role.PIP or peer.owner != border.peer_provider:
            raise ForbiddenError(
                f"border {name} leads to provider {border.peer_provider}, not to {peer.owner}",
                reason="NOT_THE_PEER",
            )
        return border

    def _check_room(self, border: BorderSettings, request: ConnectLinkRequest) -> None:
        if request.label in used_labels(self._state.slices, border.name):
            # Our half is reserved already, by the same link: it has its bandwidth.
            return
        free = border.capacity - self._state.usage().border_bps[border.name]
        if request.bandwidth_bps > free:
            raise CapacityError(
                f"border {border.name} of provider {self._state.settings.name} is short of bandwidth:"
                f" {request.bandwidth_bps} bit/s asked, {free} left",
                hint="ask for less, or free some",
                resource="bandwidth",
                element=border.name,
            )
