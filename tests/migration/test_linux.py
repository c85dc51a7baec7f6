"""Stock Debian moves between two real agents, in the middle of its work and of its traffic, and lives on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.agent.harness import MEBIBYTE, Site
from tests.migration.move import Migration, Side, begin, follow, permit, process_side

from serai.errors import SeraiError
from serai.images import ImageStore, build_debian
from serai.v1 import guest_pb2, link_pb2

pytestmark = pytest.mark.guest

Guest = guest_pb2.Guest


@dataclass
class Shell:
    """A guest's console, typed into by the test."""

    call: Any
    output: bytes = b""

    @classmethod
    async def attach(cls, side: Side, guest: Guest) -> Shell:
        call: Any = side.client.guests.AttachConsole()
        await call.write(guest_pb2.ConsoleInput(name=guest.name))
        shell = cls(call)
        shell.output = (await call.read()).data
        return shell

    async def type(self, line: str) -> None:
        await self.call.write(guest_pb2.ConsoleInput(data=line.encode() + b"\n"))

    async def until(self, pattern: bytes, seconds: float = 60) -> re.Match[bytes]:
        async with asyncio.timeout(seconds):
            while (found := re.search(pattern, self.output)) is None:
                self.output += (await self.call.read()).data
        return found

    async def run(self, line: str, seconds: float = 60) -> str:
        """Its output, once a mark that only the shell can compute has followed it."""
        self.output = b""
        await self.type(f"{line}; echo done-$((6*7))")
        found = await self.until(rb"(?s)\n(.*)done-42\r\n", seconds)
        return found.group(1).decode().replace("\r", "")


@pytest.fixture(scope="module", autouse=True)
def _debian() -> None:
    try:
        ImageStore().get("debian")
    except SeraiError:
        build_debian()


@pytest.fixture
async def sides(site: Site) -> AsyncIterator[tuple[Side, Side]]:
    settings: dict[str, Any] = {"driver": "emulated", "memory": 1024 * MEBIBYTE}
    async with (
        process_side(site, "alpha/a1", **settings) as one,
        process_side(site, "beta/b1", **settings) as other,
    ):
        yield one, other


async def boot(
    side: Side, guest_id: str, number: int, memory_bytes: int = 128 * MEBIBYTE, vcpus: int = 1
) -> Guest:
    startup = f"ip addr add 10.0.0.{number}/24 dev eth0\nip link set eth0 up\n"
    await side.client.create(
        guest_id,
        image="debian",
        vcpus=vcpus,
        memory_bytes=memory_bytes,
        interfaces=[guest_pb2.GuestInterface(name="eth0", mac=bytes([2, 0, 0, 0, 0, number]))],
        files=[guest_pb2.GuestFile(path="/etc/serai/startup", content=startup.encode(), mode=0o755)],
    )
    async with asyncio.timeout(60):
        while not (guest := await side.client.get(guest_id)).ready:
            await side.client.until(lambda it: it.ready or it.state != Guest.RUNNING, guest_id)
    return guest


async def link(side: Side, name: str, a: link_pb2.AttachmentPoint, b: link_pb2.AttachmentPoint) -> None:
    segment = link_pb2.Segment(a=a, b=b)
    await side.client.segments.CreateSegment(link_pb2.CreateSegmentRequest(segment_id=name, segment=segment))


def port(guest: Guest) -> link_pb2.AttachmentPoint:
    return link_pb2.AttachmentPoint(port=link_pb2.GuestPort(guest_uid=guest.uid, interface="eth0"))


def label(side: Side, number: int) -> link_pb2.AttachmentPoint:
    peer = link_pb2.PeerLabel(node=side.node, control_address=side.address, label=number)
    return link_pb2.AttachmentPoint(peer=peer)


async def move(source: Side, destination: Side, guest: Guest) -> Migration:
    token = await permit(destination, guest, source.node, guest.name.removeprefix("guests/"))
    return await follow(source, (await begin(source, destination, guest, token=token)).name)


async def test_debian_moves_in_the_middle_of_traffic_and_work(sides: tuple[Side, Side]) -> None:
    source, destination = sides
    mover, peer = await asyncio.gather(boot(source, "mover", 1), boot(destination, "peer", 2))
    await link(source, "out", port(mover), label(destination, 7))
    await link(destination, "out", port(peer), label(source, 7))
    shell, other = await Shell.attach(source, mover), await Shell.attach(destination, peer)
    assert "0% packet loss" in await other.run("ping -c 5 -i 0.1 10.0.0.1")
    await shell.type("i=0; while :; do i=$((i+1)); echo count-$i; sleep 0.05; done")
    await shell.until(rb"count-10\r")
    await other.type("ping -c 100 -i 0.05 10.0.0.1; echo over-$((40+2))")
    await other.until(rb"seq=5 ")
    await link(destination, "new", port(mover), port(peer))
    moved = await move(source, destination, mover)
    assert moved.state == Migration.SUCCEEDED, moved.failure
    await destination.client.segments.ActivateSegment(link_pb2.ActivateSegmentRequest(name="segments/new"))
    assert moved.report.digest_source == moved.report.digest_destination
    there = await Shell.attach(destination, mover)
    last = max(int(number) for number in re.findall(rb"count-(\d+)\r", shell.output + there.output))
    await there.until(b"count-%d\r" % (last + 10))
    await other.until(rb"over-42")
    assert b"100 packets transmitted, 100 packets received" in other.output
    assert moved.report.downtime_ms < 1000


def descendants(pid: int) -> set[int]:
    """Processes below `pid`, which is not among them."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= more
    return found


def alive(pids: set[int]) -> set[int]:
    """Those that have neither ended nor wait as zombies for somebody to read their exit status."""
    states = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            states[pid] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return {pid for pid, state in states.items() if state != "Z"}


async def test_a_killed_agent_leaves_no_guest_running(sides: tuple[Side, Side]) -> None:
    source, other = sides
    await asyncio.gather(boot(source, "one", 1), boot(other, "two", 2))
    assert source.process is not None
    processes = descendants(source.process.process.pid)
    assert len(processes) >= 2, "the zygote and the guest"
    await source.process.kill()
    async with asyncio.timeout(10):
        while alive(processes):  # noqa: ASYNC110 - other processes set no event
            await asyncio.sleep(0.05)
    assert (await other.client.get("two")).state == Guest.RUNNING


async def test_a_killed_guest_is_reported_and_harms_nobody(sides: tuple[Side, Side]) -> None:
    source, _ = sides
    await asyncio.gather(boot(source, "victim", 1), boot(source, "neighbour", 2))
    assert source.process is not None
    guests = [pid for pid in descendants(source.process.process.pid) if b"serai-" in maps(pid)]
    victim = (await source.client.get("victim")).uid.encode()
    (pid,) = [pid for pid in guests if victim in maps(pid) and pid != source.process.process.pid]
    os.kill(pid, signal.SIGKILL)
    failed = await source.client.until(lambda guest: guest.state == Guest.FAILED, "victim")
    assert "SIGKILL" in failed.status_message
    shell = await Shell.attach(source, await source.client.get("neighbour"))
    assert "42" in await shell.run("echo $((40+2))")


def maps(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/maps").read_bytes()
    except OSError:
        return b""


async def test_a_working_guest_goes_there_and_back(sides: tuple[Side, Side]) -> None:
    """A file is copied and checked again and again; a page missed in any move would break its digest."""
    here, there = sides
    guest = await boot(here, "worker", 1)
    shell = await Shell.attach(here, guest)
    await shell.run("dd if=/dev/urandom of=/f bs=64k count=32 2>/dev/null; sha256sum /f >/sum")
    await shell.type(
        "while sha256sum -c -s /sum; do cp /f /g; mv /g /f; echo go-$((1+1)); done; echo B$((0))D"
    )
    downtimes = []
    for _ in range(4):
        await shell.until(rb"(?s)(go-2.*){3}")
        before = await here.client.guests.GetGuestStatistics(guest_pb2.GetGuestRequest(name=guest.name))
        moved = await move(here, there, guest)
        assert moved.state == Migration.SUCCEEDED, moved.failure
        downtimes.append(moved.report.downtime_ms)
        after = await there.client.guests.GetGuestStatistics(guest_pb2.GetGuestRequest(name=guest.name))
        assert after.instructions > before.instructions, "counters travel"
        here, there = there, here
        shell = await Shell.attach(here, guest)
        shell.output = b""
    await shell.until(rb"(?s)(go-2.*){3}")
    assert b"B0D" not in shell.output
    assert (await here.client.get("worker")).epoch == 5
    # The figure for people is in docs/migration.md; here it must only never be out of proportion.
    assert sorted(downtimes)[1] < 1000, downtimes


async def test_a_guest_of_two_vcpus_moves_and_is_resized_there(sides: tuple[Side, Side]) -> None:
    source, destination = sides
    guest = await boot(source, "pair", 1, vcpus=2)
    shell = await Shell.attach(source, guest)
    assert "2" in (await shell.run("nproc")).split()
    await shell.type("(while :; do :; done) & i=0; while :; do i=$((i+1)); echo count-$i; sleep 0.05; done")
    await shell.until(rb"count-10\r")
    moved = await move(source, destination, guest)
    assert moved.state == Migration.SUCCEEDED, moved.failure
    assert moved.report.digest_source == moved.report.digest_destination
    there = await Shell.attach(destination, guest)
    last = max(int(number) for number in re.findall(rb"count-(\d+)\r", shell.output + there.output))
    await there.until(b"count-%d\r" % (last + 20))
    size = await destination.client.guests.ResizeGuest(
        guest_pb2.ResizeGuestRequest(name=guest.name, vcpus=4, memory_bytes=192 * MEBIBYTE)
    )
    assert (size.guest_vcpus, size.vcpus, size.memory_bytes) == (4, 4, 192 * MEBIBYTE)
    back = await move(destination, source, await destination.client.get("pair"))
    assert back.state == Migration.SUCCEEDED, back.failure
    assert (await source.client.get("pair")).spec.vcpus == 4
