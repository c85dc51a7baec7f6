"""Idempotency by request_id (AIP-155): the same request made twice happens once."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable

from google.protobuf.message import Message

from serai.errors import InvalidInputError
from serai.store import Collection, Database, Record
from serai.wire.identity import Identity

KEPT_SECONDS = 24 * 3600.0
"""How long a request is remembered."""


class RequestRecord(Record):
    """What came of a request: the name of the resource or operation that it made."""

    fingerprint: str
    result: str
    time: float


class Requests:
    """The requests that one role has carried out."""

    def __init__(self, database: Database) -> None:
        self._done = Collection(database, "requests", RequestRecord, "request")
        self._running: dict[str, tuple[str, asyncio.Task[str]]] = {}

    async def load(self) -> None:
        """Read what is known and forget what is old."""
        await self._done.load()
        horizon = time.time() - KEPT_SECONDS
        for record in [record for record in self._done if record.time < horizon]:
            await self._done.delete(record.name)

    async def once(
        self, caller: Identity, request_id: str, request: Message, act: Callable[[], Awaitable[str]]
    ) -> str:
        """The result of `act`, run only if `caller` has not made this request already.

        A request that fails may be tried again. InvalidInputError when the id came with another one before.
        """
        if not request_id:
            return await act()
        key = f"{caller.uri}:{type(request).__name__}:{request_id}"[:255]
        fingerprint = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
        done = self._done.find(key)
        if done is not None:
            _check_same(done.fingerprint, fingerprint, request_id)
            return done.result
        if key not in self._running:
            task = asyncio.create_task(self._run(key, fingerprint, act))
            self._running[key] = fingerprint, task
            task.add_done_callback(lambda _: self._running.pop(key, None))
        running, task = self._running[key]
        _check_same(running, fingerprint, request_id)
        # A caller that goes away takes neither the request nor the others that wait for it along.
        return await asyncio.shield(task)

    async def _run(self, key: str, fingerprint: str, act: Callable[[], Awaitable[str]]) -> str:
        result = await act()
        await self._done.create(
            RequestRecord(name=key, fingerprint=fingerprint, result=result, time=time.time())
        )
        return result


def _check_same(known: str, fingerprint: str, request_id: str) -> None:
    if known != fingerprint:
        raise InvalidInputError(
            f"request_id {request_id!r} was used for a different request",
            hint="use a new UUID for every request, and the same one only to repeat it",
            reason="REQUEST_ID_REUSED",
        )
