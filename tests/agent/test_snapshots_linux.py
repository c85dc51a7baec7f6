"""Stock Debian goes back to a snapshot of itself, and is copied into guests of their own identity."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.agent.harness import MEBIBYTE, Site
from tests.migration.move import Migration, Side, process_side
from tests.migration.test_linux import Shell, boot, move

from serai.images import build_debian
from serai.v1 import guest_pb2

pytestmark = pytest.mark.guest

Guest = guest_pb2.Guest
SETTINGS: dict[str, Any] = {"driver": "emulated", "memory": 2048 * MEBIBYTE, "vcpus": 32}


@pytest.fixture(scope="module", autouse=True)
def _debian() -> None:
    build_debian()  # at once when there is one of this version, which knows how to take on an identity


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
async def node(site: Site) -> AsyncIterator[Side]:
    async with process_side(site, "alpha/a1", **SETTINGS) as one:
        yield one


async def take(node: Side, guest: Guest, snapshot_id: str = "s") -> guest_pb2.Snapshot:
    request = guest_pb2.CreateSnapshotRequest(guest=guest.name, snapshot_id=snapshot_id, keep=True)
    return await node.client.guests.CreateSnapshot(request)


async def clone(node: Side, guest_id: str, **fields: Any) -> Guest:
    request = guest_pb2.CloneGuestRequest(snapshot="snapshots/s", guest_id=guest_id, **fields)
    created = await node.client.guests.CloneGuest(request)
    async with asyncio.timeout(60):
        while not (guest := await node.client.get(guest_id)).ready:
            await node.client.until(lambda it: it.ready or it.state != Guest.RUNNING, guest_id)
    assert guest.uid == created.uid
    return guest


async def test_debian_goes_back_to_its_snapshot(node: Side) -> None:
    guest = await boot(node, "g", 1)
    shell = await Shell.attach(node, guest)
    await shell.run("mark=before; dd if=/dev/urandom of=/f bs=64k count=64 2>/dev/null; sha256sum /f >/sum")
    await shell.type("while :; do cp /f /g; mv /g /h; done &")
    taken = await take(node, guest)
    assert taken.pause_ms < 500, "the figure for people is in docs/snapshots.md"
    await shell.run("kill %1; mark=after; rm /f /sum")
    again = await node.client.guests.RestoreSnapshot(guest_pb2.RestoreSnapshotRequest(name="snapshots/s"))
    assert (again.uid, again.state, again.ready) == (guest.uid, Guest.RUNNING, True)
    shell = await Shell.attach(node, again)
    assert "before" in await shell.run("kill %1; echo $mark")
    assert "/f: OK" in await shell.run("sha256sum -c /sum")


async def test_clones_have_their_own_identity_and_memory(node: Side) -> None:
    origin = await boot(node, "origin", 1)
    shell = await Shell.attach(node, origin)
    await shell.run("mark=shared")
    await take(node, origin)
    startup = b"ip addr add 10.0.0.9/24 dev eth0\nip link set eth0 up\n"
    twins = [await clone(node, "one", startup=startup), await clone(node, "two")]
    shells = [await Shell.attach(node, twin) for twin in twins]
    for twin, console in zip(twins, shells, strict=True):
        mac = twin.spec.interfaces[0].mac
        assert mac != origin.spec.interfaces[0].mac
        assert twin.name.endswith((await console.run("hostname")).split()[-1])
        assert mac.hex(":") in await console.run("cat /sys/class/net/eth0/address")
        assert "shared" in await console.run("echo $mark")
    assert "10.0.0.9/24" in await shells[0].run("ip addr show dev eth0")
    assert "inet " not in await shells[1].run("ip addr show dev eth0")
    numbers = [(await console.run("head -c 16 /dev/urandom | md5sum")).split()[-2] for console in shells]
    assert numbers[0] != numbers[1], "the same numbers twice would be the same keys"
    await shells[0].run("mark=mine; echo mine >/file")
    assert "shared" in await shells[1].run("echo $mark; ls /file 2>/dev/null")
    assert "shared" in await shell.run("echo $mark")


async def test_a_clone_moves_and_is_copied_again(site: Site, node: Side) -> None:
    """Its memory is not all in the agent's view until it has to be."""
    origin = await boot(node, "origin", 1)
    shell = await Shell.attach(node, origin)
    await shell.run("dd if=/dev/urandom of=/f bs=64k count=64 2>/dev/null; sha256sum /f >/sum")
    await take(node, origin)
    twin = await clone(node, "twin")
    shell = await Shell.attach(node, twin)
    await shell.run("dd if=/dev/urandom of=/g bs=64k count=16 2>/dev/null; sha256sum /g >>/sum")
    again = await take(node, twin, "t")
    assert again.guest == twin.name
    async with process_side(site, "beta/b1", **SETTINGS) as other:
        moved = await move(node, other, twin)
        assert moved.state == Migration.SUCCEEDED, moved.failure
        shell = await Shell.attach(other, twin)
        checked = await shell.run("sha256sum -c /sum")
        assert "/f: OK" in checked and "/g: OK" in checked
