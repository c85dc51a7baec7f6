"""Changing the size of a guest that runs: room first, then the guest, then the books."""

from __future__ import annotations

from serai.errors import CapacityError, SeraiError, StateError
from serai.roles.pip.records import NodePlacement, Presence, SliceRecord
from serai.roles.pip.state import PipState
from serai.roles.pip.substrate import free_substrate
from serai.v1.guest_pb2 import GetGuestRequest, Guest, GuestSize, ResizeGuestRequest
from serai.v1.infrastructure_pb2 import ResizeSliceNodeRequest

RESIZE_TIMEOUT_S = 45.0
"""For the agent's answer; it gives the guest 30 s."""

Size = tuple[int, int]
"""vCPUs and bytes of memory."""


async def resize_node(state: PipState, request: ResizeSliceNodeRequest) -> GuestSize:
    """See the contract.

    What the guest grows by is reserved before it is asked. When the outcome is not known, both sizes stay
    reserved until the agent can say which it is.
    """
    record, node = state.find_node(request.handle)
    async with state.locks[record.name]:
        record, node = state.find_node(request.handle)
        if node.presence is not Presence.HERE:
            raise StateError(
                f"the guest of {node.spec.id!r} is {node.presence}", hint="wait until it is here"
            )
        agent = state.agents[node.node]
        agent.expect_reachable()
        old = (node.spec.guest.vcpus, node.spec.guest.memory_bytes)
        wanted = (request.vcpus or old[0], request.memory_bytes or old[1])
        await _reserve(state, record, node, old, wanted)
        try:
            size: GuestSize = await agent.guest_stub.ResizeGuest(
                ResizeGuestRequest(name=node.guest_name, vcpus=wanted[0], memory_bytes=wanted[1]),
                timeout=RESIZE_TIMEOUT_S,
            )
        except SeraiError:
            guest: Guest = await agent.guest_stub.GetGuest(GetGuestRequest(name=node.guest_name))
            await _note(state, record, node, (guest.spec.vcpus, guest.spec.memory_bytes))
            raise
        await _note(state, record, node, (size.vcpus, size.memory_bytes))
    return size


async def _reserve(
    state: PipState, record: SliceRecord, node: NodePlacement, old: Size, wanted: Size
) -> None:
    """Have the books hold the larger of both sizes; CapacityError names what is short."""
    async with state.embedding:
        substrate = free_substrate(state.settings, state.reachable(), state.usage())
        free = next(item for item in substrate.nodes if item.name == node.node)
        for resource, more, left in (
            ("vCPUs", wanted[0] - old[0], free.vcpus),
            ("bytes of memory", wanted[1] - old[1], free.memory_bytes),
        ):
            if more > left:
                raise CapacityError(
                    f"provider {state.settings.name}: the guest's node is short of {resource}: "
                    f"{more} more asked, {left} left",
                    hint="ask for less, or migrate the guest to a larger node first",
                    provider=state.settings.name,
                    resource=resource,
                    asked=more,
                    left=left,
                )
        await _note(state, record, node, (max(old[0], wanted[0]), max(old[1], wanted[1])))


async def _note(state: PipState, record: SliceRecord, node: NodePlacement, size: Size) -> None:
    def enter(changed: SliceRecord) -> None:
        guest = changed.parts.nodes[node.spec.id].spec.guest
        guest.vcpus, guest.memory_bytes = size

    await state.slices.update(record.name, enter)
