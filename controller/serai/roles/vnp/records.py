"""What a VNP remembers of its networks."""

from __future__ import annotations

import enum
from typing import Annotated

from pydantic import BaseModel, ConfigDict

from serai.store import Record, Stored
from serai.v1.topology_pb2 import Topology, VirtualLink, VirtualNode


class NetworkState(enum.StrEnum):
    """Where a network is in its life; DEGRADED is not kept, it follows from its slices."""

    CREATING = "creating"
    RUNNING = "running"
    DELETING = "deleting"


class _Part(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)


class Crossing(_Part):
    """Where a link crosses from the provider of its end a to that of its end b."""

    border: str
    label: int
    a_provider: str
    b_provider: str
    side_delay_ms: float = 0.0
    """What the path may take inside each of the two; 0: any."""


class NodeEntry(_Part):
    """A virtual node: where it is, and under which handles."""

    node: Annotated[VirtualNode, Stored()]
    handle: str
    """What the VNO calls it; never changes."""
    provider: str = ""
    provider_handle: str = ""
    """What the provider that has it now calls it."""
    guest_uid: str = ""


class LinkEntry(_Part):
    """A virtual link as it is realised now; the slices know it as `slice_link`, anew after each re-homing."""

    link: Annotated[VirtualLink, Stored()]
    slice_link: str
    provider: str = ""
    """Where it is, if it is in one provider."""
    crossing: Crossing | None = None

    @property
    def providers(self) -> list[str]:
        """Everybody who has a part of it."""
        if self.crossing is None:
            return [self.provider]
        return [self.crossing.a_provider, self.crossing.b_provider]


class Move(_Part):
    """A node on its way to another provider, kept so that a restart can finish or undo it."""

    node: str
    source: str
    destination: str
    links: dict[str, LinkEntry]
    """Its links as they will be."""
    new_slice: bool = False
    """The destination had no slice of the network before."""
    old: dict[str, LinkEntry] | None = None
    """Set once the node has moved: its links as they were, to be removed."""


class Change(_Part):
    """Nodes and links on their way in and out, kept so that a restart can finish or undo it."""

    topology: Annotated[Topology, Stored()]
    """What the network will be."""
    nodes: dict[str, NodeEntry] = {}
    """To be added."""
    links: dict[str, LinkEntry] = {}
    """To be added; one of the id of a present link replaces that."""
    gone_nodes: list[str] = []
    gone_links: list[str] = []
    new_slices: list[str] = []
    """Providers that had no slice of the network before."""
    old: dict[str, LinkEntry] | None = None
    """Set once the additions are part of the network: the links that are to be removed, as they were."""


class NetworkRecord(Record):
    """A network: one topology over several providers."""

    owner: str
    state: NetworkState
    nodes: dict[str, NodeEntry]
    links: dict[str, LinkEntry]
    slices: dict[str, str] = {}
    """Slice by provider: all that may exist, noted before they are asked for."""
    move: Move | None = None
    change: Change | None = None
    create_time: float
    running_time: float = 0.0

    @property
    def id(self) -> str:
        """The last part of the name."""
        return self.name.partition("/")[2]
