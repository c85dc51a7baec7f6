"""Settings of a daemon: flags over environment over a YAML file over the defaults."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serai.errors import InvalidInputError


class DaemonSettings(BaseModel):
    """What every daemon may be told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ready_file: Path | None = Field(None, description="written once it serves, with its addresses, as JSON")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe line logged"
    )
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="auto: text on a terminal, else JSON"
    )


Model = TypeVar("Model", bound=DaemonSettings)


@dataclass(frozen=True)
class SettingsSource(Generic[Model]):
    """Where a program's settings come from. `flags` are the fields that have a flag; None means all."""

    program: str
    description: str
    environment_prefix: str
    model: type[Model]
    flags: Iterable[str] | None = None

    def parse_arguments(self, arguments: Sequence[str] | None = None) -> dict[str, Any]:
        """The command line: ``--config FILE`` and the flags; None for what was not given."""
        parser = argparse.ArgumentParser(
            prog=self.program,
            description=self.description,
            epilog="Each setting may also stand in the file, or in the environment in upper case (structured"
            f" ones as JSON): {self.environment_prefix}LOG_LEVEL.",
        )
        parser.add_argument("--config", type=Path, metavar="FILE", help="settings in YAML")
        for name in self.flags or self.model.model_fields:
            description = self.model.model_fields[name].description
            flag = f"--{name.replace('_', '-')}"
            parser.add_argument(flag, default=None, metavar="VALUE", help=description, dest=name)
        return vars(parser.parse_args(arguments))

    def load(self, flags: Mapping[str, Any], file: Path | None = None) -> Model:
        """Merge flags, environment and file; InvalidInputError lists every wrong setting at once."""
        # A fifth of a second to import; only who runs a daemon pays.
        from pydantic_settings import (  # noqa: PLC0415
            BaseSettings,
            PydanticBaseSettingsSource,
            SettingsConfigDict,
        )

        given = {name: value for name, value in flags.items() if value is not None}
        content = _read_file(file)
        model: Any = self.model

        class _Layered(model, BaseSettings):  # type: ignore[misc]
            model_config = SettingsConfigDict(env_prefix=self.environment_prefix, extra="forbid")

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
                f"the settings of {self.program} are wrong:\n  " + "\n  ".join(lines),
                hint=f"{self.program} --help lists the settings",
                reason="SETTINGS_INVALID",
            ) from error
        # The caller gets its own class back, not the layered one; everything in it has been validated.
        fields = {name: getattr(merged, name) for name in self.model.model_fields}
        return cast(Model, self.model.model_construct(**fields))


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
