"""What an agent does with guest processes that outlived its last run, by what its records say of each."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.agent.harness import MEBIBYTE, Site, make_spec

from serai.agent.records import Records
from serai.agent.spec import build_config
from serai.hypervisor.driver import GuestConfig, GuestState
from serai.hypervisor.fake import FakeDriver, FakeGuest
from serai.v1 import guest_pb2

Guest = guest_pb2.Guest


class Survivors(FakeDriver):
    """A driver whose guests are there before the agent is."""

    def __init__(self) -> None:
        super().__init__()
        self.left: dict[str, FakeGuest] = {}
        self.discarded: list[str] = []

    async def leave(self, facts: Guest, *, frozen: bool = False) -> FakeGuest:
        guest = await self.create(build_config(facts.uid, facts.spec, None))
        await guest.start()
        await asyncio.sleep(0)
        if frozen:
            await guest.pause()
        self.left[facts.uid] = guest
        return guest

    def survivors(self) -> list[str]:
        return list(self.left)

    async def adopt(self, config: GuestConfig) -> FakeGuest | None:
        return self.left.pop(config.uid, None)

    def discard(self, uid: str) -> None:
        del self.left[uid]
        self.discarded.append(uid)


def facts_of(uid: str, epoch: int = 1) -> Guest:
    spec = make_spec(memory_bytes=4 * MEBIBYTE)
    return Guest(name=f"guests/{uid}", uid=uid, epoch=epoch, spec=spec, state=Guest.RUNNING, ready=True)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def records(site: Site, node: str = "alpha/a1") -> Records:
    return Records(Path(site.settings(node)["state_dir"]))


async def state_of(site: Site, agent: Any, uid: str) -> Guest:
    async with site.connect(agent) as client:
        return await client.get(uid)


@pytest.mark.parametrize("frozen", [False, True], ids=["running", "frozen"])
async def test_an_owned_guest_runs_on(site: Site, frozen: bool) -> None:
    driver, facts = Survivors(), facts_of("mine", epoch=3)
    guest = await driver.leave(facts, frozen=frozen)
    with records(site) as database:
        database.own(facts.uid, 3, facts.SerializeToString())
    async with site.agent("alpha/a1", driver) as agent:
        seen = await state_of(site, agent, "mine")
        assert (seen.state, seen.epoch, seen.uid) == (Guest.RUNNING, 3, "mine")
        assert guest.state is GuestState.RUNNING
        assert (await agent.node.describe()).allocated.memory_bytes == facts.spec.memory_bytes


async def test_processes_that_are_not_this_nodes_are_ended(site: Site) -> None:
    driver = Survivors()
    given, ended, unknown = facts_of("given"), facts_of("ended", epoch=2), facts_of("unknown")
    for facts in (given, ended, unknown):
        await driver.leave(facts)
    with records(site) as database:
        database.own("given", 1, given.SerializeToString())
        database.hand_over("given", 2, "beta/b1", "127.0.0.1:1", "migrations/m")
        database.settle("given")
        database.own("ended", 2, ended.SerializeToString())
        database.end("ended")
    async with site.agent("alpha/a1", driver) as agent:
        assert sorted(driver.discarded) == ["ended", "given", "unknown"]
        assert len(agent.inventory) == 0


async def leave_handed_over(site: Site, driver: Survivors, address: str) -> FakeGuest:
    facts = facts_of("moving")
    guest = await driver.leave(facts, frozen=True)
    with records(site) as database:
        database.own("moving", 1, facts.SerializeToString())
        database.hand_over("moving", 2, "beta/b1", address, "migrations/m")
    return guest


async def until(condition: Any) -> None:
    async with asyncio.timeout(15):
        while not condition():  # noqa: ASYNC110 - none of it sets an event
            await asyncio.sleep(0.01)


async def test_a_frozen_guest_that_its_destination_never_got_goes_on(site: Site) -> None:
    driver = Survivors()
    async with site.agent("beta/b1") as other:
        guest = await leave_handed_over(site, driver, other.control_address)
        guest.ram[:8] = b"unharmed"
        async with site.agent("alpha/a1", driver) as agent:
            await until(lambda: guest.state is GuestState.RUNNING)
            seen = await state_of(site, agent, "moving")
            assert (seen.state, seen.epoch) == (Guest.RUNNING, 3)
            assert bytes(guest.ram[:8]) == b"unharmed"
            # It can be deleted like any other now.
            async with site.connect(agent) as client:
                await client.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name="guests/moving"))
            assert len(agent.inventory) == 0


async def test_a_frozen_guest_that_its_destination_has_is_let_go(site: Site) -> None:
    driver, there = Survivors(), Survivors()
    facts = facts_of("moving", epoch=2)
    await there.leave(facts)
    with records(site, "beta/b1") as database:
        database.own("moving", 2, facts.SerializeToString(), origin="alpha/a1")
    async with site.agent("beta/b1", there) as other:
        guest = await leave_handed_over(site, driver, other.control_address)
        async with site.agent("alpha/a1", driver) as agent:
            await until(lambda: len(agent.inventory) == 0)
            assert guest.state is GuestState.STOPPED
            await until(lambda: (record := agent.records.get("moving")) is not None and record.settled)
        assert (await state_of(site, other, "moving")).state == Guest.RUNNING


async def test_while_nobody_can_be_asked_it_stays_frozen(site: Site) -> None:
    driver = Survivors()
    guest = await leave_handed_over(site, driver, "127.0.0.1:1")
    async with site.agent("alpha/a1", driver) as agent:
        assert (await state_of(site, agent, "moving")).state == Guest.OUTGOING
        async with site.connect(agent) as client:
            with pytest.raises(Exception, match="handed over"):
                await client.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name="guests/moving"))
            with pytest.raises(Exception, match="cannot start"):
                await client.guests.StartGuest(guest_pb2.StartGuestRequest(name="guests/moving"))
        assert guest.state is GuestState.PAUSED
