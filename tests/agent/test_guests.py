"""Guests over gRPC: lifecycle, failure, consoles, admission, restarts; real agents with fake guests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.agent.harness import MEBIBYTE, Client, Site, make_spec

from serai.errors import (
    AlreadyExistsError,
    CapacityError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    StateError,
)
from serai.hypervisor.fake import FakeDriver
from serai.v1 import guest_pb2, node_pb2
from serai.wire.identity import Role

Guest = guest_pb2.Guest


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
async def client(site: Site, driver: FakeDriver) -> AsyncIterator[Client]:
    async with site.agent("alpha/a1", driver) as agent, site.connect(agent) as client:
        yield client


def only(driver: FakeDriver) -> Any:
    (guest,) = driver.guests.values()
    return guest


async def test_life_of_a_guest(client: Client, driver: FakeDriver) -> None:
    spec = make_spec(labels={"vnet": "demo"})
    created = await client.guests.CreateGuest(guest_pb2.CreateGuestRequest(guest_id="g", spec=spec))
    assert (created.state, created.epoch, created.spec) == (Guest.DEFINED, 1, spec)
    started = await client.guests.StartGuest(guest_pb2.StartGuestRequest(name="guests/g"))
    assert started.state == Guest.RUNNING and started.uid == created.uid
    ready = await client.until(lambda guest: guest.ready)
    assert ready.kernel_release == "fake" and ready.HasField("ready_time")
    only(driver).run(7)
    counters = await client.guests.GetGuestStatistics(guest_pb2.GetGuestRequest(name="guests/g"))
    assert counters.instructions == 7 and counters.boot_seconds > 0
    stopped = await client.guests.StopGuest(guest_pb2.StopGuestRequest(name="guests/g", grace_seconds=1))
    assert (stopped.state, stopped.status_message) == (Guest.STOPPED, "powered off")
    again = await client.guests.StartGuest(guest_pb2.StartGuestRequest(name="guests/g"))
    assert again.state == Guest.RUNNING and again.uid == created.uid and not again.ready
    assert only(driver).steps == 0, "it booted afresh"
    await client.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name="guests/g"))
    assert driver.guests == {}
    with pytest.raises(NotFoundError, match="guests/g"):
        await client.get()
    with pytest.raises(NotFoundError):
        await client.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name="guests/g"))
    await client.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name="guests/g", allow_missing=True))


async def test_a_request_id_gives_one_guest(client: Client, driver: FakeDriver) -> None:
    request = guest_pb2.CreateGuestRequest(guest_id="g", spec=make_spec(), start=True, request_id="r1")
    guests = await asyncio.gather(*(client.guests.CreateGuest(request) for _ in range(5)))
    assert len({guest.uid for guest in guests}) == 1 and len(driver.guests) == 1
    with pytest.raises(AlreadyExistsError):
        await client.create("g")
    request.spec.vcpus = 2
    with pytest.raises(InvalidInputError, match="r1"):
        await client.guests.CreateGuest(request)


async def test_admission_names_what_is_short_and_what_is_left(client: Client) -> None:
    await client.create("a", memory_bytes=60 * MEBIBYTE)
    with pytest.raises(CapacityError, match="memory") as caught:
        await client.create("b", memory_bytes=8 * MEBIBYTE)
    assert caught.value.metadata["asked"] == str(8 * MEBIBYTE)
    assert caught.value.metadata["left"] == str(4 * MEBIBYTE)
    with pytest.raises(CapacityError, match="vCPUs: 8 asked, 7 left"):
        await client.create("b", vcpus=8)
    await client.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name="guests/a"))
    await client.create("b", memory_bytes=64 * MEBIBYTE, vcpus=8)
    node = await client.node.GetNode(node_pb2.GetNodeRequest())
    assert (node.allocated, node.guest_count) == (node.capacity, 1)


async def test_a_guest_that_cannot_start_leaves_nothing(client: Client, driver: FakeDriver) -> None:
    driver.fail("start", CapacityError("no room"))
    with pytest.raises(CapacityError, match="no room"):
        await client.create()
    assert driver.guests == {}
    assert (await client.node.GetNode(node_pb2.GetNodeRequest())).allocated.vcpus == 0
    await client.create()


@pytest.mark.parametrize(
    ("guest_id", "changes", "message"),
    [
        ("No_Good", {}, "No_Good"),
        ("g", {"vcpus": 0}, "vcpus"),
        ("g", {"memory_bytes": 5000}, "memory_bytes"),
        ("g", {"interfaces": [guest_pb2.GuestInterface(name="eth0", mac=b"\x01" + bytes(5))]}, "mac"),
        ("g", {"interfaces": [guest_pb2.GuestInterface(name="eth0", mac=b"\x02" + bytes(5))] * 2}, "repeat"),
        ("g", {"files": [guest_pb2.GuestFile(path="/etc/../shadow")]}, "shadow"),
        ("g", {"files": [guest_pb2.GuestFile(path="relative")]}, "relative"),
        ("g", {"files": [guest_pb2.GuestFile(path="/a", mode=0o100644)]}, "mode"),
    ],
)
async def test_bad_specs_are_refused(
    client: Client, guest_id: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        await client.create(guest_id, **changes)


async def test_a_crash_is_reported_and_harms_nobody(client: Client, driver: FakeDriver) -> None:
    victim = await client.create("victim")
    await client.create("neighbour")
    driver.guests[victim.uid].crash("killed by SIGSEGV")
    failed = await client.until(lambda guest: guest.state == Guest.FAILED, "victim")
    assert failed.status_message == "killed by SIGSEGV"
    assert (await client.get("neighbour")).state == Guest.RUNNING
    restarted = await client.guests.StartGuest(guest_pb2.StartGuestRequest(name="guests/victim"))
    assert (restarted.state, restarted.status_message) == (Guest.RUNNING, "")


async def test_list_in_pages(client: Client) -> None:
    for number in range(5):
        await client.create(f"g{number}", memory_bytes=4096)
    names, token = [], ""
    while True:
        page = await client.guests.ListGuests(guest_pb2.ListGuestsRequest(page_size=2, page_token=token))
        names += [guest.name for guest in page.guests]
        token = page.next_page_token
        if not token:
            break
    assert names == [f"guests/g{number}" for number in range(5)]
    with pytest.raises(InvalidInputError, match="page_token"):
        await client.guests.ListGuests(guest_pb2.ListGuestsRequest(page_token="?"))


async def test_watch_gives_all_then_changes(client: Client) -> None:
    await client.create("a")
    call: Any = client.guests.WatchGuests(guest_pb2.WatchGuestsRequest())
    seen = [await call.read(), await call.read()]
    assert seen[0].guest.name == "guests/a" and seen[1].synchronized
    await client.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name="guests/a"))
    async with asyncio.timeout(10):
        while not (change := await call.read()).deleted:
            pass
    assert change.guest.name == "guests/a"
    call.cancel()


async def test_heartbeats_come_at_least_every_second(client: Client) -> None:
    call: Any = client.node.WatchNode(node_pb2.WatchNodeRequest())
    first = await call.read()
    assert (first.name, first.provider, first.state) == ("nodes/a1", "alpha", node_pb2.Node.READY)
    loop = asyncio.get_running_loop()
    for _ in range(3):
        before = loop.time()
        await call.read()
        assert loop.time() - before < 1.0
    call.cancel()


async def attach(client: Client, *typed: bytes) -> Any:
    call = client.guests.AttachConsole()
    await call.write(guest_pb2.ConsoleInput(name="guests/g"))
    for data in typed:
        await call.write(guest_pb2.ConsoleInput(data=data))
    return call


async def read_until(call: Any, expected: bytes) -> bytes:
    data = b""
    async with asyncio.timeout(10):
        while expected not in data:
            data += (await call.read()).data
    return data


async def test_consoles(client: Client, driver: FakeDriver) -> None:
    await client.create()
    await client.until(lambda guest: guest.ready)
    first = await attach(client)
    hello = await first.read()
    assert hello.scrollback and b"fake guest ready" in hello.data
    second = await attach(client, b"typed")
    assert b"typed" in await read_until(second, b"typed")
    assert b"typed" in await read_until(first, b"typed"), "both see the same console"
    guest = only(driver)
    await guest.pause()
    await guest.resume()
    guest.print(b"after the pause")
    await read_until(first, b"after the pause")
    await first.done_writing()
    assert await first.read() is grpc.aio.EOF
    guest.print(b"one left")
    await read_until(second, b"one left")
    second.cancel()


async def test_a_slow_attacher_loses_output_and_is_told(client: Client, driver: FakeDriver) -> None:
    await client.create()
    call = await attach(client)
    assert (await call.read()).scrollback
    guest = only(driver)
    for number in range(3000):
        guest.print(b"%07d " % number * 128)
        if number % 100 == 0:
            await asyncio.sleep(0)
    guest.print(b"the end")
    data = await read_until(call, b"the end")
    assert b"bytes lost: read too slowly" in data and len(data) < 3_000_000
    call.cancel()


async def test_console_of_nobody(client: Client) -> None:
    call = await attach(client)
    with pytest.raises(NotFoundError):
        await call.read()


async def test_sigterm_stops_the_guests_and_exits_0(site: Site, tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    async with site.process("alpha/a1", ready_file=ready) as agent:
        assert agent.control_address in ready.read_text()
        async with site.connect(agent) as client:
            await client.create()
            watch: Any = client.node.WatchNode(node_pb2.WatchNodeRequest())
            await watch.read()
            code = await agent.terminate()
            heartbeats = []
            while (heartbeat := await watch.read()) is not grpc.aio.EOF:
                heartbeats.append(heartbeat)
        assert code == 0, agent.errors
        assert heartbeats[-1].state == node_pb2.Node.STOPPING
        assert not ready.exists()
    async with site.process("alpha/a1") as agent, site.connect(agent) as client:
        guest = await client.get()
        assert guest.state == Guest.STOPPED
        await client.guests.StartGuest(guest_pb2.StartGuestRequest(name="guests/g"))
        await client.until(lambda guest: guest.ready)


async def test_a_killed_agent_owns_its_guests_as_failed_when_it_is_back(site: Site) -> None:
    async with site.process("alpha/a1") as agent:
        async with site.connect(agent) as client:
            request = guest_pb2.CreateGuestRequest(guest_id="g", spec=make_spec(), start=True, request_id="r")
            created = await client.guests.CreateGuest(request)
            await client.until(lambda guest: guest.ready)
        await agent.kill()
    async with site.process("alpha/a1") as agent, site.connect(agent) as client:
        guest = await client.get()
        assert (guest.uid, guest.state) == (created.uid, Guest.FAILED)
        assert "agent ended" in guest.status_message
        assert (await client.guests.CreateGuest(request)).uid == created.uid
        with pytest.raises(StateError, match="console"):
            await (await attach(client)).read()
        await client.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name="guests/g"))


async def test_two_agents_cannot_share_a_state_directory(site: Site) -> None:
    async with site.process("alpha/a1") as first, site.process("alpha/a1") as second:
        assert first.announced and not second.announced
        assert await second.wait() == 1
        assert "another agent uses" in "".join(second.errors)


async def test_a_busy_port_and_wrong_settings_are_clear(site: Site) -> None:
    async with site.process("alpha/a1") as first:
        async with site.process("alpha/a2", listen=first.control_address) as second:
            assert await second.wait() == 1
            assert "in use" in "".join(second.errors)
        async with site.process("alpha/a3", vcpus=0, listen="nowhere") as third:
            assert await third.wait() == 2
            assert "vcpus" in "".join(third.errors) and "listen" in "".join(third.errors)
        wrong = site.settings("alpha/a1")["credentials"]
        async with site.process("alpha/a4", credentials=wrong) as fourth:
            assert await fourth.wait() == 2
            assert "agent/alpha/a1" in "".join(fourth.errors)


async def test_another_provider_is_refused(site: Site) -> None:
    async with site.agent("alpha/a1") as agent:
        async with site.connect(agent, Role.PIP, "beta") as client:
            with pytest.raises(ForbiddenError, match="alpha") as caught:
                await client.create()
            assert caught.value.reason == "OTHER_PROVIDER"
        async with site.connect(agent, Role.ADMIN, "local") as client:
            assert (await client.create()).state == Guest.RUNNING
