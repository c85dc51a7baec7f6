"""Hosting roles: each with its own database, certificate, connections and server."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from serai.controller.settings import ControllerSettings
from serai.errors import AlreadyExistsError, InvalidInputError, UnavailableError
from serai.roles.directory import Directory
from serai.roles.pip.pip import Pip
from serai.roles.settings import PipSettings, RoleSettings, VnoSettings, VnpSettings
from serai.roles.vno.vno import Vno
from serai.roles.vnp.vnp import Vnp
from serai.store import Database
from serai.store.database import sqlite_url
from serai.wire.bus import EventBus
from serai.wire.identity import Identity, Role
from serai.wire.mqtt import create_bus
from serai.wire.rpc import AccessTable, Service, create_server
from serai.wire.tls import Credentials

log = logging.getLogger(__name__)


class RoleInstance(Protocol):
    """What every role offers to its host."""

    identity: Identity
    access: AccessTable

    @property
    def services(self) -> Any:
        """What its server offers."""

    async def start(self) -> None:
        """Begin to act."""

    async def close(self) -> None:
        """Stop acting."""


class Controller:
    """The roles of one process."""

    def __init__(self, settings: ControllerSettings) -> None:
        self.settings = settings
        self.addresses: dict[Identity, str] = {}
        self.roles: list[RoleInstance] = []
        self._closers = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Open all roles, serve, and only then let them act; on an error nothing stays behind."""
        try:
            self._lock_state()
            self.roles = [await self._open(role) for role in self.settings.roles]
            for role, settings in zip(self.roles, self.settings.roles, strict=True):
                await self._serve(role, settings)
            for role in self.roles:
                await role.start()
                # Closed before its server: what it undoes needs the others, and they are closed after it.
                self._closers.push_async_callback(role.close)
        except BaseException:
            await self._closers.aclose()
            raise

    async def close(self) -> None:
        """Undo what is under way, stop serving; guests and VNets go on."""
        await self._closers.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def announcement(self) -> str:
        """One line of JSON: who serves where."""
        return json.dumps(
            {
                "operator": self._address(Role.VNO),
                "vnet_provider": self._address(Role.VNP),
                "providers": {
                    identity.owner: address
                    for identity, address in self.addresses.items()
                    if identity.role is Role.PIP
                },
                "pid": os.getpid(),
            }
        )

    def _address(self, role: Role) -> str:
        return next((address for identity, address in self.addresses.items() if identity.role is role), "")

    async def _open(self, settings: RoleSettings) -> RoleInstance:
        credentials = load_credentials(settings)
        identity = credentials.identity
        url = settings.database_url or sqlite_url(self._database_file(identity))
        database = await Database.open(url)
        self._closers.push_async_callback(database.close)
        bus = create_bus(identity, self.settings.events_url or None)
        await self._closers.enter_async_context(bus)
        directory = Directory(credentials, self.addresses)
        return await _open_role(settings, credentials, database, directory, bus)

    async def _serve(self, role: RoleInstance, settings: RoleSettings) -> None:
        services: list[Service] = list(role.services)
        credentials = load_credentials(settings)
        server = await create_server(credentials, settings.listen, services, role.access)
        await self._closers.enter_async_context(server)
        self.addresses[role.identity] = server.address

    def _database_file(self, identity: Identity) -> Path:
        return self.settings.state_dir / f"{identity.role}-{identity.owner}.sqlite"

    def _lock_state(self) -> None:
        directory = self.settings.state_dir
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = self._closers.enter_context((directory / "lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyExistsError(
                f"another controller uses {directory}", hint="stop it, or choose another --state-dir"
            ) from error
        except OSError as error:
            raise UnavailableError(
                f"{directory} cannot be used: {error.strerror}", hint="choose another --state-dir"
            ) from error


def load_credentials(settings: RoleSettings) -> Credentials:
    """The certificate of a role; InvalidInputError when it is somebody else's."""
    credentials = Credentials.load(settings.credentials)
    if credentials.identity != settings.identity:
        raise InvalidInputError(
            f"{settings.credentials} identifies {credentials.identity}, and this role is {settings.identity}",
            hint="issue a certificate for this role, or correct its name",
        )
    return credentials


async def _open_role(
    settings: RoleSettings,
    credentials: Credentials,
    database: Database,
    directory: Directory,
    bus: EventBus,
) -> RoleInstance:
    match settings:
        case PipSettings():
            return await Pip.open(settings, credentials, database, directory, bus)
        case VnpSettings():
            return await Vnp.open(settings, database, directory, bus)
        case VnoSettings():
            return await Vno.open(settings, database, directory, bus)
    raise AssertionError(f"unknown role {type(settings).__name__}")
