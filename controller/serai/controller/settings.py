"""Settings of a controller: flags over environment (``SERAI_CONTROLLER_...``) over a YAML file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from serai.errors import InvalidInputError
from serai.roles.settings import PipSettings, RoleSettings, Settings, VnoSettings, VnpSettings
from serai.wire.identity import Identity, Role

ENVIRONMENT_PREFIX = "SERAI_CONTROLLER_"

_FLAGS = ("state_dir", "events_url", "ready_file", "log_level", "log_format")


class ControllerSettings(Settings):
    """Which roles this process hosts, each with its own state, server and certificate."""

    state_dir: Path = Field(description="directory of the roles' databases; one controller at a time")
    events_url: str = Field("", description="mqtt://HOST:PORT of the event broker, none if empty")
    ready_file: Path | None = Field(None, description="written once all roles serve, with their addresses")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe line logged"
    )
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="auto: text on a terminal, else JSON"
    )
    vno: VnoSettings | None = None
    vnp: VnpSettings | None = None
    pips: list[PipSettings] = []

    @property
    def roles(self) -> Iterator[RoleSettings]:
        """All that is hosted, those first that the others buy from."""
        yield from self.pips
        if self.vnp is not None:
            yield self.vnp
        if self.vno is not None:
            yield self.vno

    @property
    def identities(self) -> set[Identity]:
        """Who is in this process."""
        found = {pip.identity for pip in self.pips}
        found |= {role.identity for role in (self.vnp, self.vno) if role is not None}
        return found

    @model_validator(mode="after")
    def _check_roles(self) -> Self:
        if not list(self.roles):
            raise ValueError("no role is named; give at least one of vno, vnp and pips")
        names = [pip.name for pip in self.pips]
        if len(set(names)) < len(names):
            raise ValueError("two providers of infrastructure have the same name")
        for needed, address, where in self._needed():
            if not address and needed not in self.identities:
                raise ValueError(f"{where}: {needed} is not in this process; give its address")
        return self

    def _needed(self) -> Iterator[tuple[Identity, str, str]]:
        if self.vno is not None:
            provider = self.vno.provider
            yield Identity(Role.VNP, provider.name), provider.address, "vno.provider"
        for peer in self.vnp.infrastructure if self.vnp is not None else ():
            yield Identity(Role.PIP, peer.name), peer.address, "vnp.infrastructure"
        for pip in self.pips:
            for border in pip.borders:
                peer_identity = Identity(Role.PIP, border.peer_provider)
                yield peer_identity, border.peer_address, f"pips.{pip.name}.borders.{border.name}"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line: ``--config FILE`` and the settings that have no structure."""
    parser = argparse.ArgumentParser(
        prog="serai-controller",
        description="Hosts roles of the VNet architecture: VNO, VNP, PIPs, any subset of them.",
        epilog="Settings may stand in the file or, upper case, in the environment (structured ones as JSON):"
        f" {ENVIRONMENT_PREFIX}EVENTS_URL.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings in YAML")
    for name in _FLAGS:
        field = ControllerSettings.model_fields[name]
        parser.add_argument(
            f"--{name.replace('_', '-')}", default=None, metavar="VALUE", help=field.description, dest=name
        )
    return parser.parse_args(arguments)


def load_settings(flags: Mapping[str, Any], file: Path | None = None) -> ControllerSettings:
    """Merge flags, environment and file; InvalidInputError lists every wrong setting at once."""
    from pydantic_settings import (  # noqa: PLC0415 - 0.2 s that only who runs a controller pays
        BaseSettings,
        PydanticBaseSettingsSource,
        SettingsConfigDict,
    )

    given = {name: value for name, value in flags.items() if value is not None}
    content = _read_file(file)

    class _Layered(ControllerSettings, BaseSettings):
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
            "the controller's settings are wrong:\n  " + "\n  ".join(lines),
            hint="serai-controller --help lists the settings",
            reason="SETTINGS_INVALID",
        ) from error
    fields = {name: getattr(merged, name) for name in ControllerSettings.model_fields}
    return ControllerSettings.model_construct(**fields)


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
