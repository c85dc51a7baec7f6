"""A VNO's end of attachments: the credential decides."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from serai.roles.attachments import AttachmentRelay, first_input
from serai.roles.relay import Place
from serai.roles.vno.grants import view_grant
from serai.roles.vno.vnets import Vnets, VnoState
from serai.v1.attachment_pb2 import AttachInput, Attachment, AttachOutput, AttachPort
from serai.v1.attachment_pb2_grpc import AttachmentServiceServicer


class VnoAttachmentServicer(AttachmentServiceServicer):
    """Asked by the provider where an end user attaches."""

    def __init__(self, state: VnoState, vnets: Vnets) -> None:
        self._state = state
        self._vnets = vnets

    async def Attach(  # noqa: N802
        self, request: AsyncIterator[AttachInput], context: Any
    ) -> AsyncIterator[AttachOutput]:
        """See the contract."""
        grants = self._state.grants
        grant = grants.check((await first_input(request)).token)
        handle = await self._vnets.handle(grant.vnet, grant.node)
        stub = self._state.upstream.attachments

        def locate() -> Place:
            self._state.vnets.get(grant.vnet)
            return Place(key=handle, name=handle, join=stub.Attach)

        port = AttachPort(interface=grant.interface, mac=bytes.fromhex(grant.mac))
        frames = AttachmentRelay(locate, self._state.vnets.watch).frames(request, port)
        async with contextlib.aclosing(grants.while_valid(grant, frames)) as stream:
            async for output in stream:
                if output.HasField("attachment"):
                    granted = view_grant(grant)
                    output.attachment.CopyFrom(
                        Attachment(
                            mac=granted.mac,
                            address=grant.address,
                            gateway=grant.gateway,
                            expire_time=granted.expire_time,
                        )
                    )
                yield output
