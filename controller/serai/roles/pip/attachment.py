"""A PIP's two ends of attachments: where a user comes in, and where the guest is."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from serai.errors import ForbiddenError, InvalidInputError, NotFoundError, UnavailableError
from serai.roles.attachments import AttachmentRelay, first_input, pass_on
from serai.roles.ownership import check_owner
from serai.roles.pip.records import Presence
from serai.roles.pip.state import PipState
from serai.roles.relay import Place
from serai.v1.attachment_pb2 import AttachInput, AttachOutput, AttachPort
from serai.v1.attachment_pb2_grpc import AttachmentServiceServicer, AttachmentServiceStub
from serai.wire.identity import Identity, Role
from serai.wire.rpc import caller

USERS = (Role.USER, Role.SP, Role.ADMIN)
"""Who may come with a credential."""


class PipAttachmentServicer(AttachmentServiceServicer):
    """End users come with a credential, VNPs with the handle of a node that is here."""

    def __init__(self, state: PipState) -> None:
        self._state = state

    async def Attach(  # noqa: N802
        self, request: AsyncIterator[AttachInput], context: Any
    ) -> AsyncIterator[AttachOutput]:
        """See the contract."""
        identity = caller(context)
        first = await first_input(request)
        if first.token:
            stream = self._access(request, first.token, identity)
        else:
            stream = self._host(request, first.port, identity)
        async with contextlib.aclosing(stream):
            async for output in stream:
                yield output

    def _access(
        self, requests: AsyncIterator[AttachInput], token: str, identity: Identity
    ) -> AsyncGenerator[AttachOutput]:
        """The operator that the credential names decides; what is behind it is not known here."""
        if identity.role not in USERS:
            raise ForbiddenError(f"{identity} cannot attach with a credential", reason="ROLE_NOT_ALLOWED")
        try:
            operator = Identity(Role.VNO, token.partition(".")[0])
            stub = AttachmentServiceStub(self._state.directory.channel(operator))
        except (InvalidInputError, UnavailableError):
            raise ForbiddenError(
                f"provider {self._state.settings.name} knows no operator of this credential",
                hint="attach at another provider, or have this one's settings name the operator",
                reason="CREDENTIAL_REFUSED",
            ) from None
        return pass_on(requests, stub.Attach, AttachInput(token=token))

    def _host(
        self, requests: AsyncIterator[AttachInput], port: AttachPort, identity: Identity
    ) -> AsyncGenerator[AttachOutput]:
        record, _ = self._state.find_node(port.name)
        check_owner(record.owner, identity, "virtual node", port.name)
        return AttachmentRelay(lambda: self._locate(port.name), self._state.slices.watch).frames(
            requests, port
        )

    def _locate(self, handle: str) -> Place:
        record, node = self._state.find_node(handle)
        if node.presence is Presence.DEPARTED:
            raise NotFoundError(
                f"the guest of {node.spec.id!r} went to another provider",
                hint="ask the VNP where it is now",
                reason="DEPARTED",
            )
        return Place(
            key=f"{node.node}/{node.guest_id}",
            name=node.guest_name,
            join=self._state.agents[node.node].attachment_stub.Attach,
            moving=node.spec.id in record.pending.nodes,
        )
