"""What the parts of a VNP share."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from serai.errors import NotFoundError
from serai.roles.directory import Directory
from serai.roles.operations import Operations
from serai.roles.requests import Requests
from serai.roles.settings import VnpSettings
from serai.roles.settling import settle
from serai.roles.vnp.providers import Provider
from serai.roles.vnp.records import NetworkRecord, NodeEntry
from serai.store import Collection, Database
from serai.v1.infrastructure_pb2 import Advertisement
from serai.wire.bus import EventBus


@dataclass
class VnpState:
    """Settings, records and connections of one VNP."""

    settings: VnpSettings
    database: Database
    directory: Directory
    bus: EventBus
    operations: Operations
    requests: Requests
    networks: Collection[NetworkRecord]
    providers: dict[str, Provider] = field(default_factory=dict)
    locks: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    """Held by whoever changes a network."""

    def find_node(self, handle: str) -> tuple[NetworkRecord, NodeEntry]:
        """Network and node of a handle; NotFoundError."""
        for record in self.networks:
            for entry in record.nodes.values():
                if entry.handle == handle:
                    return record, entry
        raise NotFoundError(f"no virtual node has the handle {handle!r}", hint="list the networks")

    async def advertisements(self, names: Iterable[str] | None = None) -> list[Advertisement]:
        """What the providers offer now: all of them that answer, or those named, which must."""
        if names is not None:
            return await settle(self.providers[name].advertise() for name in names)
        return await settle(
            provider.advertise() for provider in self.providers.values() if provider.reachable
        )
