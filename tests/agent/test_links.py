"""Segments, channels and captures over gRPC between two real agents, and what they say on the event bus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.agent.harness import Site
from tests.migration.move import Side, eventually, move, side, start_guest

from serai.errors import AlreadyExistsError, InvalidInputError, NotFoundError
from serai.hypervisor.fake import FakeDriver, FakePort
from serai.v1 import guest_pb2, link_pb2, migration_pb2
from serai.wire.events import Event, GuestStateChanged, MigrationProgress

FRAME = b"\x02\x00\x00\x00\x00\x02\x02\x00\x00\x00\x00\x01\x08\x00" + b"payload".ljust(50, b".")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
async def sides(site: Site) -> AsyncIterator[tuple[Side, Side]]:
    async with side(site, "alpha/a1") as one, side(site, "beta/b1") as other:
        yield one, other


def guest_port(guest: guest_pb2.Guest) -> link_pb2.AttachmentPoint:
    return link_pb2.AttachmentPoint(port=link_pb2.GuestPort(guest_uid=guest.uid, interface="eth0"))


def peer(other: Side, label: int) -> link_pb2.AttachmentPoint:
    return link_pb2.AttachmentPoint(
        peer=link_pb2.PeerLabel(node=other.node, control_address=other.address, label=label)
    )


def eth0(side: Side) -> FakePort:
    return side.guest.port("eth0")


async def create(side: Side, name: str, a: Any, b: Any, **limits: Any) -> link_pb2.Segment:
    request = link_pb2.CreateSegmentRequest(segment_id=name, segment=link_pb2.Segment(a=a, b=b, **limits))
    return await side.client.segments.CreateSegment(request)


async def connect(sides: tuple[Side, Side], label: int) -> list[guest_pb2.Guest]:
    guests = [await start_guest(side) for side in sides]
    await create(sides[0], "s", guest_port(guests[0]), peer(sides[1], label))
    await create(sides[1], "s", guest_port(guests[1]), peer(sides[0], label))
    return guests


async def test_frames_cross_and_are_counted(sides: tuple[Side, Side]) -> None:
    await connect(sides, 9)
    eth0(sides[0]).send(FRAME, FRAME)
    await eventually(lambda: len(eth0(sides[1]).received) == 2, "both frames arrive")
    eth0(sides[1]).send(FRAME)
    await eventually(lambda: len(eth0(sides[0]).received) == 1, "the answer arrives")
    listed = await sides[0].client.segments.ListSegments(link_pb2.ListSegmentsRequest())
    (segment,) = listed.segments
    assert segment.name == "segments/s" and segment.active
    assert segment.b.peer.control_address == sides[1].address
    assert (segment.counters.frames_a_to_b, segment.counters.frames_b_to_a) == (2, 1)
    assert segment.counters.bytes_a_to_b == 2 * len(FRAME)


async def test_labels_keep_virtual_links_apart(sides: tuple[Side, Side]) -> None:
    guests = [await start_guest(side) for side in sides]
    await create(sides[0], "s", guest_port(guests[0]), peer(sides[1], 1))
    await create(sides[1], "s", guest_port(guests[1]), peer(sides[0], 2))
    eth0(sides[0]).send(FRAME)
    data_plane = sides[1].here.data_plane
    await eventually(lambda: data_plane.counters().unconnected == 1, "the frame is dropped there")
    assert not eth0(sides[1]).received


async def test_segments_are_idempotent_and_errors_are_clear(sides: tuple[Side, Side]) -> None:
    guest = await start_guest(sides[0])
    first = await create(
        sides[0], "s", guest_port(guest), peer(sides[1], 1), bandwidth_bps=8_000_000, delay_ms=5
    )
    again = await create(
        sides[0], "s", guest_port(guest), peer(sides[1], 1), bandwidth_bps=8_000_000, delay_ms=5
    )
    assert first == again and (first.bandwidth_bps, first.delay_ms) == (8_000_000, 5)
    with pytest.raises(AlreadyExistsError):
        await create(sides[0], "s", guest_port(guest), peer(sides[1], 2))
    with pytest.raises(InvalidInputError, match=r"segment\.b"):
        await create(sides[0], "t", guest_port(guest), link_pb2.AttachmentPoint())
    segments = sides[0].client.segments
    with pytest.raises(InvalidInputError, match="segments/ID"):
        await segments.ActivateSegment(link_pb2.ActivateSegmentRequest(name="s"))
    await segments.DeleteSegment(link_pb2.DeleteSegmentRequest(name="segments/s"))
    with pytest.raises(NotFoundError):
        await segments.DeleteSegment(link_pb2.DeleteSegmentRequest(name="segments/s"))
    await segments.DeleteSegment(link_pb2.DeleteSegmentRequest(name="segments/s", allow_missing=True))


async def test_a_capture_sees_both_directions(sides: tuple[Side, Side]) -> None:
    await connect(sides, 3)
    request = link_pb2.CaptureFramesRequest(name="guests/g", snapshot_length=20)
    call: Any = sides[0].client.segments.CaptureFrames(request)
    reading = asyncio.ensure_future(call.read())
    port = next(iter(sides[0].here.data_plane._ports.values()))
    await eventually(lambda: bool(port.captures), "the capture is there")
    eth0(sides[0]).send(FRAME)
    sent = await reading
    assert (sent.inbound, sent.data, sent.original_length) == (False, FRAME[:20], len(FRAME))
    await eventually(lambda: len(eth0(sides[1]).received) == 1, "it arrives")
    eth0(sides[1]).send(FRAME)
    assert (await call.read()).inbound
    call.cancel()


async def test_traffic_follows_a_guest_by_the_same_segments(site: Site, sides: tuple[Side, Side]) -> None:
    guests = await connect(sides, 5)
    async with side(site, "beta/b2", FakeDriver()) as third:
        # Make before break: the new path exists before the guest moves and is used when it has.
        await create(third, "s", guest_port(guests[0]), peer(sides[1], 6))
        await create(sides[1], "new", guest_port(guests[1]), peer(third, 6))
        moved = await move(sides[0], third, guests[0])
        assert moved.state == migration_pb2.Migration.SUCCEEDED
        eth0(sides[1]).send(FRAME)
        await eventually(lambda: len(eth0(third).received) == 1, "by redirection from its old node")
        await sides[1].client.segments.ActivateSegment(link_pb2.ActivateSegmentRequest(name="segments/new"))
        await sides[0].client.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name="guests/g"))
        eth0(sides[1]).send(FRAME)
        await eventually(lambda: len(eth0(third).received) == 2, "by the new segments")
        eth0(third).send(FRAME)
        await eventually(lambda: len(eth0(sides[1]).received) == 1, "and back")


async def test_the_bus_hears_of_guests_and_migrations(sides: tuple[Side, Side]) -> None:
    heard: list[Event] = []

    async def listen() -> None:
        async with sides[0].here.bus.subscribe() as events:
            listening.set()
            async for event in events:
                heard.append(event)

    listening = asyncio.Event()
    task = asyncio.create_task(listen())
    await listening.wait()
    guest = await start_guest(sides[0])
    await move(sides[0], sides[1], guest)
    await eventually(lambda: any(phase(event) == "done" for event in heard), "the last phase is heard")
    task.cancel()
    states = [
        (data.state, data.ready) for event in heard if isinstance(data := event.data, GuestStateChanged)
    ]
    assert ("RUNNING", True) in states and ("OUTGOING", True) in states
    phases = [phase(event) for event in heard if phase(event)]
    order = list(dict.fromkeys(phases))
    assert order == ["prepare", "stream", "freeze", "hand_over", "resume", "drain", "release", "done"]
    assert {event.source for event in heard} == {"serai://agent/alpha/a1"}


def phase(event: Event) -> str:
    return event.data.phase if isinstance(event.data, MigrationProgress) else ""
