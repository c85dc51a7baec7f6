"""Every way to move a guest: what it computes stays the same, and nothing of it is lost with a link."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
from tests.migration.move import Migration, Side, begin, eventually, follow, move, start_guest

from serai.errors import NotFoundError, StateError
from serai.hypervisor.driver import GuestState
from serai.v1 import guest_pb2, migration_pb2

Options = migration_pb2.MigrationOptions
MODES = [Options.PRE_COPY, Options.POST_COPY, Options.HYBRID, Options.OFFLINE, Options.AUTO]
NAMES = {1: "pre-copy", 2: "post-copy", 3: "hybrid", 4: "offline"}


@pytest.mark.parametrize("mode", MODES)
async def test_a_busy_guest_moves_in_every_mode(source: Side, destination: Side, mode: int) -> None:
    guest = await start_guest(source)
    source.guest.run(3000)
    source.guest.keep_busy(20_000)
    left = source.guest
    moved = await move(source, destination, guest, mode=mode)
    assert moved.state == Migration.SUCCEEDED, moved.failure
    assert moved.report.digest_source == moved.report.digest_destination
    assert moved.report.mode == NAMES.get(mode, moved.report.mode)
    arrived = destination.guest
    assert arrived.state is GuestState.RUNNING and arrived.steps >= 3000
    assert not any(arrived.absent)
    with pytest.raises(NotFoundError):
        await source.client.get()
    if mode in (Options.POST_COPY, Options.OFFLINE):
        assert hashlib.sha256(arrived.ram).digest() == hashlib.sha256(left.ram).digest()
    moved = await move(destination, source, await destination.client.get(), mode=mode)
    assert moved.state == Migration.SUCCEEDED, moved.failure


async def test_auto_switches_when_pre_copy_does_not_converge(source: Side, destination: Side) -> None:
    guest = await start_guest(source)
    source.guest.run(3000)
    source.guest.keep_busy(100_000)
    moved = await move(source, destination, guest, bandwidth_bps=80_000_000, max_downtime_ms=5)
    assert moved.state == Migration.SUCCEEDED, moved.failure
    assert moved.report.mode == "hybrid"
    assert moved.report.downtime_ms < 100


async def test_what_the_guest_waits_for_overtakes_the_rest(source: Side, destination: Side) -> None:
    guest = await start_guest(source, 32 << 20)
    source.guest.run(8000)
    begun = await begin(source, destination, guest, mode=Options.POST_COPY, bandwidth_bps=40_000_000)
    await follow(source, begun.name, lambda it: it.steps[5].state == 2)
    there = destination.guest
    page = max(page for page in range(len(there.absent)) if there.absent[page])
    asked: list[int] = []
    listener = there._absent_listener
    assert listener is not None and there.absent[page]
    asked.append(page)
    listener(asked)
    await eventually(lambda: not there.absent[page], "the page came")
    assert any(there.absent), "long before the others"
    moved = await follow(source, begun.name)
    assert moved.state == Migration.SUCCEEDED and moved.pages_requested >= 1


async def test_a_lost_link_keeps_both_halves_and_recover_goes_on(source: Side, destination: Side) -> None:
    guest = await start_guest(source, 32 << 20)
    source.guest.run(8000)
    left = source.guest
    expected = hashlib.sha256(left.ram).digest()
    begun = await begin(source, destination, guest, mode=Options.POST_COPY, bandwidth_bps=60_000_000)
    await follow(source, begun.name, lambda it: it.steps[5].progress > 0.1)
    (arrival,) = destination.here.arrivals._arrivals.values()
    assert arrival._stream is not None
    arrival._stream.shutdown()
    lost = await follow(source, begun.name, lambda it: it.state == Migration.LINK_LOST)
    assert lost.state == Migration.LINK_LOST and lost.remaining_pages
    assert left.state is GuestState.PAUSED and destination.guest.state is GuestState.RUNNING
    assert any(destination.guest.absent)
    with pytest.raises(StateError, match=r"while migrations/.* moves it"):
        await begin(destination, source, await destination.client.get(), token=b"none")
    await source.client.migrations.RecoverMigration(migration_pb2.GetMigrationRequest(name=begun.name))
    moved = await follow(source, begun.name)
    assert moved.state == Migration.SUCCEEDED, moved.failure
    assert not any(destination.guest.absent)
    assert hashlib.sha256(destination.guest.ram).digest() == expected


async def test_there_is_nothing_to_recover_otherwise(source: Side, destination: Side) -> None:
    guest = await start_guest(source)
    moved = await move(source, destination, guest)
    with pytest.raises(StateError, match="is over"):
        await source.client.migrations.RecoverMigration(migration_pb2.GetMigrationRequest(name=moved.name))


async def test_a_guest_that_ends_while_pages_follow_ends_the_migration(
    source: Side, destination: Side
) -> None:
    guest = await start_guest(source, 32 << 20)
    source.guest.run(8000)
    begun = await begin(source, destination, guest, mode=Options.POST_COPY, bandwidth_bps=20_000_000)
    await follow(source, begun.name, lambda it: it.steps[5].progress > 0.05)
    await destination.client.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name=guest.name))
    async with asyncio.timeout(20):
        over = await follow(source, begun.name)
    assert over.state == Migration.SUCCEEDED
    assert source.driver is not None and source.driver.guests == {}
