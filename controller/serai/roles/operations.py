"""Long-running operations (AIP-151): named steps, progress, cancel; one implementation for every role."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

from google.protobuf.timestamp_pb2 import Timestamp

from serai.errors import CancelledByUserError, InternalError, SeraiError, StateError, UnavailableError
from serai.roles.failures import error_to_failure
from serai.roles.names import unique_label
from serai.store import Collection, Database, Record, Stored
from serai.v1.operation_pb2 import MigrationReport, Operation, Step
from serai.wire.identity import Identity

log = logging.getLogger(__name__)

KEPT_OPERATIONS = 1000
"""Finished operations kept, the newest ones."""


class OperationRecord(Record):
    """An operation and who asked for it."""

    owner: str
    operation: Annotated[Operation, Stored()]


def now() -> Timestamp:
    """The present as a message."""
    timestamp = Timestamp()
    timestamp.GetCurrentTime()
    return timestamp


class Progress:
    """The hand with which a running operation writes its steps."""

    def __init__(self, operations: Operations, name: str) -> None:
        self._operations = operations
        self.name = name

    @asynccontextmanager
    async def step(self, name: str, message: str = "") -> AsyncIterator[None]:
        """Marks step `name` running, then done or failed with the reason."""
        await self._change(name, lambda step: begin(step, message))
        try:
            yield
        except BaseException as error:
            reason = "cancelled" if isinstance(error, asyncio.CancelledError) else str(error)
            await asyncio.shield(self._change(name, lambda step: end(step, Step.FAILED, reason)))
            raise
        await self._change(name, lambda step: end(step, Step.DONE))

    def report(self, name: str, progress: float, message: str | None = None) -> None:
        """How far step `name` is, 0 to 1; not worth waiting for."""

        def change(record: OperationRecord) -> None:
            step = find_step(record.operation, name)
            step.progress = progress
            if message is not None:
                step.message = message

        self._operations.records.revise(self.name, change)

    async def mirror(self, other: Operation, names: Sequence[str] | None = None) -> None:
        """Take over the steps of another role's operation (all, or those named) and its migration report."""

        def change(record: OperationRecord) -> None:
            for theirs in other.steps:
                if names is None or theirs.name in names:
                    find_step(record.operation, theirs.name).CopyFrom(theirs)
            if other.HasField("migration"):
                record.operation.migration.CopyFrom(other.migration)

        self._operations.records.revise(self.name, change)

    async def set_steps(self, steps: Sequence[Step]) -> None:
        """Replace or add `steps`, by name."""
        await self.mirror(Operation(steps=steps))

    async def set_migration(self, report: MigrationReport) -> None:
        """Attach the figures of a migration."""
        await self._operations.records.update(
            self.name, lambda record: record.operation.migration.CopyFrom(report)
        )

    async def skip_rest(self) -> None:
        """Mark what is still pending as skipped."""

        def change(record: OperationRecord) -> None:
            for step in record.operation.steps:
                if step.state == Step.PENDING:
                    step.state = Step.SKIPPED

        await self._operations.records.update(self.name, change)

    async def _change(self, name: str, change: Callable[[Step], None]) -> None:
        await self._operations.records.update(
            self.name, lambda record: change(find_step(record.operation, name))
        )


Work = Callable[[Progress], Awaitable[None]]


class Operations:
    """The operations of one role."""

    def __init__(self, database: Database) -> None:
        self.records = Collection(database, "operations", OperationRecord, "operation")
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def load(self) -> list[Operation]:
        """Read them; those that the last process left unfinished are failed now, and returned."""
        await self.records.load()
        interrupted = [record for record in self.records if not record.operation.done]
        for record in interrupted:
            await self._finish(record.name, _INTERRUPTED)
        return [record.operation for record in interrupted]

    async def start(
        self, verb: str, target: str, steps: Sequence[str], work: Work, *, owner: Identity
    ) -> Operation:
        """Run `work` in the background; its outcome is the operation's."""
        name = f"operations/{unique_label(verb.lower())}"
        operation = Operation(name=name, verb=verb, target=target, create_time=now(), update_time=now())
        for step in steps:
            operation.steps.add(name=step, state=Step.PENDING)
        await self._forget_old()
        await self.records.create(OperationRecord(name=name, owner=owner.uri, operation=operation))
        task = asyncio.create_task(self._run(name, work), name=f"{verb} {target}")
        self._tasks[name] = task
        task.add_done_callback(lambda _: self._tasks.pop(name, None))
        return operation

    async def cancel(self, name: str) -> None:
        """Ask a running operation to stop and undo; StateError when it is over already."""
        task = self._tasks.get(name)
        # The outcome is recorded a moment before its task ends.
        if task is None or self.records.get(name).operation.done:
            raise StateError(f"{name} is done", hint="look at its outcome")
        task.cancel()

    async def wait(self, name: str) -> Operation:
        """The operation when it is done."""
        with self.records.watch() as watcher:
            while not (record := self.records.get(name)).operation.done:
                await watcher.changes()
        return record.operation

    def running(self, target: str, *, but: str = "") -> list[Operation]:
        """The operations under way on `target`, except those of the verb `but`."""
        return [
            record.operation
            for record in self.records
            if record.operation.target == target
            and not record.operation.done
            and record.operation.verb != but
        ]

    async def close(self) -> None:
        """Cancel what runs and wait until it is undone. What a crash interrupts, the next process undoes."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, name: str, work: Work) -> None:
        try:
            await work(Progress(self, name))
        except SeraiError as error:
            await self._finish(name, error)
        except asyncio.CancelledError:
            await self._finish(name, CancelledByUserError("cancelled", hint="nothing is left of it"))
        except Exception as error:
            log.exception("%s failed by a defect", name)
            await self._finish(name, InternalError(f"defect: {error!r}", hint="see the controller's log"))
        else:
            await self._finish(name, None)

    async def _finish(self, name: str, error: SeraiError | None) -> None:
        def change(record: OperationRecord) -> None:
            operation = record.operation
            operation.done = True
            operation.update_time.CopyFrom(now())
            if error is None:
                return
            operation.failure.CopyFrom(error_to_failure(error))
            for step in operation.steps:
                if step.state == Step.RUNNING:
                    end(step, Step.FAILED, error.message)
                elif step.state == Step.PENDING:
                    step.state = Step.SKIPPED

        try:
            await self.records.update(name, change)
        except UnavailableError as failure:
            log.error("the outcome of %s is not durable yet: %s", name, failure)

    async def _forget_old(self) -> None:
        finished = [record for record in self.records if record.operation.done]
        finished.sort(key=lambda record: record.operation.update_time.ToNanoseconds())
        for record in finished[: max(0, len(finished) - KEPT_OPERATIONS)]:
            await self.records.delete(record.name)


_INTERRUPTED = StateError(
    "interrupted: the controller stopped while this was under way",
    hint="what was being created has been undone, what was being deleted is deleted; ask again",
    reason="INTERRUPTED",
)


def find_step(operation: Operation, name: str) -> Step:
    """The step of that name, added when there is none."""
    for step in operation.steps:
        if step.name == name:
            return step
    return operation.steps.add(name=name, state=Step.PENDING)


def begin(step: Step, message: str = "") -> None:
    """Mark `step` running."""
    step.state = Step.RUNNING
    step.message = message
    step.start_time.CopyFrom(now())


def end(step: Step, state: Step.State, message: str = "") -> None:
    """Mark `step` over."""
    step.state = state
    if message:
        step.message = message
    if state == Step.DONE:
        step.progress = 1.0
    step.end_time.CopyFrom(now())
