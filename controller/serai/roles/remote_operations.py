"""Both ends of `OperationService`: serving one's own operations, and following another role's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

from serai.errors import SeraiError, UnavailableError
from serai.roles.failures import failure_to_error
from serai.roles.operations import OperationRecord, Operations
from serai.roles.ownership import check_owner, owned
from serai.roles.paging import page
from serai.v1.operation_pb2 import (
    GetOperationRequest,
    ListOperationsRequest,
    ListOperationsResponse,
    Operation,
)
from serai.v1.operation_pb2_grpc import OperationServiceServicer, OperationServiceStub
from serai.wire.rpc import Channel, caller

if TYPE_CHECKING:
    from serai.v1.operation_pb2_grpc import OperationServiceAsyncStub

RECONNECT_SECONDS = 0.5
"""Pause before a broken watch is opened again."""

CANCEL_SECONDS = 60.0
"""How long another role may take to undo what it was asked to cancel."""


class OperationServicer(OperationServiceServicer):
    """Shows a caller its own operations, and administrators all of them."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def GetOperation(self, request: GetOperationRequest, context: Any) -> Operation:  # noqa: N802
        """See the contract."""
        return self._find(request, context).operation

    async def ListOperations(  # noqa: N802
        self, request: ListOperationsRequest, context: Any
    ) -> ListOperationsResponse:
        """See the contract."""
        mine = owned(self._operations.records, caller(context))
        records, token = page(mine, request.page_size, request.page_token, key=lambda record: record.name)
        return ListOperationsResponse(
            operations=[record.operation for record in records], next_page_token=token
        )

    async def WatchOperation(  # noqa: N802
        self, request: GetOperationRequest, context: Any
    ) -> AsyncIterator[Operation]:
        """See the contract."""
        with self._operations.records.watch() as watcher:
            operation = self._find(request, context).operation
            yield operation
            while not operation.done:
                for change in await watcher.changes():
                    if change.record.name == request.name:
                        operation = change.record.operation
                        yield operation

    async def CancelOperation(self, request: GetOperationRequest, context: Any) -> Operation:  # noqa: N802
        """See the contract."""
        self._find(request, context)
        await self._operations.cancel(request.name)
        return self._operations.records.get(request.name).operation

    def _find(self, request: GetOperationRequest, context: Any) -> OperationRecord:
        record = self._operations.records.get(request.name)
        check_owner(record.owner, caller(context), "operation", request.name)
        return record


async def follow(
    channel: Channel, operation: Operation, on_change: Callable[[Operation], Awaitable[None]]
) -> Operation:
    """Watch `operation` at another role until it is done; raises what it failed with.

    A lost connection is taken up again for as long as it takes. Cancelling the caller cancels the operation
    there and waits until that is undone.
    """
    stub = OperationServiceStub(channel)
    try:
        return await _watch(stub, operation, on_change)
    except asyncio.CancelledError:
        await asyncio.shield(_cancel(stub, operation))
        raise


async def _watch(
    stub: OperationServiceAsyncStub, operation: Operation, on_change: Callable[[Operation], Awaitable[None]]
) -> Operation:
    latest = operation
    while not latest.done:
        try:
            async for latest in stub.WatchOperation(GetOperationRequest(name=operation.name)):
                await on_change(latest)
        except UnavailableError:
            await asyncio.sleep(RECONNECT_SECONDS)
    if latest.HasField("failure"):
        raise failure_to_error(latest.failure)
    return latest


async def _cancel(stub: OperationServiceAsyncStub, operation: Operation) -> None:
    async def ignore(_: Operation) -> None:
        return

    try:
        async with asyncio.timeout(CANCEL_SECONDS):
            await stub.CancelOperation(GetOperationRequest(name=operation.name))
            await _watch(stub, operation, ignore)
    except (SeraiError, TimeoutError):
        # Done before it could be cancelled, or failed just because it was: the caller undoes by name.
        return
