"""Guests move between two real agents (real gRPC, real TCP, fake guests) and go on as if they had stayed."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest
from tests.agent.harness import MEBIBYTE
from tests.migration.move import Migration, Side, begin, eventually, follow, move, permit, start_guest

from serai.errors import (
    AlreadyExistsError,
    InvalidInputError,
    NotFoundError,
    StateError,
)
from serai.hypervisor.driver import GuestState
from serai.migration.source import Phase
from serai.v1 import guest_pb2, migration_pb2, operation_pb2

Guest = guest_pb2.Guest


async def test_a_busy_guest_moves_and_lives_on(source: Side, destination: Side) -> None:
    guest = await start_guest(source, 16 * MEBIBYTE)
    left = source.guest
    left.keep_busy(20_000, working_set_pages=300)
    left.print(b"before")
    moved = await move(source, destination, guest)
    assert moved.state == Migration.SUCCEEDED, moved.failure
    arrived = destination.guest
    assert arrived.state is GuestState.RUNNING and left.state is GuestState.STOPPED
    assert arrived.steps == left.steps > 0
    assert hashlib.sha256(arrived.ram).digest() == hashlib.sha256(left.ram).digest()
    assert arrived.elapsed_ns > 0 and b"before" in arrived.read_scrollback()
    now = await destination.client.get()
    assert (now.uid, now.epoch, now.state, now.ready) == (guest.uid, 2, Guest.RUNNING, True)
    assert (now.create_time, now.kernel_release) == (guest.create_time, guest.kernel_release)
    with pytest.raises(NotFoundError):
        await source.client.get()
    assert source.here.capacity.allocated.memory_bytes == 0


async def test_the_report_is_filled(source: Side, destination: Side) -> None:
    guest = await start_guest(source)
    moved = await move(source, destination, guest)
    report = moved.report
    assert (report.mode, report.source_node, report.destination_node) == ("pre-copy", "alpha/a1", "beta/b1")
    assert report.rounds >= 2 == moved.rounds[1].number
    assert report.bytes_sent == sum(item.bytes for item in moved.rounds) + 40
    assert report.digest_source == report.digest_destination and len(report.digest_source) == 64
    assert 0 < report.downtime_ms < report.total_ms
    assert set(moved.downtime_parts_ms) == {
        "stop",
        "final pages",
        "state",
        "digest",
        "verify",
        "commit",
        "resume",
    }
    assert [step.name for step in moved.steps] == [phase.value for phase in Phase]
    assert {step.state for step in moved.steps} == {operation_pb2.Step.DONE}
    # 16 pages hold something, all others are zero and cost nothing.
    assert moved.rounds[0].pages == 16 and moved.rounds[0].zero_pages == 8 * 256 - 16


async def test_pages_that_become_zero_are_cleared_there(source: Side, destination: Side) -> None:
    guest = await start_guest(source)
    left = source.guest
    left.write_memory(0, b"x" * 3 * MEBIBYTE)
    begun = await begin(source, destination, guest, bandwidth_bps=24_000_000)
    await follow(source, begun.name, lambda migration: 0.1 < migration.steps[1].progress < 1)
    left.write_memory(0, bytes(40960))
    moved = await follow(source, begun.name)
    assert moved.state == Migration.SUCCEEDED and moved.rounds[-1].zero_pages == 10
    assert bytes(destination.guest.ram[:40960]) == bytes(40960)
    assert bytes(destination.guest.ram[40960:50000]) == b"x" * (50000 - 40960)


async def test_there_and_back_with_rising_epochs(source: Side, destination: Side) -> None:
    guest = await start_guest(source)
    for turn in range(3):
        source.guest.run(5)
        assert (await move(source, destination, guest)).state == Migration.SUCCEEDED
        destination.guest.run(5)
        assert (await move(destination, source, guest)).state == Migration.SUCCEEDED
        assert (await source.client.get()).epoch == 3 + 2 * turn
    assert source.guest.steps == 30
    assert source.here.data_plane.port_state(guest.uid, "eth0").value == "bound"


async def test_console_says_where_the_guest_went(source: Side, destination: Side) -> None:
    guest = await start_guest(source)
    call: Any = source.client.guests.AttachConsole()
    await call.write(guest_pb2.ConsoleInput(name=guest.name))
    assert (await call.read()).scrollback
    await move(source, destination, guest)
    with pytest.raises(StateError) as caught:
        while True:
            await call.read()
    assert caught.value.reason == "GUEST_MOVED"
    assert caught.value.metadata == {"node": "beta/b1", "address": destination.address}
    again: Any = destination.client.guests.AttachConsole()
    await again.write(guest_pb2.ConsoleInput(name=guest.name))
    assert b"fake guest ready" in (await again.read()).data
    again.cancel()


async def test_frames_for_a_moving_guest_are_held_and_follow_it_in_order(
    source: Side, destination: Side
) -> None:
    guest = await start_guest(source)
    receive = source.here.data_plane._ports.values().__iter__().__next__().receive
    sent = [b"%-60d" % number for number in range(400)]
    frames = iter(sent)

    async def trickle() -> None:
        for frame in frames:
            receive([frame])
            await asyncio.sleep(0.001)

    sending = asyncio.create_task(trickle())
    await asyncio.sleep(0.02)
    assert (await move(source, destination, guest)).state == Migration.SUCCEEDED
    await sending
    await eventually(lambda: len(destination.guest.port("eth0").received) == 400, "all frames arrive")
    assert list(destination.guest.port("eth0").received) == sent


async def test_redirection_ends_when_the_guest_is_deleted_at_the_source(
    source: Side, destination: Side
) -> None:
    guest = await start_guest(source)
    await move(source, destination, guest)
    data_plane = source.here.data_plane
    assert data_plane.port_state(guest.uid, "eth0").value == "redirected"
    await source.client.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name=guest.name))
    with pytest.raises(NotFoundError):
        data_plane.port_state(guest.uid, "eth0")
    assert (await destination.client.get()).state == Guest.RUNNING


async def test_a_request_id_gives_one_migration(source: Side, destination: Side) -> None:
    guest = await start_guest(source)
    request = migration_pb2.MigrateGuestRequest(
        name=guest.name,
        destination_node="beta/b1",
        destination_address=destination.address,
        permit=await permit(destination, guest, "alpha/a1"),
        request_id="r",
    )
    first = await source.client.migrations.MigrateGuest(request)
    assert (await source.client.migrations.MigrateGuest(request)).name == first.name
    await follow(source, first.name)
    assert (await source.client.migrations.MigrateGuest(request)).name == first.name
    listed = await source.client.migrations.ListMigrations(migration_pb2.ListMigrationsRequest())
    assert [item.name for item in listed.migrations] == [first.name]


async def test_what_can_be_known_before_is_refused_before(source: Side, destination: Side) -> None:
    guest = await start_guest(source)
    token = await permit(destination, guest, "alpha/a1")
    same = Side("alpha/a1", source.client, source.address)
    with pytest.raises(InvalidInputError, match="on alpha/a1 already"):
        await begin(source, same, guest, token=token)
    with pytest.raises(InvalidInputError, match="permit"):
        await source.client.migrations.MigrateGuest(
            migration_pb2.MigrateGuestRequest(name=guest.name, destination_node="beta/b1")
        )
    with pytest.raises(InvalidInputError, match="max_downtime_ms"):
        await begin(source, destination, guest, token=token, max_downtime_ms=-1)
    with pytest.raises(NotFoundError):
        await begin(source, destination, Guest(name="guests/nobody"), token=token)
    with pytest.raises(InvalidInputError, match="already"):
        await permit(source, guest, "alpha/a1")
    await source.client.guests.StopGuest(guest_pb2.StopGuestRequest(name=guest.name))
    with pytest.raises(StateError, match="stopped"):
        await begin(source, destination, guest, token=token)


async def test_one_migration_at_a_time_and_no_other_change_meanwhile(source: Side, destination: Side) -> None:
    guest = await start_guest(source)
    source.guest.run(2000)
    begun = await begin(source, destination, guest, bandwidth_bps=8_000_000)
    with pytest.raises(StateError, match="moves it"):
        await begin(source, destination, guest, token=b"another")
    with pytest.raises(StateError, match="moves it"):
        await source.client.guests.StopGuest(guest_pb2.StopGuestRequest(name=guest.name))
    with pytest.raises(AlreadyExistsError):
        await permit(destination, guest, "gamma/c1")
    await source.client.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name=guest.name))
    assert (await follow(source, begun.name)).state == Migration.CANCELLED
    await eventually(lambda: not destination.here.inventory.find(guest.uid), "the destination forgets")
    assert not source.driver.guests if source.driver else False


async def test_a_permit_serves_once_expires_and_can_be_revoked(source: Side, destination: Side) -> None:
    guest = await start_guest(source)
    token = await permit(destination, guest, "alpha/a1")
    await destination.client.migrations.RevokeArrival(migration_pb2.RevokeArrivalRequest(permit=token))
    assert destination.here.capacity.allocated.vcpus == 0
    refused = await follow(source, (await begin(source, destination, guest, token=token)).name)
    assert refused.state == Migration.FAILED and refused.failure.reason == "NOT_PERMITTED"
    elsewhere = await permit(destination, guest, "gamma/c1")
    refused = await follow(source, (await begin(source, destination, guest, token=elsewhere)).name)
    assert refused.failure.reason == "NOT_PERMITTED"
    await destination.client.migrations.PermitArrival(
        migration_pb2.PermitArrivalRequest(
            guest_uid="other", source_node="alpha/a1", spec=guest.spec, guest_id="h", expires_in_s=0.05
        )
    )
    await eventually(lambda: destination.here.capacity.allocated.vcpus == 1, "the permit expires")
    assert (await source.client.get()).state == Guest.RUNNING
