"""What the parts of a PIP share."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

from serai.errors import NotFoundError
from serai.roles.directory import Directory
from serai.roles.operations import Operations
from serai.roles.pip.agents import Agent
from serai.roles.pip.ledger import Usage, compute_usage
from serai.roles.pip.realise import Remover
from serai.roles.pip.records import Leftover, NodePlacement, PeerConnection, SliceRecord
from serai.roles.requests import Requests
from serai.roles.settings import BorderSettings, PipSettings
from serai.store import Collection, Database
from serai.v1.node_pb2 import Node
from serai.wire.bus import EventBus


@dataclass
class PipState:
    """Settings, records and connections of one PIP."""

    settings: PipSettings
    database: Database
    directory: Directory
    bus: EventBus
    operations: Operations
    requests: Requests
    slices: Collection[SliceRecord]
    connections: Collection[PeerConnection]
    leftovers: Collection[Leftover]
    agents: dict[str, Agent] = field(default_factory=dict)
    locks: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    """Held by whoever changes the parts of a slice."""
    embedding: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held from looking at what is free until it is reserved."""

    def __post_init__(self) -> None:
        self.remover = Remover(self.agents, self.leftovers)

    def usage(self) -> Usage:
        """All that is reserved."""
        return compute_usage(self.slices, self.connections)

    def reachable(self) -> dict[str, Node]:
        """The nodes that are alive, as they report themselves."""
        return {
            name: agent.state
            for name, agent in self.agents.items()
            if agent.reachable and agent.state is not None
        }

    def border(self, name: str) -> BorderSettings:
        """The border of that name; NotFoundError."""
        for border in self.settings.borders:
            if border.name == name:
                return border
        raise NotFoundError(
            f"provider {self.settings.name} has no border {name!r}", hint="the advertisement lists them"
        )

    def find_node(self, handle: str) -> tuple[SliceRecord, NodePlacement]:
        """Slice and virtual node of a handle; NotFoundError."""
        for record in self.slices:
            node = record.find_node(handle)
            if node is not None:
                return record, node
        raise NotFoundError(f"no virtual node has the handle {handle!r}", hint="list the slices")
