"""SIGKILL of either agent, real processes, at every phase: never two guests, never none without need."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.agent.harness import MEBIBYTE, Client, Site
from tests.migration.move import Migration, Side, begin, follow, permit, process_side, start_guest

from serai.errors import NotFoundError, UnavailableError
from serai.v1 import guest_pb2

Guest = guest_pb2.Guest


async def type_into(client: Client, line: str) -> Any:
    call = client.guests.AttachConsole()
    await call.write(guest_pb2.ConsoleInput(name="guests/g", data=line.encode() + b"\n"))
    return call


async def printed(client: Client, line: str, expected: bytes) -> bytes:
    """What the guest prints after `line` up to a line that ends with `expected`."""
    call = await type_into(client, line)
    output = b""
    async with asyncio.timeout(10):
        while expected not in output:
            message = await call.read()
            output += b"" if message.scrollback else message.data
    call.cancel()
    return output


async def until_state(client: Client, state: int) -> Guest:
    return await client.until(lambda guest: guest.state == state)


@contextlib.asynccontextmanager
async def both(
    site: Site, *, source: str = "", destination: str = "", **settings: Any
) -> AsyncIterator[tuple[Side, Side, Guest]]:
    """Two agent processes with faults laid in, and a guest at the first one."""
    async with (
        process_side(site, "alpha/a1", environment={"FAULTS": source}, **settings) as one,
        process_side(site, "beta/b1", environment={"FAULTS": destination}, **settings) as other,
    ):
        yield one, other, await start_guest(one, 8 * MEBIBYTE)


async def kill(side: Side) -> None:
    assert side.process is not None
    await side.process.kill()


def again(site: Site, side: Side) -> Any:
    """The same node at the same addresses, as its operator would start it again."""
    assert side.process is not None
    addresses = {
        "listen": side.process.announced["control_address"],
        "data_listen": side.process.announced["data_address"],
    }
    return process_side(site, side.node, **addresses)


async def test_a_busy_guest_moves_between_processes(site: Site) -> None:
    async with both(site) as (source, destination, guest):
        (await type_into(source.client, "busy 5000")).cancel()
        moved = await follow(source, (await begin(source, destination, guest)).name)
        assert moved.state == Migration.SUCCEEDED, moved.failure
        assert moved.report.digest_source == moved.report.digest_destination
        assert b"steps" in await printed(destination.client, "steps", b"steps\r\n")
        with pytest.raises(NotFoundError):
            await source.client.get()


@pytest.mark.parametrize(
    ("fault", "bandwidth"),
    [("create_incoming=die", 0), ("", 8_000_000), ("restore=die", 0)],
    ids=["prepare", "stream", "verify"],
)
async def test_the_destination_is_killed_before_hand_over(site: Site, fault: str, bandwidth: int) -> None:
    async with both(site, destination=fault) as (source, destination, guest):
        (await type_into(source.client, "busy 2000")).cancel()
        await printed(source.client, "sum", b"\r\n")
        begun = await begin(source, destination, guest, bandwidth_bps=bandwidth)
        if not fault:
            await follow(source, begun.name, lambda it: it.steps[1].state == 2)
            await kill(destination)
        failed = await follow(source, begun.name)
        assert failed.state == Migration.FAILED and failed.failure.message
        now = await source.client.get()
        assert (now.state, now.epoch) == (Guest.RUNNING, 1)
        assert b"steps" in await printed(source.client, "steps", b"steps\r\n")
        async with again(site, destination) as restarted:
            with pytest.raises(NotFoundError):
                await restarted.client.get()
            moved = await follow(source, (await begin(source, restarted, guest)).name)
            assert moved.state == Migration.SUCCEEDED, moved.failure


async def test_the_destination_is_killed_before_it_recorded(site: Site) -> None:
    """The commit was on its way: the destination never owned the guest, so the source takes it back."""
    async with both(site, destination="own=hang") as (source, destination, guest):
        begun = await begin(source, destination, guest)
        await follow(source, begun.name, lambda it: it.steps[4].state == 2)
        await kill(destination)
        undecided = await follow(source, begun.name, lambda it: it.state == Migration.UNDECIDED)
        assert undecided.state == Migration.UNDECIDED
        assert (await source.client.get()).state == Guest.OUTGOING
        async with again(site, destination) as restarted:
            failed = await follow(source, begun.name)
            assert (failed.state, failed.failure.reason) == (Migration.FAILED, "DESTINATION_LOST")
            now = await source.client.get()
            assert (now.state, now.epoch) == (Guest.RUNNING, 3)
            with pytest.raises(NotFoundError):
                await restarted.client.get()


async def test_the_destination_is_killed_after_it_recorded(site: Site) -> None:
    """It owned the guest and never ran it: it says so when it is back, and gives the guest back durably."""
    async with both(site, destination="own=die") as (source, destination, guest):
        begun = await begin(source, destination, guest)
        await follow(source, begun.name, lambda it: it.state == Migration.UNDECIDED)
        assert (await source.client.get()).state == Guest.OUTGOING
        async with again(site, destination) as restarted:
            failed = await follow(source, begun.name)
            assert (failed.state, failed.failure.reason) == (Migration.FAILED, "DESTINATION_LOST")
            assert (await until_state(source.client, Guest.RUNNING)).epoch == 3
            with pytest.raises(NotFoundError):
                await restarted.client.get()
            moved = await follow(source, (await begin(source, restarted, guest)).name)
            assert moved.state == Migration.SUCCEEDED
            assert (await restarted.client.get()).epoch == 4


async def test_the_source_is_killed_while_it_streams(site: Site) -> None:
    async with both(site) as (source, destination, guest):
        (await type_into(source.client, "busy 2000")).cancel()
        begun = await begin(source, destination, guest, bandwidth_bps=8_000_000)
        await follow(source, begun.name, lambda it: it.steps[1].state == 2)
        assert (await destination.client.get()).state == Guest.INCOMING
        await kill(source)
        async with asyncio.timeout(15):
            with pytest.raises(NotFoundError):
                while True:
                    await destination.client.get()
                    await asyncio.sleep(0.05)
        async with again(site, source) as restarted:
            assert (await restarted.client.get()).state == Guest.FAILED


async def test_the_source_is_killed_after_the_hand_over(site: Site) -> None:
    """The destination holds everything: as soon as the source is back, its record decides."""
    async with both(site, source="hand_over=die") as (source, destination, guest):
        begun = await begin(source, destination, guest)
        with pytest.raises(UnavailableError):
            await follow(source, begun.name)
        assert (await destination.client.get()).state == Guest.INCOMING
        async with again(site, source) as restarted:
            now = await until_state(destination.client, Guest.RUNNING)
            assert now.epoch == 2
            assert b"steps" in await printed(destination.client, "steps", b"steps\r\n")
            with pytest.raises(NotFoundError):
                await restarted.client.get()


async def test_a_destination_left_alone_asks_the_source_itself(site: Site) -> None:
    """The source is back but its own question gets lost: its record is enough for the destination."""
    async with both(site, source="hand_over=die", stream_timeout_s=1) as (source, destination, guest):
        begun = await begin(source, destination, guest)
        with pytest.raises(UnavailableError):
            await follow(source, begun.name)
        assert source.process is not None
        listen = source.process.announced["control_address"]
        environment = {"FAULTS": "settle=never"}
        async with process_side(site, "alpha/a1", listen=listen, environment=environment):
            assert (await until_state(destination.client, Guest.RUNNING)).epoch == 2


async def test_both_are_killed_after_the_hand_over(site: Site) -> None:
    """Every copy is lost with its agent; nobody pretends to have one, and the records agree on an owner."""
    async with both(site, source="hand_over=die") as (source, destination, guest):
        begun = await begin(source, destination, guest)
        with pytest.raises(UnavailableError):
            await follow(source, begun.name)
        await kill(destination)
        async with again(site, source) as one, again(site, destination) as other:
            now = await until_state(one.client, Guest.FAILED)
            assert now.epoch == 3
            with pytest.raises(NotFoundError):
                await other.client.get()
            token = await permit(other, now, "alpha/a1")
            assert token
