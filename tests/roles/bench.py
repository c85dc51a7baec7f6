"""A whole control plane in one process: two providers of two nodes each, real gRPC and mutual TLS."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml
from tests.roles.fake_agent import FakeAgent

from serai.controller.daemon import Controller
from serai.controller.settings import ControllerSettings
from serai.roles.failures import failure_to_error
from serai.v1.infrastructure_pb2 import ListNodesRequest, ListSlicesRequest
from serai.v1.infrastructure_pb2_grpc import InfrastructureServiceStub
from serai.v1.node_pb2 import Node
from serai.v1.operation_pb2 import GetOperationRequest, Operation
from serai.v1.operation_pb2_grpc import OperationServiceStub
from serai.v1.operator_pb2 import CreateVnetRequest, DeleteVnetRequest, ListVnetsRequest
from serai.v1.operator_pb2_grpc import OperatorServiceStub
from serai.v1.provider_pb2 import ListNetworksRequest
from serai.v1.provider_pb2_grpc import ProviderServiceStub
from serai.wire.identity import Identity, Role
from serai.wire.rpc import Channel, connect
from serai.wire.tls import CertificateAuthority, Credentials

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
TWO_PROVIDERS = (EXAMPLES / "two-providers.xml").read_bytes()
SAME_ADDRESSES = (EXAMPLES / "same-addresses.xml").read_bytes()
ROOT = Path(__file__).parents[2]
NODES = ("alpha/a1", "alpha/a2", "beta/b1", "beta/b2")


class Bench:
    """Agents and a controller, and an administrator who talks to them."""

    def __init__(self, directory: Path, agents: dict[str, Any], authority: CertificateAuthority) -> None:
        self.directory = directory
        self.authority = authority
        self.agents = agents
        self.changes: dict[str, dict[str, Any]] = {}
        """Further settings by role name."""
        self.controller: Controller
        self.addresses: dict[Identity, str] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._channels: list[Channel] = []
        for role, owner in (
            (Role.VNO, "operator"),
            (Role.VNP, "vnp"),
            (Role.PIP, "alpha"),
            (Role.PIP, "beta"),
        ):
            authority.issue(Identity(role, owner), directory / f"{role}-{owner}")
        self.admin = authority.issue(Identity(Role.ADMIN, "local"))

    @property
    def settings(self) -> ControllerSettings:
        def pip(name: str, nodes: list[str], near: str, far: str) -> dict[str, Any]:
            return {
                "name": name,
                "credentials": self.directory / f"pip-{name}",
                "nodes": [
                    {"name": node, "address": self.agents[f"{name}/{node}"].address, "location": name}
                    for node in nodes
                ],
                "links": [{"a": nodes[0], "b": nodes[1], "capacity": "1Gbit/s", "delay": "1ms"}],
                "borders": [
                    {
                        "name": "ab",
                        "node": near,
                        "peer_provider": far,
                        "capacity": "100Mbit/s",
                        "delay": "2ms",
                    }
                ],
                "disclose_placement": True,
                "accept_placement": True,
                "heartbeat_deadline_s": 1.0,
                "ready_deadline_s": 5.0,
                **self.changes.get(name, {}),
            }

        return ControllerSettings.model_validate(
            {
                "state_dir": self.directory / "state",
                "vno": {
                    "name": "operator",
                    "credentials": self.directory / "vno-operator",
                    "provider": {"name": "vnp"},
                },
                "vnp": {
                    "name": "vnp",
                    "credentials": self.directory / "vnp-vnp",
                    "infrastructure": [{"name": "alpha"}, {"name": "beta"}],
                    **self.changes.get("vnp", {}),
                },
                "pips": [pip("alpha", ["a1", "a2"], "a2", "beta"), pip("beta", ["b1", "b2"], "b1", "alpha")],
            }
        )

    async def start(self) -> None:
        self.controller = Controller(self.settings)
        await self.controller.start()
        self.addresses = self.controller.addresses
        await until(self._all_reachable)

    def _all_reachable(self) -> bool:
        roles = self.roles()
        pips = [roles[Role.PIP, "alpha"], roles[Role.PIP, "beta"]]
        agents = [agent for pip in pips for agent in pip.state.agents.values()]
        vnp, vno = roles[Role.VNP, "vnp"], roles[Role.VNO, "operator"]
        return (
            all(agent.reachable and agent.known for agent in agents)
            and all(provider.reachable for provider in vnp.state.providers.values())
            and vno.state.upstream.reachable
        )

    def roles(self) -> dict[tuple[Role, str], Any]:
        return {(role.identity.role, role.identity.owner): role for role in self.controller.roles}

    async def kill(self) -> None:
        """End the controller's process at once; it must have been launched."""
        for channel in self._channels:
            await channel.close()
        self._channels.clear()
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.communicate()
        self._process = None

    async def launch(self) -> None:
        """Run the controller as a process of its own and wait until it serves and knows its agents."""
        config = self.directory / "controller.yaml"
        config.write_text(yaml.safe_dump(self.settings.model_dump(mode="json", exclude_none=True)))
        ready = self.directory / "ready.json"
        ready.unlink(missing_ok=True)
        paths = os.pathsep.join(str(ROOT / part) for part in ("controller", "proto"))
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "serai.controller.main"),
            *("--config", str(config), "--ready-file", str(ready)),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(20):
            announced = json.loads(await self._process.stdout.readline())
        assert json.loads(ready.read_text()) == announced
        self.addresses = {
            Identity(Role.VNO, "operator"): announced["operator"],
            Identity(Role.VNP, "vnp"): announced["vnet_provider"],
            **{Identity(Role.PIP, name): address for name, address in announced["providers"].items()},
        }
        async with asyncio.timeout(20):
            while not await self._nodes_ready():  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def _nodes_ready(self) -> bool:
        states = [
            node.state
            for name in ("alpha", "beta")
            for node in (await self.pip(name).ListNodes(ListNodesRequest())).nodes
        ]
        return states == [Node.READY] * 4

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
        self._channels.clear()
        await self.controller.close()

    def channel(self, role: Role, owner: str, credentials: Credentials | None = None) -> Channel:
        identity = Identity(role, owner)
        channel = connect(self.addresses[identity], credentials or self.admin, identity)
        self._channels.append(channel)
        return channel

    @property
    def operator(self) -> Any:
        return OperatorServiceStub(self.channel(Role.VNO, "operator"))

    @property
    def vnp(self) -> Any:
        return ProviderServiceStub(self.channel(Role.VNP, "vnp"))

    def pip(self, name: str, credentials: Credentials | None = None) -> Any:
        return InfrastructureServiceStub(self.channel(Role.PIP, name, credentials))

    async def outcome(
        self, operation: Operation, role: Role = Role.VNO, owner: str = "operator"
    ) -> Operation:
        """The operation when it is done; raises what it failed with."""
        done = await self.settled(operation, role, owner)
        if done.HasField("failure"):
            raise failure_to_error(done.failure)
        return done

    async def settled(
        self, operation: Operation, role: Role = Role.VNO, owner: str = "operator"
    ) -> Operation:
        stub = OperationServiceStub(self.channel(role, owner))
        async with asyncio.timeout(20):
            seen = [it async for it in stub.WatchOperation(GetOperationRequest(name=operation.name))]
        assert seen[-1].done
        return seen[-1]

    async def create(self, document: bytes = TWO_PROVIDERS, **options: Any) -> Operation:
        return await self.outcome(
            await self.operator.CreateVnet(CreateVnetRequest(document=document, **options))
        )

    async def delete(self, name: str) -> Operation:
        return await self.outcome(await self.operator.DeleteVnet(DeleteVnetRequest(name=name)))

    async def residue(self) -> list[str]:
        """Everything that is left anywhere: must be empty after any failure and any deletion."""
        left = [
            f"{node}: {list(agent.guests)} {list(agent.segments)}"
            for node, agent in self.agents.items()
            if not agent.is_empty
        ]
        left += [f"vno: {vnet.name}" for vnet in (await self.operator.ListVnets(ListVnetsRequest())).vnets]
        networks = await self.vnp.ListNetworks(ListNetworksRequest())
        left += [f"vnp: {network.name}" for network in networks.networks]
        for name in ("alpha", "beta"):
            slices = await self.pip(name).ListSlices(ListSlicesRequest())
            left += [f"{name}: {item.name}" for item in slices.slices]
            if not hasattr(self, "controller"):
                continue
            state = self.roles()[Role.PIP, name].state
            left += [f"{name}: connection {item.name}" for item in state.connections]
            left += [f"{name}: leftover {item.name}" for item in state.leftovers]
            usage = state.usage()
            if any([*usage.vcpus.values(), *usage.link_bps.values(), *usage.border_bps.values()]):
                left.append(f"{name}: {usage}")
        return left


@asynccontextmanager
async def running_bench(directory: Path, authority: CertificateAuthority) -> AsyncIterator[Bench]:
    """A bench with four fake agents."""
    agents = {node: FakeAgent(node) for node in NODES}
    for agent in agents.values():
        await agent.start(authority)
    bench = Bench(directory, agents, authority)
    try:
        await bench.start()
        yield bench
    finally:
        await bench.close()
        for agent in agents.values():
            await agent.stop()


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for `condition`, which somebody else makes true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.02)
