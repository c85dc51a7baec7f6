"""Snapshots over gRPC on a real agent with fake guests: taken, restored, cloned, damaged; a full disk."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from tests.agent.harness import Site
from tests.migration.move import Side, side, start_guest

from serai.errors import (
    AlreadyExistsError,
    CapacityError,
    HypervisorError,
    InvalidInputError,
    NotFoundError,
    StateError,
)
from serai.hypervisor import snapshot_store
from serai.hypervisor.driver import GuestState
from serai.v1 import guest_pb2

Guest = guest_pb2.Guest


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Side]:
    async with side(Site(tmp_path), "alpha/a1") as one:
        yield one


async def take(node: Side, snapshot_id: str = "s", *, keep: bool = False) -> guest_pb2.Snapshot:
    request = guest_pb2.CreateSnapshotRequest(guest="guests/g", snapshot_id=snapshot_id, keep=keep)
    return await node.client.guests.CreateSnapshot(request)


async def listed(node: Side) -> list[str]:
    answer = await node.client.guests.ListSnapshots(guest_pb2.ListSnapshotsRequest())
    return [snapshot.name for snapshot in answer.snapshots]


async def restore(node: Side) -> Guest:
    return await node.client.guests.RestoreSnapshot(guest_pb2.RestoreSnapshotRequest(name="snapshots/s"))


def folder(node: Side) -> Path:
    return node.here.settings.state_dir / "snapshots"


async def test_a_guest_goes_back_to_its_snapshot(node: Side) -> None:
    guest = await start_guest(node)
    node.guest.run(50)
    node.guest.keep_busy(2000)
    taken = await take(node)
    assert taken.guest_uid == guest.uid and taken.pause_ms < 1000 and taken.rounds >= 1
    assert 0 < taken.stored_bytes <= guest.spec.memory_bytes
    steps = node.guest.steps
    node.guest.run(500)
    moved_on = bytes(node.guest.ram)
    again = await restore(node)
    assert (again.uid, again.state, again.epoch) == (guest.uid, Guest.RUNNING, 1)
    assert node.guest.steps <= steps + 200
    assert bytes(node.guest.ram) != moved_on
    assert await listed(node) == ["snapshots/s"]


async def test_it_holds_ram_as_it_was_in_the_pause(node: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    await start_guest(node)
    node.guest.keep_busy(50_000)
    machine, save_state = node.guest, node.guest.save_state
    frozen: list[bytes] = []

    async def save_and_look() -> bytes:
        assert machine.state is GuestState.PAUSED
        frozen.append(bytes(machine.ram))
        return await save_state()

    monkeypatch.setattr(machine, "save_state", save_and_look)
    await take(node)
    assert machine.state is GuestState.RUNNING
    assert (folder(node) / "s" / "ram").read_bytes() == frozen[0]


async def test_a_clone_is_another_guest_with_the_same_memory(node: Side) -> None:
    guest = await start_guest(node)
    node.guest.run(100)
    memory = bytes(node.guest.ram)
    await take(node)
    request = guest_pb2.CloneGuestRequest(snapshot="snapshots/s", guest_id="twin", request_id="r")
    twin = await node.client.guests.CloneGuest(request)
    assert (await node.client.guests.CloneGuest(request)).uid == twin.uid
    assert twin.state == Guest.RUNNING and twin.uid != guest.uid
    assert twin.spec.interfaces[0].name == "eth0"
    assert twin.spec.interfaces[0].mac not in (b"", guest.spec.interfaces[0].mac)
    assert twin.spec.interfaces[0].mac[0] & 3 == 2, "unicast, locally administered"
    assert node.driver is not None
    copied = node.driver.guests[twin.uid]
    assert bytes(copied.ram) == memory
    copied.run(100)
    assert bytes(node.driver.guests[guest.uid].ram) == memory
    with pytest.raises(AlreadyExistsError):
        await node.client.guests.CloneGuest(
            guest_pb2.CloneGuestRequest(snapshot="snapshots/s", guest_id="twin")
        )
    with pytest.raises(InvalidInputError, match="same names"):
        interfaces = [guest_pb2.GuestInterface(name="eth7", mac=b"\2\0\0\0\0\7")]
        await node.client.guests.CloneGuest(
            guest_pb2.CloneGuestRequest(snapshot="snapshots/s", guest_id="b", interfaces=interfaces)
        )


async def test_what_cannot_be_is_said(node: Side) -> None:
    guest = await start_guest(node)
    with pytest.raises(NotFoundError):
        await restore(node)
    with pytest.raises(InvalidInputError):
        await take(node, "../x")
    await take(node)
    with pytest.raises(AlreadyExistsError):
        await take(node)
    await node.client.guests.StopGuest(guest_pb2.StopGuestRequest(name=guest.name))
    with pytest.raises(StateError, match="stopped"):
        await take(node, "t")
    assert (await restore(node)).state == Guest.RUNNING, "a stopped guest can be brought back"


async def test_snapshots_go_with_their_guest_unless_kept(node: Side) -> None:
    await start_guest(node)
    await take(node, "a")
    await take(node, "b", keep=True)
    await node.client.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name="guests/g"))
    assert await listed(node) == ["snapshots/b"]
    with pytest.raises(NotFoundError, match="not on this node"):
        await node.client.guests.RestoreSnapshot(guest_pb2.RestoreSnapshotRequest(name="snapshots/b"))
    twin = await node.client.guests.CloneGuest(
        guest_pb2.CloneGuestRequest(snapshot="snapshots/b", guest_id="twin")
    )
    await node.client.guests.DeleteSnapshot(guest_pb2.DeleteSnapshotRequest(name="snapshots/b"))
    assert await listed(node) == []
    assert (await node.client.get("twin")).uid == twin.uid
    assert os.listdir(folder(node)) == []  # noqa: PTH208


@pytest.mark.parametrize(
    ("file", "position", "part"),
    [("ram", 5000, "ram at 0x0"), ("state", 3, "state"), ("manifest.json", 30, "manifest")],
)
async def test_a_damaged_part_is_named_and_the_guest_left_alone(
    tmp_path: Path, file: str, position: int, part: str
) -> None:
    site = Site(tmp_path)
    async with side(site, "alpha/a1") as node:
        await start_guest(node)
        await take(node, keep=True)
    path = folder(node) / "s" / file
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    async with side(site, "alpha/a1") as node:
        await node.client.guests.StartGuest(guest_pb2.StartGuestRequest(name="guests/g"))
        with pytest.raises(HypervisorError, match=part):
            await restore(node)
        assert (await node.client.get()).state == Guest.RUNNING


async def test_a_full_disk_leaves_nothing(node: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = await start_guest(node)
    real, room = os.pwrite, [65536]

    def short_of_room(descriptor: int, content: memoryview, offset: int) -> int:
        room[0] -= len(content)
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, content, offset)

    node.guest.run(100)
    monkeypatch.setattr(os, "pwrite", short_of_room)
    with pytest.raises(CapacityError, match="does not fit"):
        await take(node)
    assert os.listdir(folder(node)) == []  # noqa: PTH208
    assert (await node.client.get()).state == Guest.RUNNING
    monkeypatch.undo()
    assert (await take(node)).guest_uid == guest.uid


async def test_a_snapshot_half_written_is_gone_after_a_restart(tmp_path: Path) -> None:
    site = Site(tmp_path)
    async with side(site, "alpha/a1") as node:
        (folder(node) / ".new-x").mkdir()
    async with side(site, "alpha/a1") as node:
        assert os.listdir(folder(node)) == []  # noqa: PTH208
        assert await listed(node) == []


async def test_pages_of_zeros_take_no_room_and_are_not_forgotten(tmp_path: Path) -> None:
    """What was zero stays a hole; what became zero after it was written is zero in the snapshot."""
    store = snapshot_store.SnapshotStore(tmp_path / "s")
    ram = bytearray(1 << 20)
    ram[8192:8196] = b"data"
    writer = store.begin("x", len(ram))
    writer.write_all(memoryview(ram))
    ram[8192:8196] = bytes(4)
    ram[12288] = 7
    numbers = np.array([2, 3, 200])
    pages = np.frombuffer(bytes(ram), dtype=np.uint8).reshape(-1, 4096)
    writer.write_pages(numbers, pages[numbers])
    stored, descriptor = writer.finish(guest_uid="u", snapshot_version=1, state=b"", description=b"")
    stored.check_ram(descriptor)
    assert os.pread(descriptor, len(ram), 0) == ram
    assert os.fstat(descriptor).st_blocks * 512 < 200_000, "page 200 takes no room"
    os.close(descriptor)
