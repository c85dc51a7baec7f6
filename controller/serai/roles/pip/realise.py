"""Making planned parts real at the agents, and unmaking them.

Everything is named in the plan before it is made. Unmaking therefore needs no memory of how far making came:
it removes all that the plan names, and what is not there is no error.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

from serai.errors import NotFoundError, SeraiError, UnavailableError
from serai.roles.pip.agents import Agent
from serai.roles.pip.plan import segment_message
from serai.roles.pip.records import (
    Leftover,
    LeftoverKind,
    LinkPlacement,
    NodePlacement,
    Parts,
    Presence,
    SegmentPlan,
)
from serai.roles.pip.snapshots import NodeSnapshots
from serai.roles.settling import first_failure, settle
from serai.store import Collection
from serai.v1.guest_pb2 import CreateGuestRequest, DeleteGuestRequest, StartGuestRequest
from serai.v1.link_pb2 import (
    ActivateSegmentRequest,
    CreateSegmentRequest,
    DeleteSegmentRequest,
    ListSegmentsRequest,
)
from serai.v1.migration_pb2 import RevokeArrivalRequest

log = logging.getLogger(__name__)

Agents = Mapping[str, Agent]

MAX_REMEMBERED = 10_000
"""Names of removed guests kept in mind."""


async def create_guests(agents: Agents, nodes: Iterable[NodePlacement]) -> dict[str, str]:
    """Define the guests that are to be created here; their uids by node id."""

    async def create(node: NodePlacement) -> tuple[str, str]:
        request = CreateGuestRequest(
            guest_id=node.guest_id, spec=node.spec.guest, request_id=f"{node.handle}-create"
        )
        agent = agents[node.node]
        agent.expect_reachable()
        guest = await agent.guest_stub.CreateGuest(request)
        return node.spec.id, guest.uid

    return dict(await settle(create(node) for node in nodes if node.presence is Presence.PLANNED))


async def create_segments(
    agents: Agents, links: Iterable[LinkPlacement], guest_uids: Mapping[str, str]
) -> None:
    """Make every segment of `links`."""

    async def create(plan: SegmentPlan) -> None:
        request = CreateSegmentRequest(
            segment_id=plan.segment_id,
            segment=segment_message(plan, guest_uids),
            request_id=f"{plan.segment_id}-create",
        )
        agent = agents[plan.node]
        agent.expect_reachable()
        await agent.segment_stub.CreateSegment(request)

    await settle(create(segment) for link in links for segment in link.segments)


async def restore_segments(
    agent: Agent, links: Iterable[LinkPlacement], guest_uids: Mapping[str, str]
) -> int:
    """Make the segments of `links` that `agent` should have and does not; how many that were."""
    listed: set[str] = set()
    token = ""
    while True:
        page = await agent.segment_stub.ListSegments(ListSegmentsRequest(page_size=1000, page_token=token))
        listed |= {segment.name for segment in page.segments}
        token = page.next_page_token
        if not token:
            break
    missing = [
        plan
        for link in links
        for plan in link.segments
        if plan.node == agent.node and f"segments/{plan.segment_id}" not in listed
    ]
    for plan in missing:
        await agent.segment_stub.CreateSegment(
            CreateSegmentRequest(segment_id=plan.segment_id, segment=segment_message(plan, guest_uids))
        )
    return len(missing)


async def activate_segments(agents: Agents, links: Iterable[LinkPlacement]) -> None:
    """Make the segments of `links` that still wait the active ones at their points."""

    async def activate(plan: SegmentPlan) -> None:
        request = ActivateSegmentRequest(name=f"segments/{plan.segment_id}")
        await agents[plan.node].segment_stub.ActivateSegment(request)

    await settle(activate(plan) for link in links for plan in link.segments if not plan.active)


async def start_guests(agents: Agents, nodes: Iterable[NodePlacement]) -> None:
    """Start the guests that were created here."""

    async def start(node: NodePlacement) -> None:
        await agents[node.node].guest_stub.StartGuest(StartGuestRequest(name=node.guest_name))

    await settle(start(node) for node in nodes if node.presence is Presence.PLANNED)


async def wait_ready(
    agents: Agents, nodes: Iterable[NodePlacement], seconds: float, on_ready: Callable[[NodePlacement], None]
) -> None:
    """Wait until each started guest is ready; `on_ready` after each. The first that fails ends the wait."""

    async def wait(node: NodePlacement) -> None:
        await agents[node.node].wait_ready(node.guest_name, seconds)
        on_ready(node)

    await first_failure(wait(node) for node in nodes if node.presence is Presence.PLANNED)


class Remover:
    """Removes things at agents, and remembers what could not be removed until their agent is back."""

    def __init__(self, agents: Agents, leftovers: Collection[Leftover]) -> None:
        self._agents = agents
        self._leftovers = leftovers
        self._snapshots = NodeSnapshots(agents)
        self._removed: OrderedDict[str, None] = OrderedDict()

    async def remove(self, parts: Parts, *, snapshots: bool = False) -> None:
        """End and forget the guests and segments of `parts`. Never fails; see `settle_with`.

        With `snapshots`, those of the guests too, wherever they were taken.
        """
        items = [
            (segment.node, LeftoverKind.SEGMENT, segment.segment_id)
            for link in parts.links.values()
            for segment in link.segments
        ]
        for node in parts.nodes.values():
            if node.presence in (Presence.DEPARTED, Presence.BRIDGE):
                continue
            if node.presence is Presence.ARRIVING:
                # The guest is its source's until it has been handed over: consent is taken back, no more.
                if node.permit:
                    items.append((node.node, LeftoverKind.PERMIT, node.permit.hex()))
            else:
                items.append((node.node, LeftoverKind.GUEST, node.guest_id))
        await settle(self._remove_or_remember(*item) for item in items)
        for node in parts.nodes.values():
            # Their own agents have forgotten theirs by now; others may have some of when it ran there.
            if snapshots and node.guest_uid and node.presence is not Presence.ARRIVING:
                await self._snapshots.delete_all(node.guest_uid)

    async def settle_with(self, agent: Agent) -> None:
        """Remove what is left at an agent that has come back."""
        for leftover in self._leftovers:
            if leftover.kind is not LeftoverKind.CONNECTION and leftover.place == agent.node:
                try:
                    await self._remove(agent.node, leftover.kind, leftover.item)
                    await self._leftovers.delete(leftover.name)
                except SeraiError as error:
                    log.warning("%s is still left: %s", leftover.name, error)

    def was_removed(self, guest_name: str) -> bool:
        """Whether a guest that shows up is one whose creation was given up: its agent answered too late."""
        return guest_name in self._removed

    async def _remove_or_remember(self, node: str, kind: LeftoverKind, item: str) -> None:
        if kind is LeftoverKind.GUEST:
            self._removed[f"guests/{item}"] = None
            while len(self._removed) > MAX_REMEMBERED:
                self._removed.popitem(last=False)
        try:
            if node in self._agents:
                self._agents[node].expect_reachable()
            await self._remove(node, kind, item)
        except SeraiError as error:
            log.warning("%s %s stays at node %s for now: %s", kind, item, node, error)
            name = f"{node}/{kind}/{item[:160]}"
            if name not in self._leftovers:
                await self._leftovers.create(Leftover(name=name, kind=kind, place=node, item=item))

    async def _remove(self, node: str, kind: LeftoverKind, item: str) -> None:
        agent = self._agents.get(node)
        if agent is None:
            raise UnavailableError(f"node {node} is not configured any more", hint="add it to the settings")
        try:
            if kind is LeftoverKind.SEGMENT:
                request = DeleteSegmentRequest(name=f"segments/{item}", allow_missing=True)
                await agent.segment_stub.DeleteSegment(request)
            elif kind is LeftoverKind.GUEST:
                await agent.guest_stub.DeleteGuest(
                    DeleteGuestRequest(name=f"guests/{item}", allow_missing=True)
                )
            else:
                await agent.migration_stub.RevokeArrival(RevokeArrivalRequest(permit=bytes.fromhex(item)))
        except NotFoundError:
            return
