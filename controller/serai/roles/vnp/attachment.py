"""A VNP's end of attachments: from handle to handle."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from serai.roles.attachments import AttachmentRelay, first_input
from serai.roles.ownership import check_owner
from serai.roles.relay import Place
from serai.roles.vnp.providers import choose
from serai.roles.vnp.state import VnpState
from serai.v1.attachment_pb2 import AttachInput, AttachOutput
from serai.v1.attachment_pb2_grpc import AttachmentServiceServicer
from serai.wire.rpc import caller


class VnpAttachmentServicer(AttachmentServiceServicer):
    """Stations beside nodes, at whichever provider the node is."""

    def __init__(self, state: VnpState) -> None:
        self._state = state

    async def Attach(  # noqa: N802
        self, request: AsyncIterator[AttachInput], context: Any
    ) -> AsyncIterator[AttachOutput]:
        """See the contract."""
        port = (await first_input(request)).port
        record, _ = self._state.find_node(port.name)
        check_owner(record.owner, caller(context), "virtual node", port.name)
        relay = AttachmentRelay(lambda: self._locate(port.name), self._state.networks.watch)
        async with contextlib.aclosing(relay.frames(request, port)) as stream:
            async for output in stream:
                yield output

    def _locate(self, handle: str) -> Place:
        record, entry = self._state.find_node(handle)
        return Place(
            key=entry.provider_handle,
            name=entry.provider_handle,
            join=choose(self._state.providers, entry.provider).attachments.Attach,
            moving=record.move is not None and record.move.node == entry.node.id,
        )
