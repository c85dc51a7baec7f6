"""The demo itself: what a user of Serai does, done once and measured."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib import resources

from serai.cli.commands.node import nodes_of
from serai.cli.commands.vm import place
from serai.cli.context import Context
from serai.cli.demo.console import GuestConsole
from serai.cli.demo.narration import Narration
from serai.cli.demo.report import (
    DemoReport,
    GuestReport,
    MigrationResult,
    Residue,
    TransferReport,
    VnetReport,
)
from serai.cli.demo.traffic import Ear, Ping, Transfer
from serai.cli.operations import follow
from serai.cli.paging import collect
from serai.v1.infrastructure_pb2 import ListSlicesRequest, Slice
from serai.v1.infrastructure_pb2_grpc import InfrastructureServiceStub
from serai.v1.node_pb2 import Node
from serai.v1.operation_pb2 import MigrationReport, Operation
from serai.v1.operator_pb2 import (
    CreateVnetRequest,
    DeleteVnetRequest,
    GetVnetRequest,
    MigrateVnetNodeRequest,
    Vnet,
    VnetNodeRequest,
)
from serai.v1.operator_pb2_grpc import OperatorServiceStub
from serai.wire.rpc import Channel

MAIN, TWIN = "demo", "twin"
FILES = resources.files("serai.cli.demo")
DOCUMENTS = {MAIN: "two-providers.xml", TWIN: "same-addresses.xml"}
CLIENT, ROUTER, SERVER = (f"vnets/{MAIN}/nodes/{name}" for name in ("client", "router", "server"))
TWIN_NODES = tuple(f"vnets/{TWIN}/nodes/{name}" for name in ("client", "server"))
CLIENT_ADDRESS, SERVER_ADDRESS = "10.1.0.2", "10.2.0.2"
DESTINATION = "beta"
TRANSFER_BYTES = 16 << 20
_PINGS_AROUND = 20
_FIRST_REPLY_S = 30.0
_HEARTBEATS_S, _POLL_S = 5.0, 0.1
_GENERATION = re.compile(r"-g\d+$")
"""What a VNet provider appends to a link's name for each path that the link has had."""


@dataclass(slots=True)
class Scenario:
    """One run against a started cluster; fills `report` as it goes, so a failure keeps what came before."""

    context: Context
    channel: Channel
    narration: Narration
    report: DemoReport
    _migration_window: tuple[float, float] = field(default=(0.0, 0.0))

    async def run(self) -> None:
        """Everything between the cluster's start and its end."""
        with self.narration.step("Two VNets of Linux guests with the same addresses, from XML"):
            main, twin = await self._provision()
        with self.narration.step(
            "Traffic: pings and a TCP transfer through the router, and the twin VNet talking too"
        ):
            await self._traffic_and_migration(twin)
        with self.narration.step("What it took"):
            await self._account(main)
        with self.narration.step("Removing everything"):
            await self._remove()

    async def _provision(self) -> tuple[Vnet, Vnet]:
        started = time.monotonic()
        main, twin = await asyncio.gather(self._request(MAIN), self._request(TWIN))
        elapsed = (main.running_time.ToNanoseconds() - main.create_time.ToNanoseconds()) / 1e9
        self.report.vnet = VnetReport(
            nodes=len(main.nodes),
            links=len(main.links),
            providers=main.provider_count,
            longest_path_hops=max((await self._hops(main)).values()),
            request_to_running_s=round(elapsed, 2),
        )
        self.narration.fact(f"both running after {time.monotonic() - started:.1f} s")
        for node in main.nodes:
            self.narration.fact(
                f"{node.name.rpartition('/')[2]:8} on {place(node)}, Linux {node.kernel_release}"
            )
        return main, twin

    async def _request(self, name: str) -> Vnet:
        stub = OperatorServiceStub(self.channel)
        document = (FILES / DOCUMENTS[name]).read_bytes()
        operation = await stub.CreateVnet(CreateVnetRequest(vnet_id=name, document=document))
        await follow(self.channel, operation, self.narration.follow)
        return await stub.GetVnet(GetVnetRequest(name=f"vnets/{name}"))

    async def _hops(self, vnet: Vnet) -> dict[str, int]:
        """Substrate links below each virtual link: those inside every provider, and the border between."""
        hops = {link.id: 0 for link in vnet.links}
        borders: dict[str, set[str]] = {link.id: set() for link in vnet.links}
        for part in await self._slices(vnet):
            for link in part.links:
                name = _GENERATION.sub("", link.id)
                hops[name] += link.hops
                borders[name] |= {end.border.border for end in (link.a, link.b) if end.HasField("border")}
        return {name: count + len(borders[name]) for name, count in hops.items()}

    async def _slices(self, vnet: Vnet) -> list[Slice]:
        """The parts of a VNet at all providers, which name them after it."""
        slices: list[Slice] = []
        for provider in self.context.state().providers:
            async with self.context.provider(provider) as channel:
                slices += await all_slices(channel)
        prefix = vnet.name.replace("vnets/", "slices/") + "-"
        return [part for part in slices if part.name.startswith(prefix)]

    async def _traffic_and_migration(self, twin: Vnet) -> None:
        macs = [mac for node in twin.nodes for mac in node.macs.values()]
        async with self._consoles(CLIENT, SERVER, TWIN_NODES[0]) as (client, server, twin_client):
            ear = Ear(self.channel, TWIN_NODES, macs)
            transfer = Transfer(server, client, size=TRANSFER_BYTES, receiver_address=CLIENT_ADDRESS)
            await transfer.prepare()
            ping, twin_ping = Ping(client, SERVER_ADDRESS), Ping(twin_client, SERVER_ADDRESS)
            await asyncio.gather(*(each.answered(within=_FIRST_REPLY_S) for each in (ping, twin_ping)))
            await ping.replies(_PINGS_AROUND, within=_FIRST_REPLY_S)
            self.narration.fact("pings answered end to end, 20 a second, in both VNets")
            await transfer.start()
            self.narration.fact(f"a TCP transfer of {transfer.size >> 20} MiB is under way")
            await self._migrate()
            await transfer.sent()
            await ping.replies(_PINGS_AROUND, within=_FIRST_REPLY_S)
            self.report.ping = await ping.stop()
            await twin_ping.stop()
            await transfer.verify()
            self._record_transfer(transfer)
            self.report.isolation = await ear.stop()

    async def _migrate(self) -> None:
        stub = OperatorServiceStub(self.channel)
        begin = time.monotonic()
        started = await stub.MigrateVnetNode(MigrateVnetNodeRequest(name=ROUTER, destination=DESTINATION))
        operation = await follow(self.channel, started, self.narration.follow)
        self._migration_window = (begin, time.monotonic())
        self.report.migration = migration_result("demo/router", operation.migration)
        moved = self.report.migration
        self.narration.fact(
            f"router moved {moved.from_} → {moved.to} while forwarding: down {moved.downtime_ms:.0f} ms, "
            f"{moved.rounds} rounds, {moved.bytes_sent / 1e6:.1f} MB, digests equal"
        )
        show_steps(self.narration, operation)

    def _record_transfer(self, transfer: Transfer) -> None:
        begin, end = self._migration_window
        self.report.transfer = TransferReport(
            bytes=transfer.size,
            seconds=round(transfer.end - transfer.begin, 2),
            sha256_sent=transfer.sha256_sent,
            sha256_received=transfer.sha256_received,
            spans_migration=transfer.begin <= begin and end <= transfer.end,
        )

    async def _account(self, main: Vnet) -> None:
        stub = OperatorServiceStub(self.channel)
        current = await stub.GetVnet(GetVnetRequest(name=main.name))
        for node in current.nodes:
            statistics = await stub.GetVnetNodeStatistics(VnetNodeRequest(name=node.name))
            guest = GuestReport(
                name=node.name.rpartition("/")[2],
                node=place(node),
                kernel=node.kernel_release,
                boot_s=round(statistics.boot_seconds, 2),
                instructions=statistics.instructions,
            )
            self.report.guests.append(guest)

    async def _remove(self) -> None:
        await asyncio.gather(*(self.delete(name) for name in (MAIN, TWIN)))
        self.report.residue = await self._residue()
        if not self.report.residue.any:
            self.narration.fact("no guest and no reservation is left on any node")

    async def _residue(self) -> Residue:
        """What the nodes still hold, once their next heartbeats had time to say so."""
        deadline = time.monotonic() + _HEARTBEATS_S
        while True:
            providers = self.context.state().providers
            lists = [await nodes_of(self.context, name) for name in providers]
            left = residue([node for nodes in lists for node in nodes])
            if not left.any or time.monotonic() > deadline:
                return left
            await asyncio.sleep(_POLL_S)

    async def delete(self, name: str) -> None:
        """Delete one of the demo's VNets; no error if it does not exist."""
        request = DeleteVnetRequest(name=f"vnets/{name}", allow_missing=True)
        operation = await OperatorServiceStub(self.channel).DeleteVnet(request)
        await follow(self.channel, operation, self.narration.follow)

    @asynccontextmanager
    async def _consoles(self, *names: str) -> AsyncIterator[tuple[GuestConsole, ...]]:
        async with AsyncExitStack() as stack:
            consoles = [GuestConsole(self.channel, name) for name in names]
            yield tuple([await stack.enter_async_context(console) for console in consoles])


async def all_slices(channel: Channel) -> list[Slice]:
    """Every slice of one provider."""
    stub = InfrastructureServiceStub(channel)
    return await collect(
        lambda token: stub.ListSlices(ListSlicesRequest(page_token=token)), lambda page: page.slices
    )


def migration_result(name: str, report: MigrationReport) -> MigrationResult:
    """The report's form of a migration."""
    return MigrationResult(
        vm=name,
        from_=report.source_node,
        to=report.destination_node,
        mode=report.mode,
        rounds=report.rounds,
        bytes_sent=report.bytes_sent,
        total_ms=round(report.total_ms, 1),
        downtime_ms=round(report.downtime_ms, 1),
        digest_source=report.digest_source,
        digest_destination=report.digest_destination,
    )


def show_steps(narration: Narration, operation: Operation) -> None:
    """One line with each step's time."""
    times = []
    for step in operation.steps:
        if step.HasField("start_time") and step.HasField("end_time"):
            milliseconds = (step.end_time.ToNanoseconds() - step.start_time.ToNanoseconds()) / 1e6
            times.append(f"{step.name} {milliseconds:.0f} ms")
    narration.fact("steps: " + ", ".join(times))


def residue(nodes: list[Node]) -> Residue:
    """What the nodes still hold."""
    return Residue(
        guests=sum(node.guest_count for node in nodes),
        allocated_memory_bytes=sum(node.allocated.memory_bytes for node in nodes),
    )
