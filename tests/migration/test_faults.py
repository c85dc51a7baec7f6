"""Whatever goes wrong before hand-over, the guest goes on at the source and the next attempt succeeds."""

from __future__ import annotations

import asyncio

import pytest
from tests.agent.harness import MEBIBYTE, Site
from tests.migration.faults import Cable, GatedDriver
from tests.migration.move import Migration, Side, begin, eventually, follow, move, permit, side, start_guest

from serai.errors import CapacityError, HypervisorError, MigrationError
from serai.hypervisor.driver import GuestState
from serai.migration import outgoing
from serai.v1 import guest_pb2, migration_pb2

Guest = guest_pb2.Guest


async def expect_at_home(source: Side, destination: Side, guest: Guest, steps: int) -> None:
    """It runs at the source with its frames, and the destination knows nothing of it."""
    assert source.guest.state is GuestState.RUNNING and source.guest.steps >= steps
    now = await source.client.get()
    assert (now.state, now.epoch) == (Guest.RUNNING, 1)
    assert source.here.data_plane.port_state(guest.uid, "eth0").value == "bound"
    source.guest.run(1)
    await eventually(lambda: not destination.here.inventory.find(guest.uid), "the destination forgets")
    await eventually(lambda: not destination.driver or not destination.driver.guests, "and frees all")
    assert destination.here.capacity.allocated.memory_bytes == 0


async def expect_next_attempt(source: Side, destination: Side, guest: Guest) -> None:
    steps = source.guest.steps
    moved = await move(source, destination, guest)
    assert moved.state == Migration.SUCCEEDED, moved.failure
    assert destination.guest.steps >= steps


@pytest.mark.parametrize(
    ("where", "operation", "step"),
    [
        ("destination", "create_incoming", "prepare"),
        ("source", "start_dirty_log", "stream"),
        ("source", "take_dirty_pages", "stream"),
        ("source", "pause", "freeze"),
        ("source", "save_state", "freeze"),
        ("destination", "restore", "freeze"),
    ],
)
async def test_an_operation_fails(
    source: Side, destination: Side, where: str, operation: str, step: str
) -> None:
    guest = await start_guest(source)
    source.guest.run(7)
    driver = (source if where == "source" else destination).driver
    assert driver is not None
    driver.fail(operation, HypervisorError(f"no {operation} today"))
    failed = await move(source, destination, guest)
    assert failed.state == Migration.FAILED
    assert f"no {operation} today" in failed.failure.message
    assert [item.name for item in failed.steps if item.state == 4] == [step]
    await expect_at_home(source, destination, guest, 7)
    await expect_next_attempt(source, destination, guest)


async def test_the_data_link_is_cut(source: Side, destination: Side) -> None:
    guest = await start_guest(source)
    source.guest.write_memory(0, bytes(range(1, 256)) * (2 * MEBIBYTE // 255))
    async with Cable(destination.here.data_address) as cable:
        destination.here.arrivals.data_address = cable.address
        cable.cut_after = MEBIBYTE
        failed = await move(source, destination, guest)
        assert failed.state == Migration.FAILED
        assert "cut before its end" in failed.failure.message or "broke" in failed.failure.message
        await expect_at_home(source, destination, guest, 0)
        cable.mend()
        await expect_next_attempt(source, destination, guest)


async def test_the_data_link_stalls_while_the_guest_stands_still(
    site: Site, destination: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "FREEZE_TIMEOUT_S", 0.5)
    driver = GatedDriver("pause")
    async with (
        side(site, "alpha/a1", driver) as source,
        Cable(destination.here.data_address) as cable,
    ):
        guest = await start_guest(source)
        destination.here.arrivals.data_address = cable.address
        begun = await begin(source, destination, guest)
        await driver.gates["pause"].reached.wait()
        cable.stall_after = 0
        driver.gates.pop("pause").open()
        failed = await follow(source, begun.name)
        assert failed.state == Migration.FAILED
        assert [item.name for item in failed.steps if item.state == 4] == ["freeze"]
        await expect_at_home(source, destination, guest, 0)


async def test_deleting_an_arriving_guest_ends_the_migration(source: Side, destination: Side) -> None:
    guest = await start_guest(source)
    source.guest.run(2000)
    begun = await begin(source, destination, guest, bandwidth_bps=8_000_000)
    await follow(source, begun.name, lambda migration: migration.steps[1].progress > 0)
    await destination.client.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name=guest.name))
    failed = await follow(source, begun.name)
    assert failed.state == Migration.FAILED and "deleted at the destination" in failed.failure.message
    await expect_at_home(source, destination, guest, 2000)


async def test_a_damaged_record_is_noticed_and_the_destination_says_so(
    source: Side, destination: Side
) -> None:
    guest = await start_guest(source)
    source.guest.write_memory(0, bytes(range(1, 256)) * (2 * MEBIBYTE // 255))
    async with Cable(destination.here.data_address) as cable:
        destination.here.arrivals.data_address = cable.address
        cable.damage_after = MEBIBYTE
        failed = await move(source, destination, guest)
        assert failed.failure.reason == "DESTINATION_FAILED"
        assert "not what the other side sealed" in failed.failure.message
        await expect_at_home(source, destination, guest, 0)
        await expect_next_attempt(source, destination, guest)


async def test_memory_damaged_at_the_destination_is_noticed(source: Side, destination: Side) -> None:
    guest = await start_guest(source)
    source.guest.write_memory(0, bytes(range(1, 256)) * (2 * MEBIBYTE // 255))
    begun = await begin(source, destination, guest, bandwidth_bps=30_000_000)
    await follow(source, begun.name, lambda migration: migration.steps[1].progress > 0.2)
    destination.guest.ram[100] ^= 1
    failed = await follow(source, begun.name)
    assert (failed.state, failed.failure.reason) == (Migration.FAILED, "DIGEST_MISMATCH")
    await expect_at_home(source, destination, guest, 0)
    await expect_next_attempt(source, destination, guest)


async def test_a_write_that_was_not_logged_is_sent_all_the_same(
    source: Side, destination: Side, caplog: pytest.LogCaptureFixture
) -> None:
    guest = await start_guest(source)
    source.guest.write_memory(0, bytes(range(1, 256)) * (2 * MEBIBYTE // 255))
    begun = await begin(source, destination, guest, bandwidth_bps=30_000_000)
    await follow(source, begun.name, lambda migration: migration.steps[1].progress > 0.2)
    source.guest.ram[5000:5003] = b"new"
    moved = await follow(source, begun.name)
    assert moved.state == Migration.SUCCEEDED
    assert bytes(destination.guest.ram[5000:5003]) == b"new"
    assert "not logged as dirty" in caplog.text


async def test_no_room_is_said_before_anything_is_touched(site: Site, source: Side) -> None:
    guest = await start_guest(source, 16 * MEBIBYTE)
    async with side(site, "beta/b2", memory=8 * MEBIBYTE) as small:
        with pytest.raises(CapacityError, match=f"{16 * MEBIBYTE} asked, {8 * MEBIBYTE} left"):
            await permit(small, guest, "alpha/a1")
    assert source.guest.state is GuestState.RUNNING


async def test_another_shape_or_version_is_refused_before_anything_is_touched(
    source: Side, destination: Side
) -> None:
    guest = await start_guest(source)
    other = Guest()
    other.CopyFrom(guest)
    other.spec.memory_bytes //= 2
    token = await permit(destination, other, "alpha/a1")
    failed = await follow(source, (await begin(source, destination, guest, token=token)).name)
    assert failed.failure.reason == "SHAPE_MISMATCH"
    assert not failed.rounds
    destination.here.arrivals._snapshot_version = 2
    failed = await move(source, destination, guest)
    assert failed.failure.reason == "VERSION_MISMATCH" and "snapshot version is 1" in failed.failure.message
    assert not failed.rounds
    await destination.client.migrations.RevokeArrival(migration_pb2.RevokeArrivalRequest(permit=token))


async def test_a_destination_that_is_not_there(source: Side, destination: Side) -> None:
    guest = await start_guest(source)
    token = await permit(destination, guest, "alpha/a1")
    nowhere = Side("beta/b1", destination.client, "127.0.0.1:1")
    failed = await follow(source, (await begin(source, nowhere, guest, token=token)).name)
    assert failed.state == Migration.FAILED and "127.0.0.1:1" in failed.failure.message
    assert source.guest.state is GuestState.RUNNING


async def test_a_guest_that_writes_faster_than_the_link_stays(source: Side, destination: Side) -> None:
    guest = await start_guest(source)
    source.guest.run(3000)
    source.guest.keep_busy(100_000)
    failed = await move(
        source, destination, guest, bandwidth_bps=80_000_000, deadline_s=1, max_downtime_ms=10, mode=1
    )
    assert failed.failure.reason == "NOT_CONVERGING"
    assert "MB/s" in failed.failure.message and "10 ms allowed" in failed.failure.message
    await expect_at_home(source, destination, guest, 3000)


@pytest.mark.parametrize("how", ["crash", "power_off"])
async def test_a_guest_that_ends_while_it_moves(source: Side, destination: Side, how: str) -> None:
    guest = await start_guest(source)
    source.guest.run(2000)
    begun = await begin(source, destination, guest, bandwidth_bps=8_000_000)
    await follow(source, begun.name, lambda migration: migration.steps[1].progress > 0)
    left = source.guest
    getattr(left, how)()
    failed = await follow(source, begun.name)
    assert (failed.state, failed.failure.reason) == (Migration.FAILED, "GUEST_ENDED")
    assert left.failure in failed.failure.message
    assert (await source.client.get()).state == (Guest.FAILED if how == "crash" else Guest.STOPPED)
    await eventually(lambda: not destination.here.inventory.find(guest.uid), "the destination forgets")


@pytest.mark.parametrize(
    ("where", "operation", "step"),
    [
        ("destination", "create_incoming", "prepare"),
        ("", "", "stream"),
        ("source", "pause", "freeze"),
        ("source", "save_state", "freeze"),
        ("destination", "restore", "freeze"),
    ],
)
async def test_cancel_in_every_phase(site: Site, where: str, operation: str, step: str) -> None:
    drivers = {
        name: GatedDriver(*([operation] if name == where else [])) for name in ("source", "destination")
    }
    async with (
        side(site, "alpha/a1", drivers["source"]) as source,
        side(site, "beta/b1", drivers["destination"]) as destination,
    ):
        guest = await start_guest(source)
        source.guest.run(2000)
        bandwidth = 0 if operation else 8_000_000
        begun = await begin(source, destination, guest, bandwidth_bps=bandwidth)
        if operation:
            await drivers[where].gates[operation].reached.wait()
        else:
            await follow(source, begun.name, lambda migration: migration.steps[1].progress > 0)
        request = migration_pb2.GetMigrationRequest(name=begun.name)
        cancelling = asyncio.ensure_future(source.client.migrations.CancelMigration(request))
        await asyncio.sleep(0.1)
        if where == "source":
            drivers[where].gates.pop(operation).open()
        cancelled = await cancelling
        assert cancelled.state == Migration.CANCELLED
        assert [item.name for item in cancelled.steps if item.state == 4] == [step]
        if where == "destination":
            drivers[where].gates.pop(operation).open()
        await expect_at_home(source, destination, guest, 2000)
        await expect_next_attempt(source, destination, guest)
        with pytest.raises(MigrationError, match="is over"):
            await source.client.migrations.CancelMigration(request)


async def test_after_hand_over_it_is_too_late_to_cancel_or_delete(site: Site, source: Side) -> None:
    driver = GatedDriver("resume")
    async with side(site, "beta/b1", driver) as destination:
        guest = await start_guest(source)
        begun = await begin(source, destination, guest)
        await driver.gates["resume"].reached.wait()
        assert (await source.client.get()).state == Guest.OUTGOING
        with pytest.raises(MigrationError, match="cannot be cancelled any more"):
            await source.client.migrations.CancelMigration(migration_pb2.GetMigrationRequest(name=begun.name))
        driver.gates.pop("resume").open()
        assert (await follow(source, begun.name)).state == Migration.SUCCEEDED


async def test_a_destination_that_cannot_run_it_gives_it_back(source: Side, destination: Side) -> None:
    guest = await start_guest(source)
    source.guest.run(5)
    assert destination.driver is not None
    destination.driver.fail("resume", HypervisorError("no vCPU today"))
    failed = await move(source, destination, guest)
    assert (failed.state, failed.failure.reason) == (Migration.FAILED, "DESTINATION_LOST")
    now = await source.client.get()
    assert (now.state, now.epoch) == (Guest.RUNNING, 3), "owned again under a higher epoch"
    assert destination.driver.guests == {} and destination.here.capacity.allocated.vcpus == 0
    moved = await move(source, destination, guest)
    assert moved.state == Migration.SUCCEEDED
    assert (await destination.client.get()).epoch == 4


def cut_streams(side: Side) -> None:
    """The bulk connections, which the cable of the control connection is not."""
    for arrival in side.here.arrivals._arrivals.values():
        if arrival._stream is not None:
            arrival._stream.shutdown()


async def test_a_lost_acknowledgement_is_undecided_and_then_decided(site: Site, source: Side) -> None:
    driver = GatedDriver()
    async with (
        side(site, "beta/b1", driver) as destination,
        Cable(destination.address) as cable,
    ):

        def cut() -> None:
            cable.cut()
            cut_streams(destination)

        driver.on_resumed = cut
        guest = await start_guest(source)
        token = await permit(destination, guest, "alpha/a1")
        through = Side("beta/b1", destination.client, cable.address)
        begun = await begin(source, through, guest, token=token)
        undecided = await follow(source, begun.name, lambda it: it.state == Migration.UNDECIDED)
        assert undecided.state == Migration.UNDECIDED
        assert source.guest.state is GuestState.PAUSED, "frozen until it is known"
        assert destination.guest.state is GuestState.RUNNING
        cable.mend()
        assert (await follow(source, begun.name)).state == Migration.SUCCEEDED
        assert source.driver is not None and source.driver.guests == {}
        assert destination.guest.state is GuestState.RUNNING


async def test_a_lost_commit_is_sent_again(site: Site, source: Side) -> None:
    driver = GatedDriver()
    async with (
        side(site, "beta/b1", driver) as destination,
        Cable(destination.address) as cable,
    ):
        guest = await start_guest(source)
        token = await permit(destination, guest, "alpha/a1")
        record = source.here.records.hand_over

        def record_and_cut(*arguments: object) -> None:
            record(*arguments)  # type: ignore[arg-type]
            cut_streams(destination)
            loop.call_soon_threadsafe(cable.cut)

        loop = asyncio.get_running_loop()
        source.here.records.hand_over = record_and_cut  # type: ignore[method-assign, assignment]
        through = Side("beta/b1", destination.client, cable.address)
        begun = await begin(source, through, guest, token=token)
        await follow(source, begun.name, lambda it: it.state == Migration.UNDECIDED)
        assert destination.guest.state is GuestState.PAUSED and source.guest.state is GuestState.PAUSED
        cable.mend()
        assert (await follow(source, begun.name)).state == Migration.SUCCEEDED
        assert (await destination.client.get()).epoch == 2
