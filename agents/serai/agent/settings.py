"""Settings of one agent: flags over environment (``SERAI_AGENT_...``) over a YAML file over the defaults."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError, field_validator

from serai.errors import InvalidInputError
from serai.wire.identity import Identity, Role

ENVIRONMENT_PREFIX = "SERAI_AGENT_"


def _host_memory() -> int:
    """Bytes of RAM of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class AgentSettings(BaseModel):
    """What an agent has to be told; sizes take units ("4GiB")."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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
    ready_file: Path | None = Field(None, description="written once the agent serves, with its addresses")
    heartbeat_s: float = Field(0.5, gt=0, le=1, description="seconds between heartbeats")
    stop_grace_s: float = Field(
        3.0, ge=0, description="seconds a guest gets to power off when the agent stops"
    )
    redirect_s: float = Field(
        60.0, ge=0, description="seconds that frames for a guest that left are sent after it"
    )
    stream_timeout_s: float = Field(20.0, gt=0, description="seconds a migration may go without any progress")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe line logged"
    )
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="auto: text on a terminal, else JSON"
    )

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


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; one flag for each setting, and ``--config FILE``."""
    parser = argparse.ArgumentParser(
        prog="serai-agent",
        description="Houses guests on this node and serves them to its provider.",
        epilog="Each setting may also stand in the file, or in the environment in upper case:"
        f" {ENVIRONMENT_PREFIX}NODE.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings in YAML")
    for name, field in AgentSettings.model_fields.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", default=None, metavar="VALUE", help=field.description, dest=name
        )
    return parser.parse_args(arguments)


def load_settings(flags: Mapping[str, Any], file: Path | None = None) -> AgentSettings:
    """Merge flags, environment and file; InvalidInputError lists every wrong setting at once."""
    # A fifth of a second to import; only who runs an agent pays.
    from pydantic_settings import (  # noqa: PLC0415
        BaseSettings,
        PydanticBaseSettingsSource,
        SettingsConfigDict,
    )

    given = {name: value for name, value in flags.items() if value is not None}
    content = _read_file(file)

    class _Layered(AgentSettings, BaseSettings):
        model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="forbid")

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[Any, ...]:
            return (lambda: given, env_settings, lambda: content)

    try:
        merged = _Layered()
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise InvalidInputError(
            "the agent's settings are wrong:\n  " + "\n  ".join(lines),
            hint="serai-agent --help lists all settings",
            reason="SETTINGS_INVALID",
        ) from error
    return AgentSettings.model_construct(
        **{name: getattr(merged, name) for name in AgentSettings.model_fields}
    )


def _read_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}", hint="check --config") from error
    except yaml.YAMLError as error:
        raise InvalidInputError(f"{path} is not YAML: {error}", hint="write NAME: VALUE lines") from error
    if not isinstance(content, dict):
        raise InvalidInputError(f"{path} holds no settings", hint="write NAME: VALUE lines")
    return content
