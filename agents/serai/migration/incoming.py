"""The destination's shell: carries out what `serai.migration.destination` decides."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

from serai.errors import IntegrityError, MigrationError, SeraiError
from serai.hypervisor.driver import Guest as Machine
from serai.hypervisor.driver import GuestState
from serai.migration import destination
from serai.migration.destination import Destination, Stage
from serai.migration.stream import MAX_RECORD, PageReceiver
from serai.v1 import migration_pb2
from serai.wire.records import ChannelSecret, Direction
from serai.wire.streams import RecordStream

log = logging.getLogger(__name__)

_ASK_PAUSE_S = 1.0


class DestinationHost(Protocol):
    """What the agent does for a guest that arrives."""

    async def record_ownership(self, epoch: int) -> None:
        """Durably: this node's, under `epoch`."""

    def take_over(self) -> None:
        """Connect the guest's interfaces; it is about to run here."""

    def ran(self) -> None:
        """The guest runs and is listed as this node's."""

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
        if self.over:
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
        receiver = PageReceiver(stream, self._machine.ram, self._note_progress)
        try:
            await self._loop.run_in_executor(self._thread, receiver.run)
        except SeraiError as error:
            await self._lose_stream(error)
        except Exception as error:
            log.exception("arrival of %s: a defect", self.guest_uid)
            await self._lose_stream(
                IntegrityError(f"a defect at the destination: {error!r}", reason="DEFECT")
            )
        else:
            self._received.set_result(receiver)
        finally:
            stream.close()
            self._thread.shutdown(wait=False)

    async def _lose_stream(self, error: SeraiError) -> None:
        self._received.set_exception(error)
        await self._obey(destination.Failed(error))

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
        digest = await asyncio.to_thread(receiver.digests.root, self._request.state)
        if digest != self._request.digest:
            raise IntegrityError(
                f"what arrived has the digest {digest.hex()[:16]}...,"
                f" the source's has {self._request.digest.hex()[:16]}...",
                hint="the guest goes on at the source",
                reason="DIGEST_MISMATCH",
            )
        await self._machine.restore(self._request.state, scrollback=self._request.scrollback)
        self._response = migration_pb2.VerifyArrivalResponse(
            digest=digest, verify_ms=(time.monotonic() - started) * 1000
        )
        self._request = migration_pb2.VerifyArrivalRequest()
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
        if self._stream is not None and self._receiving is not None:
            self._stream.shutdown()
            if self._receiving is not asyncio.current_task():
                await asyncio.wait({self._receiving})
