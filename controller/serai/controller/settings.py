"""Settings of a controller: flags over environment (``SERAI_CONTROLLER_...``) over a YAML file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from serai.daemon.settings import DaemonSettings, SettingsSource
from serai.roles.settings import PipSettings, RoleSettings, VnoSettings, VnpSettings
from serai.wire.identity import Identity, Role


class ControllerSettings(DaemonSettings):
    """Which roles this process hosts, each with its own state, server and certificate."""

    state_dir: Path = Field(description="directory of the roles' databases; one controller at a time")
    events_url: str = Field("", description="mqtt://HOST:PORT of the event broker, none if empty")
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


SOURCE = SettingsSource(
    program="serai-controller",
    description="Hosts roles of the VNet architecture: VNO, VNP, PIPs, any subset of them.",
    environment_prefix="SERAI_CONTROLLER_",
    model=ControllerSettings,
    flags=("state_dir", "events_url", *DaemonSettings.model_fields),
)
