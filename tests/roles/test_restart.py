"""A controller that is killed: running VNets do not notice, and what was under way is finished or undone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.roles.bench import NODES, TWO_PROVIDERS, Bench, until
from tests.roles.fake_agent import FakeAgent
from tests.roles.test_changes import C_LINK, C_NODE, NAME, differences, document, inventory, update
from tests.roles.test_migration import check_links, where

from serai.errors import StateError, UnavailableError
from serai.v1.guest_pb2 import Guest
from serai.v1.operator_pb2 import (
    CreateVnetRequest,
    DeleteVnetRequest,
    GetVnetRequest,
    ListVnetsRequest,
    MigrateVnetNodeRequest,
    UpdateVnetRequest,
    Vnet,
)
from serai.wire.tls import CertificateAuthority


@pytest.fixture
async def launched(tmp_path: Path, authority: CertificateAuthority) -> AsyncIterator[Bench]:
    """The controller is a process of its own, so that it can be killed."""
    agents = {node: FakeAgent(node) for node in NODES}
    for agent in agents.values():
        await agent.start(authority)
    bench = Bench(tmp_path, agents, authority)
    try:
        await bench.launch()
        yield bench
    finally:
        await bench.kill()
        for agent in agents.values():
            await agent.stop()


async def becomes_clean(bench: Bench) -> None:
    async with asyncio.timeout(15):
        while await bench.residue():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def becomes_running(bench: Bench) -> Vnet:
    async with asyncio.timeout(15):
        while True:
            vnet: Vnet = await bench.operator.GetVnet(GetVnetRequest(name="vnets/demo"))
            if vnet.state == Vnet.RUNNING and all(node.ready for node in vnet.nodes):
                return vnet
            await asyncio.sleep(0.05)


async def test_a_running_vnet_does_not_notice(launched: Bench) -> None:
    await launched.create()
    before = {uid: agent.node for agent in launched.agents.values() for uid in agent.guests}
    await launched.kill()
    await launched.launch()
    await becomes_running(launched)
    assert {uid: agent.node for agent in launched.agents.values() for uid in agent.guests} == before
    await launched.delete("vnets/demo")
    assert await launched.residue() == []


@pytest.mark.parametrize("method", ["CreateGuest", "CreateSegment", "StartGuest"])
async def test_an_interrupted_creation_is_undone(launched: Bench, method: str) -> None:
    for agent in launched.agents.values():
        agent.hold[method].clear()
    await launched.operator.CreateVnet(CreateVnetRequest(document=TWO_PROVIDERS))
    await until(lambda: any(agent.reached[method].is_set() for agent in launched.agents.values()))
    await launched.kill()
    for agent in launched.agents.values():
        agent.hold[method].set()
    await launched.launch()
    await becomes_clean(launched)
    await launched.create()


async def test_an_interrupted_deletion_is_finished(launched: Bench) -> None:
    await launched.create()
    for agent in launched.agents.values():
        agent.hold["DeleteGuest"].clear()
    await launched.operator.DeleteVnet(DeleteVnetRequest(name="vnets/demo"))
    await until(lambda: any(agent.reached["DeleteGuest"].is_set() for agent in launched.agents.values()))
    await launched.kill()
    for agent in launched.agents.values():
        agent.hold["DeleteGuest"].set()
    await launched.launch()
    await becomes_clean(launched)


@pytest.mark.parametrize("destination", ["beta/b1", "alpha"])
@pytest.mark.parametrize("phase", ["stream", "hand-over", "release"])
async def test_agents_go_on_with_a_migration(launched: Bench, phase: str, destination: str) -> None:
    """The controller dies in the middle; the agents do not, and the next controller finds out."""
    await launched.create()
    source = await where(launched, "client")
    if destination == "alpha":
        destination = {"alpha/a1": "alpha/a2", "alpha/a2": "alpha/a1"}[source]
    agent = launched.agents[source]
    agent.hold[phase].clear()
    request = MigrateVnetNodeRequest(name="vnets/demo/nodes/client", destination=destination)
    await launched.operator.MigrateVnetNode(request)
    async with asyncio.timeout(10):
        await agent.reached[phase].wait()
    await launched.kill()
    await launched.launch()
    agent.hold[phase].set()
    await becomes_at(launched, destination)
    await becomes_running(launched)
    async with asyncio.timeout(10):
        while True:
            try:
                check_links(launched)
                break
            except AssertionError:
                await asyncio.sleep(0.1)
    assert (
        sum(guest.state == Guest.RUNNING for a in launched.agents.values() for guest in a.guests.values())
        == 3
    )
    await launched.delete("vnets/demo")
    assert await launched.residue() == []


@pytest.mark.parametrize(
    ("method", "outcome"),
    [
        ("CreateGuest", 2),
        ("CreateSegment", 2),
        ("StartGuest", 2),
        ("ActivateSegment", 2),
        ("DeleteSegment", 3),
    ],
)
async def test_an_interrupted_change_is_undone_or_finished(
    launched: Bench, method: str, outcome: int
) -> None:
    """The controller dies at each step of a change; only what was made already is finished."""
    await launched.create(document())
    before = inventory(launched)
    for agent in launched.agents.values():
        agent.hold[method].clear()
        agent.reached[method].clear()
    wanted = document(nodes=C_NODE, links=C_LINK, wire="2Mbit/s")
    await launched.operator.UpdateVnet(UpdateVnetRequest(name=NAME, document=wanted))
    await until(lambda: any(agent.reached[method].is_set() for agent in launched.agents.values()))
    await launched.kill()
    for agent in launched.agents.values():
        agent.hold[method].set()
    await launched.launch()
    # Afterwards it can be changed again, and the difference is to what really is there.
    async with asyncio.timeout(20):
        while True:
            try:
                changes = await differences(launched, wanted)
                assert (changes == []) == (outcome == 3)
                await update(launched, document() if outcome == 2 else wanted)
                break
            except (AssertionError, StateError, UnavailableError):
                await asyncio.sleep(0.1)
    vnet = await launched.operator.GetVnet(GetVnetRequest(name=NAME))
    assert len(vnet.nodes) == outcome
    if outcome == 2:
        await until(lambda: inventory(launched) == before)
    await launched.delete(NAME)
    assert await launched.residue() == []


async def becomes_at(bench: Bench, place: str) -> None:
    async with asyncio.timeout(15):
        while await where(bench, "client") != place:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_list_after_a_restart(launched: Bench) -> None:
    assert not (await launched.operator.ListVnets(ListVnetsRequest())).vnets
