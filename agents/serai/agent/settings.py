"""Settings of one agent: flags over environment (``SERAI_AGENT_...``) over a YAML file over the defaults."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import ByteSize, Field, field_validator

from serai.daemon.settings import DaemonSettings, SettingsSource
from serai.wire.identity import Identity, Role


def _host_memory() -> int:
    """Bytes of RAM of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class AgentSettings(DaemonSettings):
    """What an agent has to be told; sizes take units ("4GiB")."""

    node: str = Field(description="PROVIDER/NODE, as in the agent's certificate: alpha/a1")
    credentials: Path = Field(description="directory with ca.pem, cert.pem and key.pem")
    state_dir: Path = Field(description="durable records; one agent at a time")
    listen: str = Field("127.0.0.1:0", description="HOST:PORT of the gRPC server, port 0 for any free one")
    data_listen: str = Field("127.0.0.1:0", description="HOST:PORT for frames and migration data")
    advertise_host: str = Field(
        "", description="host under which other nodes reach this one (as bound if empty)"
    )
    driver: Literal["emulated", "fake"] = Field("emulated", description="the hypervisor back end")
    images_dir: Path | None = Field(None, description="image store (the user's cache if empty)")
    vcpus: int = Field(
        default_factory=lambda: 4 * (os.cpu_count() or 1),
        ge=1,
        description="vCPUs promised to guests at most",
    )
    memory: ByteSize = Field(
        default_factory=lambda: ByteSize(_host_memory() // 2), description="RAM promised to guests at most"
    )
    events_url: str = Field("", description="mqtt://HOST:PORT of the event broker, none if empty")
    heartbeat_s: float = Field(0.5, gt=0, le=1, description="seconds between heartbeats")
    stop_grace_s: float = Field(
        3.0, ge=0, description="seconds a guest gets to power off when the agent stops"
    )
    orphan_s: float = Field(
        600.0,
        ge=0,
        description="seconds guests wait for the agent to come back after it was killed; 0: they end with it",
    )
    redirect_s: float = Field(
        60.0, ge=0, description="seconds that frames for a guest that left are sent after it"
    )
    stream_timeout_s: float = Field(20.0, gt=0, description="seconds a migration may go without any progress")

    @field_validator("node")
    @classmethod
    def _check_node(cls, value: str) -> str:
        if value.count("/") != 1:
            raise ValueError("write PROVIDER/NODE, for instance alpha/a1")
        Identity(Role.AGENT, value)
        return value

    @field_validator("listen", "data_listen")
    @classmethod
    def _check_address(cls, value: str) -> str:
        host, separator, port = value.rpartition(":")
        if not host or not separator or not port.isdigit() or int(port) > 65535:
            raise ValueError("write HOST:PORT, port 0 for any free one")
        return value

    @property
    def provider(self) -> str:
        """The provider that owns the node."""
        return self.node.partition("/")[0]

    @property
    def node_id(self) -> str:
        """The node's name within its provider."""
        return self.node.partition("/")[2]


SOURCE = SettingsSource(
    program="serai-agent",
    description="Houses guests on this node and serves them to its provider.",
    environment_prefix="SERAI_AGENT_",
    model=AgentSettings,
)
