"""Following a long-running operation: each step shown as it goes, its failure raised as it was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from serai.cli.output import stderr
from serai.v1.operation_pb2 import Failure, GetOperationRequest, Operation, Step
from serai.v1.operation_pb2_grpc import OperationServiceStub
from serai.wire.status import status_to_error

Listener = Callable[[Operation], None]


async def follow(channel: grpc.aio.Channel, operation: Operation, listener: Listener) -> Operation:
    """Report each state of `operation` until it is done; raises what it failed with.

    When the wait is interrupted the operation is asked to cancel: who gives up wants nothing left behind.
    """
    stub = OperationServiceStub(channel)
    request = GetOperationRequest(name=operation.name)
    last = operation
    try:
        async for last in stub.WatchOperation(request):
            listener(last)
    except asyncio.CancelledError:
        await asyncio.shield(stub.CancelOperation(request))
        raise
    if last.HasField("failure"):
        raise failure_error(last.failure)
    return last


def failure_error(failure: Failure) -> Exception:
    """The exception that a failure kept in a resource stands for."""
    info = ErrorInfo(
        reason=failure.reason, domain="serai", metadata={**failure.metadata, "hint": failure.hint}
    )
    detail = Any()
    detail.Pack(info)
    return status_to_error(Status(code=failure.code, message=failure.message, details=[detail]))


@contextmanager
def progress_display() -> Iterator[Listener]:
    """A listener that shows an operation's steps live on a terminal, and as one line a step elsewhere."""
    if stderr.is_terminal:
        with _bars() as bars:
            yield _LiveSteps(bars)
    else:
        yield _PlainSteps()


def _bars() -> Progress:
    return Progress(
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[message]}", style="dim"),
        console=stderr,
    )


class _LiveSteps:
    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, operation: Operation) -> None:
        for step in operation.steps:
            if step.state == Step.PENDING:
                continue
            if step.name not in self._tasks:
                self._tasks[step.name] = self._bars.add_task(step.name, total=1.0, message="")
            finished = step.state in (Step.DONE, Step.SKIPPED)
            completed = 1.0 if finished else step.progress
            self._bars.update(self._tasks[step.name], completed=completed, message=describe(step))


class _PlainSteps:
    def __init__(self) -> None:
        self._said: set[tuple[str, int]] = set()

    def __call__(self, operation: Operation) -> None:
        for step in operation.steps:
            key = (step.name, step.state)
            if step.state in (Step.DONE, Step.FAILED) and key not in self._said:
                self._said.add(key)
                stderr.print(
                    f"{Step.State.Name(step.state).lower():8}{step.name}  {describe(step)}", style=None
                )


def describe(step: Step) -> str:
    """A step's message with the time it took, if it is over."""
    if not step.HasField("end_time") or not step.HasField("start_time"):
        return step.message
    seconds = (step.end_time.ToNanoseconds() - step.start_time.ToNanoseconds()) / 1e9
    return f"{step.message} ({seconds:.2f} s)".lstrip()
