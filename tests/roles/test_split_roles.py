"""Each role in a process of its own: the same code, another configuration; one of them is killed."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.roles.bench import NODES, ROOT, TWO_PROVIDERS, Bench, until
from tests.roles.fake_agent import FakeAgent
from tests.roles.test_migration import check_links, where
from tests.roles.test_restart import becomes_at, becomes_clean, becomes_running

from serai.errors import SeraiError, UnavailableError
from serai.v1.infrastructure_pb2 import ListNodesRequest
from serai.v1.node_pb2 import Node
from serai.v1.operator_pb2 import CreateVnetRequest, MigrateVnetNodeRequest, ValidateDescriptionRequest
from serai.wire.identity import Identity, Role
from serai.wire.tls import CertificateAuthority

ROLES = ("pip-alpha", "pip-beta", "vnp-vnp", "vno-operator")


class SplitBench(Bench):
    """Four controllers with one role each."""

    def __init__(self, directory: Path, agents: dict[str, Any], authority: CertificateAuthority) -> None:
        super().__init__(directory, agents, authority)
        self.ports = dict(zip(ROLES, free_ports(len(ROLES)), strict=True))
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self.addresses = {
            Identity(Role(name.partition("-")[0]), name.partition("-")[2]): f"127.0.0.1:{port}"
            for name, port in self.ports.items()
        }

    async def launch_role(self, name: str) -> None:
        config = self.directory / f"{name}.yaml"
        config.write_text(yaml.safe_dump(self._settings_of(name)))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "serai.controller.main", "--config", str(config)),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / p) for p in ("controller", "proto"))},
        )
        self.processes[name] = process
        assert process.stdout is not None
        async with asyncio.timeout(20):
            assert json.loads(await process.stdout.readline())

    def _settings_of(self, name: str) -> dict[str, Any]:
        everything = self.settings.model_dump(mode="json", exclude_none=True)
        role, _, owner = name.partition("-")
        address = {key: f"127.0.0.1:{port}" for key, port in self.ports.items()}
        mine: dict[str, Any]
        if role == "pip":
            mine = next(pip for pip in everything["pips"] if pip["name"] == owner)
            for border in mine["borders"]:
                border["peer_address"] = address[f"pip-{border['peer_provider']}"]
        else:
            mine = everything[role]
            for peer in mine.get("infrastructure", []):
                peer["address"] = address[f"pip-{peer['name']}"]
            if role == "vno":
                mine["provider"]["address"] = address["vnp-vnp"]
        mine["listen"] = address[name]
        return {"state_dir": str(self.directory / f"state-{name}"), role if role != "pip" else "pips": (
            [mine] if role == "pip" else mine
        )}  # fmt: skip

    async def kill_role(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        await process.communicate()

    async def ready(self) -> None:
        """Until everybody knows everybody: a dry run over both providers succeeds."""
        async with asyncio.timeout(30):
            while True:
                try:
                    states = [
                        node.state
                        for name in ("alpha", "beta")
                        for node in (await self.pip(name).ListNodes(ListNodesRequest())).nodes
                    ]
                    await self.operator.ValidateDescription(
                        ValidateDescriptionRequest(document=TWO_PROVIDERS)
                    )
                    if states == [Node.READY] * 4:
                        await self.create(validate_only=True, vnet_id="trial")
                        return
                except (UnavailableError, SeraiError):
                    pass
                await asyncio.sleep(0.1)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
        for name in list(self.processes):
            await self.kill_role(name)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [item.getsockname()[1] for item in sockets]
    finally:
        for item in sockets:
            item.close()


@pytest.fixture
async def split(tmp_path: Path, authority: CertificateAuthority) -> AsyncIterator[SplitBench]:
    agents = {node: FakeAgent(node) for node in NODES}
    for agent in agents.values():
        await agent.start(authority)
    bench = SplitBench(tmp_path, agents, authority)
    bench._process = None
    try:
        await asyncio.gather(*(bench.launch_role(name) for name in ROLES))
        await bench.ready()
        yield bench
    finally:
        await bench.close()
        for agent in agents.values():
            await agent.stop()


@pytest.mark.parametrize("victim", ["pip-alpha", "pip-beta", "vnp-vnp"])
async def test_a_role_dies_during_a_migration(split: SplitBench, victim: str) -> None:
    await split.create()
    source = await where(split, "client")
    agent = split.agents[source]
    agent.hold["stream"].clear()
    request = MigrateVnetNodeRequest(name="vnets/demo/nodes/client", destination="beta/b2")
    await split.operator.MigrateVnetNode(request)
    async with asyncio.timeout(10):
        await agent.reached["stream"].wait()
    await split.kill_role(victim)
    await split.launch_role(victim)
    agent.hold["stream"].set()
    await becomes_at(split, "beta/b2")
    await becomes_running(split)
    async with asyncio.timeout(10):
        while True:
            try:
                check_links(split)
                break
            except AssertionError:
                await asyncio.sleep(0.1)
    await split.delete("vnets/demo")
    assert await split.residue() == []


@pytest.mark.parametrize("victim", ["pip-beta"])
async def test_a_role_dies_during_a_creation(split: SplitBench, victim: str) -> None:
    for agent in split.agents.values():
        agent.never_ready = True
    operation = await split.operator.CreateVnet(CreateVnetRequest(document=TWO_PROVIDERS))
    await until(lambda: any(agent.reached["StartGuest"].is_set() for agent in split.agents.values()))
    await split.kill_role(victim)
    await split.launch_role(victim)
    assert (await split.settled(operation)).HasField("failure")
    await becomes_clean(split)
    for agent in split.agents.values():
        agent.never_ready = False
    await split.ready()
    await split.create()
