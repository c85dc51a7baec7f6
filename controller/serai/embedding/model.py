"""Substrates, requests and mappings: plain immutable values, integers only, so that bookkeeping is exact.

Bandwidths are bit/s in each direction, delays nanoseconds, memory bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from serai.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class SubstrateNode:
    """A node that really exists and what is free on it.

    `images` None means any image. A node that takes no guests (cordoned, or the far side of a border link)
    has ``schedulable=False``; frames still travel through it unless ``transit`` is False too.
    """

    name: str
    vcpus: int
    memory_bytes: int
    location: str = ""
    images: frozenset[str] | None = None
    schedulable: bool = True
    transit: bool = True


@dataclass(frozen=True, slots=True)
class SubstrateLink:
    """A link between two nodes with what is free on it. Parallel links are allowed; their names differ."""

    name: str
    a: str
    b: str
    capacity_bps: int
    delay_ns: int = 0


@dataclass(frozen=True)
class Substrate:
    """A graph of nodes and links. InvalidInputError for equal names, negative amounts, unknown ends."""

    nodes: tuple[SubstrateNode, ...]
    links: tuple[SubstrateLink, ...] = ()

    def __post_init__(self) -> None:
        _unique("substrate node", [node.name for node in self.nodes])
        _unique("substrate link", [link.name for link in self.links])
        for node in self.nodes:
            _not_negative(f"substrate node {node.name!r}", node.vcpus, node.memory_bytes)
        for link in self.links:
            _not_negative(f"substrate link {link.name!r}", link.capacity_bps, link.delay_ns)
            _known(f"substrate link {link.name!r}", (link.a, link.b), self.node)

    @cached_property
    def node(self) -> dict[str, SubstrateNode]:
        """Nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def link(self) -> dict[str, SubstrateLink]:
        """Links by name."""
        return {link.name: link for link in self.links}

    @cached_property
    def adjacent(self) -> dict[str, tuple[tuple[str, SubstrateLink], ...]]:
        """For every node, (neighbour, link) in the order of `links`. A link from a node to itself leads
        nowhere.
        """
        lists: dict[str, list[tuple[str, SubstrateLink]]] = {node.name: [] for node in self.nodes}
        for link in self.links:
            if link.a != link.b:
                lists[link.a].append((link.b, link))
                lists[link.b].append((link.a, link))
        return {name: tuple(found) for name, found in lists.items()}


@dataclass(frozen=True, slots=True)
class RequestNode:
    """A virtual node and what it asks for; empty strings mean anything will do.

    `node` fixes the placement to one substrate node. An ``external`` node is an end that exists already, such
    as the far side of a border: it must be fixed, asks for nothing and may share its place with anybody.
    `provider` is for `split`; embedding inside one provider does not look at it.
    """

    name: str
    vcpus: int = 0
    memory_bytes: int = 0
    image: str = ""
    location: str = ""
    node: str = ""
    provider: str = ""
    external: bool = False


@dataclass(frozen=True, slots=True)
class RequestLink:
    """A virtual link. Bandwidth 0 is best effort and reserves nothing; `max_delay_ns` 0 means any delay."""

    name: str
    a: str
    b: str
    bandwidth_bps: int = 0
    max_delay_ns: int = 0


@dataclass(frozen=True)
class Request:
    """A virtual network to place. Raises InvalidInputError as `Substrate` does."""

    nodes: tuple[RequestNode, ...]
    links: tuple[RequestLink, ...] = ()

    def __post_init__(self) -> None:
        _unique("virtual node", [node.name for node in self.nodes])
        _unique("virtual link", [link.name for link in self.links])
        for node in self.nodes:
            _not_negative(f"virtual node {node.name!r}", node.vcpus, node.memory_bytes)
            if node.external and (node.vcpus or node.memory_bytes):
                raise InvalidInputError(f"the external node {node.name!r} must not ask for resources")
        for link in self.links:
            _not_negative(f"virtual link {link.name!r}", link.bandwidth_bps, link.max_delay_ns)
            _known(f"virtual link {link.name!r}", (link.a, link.b), self.node)

    @cached_property
    def node(self) -> dict[str, RequestNode]:
        """Nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def link(self) -> dict[str, RequestLink]:
        """Links by name."""
        return {link.name: link for link in self.links}

    @cached_property
    def links_of(self) -> dict[str, tuple[RequestLink, ...]]:
        """The links that end at each node."""
        return {
            node.name: tuple(link for link in self.links if node.name in (link.a, link.b))
            for node in self.nodes
        }


@dataclass(frozen=True, slots=True)
class Path:
    """A walk through the substrate: `nodes` from the link's `a` to its `b`, and the `links` between them."""

    nodes: tuple[str, ...]
    links: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mapping:
    """Where every virtual node goes, and the path of every virtual link."""

    nodes: dict[str, str] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Infeasible:
    """Proof that no mapping exists: `resource` is short at `element`.

    `asked` and `available` are amounts where the resource has an amount (vcpus, memory, bandwidth, delay),
    otherwise None. `message` says it for people.
    """

    resource: str
    element: str
    message: str
    asked: int | None = None
    available: int | None = None


@dataclass(frozen=True, slots=True)
class NotFound:
    """The search ended without a mapping and without a proof that there is none."""

    message: str
    steps: int


Result = Mapping | Infeasible | NotFound


def _unique(what: str, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidInputError(f"two of them are called {name!r}: {what}")
        seen.add(name)


def _not_negative(what: str, *amounts: int) -> None:
    if any(amount < 0 for amount in amounts):
        raise InvalidInputError(f"{what} has a negative amount")


def _known(
    what: str, ends: tuple[str, str], nodes: dict[str, SubstrateNode] | dict[str, RequestNode]
) -> None:
    for end in ends:
        if end not in nodes:
            raise InvalidInputError(f"{what} ends at {end!r}, which does not exist")
