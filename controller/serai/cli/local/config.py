"""``cluster.yaml``: the providers, nodes and links of a local cluster.

Everything may be left out; without a file there are two providers with two nodes each (see DEFAULT).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from serai.errors import InvalidInputError, NotFoundError
from serai.vnet.units import BANDWIDTH, DELAY, MEMORY, Quantity

Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$")]
Port = Annotated[int, Field(ge=0, le=65535)]


def _quantity(quantity: Quantity) -> BeforeValidator:
    """Text is parsed with its unit; a bare number is in the base unit (B, bit/s, ns)."""
    return BeforeValidator(lambda value: quantity.parse(value) if isinstance(value, str) else value)


Memory = Annotated[int, _quantity(MEMORY), Field(gt=0)]
Bandwidth = Annotated[int, _quantity(BANDWIDTH), Field(gt=0)]
Delay = Annotated[int, _quantity(DELAY), Field(ge=0)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NodeConfig(_Model):
    """One agent. Port 0 takes any free port."""

    name: Name
    vcpus: Annotated[int, Field(ge=1)] = 8
    memory: Memory = 2 << 30
    location: str = ""
    port: Port = 0
    data_port: Port = 0


class LinkConfig(_Model):
    """A substrate link inside a provider; `a` and `b` are node names."""

    a: Name
    b: Name
    bandwidth: Bandwidth = 1_000_000_000
    delay: Delay = 0


class ProviderConfig(_Model):
    """An infrastructure provider. `disclose_placement` shows its customers which node hosts what."""

    name: Name
    nodes: Annotated[tuple[NodeConfig, ...], Field(min_length=1)]
    links: tuple[LinkConfig, ...] = ()
    disclose_placement: bool = True
    port: Port = 0

    @model_validator(mode="after")
    def _links_join_nodes(self) -> Self:
        names = [node.name for node in self.nodes]
        _refuse_duplicates(names, f"nodes of provider {self.name}")
        for link in self.links:
            for end in (link.a, link.b):
                if end not in names:
                    raise ValueError(
                        f"link {link.a}-{link.b} names node {end!r}; {self.name} has {', '.join(names)}"
                    )
        return self


class BorderConfig(_Model):
    """A link between two providers; its ends are "provider/node"."""

    name: Name
    a: str
    b: str
    bandwidth: Bandwidth = 1_000_000_000
    delay: Delay = 0


class ClusterConfig(_Model):
    """A whole local cluster. `broker` is "embedded", "none" or an mqtt:// URL."""

    name: Name = "default"
    providers: Annotated[tuple[ProviderConfig, ...], Field(min_length=1)]
    borders: tuple[BorderConfig, ...] = ()
    broker: str = "embedded"
    host: str = "127.0.0.1"
    operator_port: Port = 0
    vnet_provider_port: Port = 0

    @model_validator(mode="after")
    def _borders_join_providers(self) -> Self:
        _refuse_duplicates([provider.name for provider in self.providers], "providers")
        _refuse_duplicates([border.name for border in self.borders], "borders")
        nodes = {f"{provider.name}/{node.name}" for provider in self.providers for node in provider.nodes}
        for border in self.borders:
            for end in (border.a, border.b):
                if end not in nodes:
                    raise ValueError(
                        f"border {border.name} names {end!r}; there are {', '.join(sorted(nodes))}"
                    )
            if border.a.partition("/")[0] == border.b.partition("/")[0]:
                raise ValueError(
                    f"border {border.name} joins provider {border.a.partition('/')[0]} to itself"
                )
        return self


def load(path: Path) -> ClusterConfig:
    """Read a cluster file.

    Raises NotFoundError when there is no such file, InvalidInputError naming file and place of every error.
    """
    try:
        document = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise NotFoundError(
            f"there is no cluster file {path}", hint="leave out -f for the built-in cluster"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInputError(
            f"{path}: {error}", hint="a cluster file is YAML; see docs/cluster.md"
        ) from error
    try:
        return ClusterConfig.model_validate(document)
    except ValidationError as error:
        problems = "\n".join(f"{path}: {_place(item['loc'])}: {item['msg']}" for item in error.errors())
        raise InvalidInputError(problems, hint="docs/cluster.md describes the fields") from error


def _place(location: tuple[int | str, ...]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).lstrip(".") or "cluster"


def _refuse_duplicates(names: list[str], what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{what}: {', '.join(twice)} is there twice")


DEFAULT = ClusterConfig(
    providers=(
        ProviderConfig(
            name="alpha",
            nodes=(NodeConfig(name="a1", location="west"), NodeConfig(name="a2", location="west")),
            links=(LinkConfig(a="a1", b="a2", delay=200_000),),
        ),
        ProviderConfig(
            name="beta",
            nodes=(NodeConfig(name="b1", location="east"), NodeConfig(name="b2", location="east")),
            links=(LinkConfig(a="b1", b="b2", delay=200_000),),
        ),
    ),
    borders=(BorderConfig(name="alpha-beta", a="alpha/a2", b="beta/b1", delay=1_000_000),),
)
"""Two providers, two nodes each, in a row: a1 - a2 = b1 - b2."""
