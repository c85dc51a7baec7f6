"""``serai.v1.SegmentService``: virtual links through this node's switch, and captures."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from serai.agent.inventory import Inventory
from serai.agent.pages import paginate
from serai.agent.peers import Peers
from serai.agent.records import Records
from serai.agent.spec import check_guest_id, guest_name, parse_guest_name
from serai.errors import InvalidInputError, NotFoundError, SeraiError
from serai.network import switch
from serai.network.dataplane import DataPlane, SegmentStatus
from serai.v1 import link_pb2 as pb
from serai.v1.link_pb2_grpc import SegmentServiceServicer

log = logging.getLogger(__name__)


class SegmentService(SegmentServiceServicer):
    """Segments by name; kept in the records, so that they are there again before the guests' frames are."""

    def __init__(self, data_plane: DataPlane, peers: Peers, inventory: Inventory, records: Records) -> None:
        self._records = records
        self._data_plane = data_plane
        self._peers = peers
        self._inventory = inventory
        self._addresses: dict[tuple[str, int], str] = {}

    async def CreateSegment(self, request: pb.CreateSegmentRequest, context: Any) -> pb.Segment:
        """Connect two points; the same again is no error."""
        status = await self._create(request)
        await asyncio.to_thread(
            self._records.add_segment, request.segment_id, request.SerializeToString(deterministic=True)
        )
        return self._describe(status)

    async def load(self) -> None:
        """Make the segments of the agent's last run again, active where they were."""
        kept = self._records.segments()
        for name, _, serialized in kept:
            try:
                await self._create(pb.CreateSegmentRequest.FromString(serialized))
            except SeraiError as error:
                log.error("segment %s cannot be made again: %s", name, error)
        for name, activated, _ in sorted(kept, key=lambda item: item[1]):
            if activated:
                with contextlib.suppress(NotFoundError):
                    self._data_plane.activate_segment(name)

    async def _create(self, request: pb.CreateSegmentRequest) -> SegmentStatus:
        segment = request.segment
        config = switch.SegmentConfig(
            name=check_guest_id(request.segment_id),
            a=await self._read_point("a", segment.a),
            b=await self._read_point("b", segment.b),
            bandwidth_bps=segment.bandwidth_bps,
            delay_seconds=segment.delay_ms / 1000,
        )
        return self._data_plane.create_segment(config)

    async def ActivateSegment(self, request: pb.ActivateSegmentRequest, context: Any) -> pb.Segment:
        """Frames leave over it from now on."""
        name = _segment_id(request.name)
        status = self._data_plane.activate_segment(name)
        await asyncio.to_thread(self._records.activate_segment, name)
        return self._describe(status)

    async def DeleteSegment(self, request: pb.DeleteSegmentRequest, context: Any) -> pb.DeleteSegmentResponse:
        """Remove it."""
        name = _segment_id(request.name)
        await asyncio.to_thread(self._records.delete_segment, name)
        try:
            self._data_plane.delete_segment(name)
        except NotFoundError:
            if not request.allow_missing:
                raise
        return pb.DeleteSegmentResponse()

    async def ListSegments(self, request: pb.ListSegmentsRequest, context: Any) -> pb.ListSegmentsResponse:
        """By name."""
        page, token = paginate(
            self._data_plane.list_segments(),
            lambda status: status.config.name,
            request.page_size,
            request.page_token,
        )
        return pb.ListSegmentsResponse(
            segments=[self._describe(item) for item in page], next_page_token=token
        )

    async def CaptureFrames(
        self, request: pb.CaptureFramesRequest, context: Any
    ) -> AsyncIterator[pb.CapturedFrame]:
        """Copies of a guest's frames, until the caller goes."""
        hosted = self._inventory.get(guest_name(parse_guest_name(request.name)))
        length = request.snapshot_length
        with self._data_plane.capture(hosted.uid, request.interface, snapshot_length=length) as capture:
            async for frame in capture:
                captured = pb.CapturedFrame(
                    interface=frame.port.interface,
                    inbound=frame.inbound,
                    data=frame.data,
                    original_length=frame.original_length,
                    lost=frame.lost,
                )
                captured.time.FromNanoseconds(int(frame.time * 1e9))
                yield captured

    async def _read_point(self, side: str, point: pb.AttachmentPoint) -> switch.AttachmentPoint:
        kind = point.WhichOneof("point")
        if kind == "port":
            return switch.GuestPort(point.port.guest_uid, point.port.interface)
        if kind == "bridge":
            return switch.BridgePort(point.bridge.bridge, point.bridge.port)
        if kind == "peer":
            await self._peers.learn(point.peer.node, point.peer.control_address)
            self._addresses[point.peer.node, point.peer.label] = point.peer.control_address
            return switch.PeerLabel(point.peer.node, point.peer.label)
        raise InvalidInputError(f"segment.{side} is missing", hint="give a guest's port or a peer's label")

    def _describe(self, status: SegmentStatus) -> pb.Segment:
        config = status.config
        return pb.Segment(
            name=f"segments/{config.name}",
            a=self._describe_point(config.a),
            b=self._describe_point(config.b),
            bandwidth_bps=config.bandwidth_bps,
            delay_ms=config.delay_seconds * 1000,
            active=status.active,
            counters=pb.SegmentCounters(
                frames_a_to_b=status.a_to_b.frames,
                bytes_a_to_b=status.a_to_b.bytes,
                frames_b_to_a=status.b_to_a.frames,
                bytes_b_to_a=status.b_to_a.bytes,
                dropped=status.a_to_b.dropped + status.b_to_a.dropped,
            ),
        )

    def _describe_point(self, point: switch.AttachmentPoint) -> pb.AttachmentPoint:
        if isinstance(point, switch.GuestPort):
            return pb.AttachmentPoint(port=pb.GuestPort(guest_uid=point.guest_uid, interface=point.interface))
        if isinstance(point, switch.BridgePort):
            return pb.AttachmentPoint(bridge=pb.BridgePort(bridge=point.bridge, port=point.port))
        address = self._addresses.get((point.node, point.label), "")
        return pb.AttachmentPoint(
            peer=pb.PeerLabel(node=point.node, control_address=address, label=point.label)
        )


def _segment_id(name: str) -> str:
    collection, _, segment_id = name.partition("/")
    if collection != "segments" or not segment_id:
        raise InvalidInputError(f"{name!r} is not a segment's name", hint="write segments/ID", name=name)
    return segment_id
