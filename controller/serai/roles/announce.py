"""Operations as events: every step that begins or ends, and the progress in between."""

from __future__ import annotations

from serai.roles.operations import OperationRecord, Operations
from serai.store import Change
from serai.v1.operation_pb2 import Operation, Step
from serai.wire.bus import EventBus
from serai.wire.events import OperationProgress


def announce_operations(operations: Operations, bus: EventBus) -> None:
    """Publish every change of an operation from now on."""
    last: dict[str, Operation] = {}

    def announce(change: Change[OperationRecord]) -> None:
        operation = change.record.operation
        if change.deleted:
            return
        before = last.get(operation.name, Operation())
        for event in _events(before, operation):
            bus.publish(operation.name, event)
        last[operation.name] = operation
        if operation.done:
            last.pop(operation.name, None)

    operations.records.listen(announce)


def _events(before: Operation, after: Operation) -> list[OperationProgress]:
    known = {step.name: step for step in before.steps}
    events = [
        OperationProgress(
            operation=after.name,
            verb=after.verb,
            target=after.target,
            step=step.name,
            state=Step.State.Name(step.state),
            progress=min(1.0, max(0.0, step.progress)),
            message=step.message,
        )
        for step in after.steps
        if step != known.get(step.name) and not (step.name not in known and step.state == Step.PENDING)
    ]
    if after.done and not before.done:
        failed = after.HasField("failure")
        events.append(
            OperationProgress(
                operation=after.name,
                verb=after.verb,
                target=after.target,
                state=Step.State.Name(Step.FAILED if failed else Step.DONE),
                progress=1.0,
                message=after.failure.message,
                done=True,
            )
        )
    return events
