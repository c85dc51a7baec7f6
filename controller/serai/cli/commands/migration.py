"""``serai migration``: moves of guests, those under way and those that are over."""

from __future__ import annotations

from typing import Annotated

import typer

from serai.cli.app import CLUSTER, Cluster, Output, asynchronous, group
from serai.cli.context import Context
from serai.cli.operations import failure_error, progress_display
from serai.cli.output import Column, Format, age, as_data, done, show, show_data
from serai.cli.paging import collect
from serai.errors import NotFoundError
from serai.v1.operation_pb2 import GetOperationRequest, ListOperationsRequest, Operation, Step
from serai.v1.operation_pb2_grpc import OperationServiceStub
from serai.wire.rpc import Channel

app = group("Moves of guests between nodes: what they do, and what they did.")

Name = Annotated[str, typer.Argument(metavar="ID", help="As `serai migration list` shows it.")]

_VERB = "MigrateVnetNode"


def short_id(operation: Operation) -> str:
    """``operations/ID``: ID."""
    return operation.name.partition("/")[2]


def state_of(operation: Operation) -> str:
    """RUNNING with the step that runs, SUCCEEDED, or FAILED with the daemon's own reason."""
    if operation.HasField("failure"):
        return f"FAILED ({operation.failure.reason})" if operation.failure.reason else "FAILED"
    if operation.done:
        return "SUCCEEDED"
    running = [step.name for step in operation.steps if step.state == Step.RUNNING]
    return f"RUNNING ({running[-1]})" if running else "RUNNING"


_COLUMNS = (
    Column[Operation]("ID", short_id),
    Column[Operation]("STATE", state_of),
    Column[Operation]("VNET", lambda item: item.target.removeprefix("vnets/")),
    Column[Operation]("MODE", lambda item: item.migration.mode),
    Column[Operation]("FROM", lambda item: item.migration.source_node),
    Column[Operation]("TO", lambda item: item.migration.destination_node),
    Column[Operation]("ROUNDS", lambda item: item.migration.rounds, right=True),
    Column[Operation]("MB", lambda item: f"{item.migration.bytes_sent / 1e6:.1f}", right=True),
    Column[Operation]("DOWN MS", lambda item: f"{item.migration.downtime_ms:.1f}", right=True),
    Column[Operation]("AGE", lambda item: age(item.create_time), right=True),
)


@app.command("list")
@asynchronous
async def list_migrations(output: Output = Format.TABLE, cluster: Cluster = CLUSTER) -> None:
    """List the moves under way and those that are over, the latest first."""
    async with Context.named(cluster).operator() as channel:
        show(await _all(channel), _COLUMNS, output)


@app.command("show")
@asynchronous
async def show_migration(name: Name, output: Output = Format.YAML, cluster: Cluster = CLUSTER) -> None:
    """Show one move: its steps, its figures, and why it failed."""
    async with Context.named(cluster).operator() as channel:
        operation = await _find(channel, name)
    if output is Format.TABLE:
        show([operation], _COLUMNS, output)
    else:
        show_data(as_data(operation), output)


@app.command("watch")
@asynchronous
async def watch(name: Name, cluster: Cluster = CLUSTER) -> None:
    """Follow a move until it is over; fails as it does. Interrupting this does not stop the move."""
    async with Context.named(cluster).operator() as channel:
        operation = await _find(channel, name)
        request = GetOperationRequest(name=operation.name)
        with progress_display() as listener:
            async for operation in OperationServiceStub(channel).WatchOperation(request):
                listener(operation)
        if operation.HasField("failure"):
            raise failure_error(operation.failure)
    show([operation], _COLUMNS, Format.TABLE)


@app.command("cancel")
@asynchronous
async def cancel(name: Name, cluster: Cluster = CLUSTER) -> None:
    """Stop a move before its hand-over; the guest goes on where it is."""
    async with Context.named(cluster).operator() as channel:
        operation = await _find(channel, name)
        await OperationServiceStub(channel).CancelOperation(GetOperationRequest(name=operation.name))
        done(f"migration/{short_id(operation)}", "asked to stop")


async def _all(channel: Channel) -> list[Operation]:
    stub = OperationServiceStub(channel)
    operations = await collect(
        lambda token: stub.ListOperations(ListOperationsRequest(page_token=token)),
        lambda page: page.operations,
    )
    moves = [operation for operation in operations if operation.verb == _VERB]
    return sorted(moves, key=lambda item: -item.create_time.ToNanoseconds())


async def _find(channel: Channel, name: str) -> Operation:
    wanted = name.removeprefix("operations/")
    for operation in await _all(channel):
        if short_id(operation) == wanted:
            return operation
    raise NotFoundError(f"there is no migration {name!r}", hint="serai migration list shows them")
