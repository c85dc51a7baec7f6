"""Two agents and a guest to move between them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from tests.agent.harness import MEBIBYTE, AgentProcess, Client, Site

from serai.agent.daemon import Agent
from serai.hypervisor.fake import FakeDriver, FakeGuest
from serai.v1 import guest_pb2, migration_pb2

Migration = migration_pb2.Migration


@dataclass
class Side:
    """One node with its client; `agent` and `driver` only when it is in this process."""

    node: str
    client: Client
    address: str
    agent: Agent | None = None
    driver: FakeDriver | None = None
    process: AgentProcess | None = None

    @property
    def here(self) -> Agent:
        assert self.agent is not None
        return self.agent

    @property
    def guest(self) -> FakeGuest:
        assert self.driver is not None
        (guest,) = self.driver.guests.values()
        return guest


@contextlib.asynccontextmanager
async def side(
    site: Site, node: str, driver: FakeDriver | None = None, **settings: Any
) -> AsyncIterator[Side]:
    driver = driver or FakeDriver()
    async with site.agent(node, driver, **settings) as agent, site.connect(agent) as client:
        yield Side(node, client, agent.control_address, agent, driver)


@contextlib.asynccontextmanager
async def process_side(site: Site, node: str, **settings: Any) -> AsyncIterator[Side]:
    async with site.process(node, **settings) as process, site.connect(process) as client:
        yield Side(node, client, process.control_address, process=process)


async def start_guest(source: Side, memory_bytes: int = 8 * MEBIBYTE, **spec: Any) -> guest_pb2.Guest:
    await source.client.create(memory_bytes=memory_bytes, **spec)
    return await source.client.until(lambda guest: guest.ready)


async def permit(destination: Side, guest: guest_pb2.Guest, source_node: str, guest_id: str = "g") -> bytes:
    answer = await destination.client.migrations.PermitArrival(
        migration_pb2.PermitArrivalRequest(
            guest_uid=guest.uid, source_node=source_node, spec=guest.spec, guest_id=guest_id, expires_in_s=60
        )
    )
    return answer.permit


async def begin(
    source: Side, destination: Side, guest: guest_pb2.Guest, *, token: bytes = b"", **options: Any
) -> Migration:
    return await source.client.migrations.MigrateGuest(
        migration_pb2.MigrateGuestRequest(
            name=guest.name,
            destination_node=destination.node,
            destination_address=destination.address,
            permit=token or await permit(destination, guest, source.node),
            options=migration_pb2.MigrationOptions(**options),
        )
    )


async def follow(
    source: Side, name: str, until: Callable[[Migration], bool] = lambda migration: False
) -> Migration:
    """Watch until the migration is over, or `until` says so."""
    latest = Migration()
    async with asyncio.timeout(30):
        call = source.client.migrations.WatchMigration(migration_pb2.GetMigrationRequest(name=name))
        try:
            async for latest in call:
                if until(latest):
                    break
        finally:
            call.cancel()
    return latest


async def move(source: Side, destination: Side, guest: guest_pb2.Guest, **options: Any) -> Migration:
    begun = await begin(source, destination, guest, **options)
    return await follow(source, begun.name)


def running_step(migration: Migration) -> str:
    return next((step.name for step in migration.steps if step.state == 2), "")


async def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until `condition` holds; fails naming `what`."""
    try:
        async with asyncio.timeout(15):
            while not condition():  # noqa: ASYNC110 - many kinds of conditions, none with an event
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"never came true: {what}") from None
