"""The agent: one per node; composes driver, data plane, records and services, and serves them."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import cast

from serai.agent.access import ProviderScope, access_table
from serai.agent.arrivals import Arrivals
from serai.agent.attachment_service import AttachmentService
from serai.agent.capacity import Capacity, Demand
from serai.agent.consoles import Consoles
from serai.agent.departures import Departures
from serai.agent.guest_service import GuestService
from serai.agent.guests import Guests
from serai.agent.inventory import Hosted, Inventory
from serai.agent.migration_service import ChannelService, MigrationPeerService, MigrationService
from serai.agent.node_service import NodeService
from serai.agent.peers import Peers
from serai.agent.publisher import Publisher
from serai.agent.records import Records
from serai.agent.segment_service import SegmentService
from serai.agent.settings import AgentSettings
from serai.agent.snapshots import Snapshots
from serai.agent.spec import ImageSource, NoImages
from serai.agent.tasks import TaskSet
from serai.errors import InvalidInputError, UnavailableError
from serai.hypervisor.driver import Driver
from serai.hypervisor.snapshot_store import SnapshotStore
from serai.network.dataplane import DataPlane
from serai.v1 import node_pb2
from serai.v1.attachment_pb2_grpc import add_AttachmentServiceServicer_to_server
from serai.v1.guest_pb2_grpc import add_GuestServiceServicer_to_server
from serai.v1.link_pb2_grpc import add_SegmentServiceServicer_to_server
from serai.v1.migration_pb2_grpc import (
    add_ChannelServiceServicer_to_server,
    add_MigrationPeerServiceServicer_to_server,
    add_MigrationServiceServicer_to_server,
)
from serai.v1.node_pb2_grpc import add_NodeServiceServicer_to_server
from serai.wire.identity import Identity, Role
from serai.wire.mqtt import create_bus
from serai.wire.rpc import Service, create_server
from serai.wire.tls import Credentials

log = logging.getLogger(__name__)

_DRIVERS = {
    "emulated": ("serai.hypervisor.emulated", "EmulatedDriver"),
    "fake": ("serai.hypervisor.fake", "FakeDriver"),
}


class Agent:
    """A node's daemon: `start` serves, `close` stops the guests and everything else.

    `driver` and `images` take the place of what the settings name (tests).
    """

    def __init__(
        self, settings: AgentSettings, *, driver: Driver | None = None, images: ImageSource | None = None
    ) -> None:
        self.settings = settings
        self.credentials = load_credentials(settings)
        self.driver = driver or make_driver(settings)
        self.images = images or open_images(settings)
        self.tasks = TaskSet()
        self.inventory = Inventory()
        self.consoles = Consoles()
        self.capacity = Capacity(settings.node, Demand(settings.vcpus, settings.memory))
        self.node = NodeService(
            provider=settings.provider,
            node_id=settings.node_id,
            capacity=self.capacity,
            inventory=self.inventory,
            images=self.images,
            heartbeat_s=settings.heartbeat_s,
        )
        self.peers = Peers(self.credentials, self.tasks)
        self.data_plane = DataPlane(settings.node, self.peers.open_channel, data_address=settings.data_listen)
        self.bus = create_bus(self.credentials.identity, settings.events_url or None)
        self._publisher = Publisher(self.bus, settings.node)
        self._closers = contextlib.AsyncExitStack()
        self.guests: Guests
        self.records: Records
        self.departures: Departures
        self.snapshots: Snapshots
        self.arrivals: Arrivals

    @property
    def control_address(self) -> str:
        """``HOST:PORT`` of the gRPC server, as others reach it."""
        return self.node.control_address

    @property
    def data_address(self) -> str:
        """``HOST:PORT`` for frames and migration data, as others reach it."""
        return self.node.data_address

    async def start(self) -> None:
        """Serve. What was started is stopped again when something cannot be; raises SeraiError."""
        try:
            await self._start()
        except BaseException:
            await self._closers.aclose()
            raise

    async def _start(self) -> None:
        """Each step is undone in the reverse order."""
        self.records = self._closers.enter_context(Records(self.settings.state_dir))
        self._on_close(self.bus.close)
        await self.bus.start()
        self._on_close(self.driver.close)
        await self.driver.open()
        self._on_close(self.tasks.close)
        self._on_close(self.peers.close)
        self._on_close(self.data_plane.close)
        await self.data_plane.start()
        self._compose()
        # Before anybody can ask whose a guest is: the answer depends on whether it lives.
        await self.guests.load()
        await self._segments.load()
        server = await create_server(self.credentials, self.settings.listen, self._services(), access_table())
        self._on_close(server.close)
        self._set_addresses(self._advertised(server.address), self._advertised(self.data_plane.data_address))
        self._on_close(self._stop_guests)
        self._on_close(self.departures.close)
        self._on_close(self.arrivals.close)
        self.tasks.start(self._publisher.follow_guests(self.inventory), "publish the guests' events")
        self.departures.settle()
        self._publisher.node(f"nodes/{self.settings.node_id}", node_pb2.Node.READY, len(self.inventory))

    async def close(self) -> None:
        """Say so to those who watch, power the guests off, and stop serving; safe to repeat."""
        self.node.stop()
        await self._closers.aclose()

    def _compose(self) -> None:
        self.guests = Guests(
            driver=self.driver,
            images=self.images,
            records=self.records,
            capacity=self.capacity,
            inventory=self.inventory,
            data_plane=self.data_plane,
            tasks=self.tasks,
        )
        self.snapshots = Snapshots(
            SnapshotStore(self.settings.state_dir / "snapshots"),
            driver=self.driver,
            guests=self.guests,
            inventory=self.inventory,
            records=self.records,
        )
        self._closers.callback(self.snapshots.close)
        self.guests.on_gone = self.snapshots.guest_gone
        self.departures = Departures(
            settings=self.settings,
            snapshot_version=self.driver.snapshot_version,
            guests=self.guests,
            inventory=self.inventory,
            records=self.records,
            consoles=self.consoles,
            data_plane=self.data_plane,
            peers=self.peers,
            tasks=self.tasks,
            on_change=self._publisher.migration,
        )
        self.arrivals = Arrivals(
            settings=self.settings,
            driver=self.driver,
            snapshot_version=self.driver.snapshot_version,
            guests=self.guests,
            inventory=self.inventory,
            records=self.records,
            data_plane=self.data_plane,
            peers=self.peers,
            tasks=self.tasks,
            on_permit=self.departures.forget_departed,
        )
        self._channels = ChannelService(self.data_plane)
        self._segments = SegmentService(self.data_plane, self.peers, self.inventory, self.records)

    def _services(self) -> list[Service]:
        guests = GuestService(
            self.guests,
            self.inventory,
            self.consoles,
            self.departures.delete_departed,
            self._end_migrations,
            snapshots=self.snapshots,
        )
        migrations = MigrationService(self.departures, self.arrivals)
        return [
            (add_NodeServiceServicer_to_server, self._scoped(self.node)),
            (add_GuestServiceServicer_to_server, self._scoped(guests)),
            (add_SegmentServiceServicer_to_server, self._scoped(self._segments)),
            (
                add_AttachmentServiceServicer_to_server,
                self._scoped(AttachmentService(self.data_plane, self.inventory)),
            ),
            (add_MigrationServiceServicer_to_server, self._scoped(migrations)),
            (add_MigrationPeerServiceServicer_to_server, MigrationPeerService(self.arrivals)),
            (add_ChannelServiceServicer_to_server, self._channels),
        ]

    async def _end_migrations(self, hosted: Hosted) -> None:
        await self.arrivals.end_for(hosted)
        await self.departures.end_for(hosted)

    def _scoped(self, servicer: object) -> ProviderScope:
        return ProviderScope(servicer, self.settings.provider)

    def _on_close(self, step: Callable[[], Awaitable[None]]) -> None:
        self._closers.push_async_callback(step)

    async def _stop_guests(self) -> None:
        await self.guests.stop_all(self.settings.stop_grace_s)
        self.consoles.end_all(UnavailableError("the agent is stopping", reason="AGENT_STOPPING"))
        self._publisher.node(f"nodes/{self.settings.node_id}", node_pb2.Node.STOPPING, len(self.inventory))

    def _set_addresses(self, control: str, data: str) -> None:
        self.node.control_address = self.departures.control_address = control
        self.node.data_address = self.arrivals.data_address = self._channels.data_address = data

    def _advertised(self, bound: str) -> str:
        host, _, port = bound.rpartition(":")
        if self.settings.advertise_host:
            host = self.settings.advertise_host
        elif host.strip("[]") in ("0.0.0.0", "::"):
            host = socket.getfqdn()
        return f"{host}:{port}"

    def announcement(self) -> str:
        """One line of JSON: who serves where."""
        return json.dumps(
            {
                "node": self.settings.node,
                "control_address": self.control_address,
                "data_address": self.data_address,
                "pid": os.getpid(),
            }
        )


def load_credentials(settings: AgentSettings) -> Credentials:
    """The agent's certificate; InvalidInputError when it is another node's."""
    credentials = Credentials.load(settings.credentials)
    expected = Identity(Role.AGENT, settings.node)
    if credentials.identity != expected:
        raise InvalidInputError(
            f"{settings.credentials} identifies {credentials.identity}, and this node is {expected}",
            hint="issue a certificate for this node, or correct --node",
            reason="WRONG_IDENTITY",
        )
    return credentials


def make_driver(settings: AgentSettings) -> Driver:
    """The hypervisor back end of the settings; imported only when it is the one."""
    module, factory = _DRIVERS[settings.driver]
    make = getattr(importlib.import_module(module), factory)
    if settings.driver == "emulated":
        return cast(Driver, make(settings.state_dir / "guests", orphan_seconds=settings.orphan_s))
    return cast(Driver, make())


def open_images(settings: AgentSettings) -> ImageSource:
    """The node's image store."""
    if settings.driver == "fake":
        return NoImages()
    from serai.images.store import ImageStore  # noqa: PLC0415 - the fake driver needs none of it

    return cast(ImageSource, ImageStore(settings.images_dir))
