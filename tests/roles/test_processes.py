"""Four agents as processes of their own, one of which is killed."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.roles.bench import NODES, ROOT, Bench, until

from serai.v1.guest_pb2 import Guest, ListGuestsRequest
from serai.v1.guest_pb2_grpc import GuestServiceStub
from serai.v1.link_pb2 import ListSegmentsRequest
from serai.v1.link_pb2_grpc import SegmentServiceStub
from serai.v1.operator_pb2 import GetVnetRequest, Vnet
from serai.wire.identity import Identity, Role
from serai.wire.rpc import connect
from serai.wire.tls import CertificateAuthority


class AgentProcess:
    """An agent of the product; `everything` is what it lists."""

    is_empty = True  # `residue` asks `everything` instead

    def __init__(self, node: str, directory: Path, authority: CertificateAuthority) -> None:
        self.node = node
        self.address = "127.0.0.1:0"
        self._home = directory / node.replace("/", "-")
        self._authority = authority
        authority.issue(Identity(Role.AGENT, node), self._home / "credentials")

    async def start(self) -> None:
        paths = (ROOT, ROOT / "agents", ROOT / "proto")
        flags = {
            "node": self.node,
            "credentials": self._home / "credentials",
            "state-dir": self._home / "state",
            "driver": "fake",
            "listen": self.address,
            "vcpus": 8,
            "memory": "1GiB",
            "stop-grace-s": 0.1,
        }
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.roles.agent_process"),
            *(part for name, value in flags.items() for part in (f"--{name}", str(value))),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(20):
            self.address = json.loads(await self._process.stdout.readline())["control_address"]

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.communicate()

    async def everything(self) -> list[str]:
        admin = self._authority.issue(Identity(Role.PIP, self.node.partition("/")[0]))
        async with connect(self.address, admin, Identity(Role.AGENT, self.node)) as channel:
            guests = await GuestServiceStub(channel).ListGuests(ListGuestsRequest())
            segments = await SegmentServiceStub(channel).ListSegments(ListSegmentsRequest())
        return [*(guest.name for guest in guests.guests), *(item.name for item in segments.segments)]


@pytest.fixture
async def processes(tmp_path: Path, authority: CertificateAuthority) -> AsyncIterator[Bench]:
    agents = {node: AgentProcess(node, tmp_path, authority) for node in NODES}
    bench = Bench(tmp_path, agents, authority)
    try:
        await asyncio.gather(*(agent.start() for agent in agents.values()))
        await bench.start()
        yield bench
    finally:
        await bench.close()
        await asyncio.gather(*(agent.kill() for agent in agents.values()))


async def get_vnet(bench: Bench) -> Vnet:
    vnet: Vnet = await bench.operator.GetVnet(GetVnetRequest(name="vnets/demo"))
    return vnet


async def left(bench: Bench) -> list[str]:
    everything = await asyncio.gather(*(agent.everything() for agent in bench.agents.values()))
    return [*await bench.residue(), *(item for items in everything for item in items)]


async def test_a_node_is_killed_and_comes_back(processes: Bench) -> None:
    await processes.create()
    vnet = await get_vnet(processes)
    assert vnet.state == Vnet.RUNNING
    lost = next(node for node in vnet.nodes if node.name.endswith("/server"))
    agent = processes.agents[f"{lost.provider}/{lost.placement}"]
    await agent.kill()
    async with asyncio.timeout(10):
        while (vnet := await get_vnet(processes)).state != Vnet.DEGRADED:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    states = {node.name.rpartition("/")[2]: node.state for node in vnet.nodes}
    assert states == {"client": Guest.RUNNING, "router": Guest.RUNNING, "server": Guest.UNKNOWN}
    reasons = {node.name.rpartition("/")[2]: node.status_message for node in vnet.nodes}
    assert reasons == {"client": "", "router": "", "server": "its node is unreachable"}
    await processes.delete("vnets/demo")
    beta = processes.roles()[Role.PIP, "beta"].state
    assert len(beta.leftovers) > 0
    await agent.start()
    await until(lambda: len(beta.leftovers) == 0 and len(beta.reachable()) == 2)
    assert await left(processes) == []
    await processes.create()
    assert all(node.state == Guest.RUNNING for node in (await get_vnet(processes)).nodes)
    await processes.delete("vnets/demo")
    assert await left(processes) == []
