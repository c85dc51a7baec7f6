"""The agent: one per node; composes driver, data plane, records and services, and serves them."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

from serai.agent.access import ProviderScope, access_table
from serai.agent.capacity import Capacity, Demand
from serai.agent.consoles import Consoles
from serai.agent.guest_service import GuestService
from serai.agent.guests import Guests
from serai.agent.inventory import Inventory
from serai.agent.links import Links
from serai.agent.node_service import NodeService
from serai.agent.records import Records
from serai.agent.settings import AgentSettings
from serai.agent.spec import ImageSource, NoImages
from serai.agent.tasks import TaskSet
from serai.errors import InvalidInputError, UnavailableError
from serai.hypervisor.driver import Driver, FramePort
from serai.v1.guest_pb2_grpc import add_GuestServiceServicer_to_server
from serai.v1.node_pb2_grpc import add_NodeServiceServicer_to_server
from serai.wire.identity import Identity, Role
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
        self,
        settings: AgentSettings,
        *,
        driver: Driver | None = None,
        images: ImageSource | None = None,
        links: Links | None = None,
    ) -> None:
        self.settings = settings
        self.credentials = load_credentials(settings)
        self.driver = driver or make_driver(settings.driver)
        self.images = images or open_images(settings)
        self.links = links or _InterimLinks()
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
        self._closers = contextlib.AsyncExitStack()
        self.guests: Guests
        self.records: Records

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
        self.records = self._closers.enter_context(Records(self.settings.state_dir))
        self._on_close(self.tasks.close)
        self._on_close(self.driver.close)
        await self.driver.open()
        self.guests = Guests(
            driver=self.driver,
            images=self.images,
            records=self.records,
            capacity=self.capacity,
            inventory=self.inventory,
            links=self.links,
            tasks=self.tasks,
        )
        self.guests.load()
        server = await create_server(
            self.credentials,
            self.settings.listen,
            self._services(),
            access_table("NodeService", "GuestService"),
        )
        self._on_close(server.close)
        self.node.control_address = self._advertised(server.address)
        self._on_close(self._stop_guests)
        self._write_ready_file()

    async def close(self) -> None:
        """Say so to those who watch, power the guests off, and stop serving; safe to repeat."""
        self.node.stop()
        await self._closers.aclose()

    def _on_close(self, step: Callable[[], Awaitable[None]]) -> None:
        self._closers.push_async_callback(step)

    async def _stop_guests(self) -> None:
        await self.guests.stop_all(self.settings.stop_grace_s)
        self.consoles.end_all(UnavailableError("the agent is stopping", reason="AGENT_STOPPING"))

    def _services(self) -> list[Service]:
        service = GuestService(self.guests, self.inventory, self.consoles, lambda name: False, _no_migration)
        return [
            (add_NodeServiceServicer_to_server, self._scoped(self.node)),
            (add_GuestServiceServicer_to_server, self._scoped(service)),
        ]

    def _scoped(self, servicer: object) -> ProviderScope:
        return ProviderScope(servicer, self.settings.provider)

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

    def _write_ready_file(self) -> None:
        path = self.settings.ready_file
        if path is not None:
            write_whole(path, self.announcement() + "\n")
            self._closers.callback(path.unlink, missing_ok=True)


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


def make_driver(name: str) -> Driver:
    """The hypervisor back end of the settings; imported only when it is the one."""
    module, factory = _DRIVERS[name]
    return cast(Driver, getattr(importlib.import_module(module), factory)())


def open_images(settings: AgentSettings) -> ImageSource:
    """The node's image store."""
    if settings.driver == "fake":
        return NoImages()
    from serai.images.store import ImageStore  # noqa: PLC0415 - the fake driver needs none of it

    return cast(ImageSource, ImageStore(settings.images_dir))


def write_whole(path: Path, content: str) -> None:
    """Replace `path` at once: who waits for the file never reads half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(content)
    temporary.replace(path)


async def _no_migration(hosted: object) -> None: ...


class _InterimLinks:
    def bind_port(self, guest_uid: str, interface: str, port: FramePort) -> None: ...
    def hold_port(self, guest_uid: str, interface: str) -> None: ...
    def unbind_port(self, guest_uid: str, interface: str) -> None: ...
