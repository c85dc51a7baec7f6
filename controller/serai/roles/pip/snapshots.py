"""A PIP's snapshots: kept by the agents, found by the guest's uid, which moving does not change."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Mapping

from serai.errors import InvalidInputError, NotFoundError, SeraiError, StateError
from serai.roles.pip.agents import Agent
from serai.roles.pip.records import NodePlacement
from serai.roles.snapshots import SNAPSHOT_SECONDS
from serai.v1.guest_pb2 import (
    CreateSnapshotRequest,
    DeleteSnapshotRequest,
    ListSnapshotsRequest,
    RestoreSnapshotRequest,
    Snapshot,
)

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_UID_DIGITS = 12


class NodeSnapshots:
    """What may be done with snapshots of the nodes of slices."""

    def __init__(self, agents: Mapping[str, Agent]) -> None:
        self._agents = agents

    async def create(self, node: NodePlacement, name: str) -> Snapshot:
        """Of a running node. Raises InvalidInputError and what the agent says."""
        if not _NAME.fullmatch(name):
            raise InvalidInputError(
                f"{name!r} cannot name a snapshot",
                hint="use lower-case letters, digits and hyphens, 40 at most",
            )
        if any(snapshot.name == name for snapshot in await self.of_node(node)):
            raise InvalidInputError(f"there is a snapshot {name} already", hint="choose another name")
        agent = self._agents[node.node]
        agent.expect_reachable()
        request = CreateSnapshotRequest(guest=node.guest_name, snapshot_id=f"{name}{_suffix(node.guest_uid)}")
        return _shown(
            await agent.guest_stub.CreateSnapshot(request, timeout=SNAPSHOT_SECONDS), node.guest_uid
        )

    async def of_node(self, node: NodePlacement) -> list[Snapshot]:
        """At every node that can be reached: the guest may have moved since."""
        found = await self._find(node.guest_uid)
        return sorted((_shown(item, node.guest_uid) for _, item in found), key=lambda item: item.name)

    async def delete(self, node: NodePlacement, name: str) -> None:
        """NotFoundError."""
        agent, snapshot = await self._get(node, name)
        await agent.guest_stub.DeleteSnapshot(DeleteSnapshotRequest(name=snapshot.name))

    async def delete_all(self, guest_uid: str) -> None:
        """As far as agents can be reached."""
        for agent, snapshot in await self._find(guest_uid):
            with contextlib.suppress(SeraiError):
                await agent.guest_stub.DeleteSnapshot(
                    DeleteSnapshotRequest(name=snapshot.name, allow_missing=True)
                )

    async def restore(self, node: NodePlacement, name: str) -> None:
        """NotFoundError, StateError when the node has moved away from it."""
        agent, snapshot = await self._get(node, name)
        if agent is not self._agents[node.node]:
            raise StateError(
                f"snapshot {name} was taken where the node ran then, and it has moved",
                hint="move it back there first",
                reason="SNAPSHOT_ELSEWHERE",
            )
        await agent.guest_stub.RestoreSnapshot(
            RestoreSnapshotRequest(name=snapshot.name), timeout=SNAPSHOT_SECONDS
        )

    async def _get(self, node: NodePlacement, name: str) -> tuple[Agent, Snapshot]:
        wanted = f"snapshots/{name}{_suffix(node.guest_uid)}"
        for agent, snapshot in await self._find(node.guest_uid):
            if snapshot.name == wanted:
                return agent, snapshot
        raise NotFoundError(f"there is no snapshot {name} of this node", hint="list its snapshots")

    async def _find(self, guest_uid: str) -> list[tuple[Agent, Snapshot]]:
        agents = [agent for agent in self._agents.values() if agent.reachable]
        pages = await asyncio.gather(*(_all_of(agent) for agent in agents))
        return [
            (agent, snapshot)
            for agent, snapshots in zip(agents, pages, strict=True)
            for snapshot in snapshots
            if snapshot.guest_uid == guest_uid
        ]


async def _all_of(agent: Agent) -> list[Snapshot]:
    found: list[Snapshot] = []
    token = ""
    with contextlib.suppress(SeraiError):
        while True:
            page = await agent.guest_stub.ListSnapshots(ListSnapshotsRequest(page_token=token))
            found += page.snapshots
            if not (token := page.next_page_token):
                break
    return found


def _suffix(guest_uid: str) -> str:
    """Sets the snapshots of one guest apart from those of others on the same node."""
    return "-" + guest_uid.replace("-", "")[:_UID_DIGITS]


def _shown(snapshot: Snapshot, guest_uid: str) -> Snapshot:
    """As the caller named it; what the agent calls it is nobody's business."""
    shown = Snapshot()
    shown.CopyFrom(snapshot)
    shown.name = snapshot.name.removeprefix("snapshots/").removesuffix(_suffix(guest_uid))
    shown.ClearField("guest")
    return shown
