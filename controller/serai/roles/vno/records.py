"""What a VNO remembers of its VNets."""

from __future__ import annotations

import enum

from serai.store import Record


class VnetState(enum.StrEnum):
    """Where a VNet is in its life; DEGRADED is not kept, it follows from its network."""

    CREATING = "creating"
    RUNNING = "running"
    DELETING = "deleting"


class GrantRecord(Record):
    """A credential for attaching to a VNet: what it is good for, and the digest of its secret."""

    owner: str
    vnet: str
    node: str
    interface: str
    mac: str
    """Of the station that it makes; hexadecimal."""
    address: str
    gateway: str
    digest: str
    expire_time: float


class VnetRecord(Record):
    """A VNet. All else about it is in its description and in the VNP's network."""

    owner: str
    state: VnetState
    document: bytes
    network: str
    """What the VNP calls it; chosen before it is asked for."""
    create_time: float
    running_time: float = 0.0
    target: bytes = b""
    """The description that it is being changed to."""
    replaced: dict[str, str] = {}
    """Handles of the nodes that `target` has created anew, as they were before."""

    @property
    def id(self) -> str:
        """The last part of the name."""
        return self.name.partition("/")[2]
