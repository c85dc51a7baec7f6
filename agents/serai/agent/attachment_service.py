"""``serai.v1.AttachmentService`` at an agent: end users' stations on the wires of guests' ports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from serai.agent.inventory import Inventory
from serai.agent.spec import guest_name, parse_guest_name
from serai.errors import InvalidInputError
from serai.network.dataplane import DataPlane
from serai.network.taps import Tap
from serai.v1 import attachment_pb2 as pb
from serai.v1.attachment_pb2_grpc import AttachmentServiceServicer


class AttachmentService(AttachmentServiceServicer):
    """Attachments last as long as their streams; nothing of them is kept."""

    def __init__(self, data_plane: DataPlane, inventory: Inventory) -> None:
        self._data_plane = data_plane
        self._inventory = inventory

    async def Attach(
        self, request: AsyncIterator[pb.AttachInput], context: Any
    ) -> AsyncIterator[pb.AttachOutput]:
        """Join the wire of the port that the first message names."""
        port = await _first_port(request)
        hosted = self._inventory.get(guest_name(parse_guest_name(port.name)))
        tap = self._data_plane.join(hosted.uid, port.interface, port.mac)
        sending = asyncio.create_task(_send(request, tap))
        try:
            yield pb.AttachOutput(attachment=pb.Attachment(mac=tap.mac))
            async for frames in tap:
                yield pb.AttachOutput(frames=frames, lost=tap.lost)
        finally:
            tap.close()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


async def _send(requests: AsyncIterator[pb.AttachInput], tap: Tap) -> None:
    """Put on the wire what comes; the station leaves when nothing more will come."""
    try:
        async for message in requests:
            tap.send(message.frames)
    finally:
        tap.close()


async def _first_port(requests: AsyncIterator[pb.AttachInput]) -> pb.AttachPort:
    async for message in requests:
        if message.HasField("port"):
            return message.port
        break
    raise InvalidInputError("the first message names no port", hint="set `port` in it")
