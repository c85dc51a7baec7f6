"""What a PIP remembers of its slices."""

from __future__ import annotations

import enum
from typing import Annotated

from pydantic import BaseModel, ConfigDict

from serai.store import Record, Stored
from serai.v1.infrastructure_pb2 import SliceLink, SliceNode
from serai.v1.operation_pb2 import Failure


class SliceState(enum.StrEnum):
    """Where a slice is in its life; DEGRADED is not kept, it follows from its guests."""

    RESERVED = "reserved"
    PROVISIONING = "provisioning"
    RUNNING = "running"
    RELEASING = "releasing"


class Presence(enum.StrEnum):
    """Where the guest of a virtual node is."""

    PLANNED = "planned"
    """A place is reserved; it will be created here."""
    ARRIVING = "arriving"
    """A place is reserved; it will come by migration."""
    HERE = "here"
    DEPARTED = "departed"
    """It went to another provider; the place is free again."""
    BRIDGE = "bridge"
    """There is no guest: it is the bridge of a link, which exists as long as segments end at it."""


class _Part(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True, ser_json_bytes="base64", val_json_bytes="base64")


class End(_Part):
    """One end of a segment: an interface of a virtual node, or a label towards another agent."""

    model_config = ConfigDict(frozen=True)

    virtual_node: str = ""
    interface: str = ""
    peer: str = ""
    control_address: str = ""
    label: int = 0


class SegmentPlan(_Part):
    """A segment at a node, named before it is made, so that it can be unmade whatever happened."""

    node: str
    segment_id: str
    a: End
    b: End
    bandwidth_bps: int = 0
    delay_ms: float = 0.0
    active: bool = True


class LinkPlacement(_Part):
    """A virtual link (or the part of it in this provider) on its path of substrate nodes."""

    link: Annotated[SliceLink, Stored()]
    path: list[str]
    delay_ms: float = 0.0
    segments: list[SegmentPlan] = []


class NodePlacement(_Part):
    """A virtual node on its substrate node."""

    spec: Annotated[SliceNode, Stored()]
    handle: str
    node: str
    guest_id: str
    guest_uid: str = ""
    presence: Presence = Presence.PLANNED
    permit: bytes = b""
    """Consent given to its arrival, to be taken back if it does not come."""
    departing: bool = False
    """Its agent has been asked to move it to another provider, and the outcome is not noted yet."""

    @property
    def guest_name(self) -> str:
        """Its name at the agent."""
        return f"guests/{self.guest_id}"

    @property
    def takes_room(self) -> bool:
        """Whether its resources count as used at `node`."""
        return self.presence is not Presence.DEPARTED


class Parts(_Part):
    """Nodes and links by their id in the slice."""

    nodes: dict[str, NodePlacement] = {}
    links: dict[str, LinkPlacement] = {}

    def merged(self, other: Parts) -> Parts:
        """Both; those of `other` replace those of the same id."""
        return Parts(nodes={**self.nodes, **other.nodes}, links={**self.links, **other.links})

    def without(self, nodes: set[str], links: set[str]) -> Parts:
        """The rest."""
        return Parts(
            nodes={key: node for key, node in self.nodes.items() if key not in nodes},
            links={key: link for key, link in self.links.items() if key not in links},
        )


class SliceRecord(Record):
    """A slice. `pending` is being added (or replaces parts of the same id, when a node relocates)."""

    owner: str
    state: SliceState
    parts: Parts
    pending: Parts = Parts()
    expire_time: float = 0.0
    """Seconds since the epoch, while reserved."""
    failure: Annotated[Failure, Stored()] | None = None

    def find_node(self, handle: str) -> NodePlacement | None:
        """The virtual node of that handle."""
        candidates = [*self.parts.nodes.values(), *self.pending.nodes.values()]
        return next((node for node in candidates if node.handle == handle), None)


class PeerConnection(Record):
    """A link that another provider has connected over a border; the name is ``BORDER/LABEL``."""

    border: str
    label: int
    owner: str
    bandwidth_bps: int


class LeftoverKind(enum.StrEnum):
    """What is left."""

    GUEST = "guest"
    SEGMENT = "segment"
    PERMIT = "permit"
    CONNECTION = "connection"


class Leftover(Record):
    """Something that could not be removed yet because its host does not answer; it is removed when it does.

    `place` is a node, or for a connection a border; `item` the name there, or the label.
    """

    kind: LeftoverKind
    place: str
    item: str
