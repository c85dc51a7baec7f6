"""Agents for tests, in this process with a driver in hand or as real processes; always real gRPC and mTLS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serai.agent.daemon import Agent
from serai.agent.settings import AgentSettings
from serai.hypervisor.driver import PAGE_SIZE, Driver
from serai.v1 import guest_pb2
from serai.v1.guest_pb2_grpc import GuestServiceStub
from serai.v1.link_pb2_grpc import SegmentServiceStub
from serai.v1.migration_pb2_grpc import MigrationPeerServiceStub, MigrationServiceStub
from serai.v1.node_pb2_grpc import NodeServiceStub
from serai.wire.identity import Identity, Role
from serai.wire.rpc import Channel, connect
from serai.wire.tls import CertificateAuthority, Credentials

MEBIBYTE = 1 << 20
ROOT = Path(__file__).resolve().parents[2]


class Site:
    """One authority and the parties it has certified."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = CertificateAuthority.create(directory / "ca")

    def credentials(self, role: Role, owner: str) -> Credentials:
        return self.authority.issue(Identity(role, owner))

    def settings(self, node: str, **changes: Any) -> dict[str, Any]:
        home = self.directory / node.replace("/", "-")
        if not (home / "credentials").exists():
            self.authority.issue(Identity(Role.AGENT, node), home / "credentials")
        return {
            "node": node,
            "credentials": home / "credentials",
            "state_dir": home / "state",
            "driver": "fake",
            "vcpus": 8,
            "memory": 64 * MEBIBYTE,
            "stop_grace_s": 0.2,
            "orphan_s": 0,
            "log_format": "json",
            **changes,
        }

    @contextlib.asynccontextmanager
    async def agent(self, node: str, driver: Driver | None = None, **changes: Any) -> AsyncIterator[Agent]:
        """An agent in this process."""
        agent = Agent(AgentSettings(**self.settings(node, **changes)), driver=driver)
        await agent.start()
        try:
            yield agent
        finally:
            await agent.close()

    @contextlib.asynccontextmanager
    async def process(self, node: str, **changes: Any) -> AsyncIterator[AgentProcess]:
        """An agent as a process of its own; fake guests obey what is typed into their consoles."""
        environment = changes.pop("environment", {})
        process = await AgentProcess.launch(self.settings(node, **changes), environment)
        try:
            yield process
        finally:
            await process.kill()

    def connect(self, agent: Agent | AgentProcess, role: Role = Role.PIP, owner: str = "") -> Client:
        node = agent.settings.node if isinstance(agent, Agent) else agent.node
        owner = owner or node.partition("/")[0]
        identity = Identity(Role.AGENT, node)
        return Client(connect(agent.control_address, self.credentials(role, owner), identity))


class Client:
    """Every service of one agent."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.guests = GuestServiceStub(channel)
        self.node = NodeServiceStub(channel)
        self.segments = SegmentServiceStub(channel)
        self.migrations = MigrationServiceStub(channel)
        self.peer = MigrationPeerServiceStub(channel)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()

    async def create(self, guest_id: str = "g", **spec: Any) -> guest_pb2.Guest:
        request = guest_pb2.CreateGuestRequest(guest_id=guest_id, spec=make_spec(**spec), start=True)
        return await self.guests.CreateGuest(request)

    async def get(self, guest_id: str = "g") -> guest_pb2.Guest:
        return await self.guests.GetGuest(guest_pb2.GetGuestRequest(name=f"guests/{guest_id}"))

    async def until(
        self, condition: Callable[[guest_pb2.Guest], bool], guest_id: str = "g"
    ) -> guest_pb2.Guest:
        """Wait until the guest, as watched, meets `condition`."""
        async with asyncio.timeout(20):
            call = self.guests.WatchGuests(guest_pb2.WatchGuestsRequest())
            try:
                async for change in call:
                    if (
                        change.guest.name == f"guests/{guest_id}"
                        and not change.deleted
                        and condition(change.guest)
                    ):
                        return change.guest
            finally:
                call.cancel()
        raise AssertionError("the watch ended")


def make_spec(**changes: Any) -> guest_pb2.GuestSpec:
    values: dict[str, Any] = {
        "vcpus": 1,
        "memory_bytes": 4 * MEBIBYTE,
        "interfaces": [guest_pb2.GuestInterface(name="eth0", mac=b"\x02\x00\x00\x00\x00\x01")],
        **changes,
    }
    assert values["memory_bytes"] % PAGE_SIZE == 0 or "memory_bytes" in changes
    return guest_pb2.GuestSpec(**values)


@dataclass
class AgentProcess:
    """A real agent process."""

    node: str
    process: asyncio.subprocess.Process
    announced: dict[str, Any]
    errors: list[str] = field(default_factory=list)
    reader: asyncio.Task[None] | None = None

    @classmethod
    async def launch(cls, settings: dict[str, Any], environment: dict[str, str]) -> AgentProcess:
        paths = os.pathsep.join(str(ROOT / part) for part in ("agents", "controller", "proto"))
        flags = [
            part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))
        ]
        typed = settings["driver"] == "fake"
        program = [str(Path(__file__).with_name("typed_agent.py"))] if typed else ["-m", "serai.agent.main"]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-W",
            "error",
            *program,
            *flags,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths, **environment},
        )
        self = cls(settings["node"], process, {})
        self.reader = asyncio.create_task(self._read_errors())
        assert process.stdout is not None
        async with asyncio.timeout(30):
            line = await process.stdout.readline()
        if line:
            self.announced = json.loads(line)
        return self

    async def _read_errors(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.errors.append(line.decode())

    @property
    def control_address(self) -> str:
        return str(self.announced["control_address"])

    async def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await self.wait()

    async def kill(self) -> None:
        """SIGKILL; nothing happens when it has ended."""
        if self.process.returncode is None:
            self.process.kill()
        await self.wait()

    async def wait(self) -> int:
        async with asyncio.timeout(20):
            code = await self.process.wait()
            if self.reader is not None:
                await self.reader
        return code
