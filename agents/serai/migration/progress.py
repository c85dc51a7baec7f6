"""What a migration shows of itself: the ``serai.v1.Migration`` resource, and those who watch it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from google.protobuf.timestamp_pb2 import Timestamp

from serai.errors import SeraiError
from serai.hypervisor.driver import PAGE_SIZE
from serai.migration.convergence import Mode, Round
from serai.migration.push import Pusher
from serai.migration.source import Outcome, Phase
from serai.v1 import migration_pb2, operation_pb2
from serai.wire.status import error_to_status

_STATES = {
    Outcome.RUNNING: migration_pb2.Migration.RUNNING,
    Outcome.SUCCEEDED: migration_pb2.Migration.SUCCEEDED,
    Outcome.FAILED: migration_pb2.Migration.FAILED,
    Outcome.CANCELLED: migration_pb2.Migration.CANCELLED,
}
_Step = operation_pb2.Step


class Progress:
    """One migration's resource. `on_change` is called after each change, in the event loop."""

    def __init__(
        self,
        name: str,
        guest: str,
        source_node: str,
        destination_node: str,
        on_change: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self._started = time.monotonic()
        self._on_change = on_change
        self._requested = 0
        self._wakers: set[asyncio.Event] = set()
        self.phase = Phase.PREPARE
        self.resource = migration_pb2.Migration(
            name=name,
            guest=guest,
            destination_node=destination_node,
            state=migration_pb2.Migration.RUNNING,
            steps=[_Step(name=phase.value, state=_Step.PENDING) for phase in Phase],
            report=operation_pb2.MigrationReport(
                mode="pre-copy", source_node=source_node, destination_node=destination_node
            ),
        )
        self.resource.start_time.GetCurrentTime()

    @property
    def name(self) -> str:
        """``migrations/ID``."""
        return self.resource.name

    @property
    def finished(self) -> bool:
        """Whether the state is final."""
        return self.resource.HasField("end_time")

    def enter(self, phase: Phase, message: str = "") -> None:
        """The steps before `phase` are done, and `phase` runs."""
        for step, each in zip(self.resource.steps, Phase, strict=True):
            if each is phase:
                break
            _end(step, _Step.DONE)
        self.phase = phase
        if step.state != _Step.RUNNING:
            step.state = _Step.RUNNING
            step.start_time.GetCurrentTime()
        step.message = message
        self._tell()

    def set_progress(self, fraction: float, message: str) -> None:
        """How far the step that runs is, 0 to 1."""
        step = self._step()
        step.progress, step.message = min(1.0, fraction), message
        self._tell()

    def add_round(self, finished: Round, bytes_sent: int) -> None:
        """A round has ended."""
        self.resource.rounds.append(
            migration_pb2.Round(
                number=finished.number,
                pages=finished.pages,
                zero_pages=finished.zero_pages,
                bytes=finished.bytes,
                seconds=finished.seconds,
                dirtied_pages=finished.dirtied_pages,
            )
        )
        self.resource.report.rounds = finished.number
        if finished.seconds > 0:
            self.resource.rate = finished.bytes / finished.seconds
            self.resource.dirty_rate = finished.dirtied_pages * PAGE_SIZE / finished.seconds
        self.resource.remaining_pages = finished.dirtied_pages
        if self.resource.rate:
            self.resource.eta_s = finished.dirtied_pages * PAGE_SIZE / self.resource.rate
        self.resource.report.bytes_sent = bytes_sent
        self._tell()

    def set_mode(self, later: bool, mode: Mode) -> None:
        """How the guest really moves."""
        if mode in (Mode.AUTO, Mode.HYBRID, Mode.PRE_COPY):
            mode = Mode.PRE_COPY if not later else Mode.HYBRID
        self.resource.report.mode = str(mode)

    def set_rest(self, pusher: Pusher, total: int) -> None:
        """How far the pages are that follow after the guest."""
        resource, sent = self.resource, pusher.sent
        resource.remaining_pages = pusher.remaining
        resource.pages_requested += pusher.requested - self._requested
        self._requested = pusher.requested
        if sent.seconds > 0:
            resource.rate = sent.bytes / sent.seconds
        if resource.rate:
            resource.eta_s = pusher.remaining * PAGE_SIZE / resource.rate
        done = total - pusher.remaining
        self.set_progress(done / max(1, total), f"{done} of {total} pages followed")

    def set_link_lost(self, reason: str) -> None:
        """Pages are to follow and there is no link; "" when there is one again."""
        running = migration_pb2.Migration.RUNNING
        self.resource.state = migration_pb2.Migration.LINK_LOST if reason else running
        self._requested = 0
        if reason:
            self._step().message = f"link lost: {reason}"
        self._tell()

    def set_undecided(self, reason: str) -> None:
        """Handed over without an answer."""
        self.resource.state = migration_pb2.Migration.UNDECIDED
        self._step().message = f"undecided: {reason}"
        self._tell()

    def add_downtime_part(self, name: str, seconds: float) -> None:
        """A part of the downtime has been measured."""
        self.resource.downtime_parts_ms[name] = seconds * 1000

    def set_downtime(self, seconds: float) -> None:
        """Last instruction there to first one here."""
        self.resource.report.downtime_ms = seconds * 1000

    def finish(self, outcome: Outcome, error: SeraiError | None) -> None:
        """It is over."""
        self.resource.state = _STATES[outcome]
        self.resource.report.total_ms = (time.monotonic() - self._started) * 1000
        if error is not None:
            self.resource.failure.CopyFrom(failure_of(error))
        for step in self.resource.steps:
            if outcome is Outcome.SUCCEEDED:
                _end(step, _Step.DONE)
            elif step.state == _Step.RUNNING:
                step.message = str(error) if error is not None else ""
                _end(step, _Step.FAILED)
            elif step.state == _Step.PENDING:
                step.state = _Step.SKIPPED
        self.resource.end_time.GetCurrentTime()
        self._tell()

    async def watch(self) -> AsyncIterator[migration_pb2.Migration]:
        """The resource now and after each change (several changes as one), until its state is final."""
        waker = asyncio.Event()
        self._wakers.add(waker)
        try:
            while True:
                waker.clear()
                finished = self.finished
                yield self.copy()
                if finished:
                    return
                await waker.wait()
        finally:
            self._wakers.discard(waker)

    async def wait_finished(self) -> None:
        """Return when the state is final."""
        async for _ in self.watch():
            pass

    def copy(self) -> migration_pb2.Migration:
        """The resource as it is now."""
        copied = migration_pb2.Migration()
        copied.CopyFrom(self.resource)
        return copied

    def _step(self) -> operation_pb2.Step:
        return self.resource.steps[list(Phase).index(self.phase)]

    def _tell(self) -> None:
        for waker in self._wakers:
            waker.set()
        self._on_change(self)


def failure_of(error: SeraiError) -> operation_pb2.Failure:
    """An error as it is kept in a resource."""
    return operation_pb2.Failure(
        code=error_to_status(error).code,
        message=error.message,
        reason=error.reason,
        hint=error.hint,
        metadata=error.metadata,
    )


def _end(step: operation_pb2.Step, state: operation_pb2.Step.State) -> None:
    if step.state in (_Step.RUNNING, _Step.PENDING):
        now = Timestamp()
        now.GetCurrentTime()
        step.state = state
        if not step.HasField("start_time"):
            step.start_time.CopyFrom(now)
        step.end_time.CopyFrom(now)
        if state == _Step.DONE:
            step.progress = 1.0
