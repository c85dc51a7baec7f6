"""The roles over real agents, with fake guests that a test plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.roles.bench import NODES, Bench, until
from tests.roles.images import AnyImage

from serai.agent.daemon import Agent
from serai.agent.settings import AgentSettings
from serai.hypervisor.fake import FakeDriver, FakeGuest
from serai.v1.operation_pb2 import Step
from serai.v1.operator_pb2 import GetVnetRequest, MigrateVnetNodeRequest, Vnet
from serai.wire.identity import Identity, Role
from serai.wire.tls import CertificateAuthority


class RealAgent:
    """An agent of the product in this process, whose driver is in hand."""

    def __init__(self, node: str, directory: Path, authority: CertificateAuthority) -> None:
        home = directory / node.replace("/", "-")
        authority.issue(Identity(Role.AGENT, node), home / "credentials")
        settings = AgentSettings(
            node=node,
            credentials=home / "credentials",
            state_dir=home / "state",
            driver="fake",
            vcpus=8,
            memory=1 << 30,
            stop_grace_s=0.1,
        )
        self.driver = FakeDriver()
        self.agent = Agent(settings, driver=self.driver, images=AnyImage(directory))

    @property
    def address(self) -> str:
        return self.agent.control_address

    @property
    def guests(self) -> list[str]:
        return list(self.driver.guests)

    @property
    def segments(self) -> list[str]:
        return [segment.config.name for segment in self.agent.data_plane.list_segments()]

    @property
    def is_empty(self) -> bool:
        return not self.guests and not self.segments


@pytest.fixture
async def real(tmp_path: Path, authority: CertificateAuthority) -> AsyncIterator[Bench]:
    agents = {node: RealAgent(node, tmp_path, authority) for node in NODES}
    for item in agents.values():
        await item.agent.start()
    bench = Bench(tmp_path, agents, authority)
    # All of them share one event loop here: a busy machine must not look like a dead agent.
    for name in ("alpha", "beta"):
        bench.changes[name] = {"heartbeat_deadline_s": 10.0}
    try:
        await bench.start()
        yield bench
    finally:
        await bench.close()
        for item in agents.values():
            await item.agent.close()


def find(bench: Bench, node: str) -> tuple[str, FakeGuest]:
    """Where a virtual node is, and its guest."""
    for name, agent in bench.agents.items():
        for hosted in list(agent.agent.inventory):
            if hosted.name.startswith(f"guests/{node}-") and hosted.uid in agent.driver.guests:
                return name, agent.driver.guests[hosted.uid]
    raise AssertionError(f"{node} is nowhere")


async def exchange(source: FakeGuest, port: str, target: FakeGuest, other: str, data: bytes) -> None:
    """A frame each way."""
    for sender, out, receiver, into in ((source, port, target, other), (target, other, source, port)):
        sender.port(out).send(data)
        await until(lambda: data in receiver.port(into).received)  # noqa: B023
        receiver.port(into).received.clear()


async def test_frames_pass_and_nothing_stays(real: Bench) -> None:
    await real.create()
    _, client = find(real, "client")
    _, router = find(real, "router")
    _, server = find(real, "server")
    await exchange(client, "eth0", router, "eth0", b"client to router" * 4)
    await exchange(router, "eth1", server, "eth0", b"router to server" * 4)
    await exchange(client, "eth1", server, "eth1", b"client to server" * 4)
    await real.delete("vnets/demo")
    assert await real.residue() == []


async def test_frames_follow_a_node_to_the_other_provider(real: Bench) -> None:
    await real.create()
    before, router = find(real, "router")
    router.keep_busy(200, working_set_pages=50)
    _, client = find(real, "client")
    sent = 0
    moving = True

    async def stream() -> None:
        nonlocal sent
        while moving:
            client.port("eth0").send(b"frame %06d" % sent + bytes(60))
            sent += 1
            await asyncio.sleep(0.01)

    streaming = asyncio.create_task(stream())
    request = MigrateVnetNodeRequest(name="vnets/demo/nodes/router", destination="beta/b2")
    operation = await real.outcome(await real.operator.MigrateVnetNode(request))
    moving = False
    await streaming
    there, moved = find(real, "router")
    assert (before.partition("/")[0], there) == ("alpha", "beta/b2")
    assert operation.migration.digest_source == operation.migration.digest_destination != ""
    steps = {step.name: step.state for step in operation.steps}
    assert set(steps.values()) <= {Step.DONE, Step.SKIPPED}, steps
    await until(lambda: len(moved.port("eth0").received) >= 1)
    last = b"frame %06d" % (sent - 1)
    await until(lambda: any(frame.startswith(last) for frame in moved.port("eth0").received))
    numbers = [int(frame[6:12]) for frame in moved.port("eth0").received]
    assert len(numbers) == len(set(numbers))
    assert len(numbers) == sent, f"{sent - len(numbers)} of {sent} frames were lost"
    moved.port("eth0").received.clear()
    await exchange(moved, "eth0", client, "eth0", b"after the move" * 5)
    _, server = find(real, "server")
    await exchange(moved, "eth1", server, "eth0", b"to the other one" * 5)
    vnet = await real.operator.GetVnet(GetVnetRequest(name="vnets/demo"))
    assert vnet.state == Vnet.RUNNING
    await real.delete("vnets/demo")
    assert await real.residue() == []


async def test_a_node_moves_inside_its_provider(real: Bench) -> None:
    await real.create()
    before, _ = find(real, "server")
    destination = {"beta/b1": "beta/b2", "beta/b2": "beta/b1"}[before]
    request = MigrateVnetNodeRequest(name="vnets/demo/nodes/server", destination=destination)
    await real.outcome(await real.operator.MigrateVnetNode(request))
    there, moved = find(real, "server")
    assert there == destination
    _, router = find(real, "router")
    _, client = find(real, "client")
    await exchange(router, "eth1", moved, "eth0", b"router to server" * 4)
    await exchange(client, "eth1", moved, "eth1", b"client to server" * 4)
    await real.delete("vnets/demo")
    assert await real.residue() == []
