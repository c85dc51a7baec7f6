"""The source's shell: carries out what `serai.migration.source` decides, and measures it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from serai.errors import MigrationError, NotFoundError, SeraiError, StateError
from serai.hypervisor.driver import Guest as Machine
from serai.hypervisor.driver import GuestState
from serai.migration import source
from serai.migration.convergence import Limits, Mode, Round
from serai.migration.ownership import ask_holder
from serai.migration.pages import Numbers, numbers_of
from serai.migration.progress import Progress
from serai.migration.push import Pusher
from serai.migration.source import Outcome, Phase, Source
from serai.migration.stream import GO, MAX_RECORD, STATE, STREAM_VERSION, PageSender, Sent
from serai.v1 import guest_pb2, migration_pb2
from serai.wire.records import ChannelSecret
from serai.wire.streams import RecordStream

if TYPE_CHECKING:
    from serai.v1.migration_pb2_grpc import MigrationPeerServiceAsyncStub

log = logging.getLogger(__name__)

PREPARE_TIMEOUT_S = 60.0
FREEZE_TIMEOUT_S = 10.0
"""The guest does not stand still for longer for the last pages, nor for the destination's verification."""

COMMIT_TIMEOUT_S = 5.0
_STREAM_REASONS = frozenset({"STREAM_LOST", "STREAM_TRUNCATED", "STREAM_INVALID"})
_LOOK_PAGES = 4096
"""The first round of at most so many pages checks the dirty log: it takes 10 ms for 128 MiB."""

_TELL_S = 0.1
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0


@dataclass(frozen=True, slots=True)
class Departure:
    """What is to be moved where; addresses are those of gRPC servers."""

    migration: str
    facts: guest_pb2.Guest
    source_node: str
    source_address: str
    destination_node: str
    destination_address: str
    permit: bytes
    snapshot_version: int
    limits: Limits = field(default_factory=Limits)
    bandwidth_bps: int = 0
    stream_timeout_s: float = 20.0


class SourceHost(Protocol):
    """What the agent does for a guest that leaves."""

    def hold(self) -> None:
        """Keep the guest's frames from now on."""

    def let_pass(self) -> None:
        """Give the guest the frames held, and those that come."""

    async def record_hand_over(self, epoch: int) -> None:
        """Durably: the destination's, under `epoch`."""

    async def record_reclaim(self, epoch: int) -> None:
        """Durably: this node's again, under `epoch`."""

    def redirect(self) -> None:
        """Send frames after the guest; tell those who are attached to its console."""

    async def release(self) -> None:
        """Free the copy here."""

    def over(self) -> None:
        """The migration has ended; another may begin."""


class Outgoing:
    """One migration under way; `run` returns when it is over."""

    def __init__(
        self,
        departure: Departure,
        machine: Machine,
        host: SourceHost,
        peer: MigrationPeerServiceAsyncStub,
        progress: Progress,
    ) -> None:
        self._plan = departure
        self._machine = machine
        self._host = host
        self._peer = peer
        self._progress = progress
        self._core = Source(departure.limits)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="migration")
        self._interruption: asyncio.Future[source.Event] = asyncio.get_running_loop().create_future()
        self._stream: RecordStream | None = None
        self._sender: PageSender | None = None
        self._pending: Numbers = np.empty(0, dtype=np.uint32)
        self._rest: Numbers = self._pending
        """Pages that follow after the guest."""
        self._looked = self._logging = self._redirected = self._reconnected = self._said_go = False
        self._bytes_before = 0
        self._recover = asyncio.Event()
        self._request = migration_pb2.VerifyArrivalRequest()
        self._digest = b""
        self._destination_failure = ""
        self._asked_to_stop = 0.0
        self._frozen_at = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self._performers: dict[type[Any], Callable[[Any], Any]] = {
            source.Prepare: self._prepare,
            source.SendRound: self._send_round,
            source.Freeze: self._freeze,
            source.SendRest: self._send_rest,
            source.Verify: self._verify,
            source.RecordHandOver: self._record_hand_over,
            source.Commit: self._commit,
            source.AskHolder: self._ask_holder,
            source.RecordReclaim: self._record_reclaim,
            source.Drain: self._drain,
            source.AwaitLink: self._await_link,
            source.Release: self._release,
            source.Thaw: self._thaw,
            source.Abort: self._abort,
            source.Finish: self._finish,
        }

    @property
    def epoch(self) -> int:
        """What the destination will own."""
        return self._plan.facts.epoch + 1

    @property
    def undecided(self) -> bool:
        """Handed over, and not yet acknowledged."""
        return self._core.undecided

    def cancel(self, error: SeraiError) -> None:
        """Stop if the hand-over is not being recorded yet, else MigrationError."""
        if not self._core.cancellable:
            self._core.handle(source.Cancelled(error))
        if not self._interruption.done():
            self._interruption.set_result(source.Cancelled(error))

    async def run(self) -> None:
        """Move the guest, or leave it where it is."""
        unsubscribe = self._machine.subscribe(self._machine_changed)
        event: source.Event | None = source.Begun()
        try:
            while event is not None:
                event = await self._step(event)
        finally:
            unsubscribe()
            await self._close_stream()

    async def _step(self, event: source.Event) -> source.Event | None:
        """Carry out what `event` leads to; the next event, None at the end."""
        before = self._core.phase
        actions = self._core.handle(event)
        self._core.check()
        if self._core.phase is not before:
            self._progress.enter(self._core.phase)
        if self._core.undecided and isinstance(event, source.Unanswered | source.Failed):
            self._progress.set_undecided(
                event.reason if isinstance(event, source.Unanswered) else str(event.error)
            )
        following: source.Event | None = None
        for action in actions:
            following = await self._perform(action)
        return following

    async def _perform(self, action: source.Action) -> source.Event | None:
        work = asyncio.ensure_future(self._performers[type(action)](action))
        if self._core.cancellable:
            await asyncio.wait({work, self._interruption}, return_when=asyncio.FIRST_COMPLETED)
            if self._interruption.done():
                await self._interrupt(work, action)
                return self._interruption.result()
        try:
            following: source.Event | None = await work
        except SeraiError as error:
            return source.Failed(error)
        except Exception as error:
            log.exception("migration of %s: a defect", self._plan.facts.name)
            return source.Failed(MigrationError(f"a defect at the source: {error!r}", reason="DEFECT"))
        return following

    async def _interrupt(self, work: asyncio.Future[Any], action: source.Action) -> None:
        """End what is under way without leaving a driver call half done."""
        if self._stream is not None:
            self._stream.shutdown()
        if isinstance(action, source.Prepare):
            work.cancel()
        await asyncio.wait({work})
        if not work.cancelled() and (error := work.exception()) is not None:
            log.debug("interrupted: %s", error)

    def _machine_changed(self, machine: Machine) -> None:
        ended = machine.state in (GuestState.FAILED, GuestState.STOPPED)
        if ended and self._core.cancellable and not self._interruption.done():
            error = StateError(f"the guest ended: {machine.failure}", reason="GUEST_ENDED")
            self._interruption.set_result(source.Failed(error))

    async def _prepare(self, _: source.Prepare) -> source.Event:
        self._progress.enter(Phase.PREPARE)
        facts = self._plan.facts
        request = migration_pb2.PrepareArrivalRequest(
            permit=self._plan.permit,
            migration=self._plan.migration,
            guest_uid=facts.uid,
            spec=facts.spec,
            epoch=self.epoch,
            stream_version=STREAM_VERSION,
            snapshot_version=self._plan.snapshot_version,
            kernel_release=facts.kernel_release,
            source_address=self._plan.source_address,
        )
        for moment in ("create_time", "start_time", "ready_time"):
            if facts.HasField(moment):
                getattr(request, moment).CopyFrom(getattr(facts, moment))
        answer = await self._peer.PrepareArrival(request, timeout=PREPARE_TIMEOUT_S)
        secret = ChannelSecret(answer.channel_id, answer.key)
        self._stream = await self._in_thread(self._dial, answer.data_address, secret)
        machine = self._machine
        self._sender = PageSender(
            self._stream, machine.ram, bandwidth_bps=self._plan.bandwidth_bps, extents=machine.used_pages
        )
        if self._plan.limits.mode in (Mode.POST_COPY, Mode.OFFLINE):
            # Of a guest that was copied from a template, only this makes all of RAM visible here.
            await self._machine.start_dirty_log()
            await self._machine.stop_dirty_log()
        return source.Prepared()

    def _dial(self, address: str, secret: ChannelSecret) -> RecordStream:
        return RecordStream.dial(address, secret, maximum=MAX_RECORD, timeout=self._plan.stream_timeout_s)

    async def _send_round(self, action: source.SendRound) -> source.Event:
        sender = self._expect_sender()
        if action.number == 1:
            await self._machine.start_dirty_log()
            self._logging = True
            self._pending = sender.pages_in_use()
        pages = self._pending
        look = len(pages) <= _LOOK_PAGES and not self._looked
        self._looked |= look
        sending = asyncio.ensure_future(
            self._in_thread(lambda: sender.send_round(action.number, pages, look=look))
        )
        while not (await asyncio.wait({sending}, timeout=0.1))[0]:
            message = f"round {action.number}: {sender.pages_done} of {len(pages)} pages"
            self._progress.set_progress(sender.pages_done / max(1, len(pages)), message)
        sent = await sending
        self._pending = numbers_of(await self._machine.take_dirty_pages(), sender.page_count)
        self._pending = self._with_missed(self._pending, sent.changed)
        finished = Round(
            action.number, sent.pages, sent.zero_pages, sent.bytes, sent.seconds, len(self._pending)
        )
        self._progress.add_round(finished, sender.bytes_sent)
        return source.RoundSent(finished)

    async def _freeze(self, _: source.Freeze) -> source.Event:
        # What comes for the guest from now on waits here; what it sends until it stops still goes out.
        self._host.hold()
        self._progress.set_mode(self._core.later, self._plan.limits.mode)
        self._asked_to_stop = time.monotonic()
        await self._machine.pause()
        self._frozen_at = time.monotonic()
        self._progress.add_downtime_part("stop", self._frozen_at - self._asked_to_stop)
        return source.Frozen()

    async def _send_rest(self, action: source.SendRest) -> source.Event:
        sender = self._expect_sender()
        started = time.monotonic()
        saving = asyncio.ensure_future(self._save())
        try:
            dirty = await self._last_dirty(sender)
            sending = asyncio.ensure_future(self._in_thread(self._send_last, sender, action, dirty))
            # Only what stands still for the sake of a short freeze must not stand still for long.
            limit = None if self._plan.limits.mode is Mode.OFFLINE else FREEZE_TIMEOUT_S
            done, _ = await asyncio.wait({sending}, timeout=limit)
            if not done and self._stream is not None:
                self._stream.shutdown()
            sent = await sending
            ended = time.monotonic()
        finally:
            await asyncio.wait({saving})
        self._request = saving.result()
        self._rest = dirty if action.later else self._rest
        left = len(dirty) if action.later else 0
        self._progress.add_round(
            Round(action.number, sent.pages, sent.zero_pages, sent.bytes, sent.seconds, left),
            sender.bytes_sent,
        )
        saved = time.monotonic()
        self._digest = self._request.digest = sender.digests.root(self._request.state)
        self._progress.add_downtime_part("final pages", ended - started)
        self._progress.add_downtime_part("state", max(0.0, saved - ended))
        self._progress.add_downtime_part("digest", time.monotonic() - saved)
        self._progress.resource.report.digest_source = self._digest.hex()
        return source.RestSent(self._digest)

    async def _last_dirty(self, sender: PageSender) -> Numbers:
        """The pages that the destination does not have as they are now."""
        if not self._logging:
            return sender.pages_in_use()
        logged = numbers_of(await self._machine.take_dirty_pages(), sender.page_count)
        return np.union1d(self._pending, logged).astype(np.uint32)

    async def _save(self) -> migration_pb2.VerifyArrivalRequest:
        counters = await self._machine.statistics()
        return migration_pb2.VerifyArrivalRequest(
            migration=self._plan.migration,
            state=await self._machine.save_state(),
            scrollback=self._machine.read_scrollback(),
            statistics=guest_pb2.GuestStatistics(
                instructions=counters.instructions,
                cpu_seconds=counters.cpu_seconds,
                boot_seconds=counters.ready_seconds or 0.0,
                exits=counters.exits,
            ),
        )

    def _send_last(self, sender: PageSender, action: source.SendRest, dirty: Numbers) -> Sent:
        if not action.later:
            return sender.send_round(action.number, dirty, last=True)
        before, started = sender.bytes_sent, time.monotonic()
        sender.send_absent(action.number, dirty)
        return Sent(bytes=sender.bytes_sent - before, seconds=time.monotonic() - started)

    def _with_missed(self, dirty: Numbers, changed: Numbers) -> Numbers:
        """The dirty log is checked, not believed: what differs is sent, whether it was logged or not.

        Looked at before the log was taken, so each page that differed must be in it. Writes between the last
        look and the freeze are the log's alone: looking then would take 10 ms for 128 MiB.
        """
        missed = np.setdiff1d(changed, dirty, assume_unique=True)
        if not len(missed):
            return dirty
        log.error("%s: %d pages were written and not logged as dirty", self._plan.facts.name, len(missed))
        return np.union1d(dirty, missed).astype(np.uint32)

    async def _verify(self, _: source.Verify) -> source.Event:
        started = time.monotonic()
        limit = self._plan.stream_timeout_s if self._plan.limits.mode is Mode.OFFLINE else FREEZE_TIMEOUT_S
        payload = await self._ask(STATE, self._request.SerializeToString(), limit)
        answer = migration_pb2.VerifyArrivalResponse.FromString(payload)
        self._request = migration_pb2.VerifyArrivalRequest()
        self._progress.add_downtime_part("verify", time.monotonic() - started)
        self._progress.resource.report.digest_destination = answer.digest.hex()
        return source.Verified(answer.digest)

    async def _ask(self, kind: int, payload: bytes, seconds: float) -> bytes:
        assert self._stream is not None
        self._stream.set_timeout(seconds)
        try:
            answer: bytes = await self._in_thread(self._expect_sender().ask, kind, payload)
        finally:
            self._stream.set_timeout(self._plan.stream_timeout_s)
        return answer

    async def _record_hand_over(self, _: source.RecordHandOver) -> source.Event:
        started = time.monotonic()
        await self._host.record_hand_over(self.epoch)
        self._progress.add_downtime_part("commit", time.monotonic() - started)
        return source.HandOverRecorded()

    async def _commit(self, _: source.Commit) -> source.Event:
        sent = time.monotonic()
        request = migration_pb2.CommitArrivalRequest(
            migration=self._plan.migration, epoch=self.epoch, frozen_ns=int((sent - self._frozen_at) * 1e9)
        )
        try:
            answer = await self._say_go(request)
        except SeraiError as error:
            return source.Unanswered(str(error))
        resumed = answer.resume_ns / 1e9
        # The commit's way there is half of what the call took beyond the destination's own work.
        way = max(0.0, (time.monotonic() - sent - resumed) / 2)
        self._progress.add_downtime_part("resume", resumed + way)
        self._progress.set_downtime(sent - self._asked_to_stop + way + resumed)
        return source.Acknowledged()

    async def _say_go(
        self, request: migration_pb2.CommitArrivalRequest
    ) -> migration_pb2.CommitArrivalResponse:
        """Over the stream, which is the shortest way; when that fails, over gRPC: it may be said twice."""
        if not self._said_go:
            self._said_go = True
            try:
                payload = await self._ask(GO, request.SerializeToString(), COMMIT_TIMEOUT_S)
            except SeraiError as error:
                log.info("the stream did not answer to go: %s", error)
            else:
                return migration_pb2.CommitArrivalResponse.FromString(payload)
        return await self._peer.CommitArrival(request, timeout=COMMIT_TIMEOUT_S)

    async def _ask_holder(self, _: source.AskHolder) -> source.Event:
        await asyncio.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        try:
            holder = await ask_holder(self._peer, self._plan.facts.uid, self.epoch, self._plan.source_node)
        except SeraiError as error:
            return source.Unanswered(str(error))
        return source.Answered(holder)

    async def _record_reclaim(self, _: source.RecordReclaim) -> source.Event:
        await self._host.record_reclaim(self.epoch + 1)
        return source.ReclaimRecorded()

    async def _drain(self, _: source.Drain) -> source.Event:
        if not self._redirected:
            self._redirected = True
            self._host.redirect()
        if not self._core.later:
            return source.Drained()
        if self._stream is None and (event := await self._reconnect()) is not None:
            return event
        self._progress.set_link_lost("")
        try:
            await self._push()
        except BaseException:
            await self._drop_stream()
            raise
        return source.Drained()

    async def _push(self) -> None:
        """Send what is to follow."""
        assert self._stream is not None
        loop = asyncio.get_running_loop()
        told = 0.0

        def tell(pusher: Pusher) -> None:
            nonlocal told
            if time.monotonic() - told > _TELL_S or not pusher.remaining:
                told = time.monotonic()
                loop.call_soon_threadsafe(self._progress.set_rest, pusher, len(self._rest))

        pusher = Pusher(self._stream, self._expect_sender(), self._rest, tell)
        ours, theirs = await self._in_thread(pusher.run)
        self._progress.set_rest(pusher, len(self._rest))
        self._progress.resource.report.bytes_sent = self._bytes_before + self._stream.bytes_sent
        if not self._reconnected:
            self._progress.resource.report.digest_source = ours.hex()
            self._progress.resource.report.digest_destination = theirs.hex()
            if ours != theirs:
                log.error("%s: the pages that followed have another digest there", self._plan.facts.name)

    async def _reconnect(self) -> source.Event | None:
        """A new stream and what is missing; an event when there is nobody to send to."""
        request = migration_pb2.RecoverArrivalRequest(migration=self._plan.migration)
        try:
            answer = await self._peer.RecoverArrival(request, timeout=COMMIT_TIMEOUT_S)
        except NotFoundError:
            return source.Answered(
                await ask_holder(self._peer, self._plan.facts.uid, self.epoch, self._plan.source_node)
            )
        if answer.complete:
            return source.Drained()
        sender = self._expect_sender()
        self._rest = numbers_of(answer.missing, sender.page_count)
        secret = ChannelSecret(answer.channel_id, answer.key)
        self._reconnected = True
        self._stream = await self._in_thread(self._dial, answer.data_address, secret)
        sender.change_stream(self._stream)
        return None

    async def _await_link(self, action: source.AwaitLink) -> source.Event:
        await self._drop_stream()
        self._progress.set_link_lost(action.reason)
        self._recover.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._pause_s):
                await self._recover.wait()
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return source.TryAgain()

    def recover(self) -> None:
        """Try now to send what is to follow; StateError when nothing is."""
        if not (self._core.later and self._core.phase is Phase.DRAIN):
            raise StateError(
                f"nothing is to be recovered: the migration is at {self._core.phase}",
                reason="NOTHING_TO_RECOVER",
            )
        self._recover.set()

    async def _drop_stream(self) -> None:
        if self._stream is not None:
            self._bytes_before += self._stream.bytes_sent
            self._stream.shutdown()
            await self._in_thread(self._stream.close)
            self._stream = None

    async def _release(self, _: source.Release) -> source.Event:
        await self._close_stream()
        await self._host.release()
        return source.Released()

    async def _thaw(self, _: source.Thaw) -> None:
        """Must not fail: a guest that cannot go on is FAILED, which its watchers are told."""
        try:
            if self._machine.state is GuestState.PAUSED:
                # Its clock went on here: nothing is to be added.
                await self._machine.resume()
            if self._machine.state is GuestState.RUNNING:
                await self._machine.stop_dirty_log()
        except SeraiError as error:
            log.error("%s cannot go on: %s", self._plan.facts.name, error)
        finally:
            self._host.let_pass()

    async def _abort(self, action: source.Abort) -> None:
        if self._stream is not None:
            self._stream.shutdown()
        request = migration_pb2.AbortArrivalRequest(migration=self._plan.migration, reason=action.reason)
        try:
            answer = await self._peer.AbortArrival(request, timeout=COMMIT_TIMEOUT_S)
            self._destination_failure = answer.failure
        except SeraiError as error:
            # It forgets by itself when it hears nothing.
            log.info("the destination was not told to forget %s: %s", self._plan.facts.name, error)

    async def _finish(self, action: source.Finish) -> None:
        error = action.error
        if error is not None and error.reason in _STREAM_REASONS and self._destination_failure:
            # The source saw no more than the stream break; the destination knows why.
            error = MigrationError(
                f"the destination gave up: {self._destination_failure}", reason="DESTINATION_FAILED"
            )
        if action.outcome is Outcome.SUCCEEDED:
            log.info("%s moved to %s", self._plan.facts.name, self._plan.destination_node)
        else:
            log.warning("%s did not move: %s", self._plan.facts.name, error)
        # First make it possible to try again: who watches may do so at once.
        await self._close_stream()
        self._host.over()
        self._progress.finish(action.outcome, error)

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _expect_sender(self) -> PageSender:
        assert self._sender is not None, "rounds follow the preparation"
        return self._sender

    async def _close_stream(self) -> None:
        """The sender holds a view of RAM, which must be gone before the machine is closed."""
        await self._drop_stream()
        self._sender = None
        self._thread.shutdown(wait=False)
