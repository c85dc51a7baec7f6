"""What a role has to be told. Capacities and delays take units ("100Mbit/s", "2ms")."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from serai.roles.names import check_label
from serai.vnet.units import BANDWIDTH, DELAY
from serai.wire.identity import Identity, Role


def _bandwidth(value: object) -> object:
    return BANDWIDTH.parse(value) if isinstance(value, str) else value


def _delay_ms(value: object) -> object:
    return DELAY.parse(value) / 1e6 if isinstance(value, str) else value


Bandwidth = Annotated[int, BeforeValidator(_bandwidth), Field(gt=0)]
DelayMs = Annotated[float, BeforeValidator(_delay_ms), Field(ge=0)]


class Settings(BaseModel):
    """Base: unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PeerSettings(Settings):
    """Another role instance."""

    name: str = Field(description="its owner, as in its certificate")
    address: str = Field("", description="HOST:PORT; empty: it is in this process")


class RoleSettings(Settings):
    """What every role needs."""

    role: ClassVar[Role]

    name: str = Field(description="the owner that its certificate names")
    listen: str = Field("127.0.0.1:0", description="HOST:PORT, port 0 for any free one")
    credentials: Path = Field(description="directory with ca.pem, cert.pem and key.pem")
    database_url: str = Field("", description="SQLAlchemy URL; empty: a SQLite file in the state directory")

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        return check_label(value, "owner")

    @property
    def identity(self) -> Identity:
        """Whom its certificate must name."""
        return Identity(self.role, self.name)


class NodeSettings(Settings):
    """A node of a PIP."""

    name: str
    address: str = Field(description="HOST:PORT of its agent")
    location: str = Field("", description="the place that is advertised for it")


class LinkSettings(Settings):
    """A substrate link between two nodes of a PIP; the delay is emulated."""

    a: str
    b: str
    capacity: Bandwidth
    delay: DelayMs = 0.0


class BorderSettings(Settings):
    """A link to another provider. Both sides name it alike and give the same capacity and delay."""

    name: str
    node: str = Field(description="our node at this end")
    peer_provider: str
    peer_address: str = Field("", description="HOST:PORT of the other PIP; empty: it is in this process")
    capacity: Bandwidth
    delay: DelayMs = 0.0


class PipSettings(RoleSettings):
    """A provider of infrastructure."""

    role: ClassVar[Role] = Role.PIP

    nodes: list[NodeSettings] = Field(min_length=1)
    links: list[LinkSettings] = []
    borders: list[BorderSettings] = []
    operators: list[PeerSettings] = Field(
        [], description="VNOs elsewhere whose end users may attach here (those of this process may)"
    )
    disclose_placement: bool = Field(False, description="tell callers on which node a guest is")
    accept_placement: bool = Field(
        False, description="let callers choose the node of a guest (administrators always may)"
    )
    heartbeat_deadline_s: float = Field(3.0, gt=0, description="an agent silent for longer is unreachable")
    ready_deadline_s: float = Field(
        120.0, gt=0, description="a guest must be ready this long after its start"
    )
    migration_deadline_s: float = Field(120.0, gt=0, description="a guest that does not converge stays")

    @model_validator(mode="after")
    def _check_graph(self) -> Self:
        names = [node.name for node in self.nodes]
        if len(set(names)) < len(names):
            raise ValueError(f"provider {self.name}: two nodes have the same name")
        ends = [(f"link {link.a}-{link.b}", end) for link in self.links for end in (link.a, link.b)]
        ends += [(f"border {border.name}", border.node) for border in self.borders]
        for what, end in ends:
            if end not in names:
                raise ValueError(
                    f"provider {self.name}: {what} ends at {end!r}, which is not one of its nodes"
                )
        pairs = [frozenset((link.a, link.b)) for link in self.links]
        if len(set(pairs)) < len(pairs) or any(len(pair) < 2 for pair in pairs):
            raise ValueError(f"provider {self.name}: a link repeats or ends where it begins")
        borders = [border.name for border in self.borders]
        if len(set(borders)) < len(borders):
            raise ValueError(f"provider {self.name}: two borders have the same name")
        return self


class VnpSettings(RoleSettings):
    """A provider of virtual networks."""

    role: ClassVar[Role] = Role.VNP

    infrastructure: list[PeerSettings] = Field(min_length=1, description="the PIPs it buys from")
    reservation_s: float = Field(60.0, gt=0, description="how long PIPs hold what is allocated")


class VnoSettings(RoleSettings):
    """An operator of VNets."""

    role: ClassVar[Role] = Role.VNO

    provider: PeerSettings = Field(description="the VNP it buys from")
