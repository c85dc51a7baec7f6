"""Which cluster a command talks to, and channels to its servers.

A context is a directory below the state directory (``$XDG_STATE_HOME/serai/clusters/NAME``) with the
cluster's addresses and the credentials of its local administrator.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from serai.cli.local.processes import Daemon
from serai.errors import InvalidInputError, NotFoundError
from serai.wire.identity import Identity, Role
from serai.wire.rpc import Channel, connect
from serai.wire.tls import Credentials

STATE_FILE = "cluster.json"
DEFAULT_CLUSTER = "default"


class ClusterState(BaseModel):
    """What is known of a started cluster: its processes and where they listen.

    `providers` and `agents` map a provider's, an agent's ("alpha/a1") name to its address.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    daemons: tuple[Daemon, ...]
    operator: str
    vnet_provider: str
    providers: dict[str, str]
    agents: dict[str, str]
    events_url: str


def clusters_root() -> Path:
    """Where clusters keep their state; ``SERAI_STATE`` or the XDG state directory."""
    override = os.environ.get("SERAI_STATE")
    if override:
        return Path(override) / "clusters"
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(base) / "serai" / "clusters"


@dataclass(frozen=True, slots=True)
class Context:
    """A cluster's directory; everything else is read from it."""

    directory: Path

    @classmethod
    def named(cls, name: str) -> Context:
        """The context of the cluster `name`, whether it exists or not."""
        return cls(clusters_root() / name)

    @property
    def state_file(self) -> Path:
        """Present from the moment the first process of the cluster has started."""
        return self.directory / STATE_FILE

    @property
    def credentials_directory(self) -> Path:
        """Certificates of every party of the cluster, one directory each."""
        return self.directory / "credentials"

    def state(self) -> ClusterState:
        """The running cluster. Raises NotFoundError when there is none under this name."""
        name = self.directory.name
        try:
            return ClusterState.model_validate_json(self.state_file.read_bytes())
        except FileNotFoundError:
            option = "" if name == DEFAULT_CLUSTER else f" -f a file with name: {name}"
            raise NotFoundError(
                f"no cluster {name!r} is running", hint=f"start one: serai cluster up{option}", cluster=name
            ) from None
        except ValidationError as error:
            raise InvalidInputError(
                f"{self.state_file} is damaged: {error.errors()[0]['msg']}",
                hint=f"serai cluster down --cluster {name} cleans up what it can",
            ) from error

    def admin(self) -> Credentials:
        """The local administrator's credentials."""
        return Credentials.load(self.credentials_directory / "admin")

    @asynccontextmanager
    async def operator(self) -> AsyncIterator[Channel]:
        """A channel to the VNet operator."""
        async with connect(self.state().operator, self.admin(), Role.VNO) as channel:
            yield channel

    @asynccontextmanager
    async def provider(self, name: str) -> AsyncIterator[Channel]:
        """A channel to the infrastructure provider `name`."""
        async with connect(self.state().providers[name], self.admin(), Identity(Role.PIP, name)) as channel:
            yield channel
