"""Whose a guest is: the question that settles a hand-over whose acknowledgement is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serai.migration.source import Holder
from serai.v1 import migration_pb2

if TYPE_CHECKING:
    from serai.v1.migration_pb2_grpc import MigrationPeerServiceAsyncStub

ASK_TIMEOUT_S = 5.0


async def ask_holder(peer: MigrationPeerServiceAsyncStub, guest_uid: str, epoch: int, node: str) -> Holder:
    """Ask the destination that `guest_uid` was handed to under `epoch`; `node` is this one.

    A destination that neither holds the guest nor ended it on purpose gives it back before it answers, under
    ``epoch + 1``. Raises SeraiError when there is no answer.
    """
    request = migration_pb2.QueryOwnershipRequest(guest_uid=guest_uid, reclaim_epoch=epoch + 1)
    return interpret(await peer.QueryOwnership(request, timeout=ASK_TIMEOUT_S), epoch, node)


def may_give_back(
    *, owned: bool, epoch: int, origin: str, alive: bool, reclaim_epoch: int, asker: str
) -> bool:
    """Whether a node gives a guest back to `asker` under `reclaim_epoch`.

    Only one that its record owns (and did not end on purpose), that came from the asker, and that does not
    live there: its copy was lost with the agent, or never ran.
    """
    return owned and origin == asker and not alive and reclaim_epoch > epoch


def interpret(answer: migration_pb2.Ownership, epoch: int, node: str) -> Holder:
    """What the answer means for a guest that `node` handed over under `epoch`."""
    if answer.arriving:
        return Holder.ARRIVING
    if answer.epoch < epoch:
        return Holder.NOBODY
    if answer.handed_to == node and answer.epoch == epoch + 1 and not answer.owned_here:
        return Holder.NOBODY
    # It owns the guest, has ended it, or has handed it on.
    return Holder.DESTINATION
