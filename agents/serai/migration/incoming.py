"""The destination's shell: carries out what `serai.migration.destination` decides."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import numpy as np
from google.protobuf.message import Message

from serai.errors import IntegrityError, MigrationError, SeraiError
from serai.hypervisor.driver import Guest as Machine
from serai.hypervisor.driver import GuestState
from serai.migration import destination
from serai.migration.destination import Destination, Stage
from serai.migration.pages import Numbers
from serai.migration.stream import DONE, GO, MAX_RECORD, REFUSED, STATE, WANT, PageReceiver
from serai.v1 import migration_pb2
from serai.wire.records import ChannelSecret, Direction
from serai.wire.status import error_to_status
from serai.wire.streams import RecordStream

log = logging.getLogger(__name__)

_ASK_PAUSE_S = 1.0
_GO_S = 60.0
"""A stream that waits for *go* is kept for so long; afterwards *go* comes over gRPC."""

_ALIVE_S = 2.0
"""The source hears so often that the link lives, whether the guest wants pages or not."""


class DestinationHost(Protocol):
    """What the agent does for a guest that arrives."""

    async def record_ownership(self, epoch: int) -> None:
        """Durably: this node's, under `epoch`."""

    def take_over(self) -> None:
        """Connect the guest's interfaces; it is about to run here."""

    def ran(self) -> None:
        """The guest runs and is listed as this node's."""

    def complete(self) -> None:
        """Every page of the guest that runs here has come."""

    async def forget(self, error: SeraiError) -> None:
        """Free everything: it never was this node's."""

    async def give_up(self, error: SeraiError) -> None:
        """Free the copy: it is this node's by the record and cannot run here."""

    async def ask_source(self) -> bool:
        """Whether the source's record hands the guest to this node under this arrival's epoch."""

    def start_task(self, work: Any, name: str) -> asyncio.Task[Any]:
        """Run in the background, whatever becomes of the request that led to it."""


class Arrival:
    """One guest on its way here."""

    def __init__(
        self,
        *,
        migration: str,
        guest_uid: str,
        epoch: int,
        source_node: str,
        machine: Machine,
        host: DestinationHost,
        silence_s: float,
    ) -> None:
        self.migration = migration
        self.guest_uid = guest_uid
        self.source_node = source_node
        self.secret = ChannelSecret.generate()
        self.failure: SeraiError | None = None
        self._machine = machine
        self._host = host
        self._core = Destination(epoch)
        self._silence_s = silence_s
        self._heard = time.monotonic()
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="arrival")
        self._ready: asyncio.Future[migration_pb2.VerifyArrivalResponse] = loop.create_future()
        self._owned: asyncio.Future[migration_pb2.CommitArrivalResponse] = loop.create_future()
        self._received: asyncio.Future[PageReceiver] = loop.create_future()
        self._stream: RecordStream | None = None
        self._receiving: asyncio.Task[None] | None = None
        self._rest: PageReceiver | None = None
        """Takes the pages that follow after the guest; None when all are here."""
        self._wanted: set[int] = set()
        self._pushing: RecordStream | None = None
        self._sending = threading.Lock()
        self._asked_at = 0.0
        self._request = migration_pb2.VerifyArrivalRequest()
        self._response = migration_pb2.VerifyArrivalResponse()
        self._frozen_ns = 0
        self._committed_at = 0.0
        for future in (self._ready, self._owned, self._received):
            # Whether somebody waits for them is not known; an error nobody asked for is no defect.
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._performers: dict[type[Any], Callable[[Any], Any]] = {
            destination.Verify: self._verify,
            destination.SayReady: self._say_ready,
            destination.RecordOwnership: self._record_ownership,
            destination.Resume: self._resume,
            destination.Acknowledge: self._acknowledge,
            destination.AskSource: self._ask_source,
            destination.Forget: self._forget,
            destination.Refuse: self._refuse,
            destination.GiveUpGuest: self._give_up,
        }
        host.start_task(self._watch_silence(), f"watch the arrival of {guest_uid}")

    @property
    def arriving(self) -> bool:
        """Whether a commit would succeed."""
        return self._core.arriving

    @property
    def over(self) -> bool:
        """Whether the guest is owned, or the arrival forgotten."""
        return self._core.stage in (Stage.OWNED, Stage.FORGOTTEN)

    @property
    def epoch(self) -> int:
        """What this node will own."""
        return self._core.epoch

    def connected(self, sock: socket.socket, _: int) -> None:
        """The source has dialled and proved that it knows the key."""
        if self.over and not self.incomplete:
            sock.close()
            return
        sock.setblocking(True)
        sock.settimeout(self._silence_s)
        self._stream = RecordStream(sock, self.secret, Direction.RESPONDER, maximum=MAX_RECORD)
        self._receiving = self._host.start_task(self._receive(self._stream), f"receive {self.guest_uid}")

    async def verify(
        self, request: migration_pb2.VerifyArrivalRequest
    ) -> migration_pb2.VerifyArrivalResponse:
        """Check what arrived, load the state. Raises why it cannot be run."""
        self._heard = time.monotonic()
        self._request = request
        await self._handle(destination.VerifyAsked())
        return await asyncio.shield(self._ready)

    async def commit(
        self, request: migration_pb2.CommitArrivalRequest
    ) -> migration_pb2.CommitArrivalResponse:
        """Own and run the guest; repeats get the same answer."""
        self._heard = time.monotonic()
        if not self._committed_at:
            self._frozen_ns, self._committed_at = request.frozen_ns, time.monotonic()
        await self._handle(destination.CommitAsked(request.epoch))
        return await asyncio.shield(self._owned)

    async def abort(self, reason: str) -> None:
        """Forget it; ConflictError once the commit has come."""
        await self._handle(destination.AbortAsked(reason))

    async def _handle(self, event: destination.Event) -> None:
        """Obey one event to the end, even when the caller that brought it goes away."""
        name = f"handle {type(event).__name__} of {self.guest_uid}"
        refusal = await asyncio.shield(self._host.start_task(self._obey_or_refuse(event), name))
        if refusal is not None:
            raise refusal

    async def _obey_or_refuse(self, event: destination.Event) -> SeraiError | None:
        try:
            await self._obey(event)
        except SeraiError as error:
            return error
        return None

    async def _obey(self, event: destination.Event) -> None:
        pending = [event]
        while pending:
            actions = self._core.handle(pending.pop(0))
            self._core.check()
            for action in actions:
                following = await self._perform(action)
                if following is not None:
                    pending.append(following)

    async def _perform(self, action: destination.Action) -> destination.Event | None:
        if isinstance(action, destination.Refuse):
            raise action.error
        try:
            following: destination.Event | None = await self._performers[type(action)](action)
        except SeraiError as error:
            return destination.Failed(error)
        except Exception as error:
            log.exception("arrival of %s: a defect", self.guest_uid)
            return destination.Failed(
                MigrationError(f"a defect at the destination: {error!r}", reason="DEFECT")
            )
        return following

    async def _receive(self, stream: RecordStream) -> None:
        """All that one connection brings."""
        try:
            if self._rest is not None:
                await self._take_rest(stream, self._rest)
                return
            receiver = PageReceiver(stream, self._machine.ram, self._note_progress)
            payload = await self._in_thread(receiver.run)
            self._received.set_result(receiver)
            if payload is not None:
                await self._serve_stream(stream, receiver, payload)
        except SeraiError as error:
            await self._lose_stream(error)
        except Exception as error:
            log.exception("arrival of %s: a defect", self.guest_uid)
            await self._lose_stream(
                IntegrityError(f"a defect at the destination: {error!r}", reason="DEFECT")
            )
        finally:
            stream.close()

    async def _serve_stream(self, stream: RecordStream, receiver: PageReceiver, payload: bytes) -> None:
        """Verify and commit as the gRPC methods do, then take the pages that follow."""
        stream.set_timeout(max(self._silence_s, _GO_S))
        request = migration_pb2.VerifyArrivalRequest.FromString(payload)
        if not await self._answer(stream, STATE, lambda: self.verify(request)):
            return
        go = migration_pb2.CommitArrivalRequest.FromString(await self._in_thread(receiver.wait_for, GO))
        if await self._answer(stream, GO, lambda: self.commit(go)) and self._rest is not None:
            stream.set_timeout(self._silence_s)
            await self._take_rest(stream, self._rest)

    async def _answer(self, stream: RecordStream, kind: int, work: Callable[[], Awaitable[Message]]) -> bool:
        """Send what `work` gives, or why not."""
        try:
            answer = await work()
        except SeraiError as error:
            stream.send(kind, error_to_status(error).SerializeToString(), flags=REFUSED)
            return False
        # A few dozen bytes into an empty socket buffer: no thread is needed.
        stream.send(kind, answer.SerializeToString())
        return True

    async def _lose_stream(self, error: SeraiError) -> None:
        if not self._received.done():
            self._received.set_exception(error)
        if self.incomplete:
            log.warning("%s: the link is lost while pages are to follow: %s", self.guest_uid, error)
        await self._obey(destination.Failed(error))

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await self._loop.run_in_executor(self._thread, function, *arguments)

    # Pages that follow.

    @property
    def incomplete(self) -> bool:
        """Whether the guest lives here and pages of it do not yet."""
        return self._core.stage in (Stage.RESUMING, Stage.OWNED) and self._rest is not None

    def recover(self) -> migration_pb2.RecoverArrivalResponse:
        """A new channel for the rest; its secret is `secret` from now on."""
        if self._rest is None:
            return migration_pb2.RecoverArrivalResponse(complete=True)
        if self._stream is not None:
            self._stream.shutdown()
        self.secret = ChannelSecret.generate()
        missing = np.packbits(np.frombuffer(self._machine.absent, dtype=np.uint8) != 0, bitorder="little")
        return migration_pb2.RecoverArrivalResponse(
            channel_id=self.secret.identifier, key=self.secret.key, missing=missing.tobytes()
        )

    async def give_up_rest(self) -> None:
        """The guest is about to be deleted: nothing more is to come."""
        self._machine.on_absent(None)
        await self._end_receiving()
        self._rest = None

    def _expect_rest(self, receiver: PageReceiver) -> None:
        self._rest = receiver
        absent = np.frombuffer(self._machine.absent, dtype=np.uint8)
        absent[receiver.absent] = 1
        self._machine.on_absent(self._want)

    def _want(self, pages: list[int]) -> None:
        """The guest stands still until these come."""
        self._wanted.update(pages)
        absent = self._machine.absent
        if not any(absent[page] for page in pages):
            self._wake()
            return
        # What a broken stream loses is asked for again over the next one.
        with contextlib.suppress(SeraiError):
            self._ask_for(pages)

    def _ask_for(self, pages: list[int]) -> None:
        if self._pushing is not None:
            self._asked_at = time.monotonic()
            with self._sending:
                self._pushing.send(WANT, np.array(pages, dtype=">u4").tobytes())

    def _wake(self) -> None:
        absent = self._machine.absent
        self._wanted = {page for page in self._wanted if absent[page]}
        self._host.start_task(self._tell_arrived(), f"wake {self.guest_uid}")

    async def _tell_arrived(self) -> None:
        with contextlib.suppress(SeraiError):
            await self._machine.pages_arrived()

    def _arrived(self, numbers: Numbers) -> None:
        """In the thread that receives."""
        if self._wanted and not self._wanted.isdisjoint(numbers.tolist()):
            self._loop.call_soon_threadsafe(self._wake)
        if time.monotonic() - self._asked_at > _ALIVE_S:
            self._ask_for([])

    async def _take_rest(self, stream: RecordStream, receiver: PageReceiver) -> None:
        self._stream = self._pushing = stream
        try:
            if self._wanted:
                self._ask_for(sorted(self._wanted))
            absent = np.frombuffer(self._machine.absent, dtype=np.uint8)
            theirs = await self._in_thread(receiver.run_rest, stream, absent, self._arrived)
            if absent.any():
                raise IntegrityError("the source says that it is done, and pages are missing")
            ours = receiver.digests.root(b"")
            if theirs and ours != theirs:
                log.error(
                    "%s: the pages that followed have another digest than at the source", self.guest_uid
                )
            stream.send(DONE, ours)
        finally:
            self._pushing = None
        await self._machine.pages_arrived(everything=True)
        self._rest = None
        self._machine.on_absent(None)
        receiver.release()
        self._host.complete()

    def _note_progress(self) -> None:
        self._heard = time.monotonic()

    async def _watch_silence(self) -> None:
        while not self.over:
            quiet = time.monotonic() - self._heard
            if quiet < self._silence_s:
                await asyncio.sleep(self._silence_s - quiet)
                continue
            if self._core.stage in (Stage.RECEIVING, Stage.VERIFYING, Stage.READY):
                await self._obey(destination.Silence())
            await asyncio.sleep(_ASK_PAUSE_S)

    async def _verify(self, _: destination.Verify) -> destination.Event:
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._silence_s):
                receiver = await asyncio.shield(self._received)
        except TimeoutError:
            raise MigrationError("the last pages did not come", reason="STALLED") from None
        digest = receiver.digests.root(self._request.state)
        if digest != self._request.digest:
            raise IntegrityError(
                f"what arrived has the digest {digest.hex()[:16]}...,"
                f" the source's has {self._request.digest.hex()[:16]}...",
                hint="the guest goes on at the source",
                reason="DIGEST_MISMATCH",
            )
        later = bool(len(receiver.absent))
        if later:
            self._expect_rest(receiver)
        await self._machine.restore(self._request.state, scrollback=self._request.scrollback, absent=later)
        self._response = migration_pb2.VerifyArrivalResponse(
            digest=digest, verify_ms=(time.monotonic() - started) * 1000
        )
        self._request = migration_pb2.VerifyArrivalRequest()
        if not later:
            receiver.release()
        return destination.Matched()

    async def _say_ready(self, _: destination.SayReady) -> None:
        self._heard = time.monotonic()
        self._ready.set_result(self._response)

    async def _record_ownership(self, _: destination.RecordOwnership) -> destination.Event:
        if not self._committed_at:
            # Decided by the source's record: the last thing heard of it was the verification.
            self._committed_at = time.monotonic()
            self._frozen_ns = int((self._committed_at - self._heard) * 1e9)
        await self._host.record_ownership(self.epoch)
        return destination.OwnershipRecorded()

    async def _resume(self, _: destination.Resume) -> destination.Event:
        self._host.take_over()
        elapsed_ns = self._frozen_ns + int((time.monotonic() - self._committed_at) * 1e9)
        await self._machine.resume(elapsed_ns=elapsed_ns)
        if self._machine.state is not GuestState.RUNNING:
            raise MigrationError(f"the guest does not run: {self._machine.failure}", reason="NOT_RUNNING")
        resume_ns = int((time.monotonic() - self._committed_at) * 1e9)
        self._owned.set_result(migration_pb2.CommitArrivalResponse(resume_ns=resume_ns))
        self._host.ran()
        return destination.Running()

    async def _acknowledge(self, _: destination.Acknowledge) -> None:
        """Whoever waits for `_owned` has its answer."""

    async def _ask_source(self, _: destination.AskSource) -> destination.Event | None:
        try:
            return destination.SourceSays(await self._host.ask_source())
        except SeraiError as error:
            log.info("%s waits for its source: %s", self.guest_uid, error)
            return None

    async def _forget(self, action: destination.Forget) -> None:
        self._end(action.error)
        await self._end_receiving()
        await self._host.forget(action.error)

    async def _give_up(self, action: destination.GiveUpGuest) -> None:
        self._end(action.error)
        await self._host.give_up(action.error)

    async def _refuse(self, action: destination.Refuse) -> None:
        raise action.error

    def _end(self, error: SeraiError) -> None:
        self.failure = error
        for future in (self._ready, self._owned):
            if not future.done():
                future.set_exception(error)

    async def _end_receiving(self) -> None:
        """The thread writes into RAM that is about to be freed: wait until it has stopped."""
        if self._received.done() and self._pushing is None:
            # It waits, or is about to tell the source why this ends.
            return
        if self._stream is not None and self._receiving is not None:
            self._stream.shutdown()
            if self._receiving is not asyncio.current_task():
                await asyncio.wait({self._receiving})
