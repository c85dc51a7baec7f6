"""Post-copy after the source's agent was killed: its successor sends what the destination still lacks."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from serai.errors import SeraiError
from serai.hypervisor.driver import Guest as Machine
from serai.migration.pages import numbers_of
from serai.migration.push import Pusher
from serai.migration.stream import MAX_RECORD, PageSender
from serai.v1 import migration_pb2
from serai.wire.records import ChannelSecret
from serai.wire.streams import RecordStream

if TYPE_CHECKING:
    from serai.v1.migration_pb2_grpc import MigrationPeerServiceAsyncStub

ASK_TIMEOUT_S = 5.0
log = logging.getLogger(__name__)


async def send_rest(
    peer: MigrationPeerServiceAsyncStub, migration: str, machine: Machine, *, timeout_s: float
) -> None:
    """Send every page that the destination of `migration` says is missing, from the frozen `machine`.

    Returns when none is. Raises NotFoundError when the destination knows of no such arrival any more,
    UnavailableError when it cannot be reached or the link is lost: then it may be tried again.
    """
    request = migration_pb2.RecoverArrivalRequest(migration=migration)
    answer = await peer.RecoverArrival(request, timeout=ASK_TIMEOUT_S)
    if not answer.complete:
        await asyncio.to_thread(_push, answer, machine, timeout_s)


def _push(answer: migration_pb2.RecoverArrivalResponse, machine: Machine, timeout_s: float) -> None:
    secret = ChannelSecret(answer.channel_id, answer.key)
    stream = RecordStream.dial(answer.data_address, secret, maximum=MAX_RECORD, timeout=timeout_s)
    try:
        sender = PageSender(stream, machine.ram)
        rest = numbers_of(answer.missing, sender.page_count)
        log.info("guest %s: %d pages follow from the copy that outlived its agent", machine.uid, len(rest))
        Pusher(stream, sender, rest, lambda pusher: None, whole=False).run()
    except SeraiError:
        stream.shutdown()
        raise
    finally:
        stream.close()
