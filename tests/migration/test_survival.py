"""Migrations whose agents are killed and come back around guest processes that go on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.agent.harness import MEBIBYTE, Site
from tests.migration.move import Migration, Side, begin, permit, process_side
from tests.migration.test_linux import Shell, boot

from serai.errors import SeraiError
from serai.images import ImageStore, build_debian
from serai.v1 import guest_pb2, migration_pb2

pytestmark = pytest.mark.guest

Guest = guest_pb2.Guest
SETTINGS: dict[str, Any] = {"driver": "emulated", "memory": 1024 * MEBIBYTE, "orphan_s": 60}


@pytest.fixture(scope="module", autouse=True)
def _debian() -> None:
    try:
        ImageStore().get("debian")
    except SeraiError:
        build_debian()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def again(site: Site, side: Side) -> Any:
    assert side.process is not None
    addresses = {
        "listen": side.process.announced["control_address"],
        "data_listen": side.process.announced["data_address"],
    }
    return process_side(site, side.node, **SETTINGS, **addresses)


async def end(side: Side) -> None:
    """Power off what is left: only SIGTERM ends the guests with their agent."""
    if side.process is not None and side.process.process.returncode is None:
        await side.process.terminate()


async def test_post_copy_goes_on_after_the_source_agent_was_killed(site: Site) -> None:
    async with (
        process_side(site, "alpha/a1", **SETTINGS) as source,
        process_side(site, "beta/b1", **SETTINGS) as destination,
    ):
        guest = await boot(source, "g", 1)
        shell = await Shell.attach(source, guest)
        await shell.run("dd if=/dev/urandom of=/f bs=64k count=128 2>/dev/null; sha256sum /f >/sum")
        token = await permit(destination, guest, source.node)
        mode = migration_pb2.MigrationOptions.POST_COPY
        await begin(source, destination, guest, token=token, mode=mode, bandwidth_bps=40_000_000)
        await destination.client.until(lambda it: it.state == Guest.RUNNING)
        assert source.process is not None
        await source.process.kill()
        async with again(site, source) as successor:
            console = await Shell.attach(destination, guest)
            assert "/f: OK" in await console.run("sha256sum -c /sum")
            async with asyncio.timeout(30):
                while True:
                    listed = await successor.client.guests.ListGuests(guest_pb2.ListGuestsRequest())
                    if not listed.guests:
                        break
                    await asyncio.sleep(0.1)
            assert (await destination.client.get()).epoch == 2
            await end(successor)
        await end(destination)


async def test_a_frozen_guest_runs_on_when_its_agent_died_before_the_hand_over(site: Site) -> None:
    async with (
        process_side(site, "alpha/a1", **SETTINGS) as source,
        process_side(site, "beta/b1", **SETTINGS) as destination,
    ):
        guest = await boot(source, "g", 1)
        shell = await Shell.attach(source, guest)
        await shell.run("mark=kept")
        await shell.type("while :; do echo tick; sleep 0.1; done")
        await shell.until(rb"tick\r")
        token = await permit(destination, guest, source.node)
        mode = migration_pb2.MigrationOptions.OFFLINE
        begun = await begin(source, destination, guest, token=token, mode=mode, bandwidth_bps=20_000_000)
        assert begun.state == Migration.RUNNING
        await destination.client.until(lambda it: it.state == Guest.INCOMING)
        assert source.process is not None
        await source.process.kill()
        async with again(site, source) as successor:
            assert (await successor.client.get()).state == Guest.RUNNING
            console = await Shell.attach(successor, guest)
            await console.until(rb"tick\r")
            await console.call.write(guest_pb2.ConsoleInput(data=b"\x03"))
            assert "kept" in await console.run("echo $mark")
            await end(successor)
        await end(destination)
