"""Guests that come to this node: consent, the arrivals under way, and what is said about ownership."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from serai.agent.guests import Guests
from serai.agent.inventory import Hosted, Inventory, Presence
from serai.agent.peers import Peers
from serai.agent.records import Holding, Record, Records
from serai.agent.settings import AgentSettings
from serai.agent.spec import build_config, check_guest_id, check_spec, demand_of, guest_name
from serai.agent.tasks import TaskSet
from serai.errors import (
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    SeraiError,
    StateError,
)
from serai.hypervisor.driver import Driver
from serai.migration.incoming import Arrival
from serai.migration.ownership import ASK_TIMEOUT_S, may_give_back
from serai.migration.stream import STREAM_VERSION
from serai.network.dataplane import DataPlane
from serai.v1 import guest_pb2, migration_pb2
from serai.wire.identity import Identity, Role

log = logging.getLogger(__name__)

MAX_PERMIT_S = 3600.0
DEFAULT_PERMIT_S = 60.0
_KEPT_FAILURES = 100
_KEPT_OWNED_S = 60.0


@dataclass(slots=True)
class Permit:
    """Consent to one arrival; holds the room for it."""

    token: bytes
    guest_uid: str
    guest_id: str
    source_node: str
    spec: guest_pb2.GuestSpec
    expiry: asyncio.TimerHandle | None = field(default=None, repr=False)


class Arrivals:
    """Permits and arrivals of this node."""

    def __init__(
        self,
        *,
        settings: AgentSettings,
        driver: Driver,
        snapshot_version: int,
        guests: Guests,
        inventory: Inventory,
        records: Records,
        data_plane: DataPlane,
        peers: Peers,
        tasks: TaskSet,
        on_permit: Callable[[str], None],
    ) -> None:
        self.data_address = ""
        self._on_permit = on_permit
        self._settings = settings
        self._driver = driver
        self._snapshot_version = snapshot_version
        self._guests = guests
        self._inventory = inventory
        self._records = records
        self._data_plane = data_plane
        self._peers = peers
        self._tasks = tasks
        self._permits: dict[bytes, Permit] = {}
        self._arrivals: dict[str, Arrival] = {}
        self._failures: dict[str, str] = {}

    # Consent.

    def permit(self, request: migration_pb2.PermitArrivalRequest) -> bytes:
        """Allow one arrival and keep room for it until it comes or the permit expires; its token.

        Raises InvalidInputError, AlreadyExistsError, CapacityError.
        """
        check_spec(request.spec)
        check_guest_id(request.guest_id)
        Identity(Role.AGENT, request.source_node)
        if request.source_node == self._settings.node:
            raise InvalidInputError(
                f"the guest is on {self._settings.node} already", hint="name another node", reason="SAME_NODE"
            )
        if not request.guest_uid or not 0 <= request.expires_in_s <= MAX_PERMIT_S:
            raise InvalidInputError(
                "guest_uid is missing, or expires_in_s out of range", hint=f"0 to {MAX_PERMIT_S:g} seconds"
            )
        for old in list(self._permits.values()):
            if (old.guest_uid, old.source_node) == (request.guest_uid, request.source_node):
                self.revoke(old.token)
        self._inventory.expect_free(guest_name(request.guest_id))
        if self._inventory.find(request.guest_uid) is not None or self._expected(request.guest_uid):
            raise AlreadyExistsError(
                f"guest {request.guest_uid} is here, or expected", guest=request.guest_uid
            )
        self._guests.reserve(request.guest_uid, demand_of(request.spec))
        permit = Permit(
            secrets.token_bytes(32), request.guest_uid, request.guest_id, request.source_node, request.spec
        )
        loop = asyncio.get_running_loop()
        permit.expiry = loop.call_later(request.expires_in_s or DEFAULT_PERMIT_S, self.revoke, permit.token)
        self._permits[permit.token] = permit
        self._on_permit(request.guest_uid)
        # From here on frames for the guest have where to go: make before break.
        for interface in request.spec.interfaces:
            self._data_plane.hold_port(request.guest_uid, interface.name, redirect_from=request.source_node)
        return permit.token

    def revoke(self, token: bytes) -> None:
        """Take consent back; nothing happens when it was used or is unknown."""
        permit = self._take(token)
        if permit is not None:
            self._guests.withdraw(permit.guest_uid, permit.spec)

    def _take(self, token: bytes) -> Permit | None:
        permit = self._permits.pop(token, None)
        if permit is not None and permit.expiry is not None:
            permit.expiry.cancel()
        return permit

    def _expected(self, guest_uid: str) -> bool:
        return any(permit.guest_uid == guest_uid for permit in self._permits.values())

    # What the source says.

    async def prepare(
        self, request: migration_pb2.PrepareArrivalRequest, source_node: str
    ) -> migration_pb2.PrepareArrivalResponse:
        """Check everything that can be known before the guest is touched, and make room."""
        permit = self._check(request, source_node)
        self._take(permit.token)
        hosted = Hosted(_facts(request, permit), None, Presence.INCOMING)
        try:
            await self._peers.learn(source_node, request.source_address)
            self._inventory.add(hosted)
            config = build_config(request.guest_uid, request.spec, None)
            hosted.machine = await self._driver.create_incoming(config)
        except BaseException:
            await self._guests.release(hosted)
            raise
        host = _ArrivingGuest(self, hosted, request, source_node)
        host.arrival = arrival = Arrival(
            migration=request.migration,
            guest_uid=request.guest_uid,
            epoch=request.epoch,
            source_node=source_node,
            machine=hosted.machine,
            host=host,
            silence_s=self._settings.stream_timeout_s,
        )
        self._arrivals[request.migration] = arrival
        self._data_plane.register_channel(
            arrival.secret, arrival.connected, seconds=self._settings.stream_timeout_s
        )
        log.info("%s arrives from %s", hosted.name, source_node, extra={"guest": hosted.uid})
        return migration_pb2.PrepareArrivalResponse(
            data_address=self.data_address, channel_id=arrival.secret.identifier, key=arrival.secret.key
        )

    def _check(self, request: migration_pb2.PrepareArrivalRequest, source_node: str) -> Permit:
        permit = self._permits.get(request.permit)
        if permit is None or (permit.guest_uid, permit.source_node) != (request.guest_uid, source_node):
            raise ForbiddenError(
                f"{source_node} has no permit to send guest {request.guest_uid} to {self._settings.node}",
                hint="the destination's provider has to permit the arrival; permits expire and serve once",
                reason="NOT_PERMITTED",
            )
        if request.stream_version != STREAM_VERSION:
            raise _mismatch("stream version", request.stream_version, STREAM_VERSION)
        if request.snapshot_version != self._snapshot_version:
            raise _mismatch("snapshot version", request.snapshot_version, self._snapshot_version)
        if _shape(request.spec) != _shape(permit.spec):
            raise StateError(
                "the guest is not of the shape that was permitted",
                hint="ask for a permit with the guest's present spec",
                reason="SHAPE_MISMATCH",
            )
        record = self._records.get(request.guest_uid)
        if request.epoch < 2 or (record is not None and record.epoch >= request.epoch):
            known = record.epoch if record is not None else 0
            raise ConflictError(
                f"epoch {request.epoch} of guest {request.guest_uid} is over: {known} is recorded here",
                reason="EPOCH_OVER",
            )
        if request.migration in self._arrivals:
            raise AlreadyExistsError(f"{request.migration} has been prepared", hint="name it anew")
        return permit

    async def end_for(self, hosted: Hosted) -> None:
        """The guest is about to be deleted: forget its arrival; ConflictError once it is committed."""
        for arrival in list(self._arrivals.values()):
            if arrival.guest_uid != hosted.uid:
                continue
            if arrival.incomplete:
                await arrival.give_up_rest()
                hosted.migration = ""
            elif not arrival.over:
                await arrival.abort("deleted at the destination")

    def get(self, migration: str, source_node: str) -> Arrival:
        """The arrival, if it comes from this node; NotFoundError."""
        arrival = self._arrivals.get(migration)
        if arrival is None or arrival.source_node != source_node:
            raise NotFoundError(
                f"no arrival {migration} from {source_node} here",
                hint="it was never prepared, or has been forgotten",
                reason="NO_ARRIVAL",
            )
        return arrival

    def recover(self, migration: str, source_node: str) -> migration_pb2.RecoverArrivalResponse:
        """A new channel for pages that are still to follow; NotFoundError."""
        arrival = self.get(migration, source_node)
        answer = arrival.recover()
        if not answer.complete:
            self._data_plane.register_channel(
                arrival.secret, arrival.connected, seconds=self._settings.stream_timeout_s
            )
            answer.data_address = self.data_address
        return answer

    async def abort(self, migration: str, source_node: str, reason: str) -> str:
        """Forget an arrival; why it had failed before, if it had."""
        with contextlib.suppress(NotFoundError):
            await self.get(migration, source_node).abort(reason)
            return ""
        return self._failures.get(migration, "")

    async def query(
        self, request: migration_pb2.QueryOwnershipRequest, asker: str
    ) -> migration_pb2.Ownership:
        """What this node's record says, after giving a lost guest back if that is asked for."""
        uid = request.guest_uid
        if any(arrival.arriving for arrival in self._arrivals.values() if arrival.guest_uid == uid):
            return migration_pb2.Ownership(arriving=True)
        record = self._records.get(uid)
        if record is not None and request.reclaim_epoch:
            record = await self._perhaps_give_back(record, request.reclaim_epoch, asker)
        if record is None:
            return migration_pb2.Ownership()
        return migration_pb2.Ownership(
            epoch=record.epoch,
            owned_here=record.holding is not Holding.HANDED,
            handed_to=record.peer if record.holding is Holding.HANDED else "",
        )

    async def _perhaps_give_back(self, record: Record, epoch: int, asker: str) -> Record | None:
        hosted = self._inventory.find(record.uid)
        # Under the guest's lock: it must not be started here at the same time.
        async with hosted.lock if hosted is not None else contextlib.nullcontext():
            if may_give_back(
                owned=record.holding is Holding.OWNED,
                epoch=record.epoch,
                origin=record.peer,
                alive=hosted is not None and hosted.machine is not None,
                reclaim_epoch=epoch,
                asker=asker,
            ):
                log.warning("guest %s is lost here and goes back to %s", record.uid, asker)
                await asyncio.to_thread(self._records.give_back, record.uid, epoch)
                if hosted is not None:
                    await self._guests.release(hosted)
        return self._records.get(record.uid)

    async def close(self) -> None:
        """Forget what has not been committed."""
        for arrival in list(self._arrivals.values()):
            with contextlib.suppress(SeraiError):
                await arrival.abort("the destination agent is stopping")
        for token in list(self._permits):
            self.revoke(token)

    def _over(self, migration: str, error: SeraiError) -> None:
        """An arrival has been forgotten."""
        self._arrivals.pop(migration, None)
        self._failures[migration] = str(error)
        while len(self._failures) > _KEPT_FAILURES:
            del self._failures[next(iter(self._failures))]


class _ArrivingGuest:
    """`serai.migration.incoming.DestinationHost` for one guest."""

    def __init__(
        self,
        arrivals: Arrivals,
        hosted: Hosted,
        request: migration_pb2.PrepareArrivalRequest,
        source_node: str,
    ) -> None:
        self._arrivals = arrivals
        self._guests = arrivals._guests
        self._records = arrivals._records
        self._inventory = arrivals._inventory
        self._hosted = hosted
        self._request = request
        self._source_node = source_node
        self.arrival: Arrival | None = None

    async def record_ownership(self, epoch: int) -> None:
        facts = self._hosted.facts.SerializeToString()
        await asyncio.to_thread(self._records.own, self._hosted.uid, epoch, facts, origin=self._source_node)

    def take_over(self) -> None:
        self._guests.wire(self._hosted)

    def ran(self) -> None:
        self._hosted.presence = Presence.OWNED
        if self._hosted.machine is not None:
            self._guests.adopt(self._hosted, self._hosted.machine)
        if self.arrival is not None and self.arrival.incomplete:
            self._hosted.migration = self._request.migration
        else:
            self.complete()

    def complete(self) -> None:
        self._hosted.migration = ""
        # Kept for a while to answer a commit that comes again, or whether all has come.
        loop = asyncio.get_running_loop()
        loop.call_later(_KEPT_OWNED_S, self._arrivals._arrivals.pop, self._request.migration, None)

    async def forget(self, error: SeraiError) -> None:
        self._arrivals._over(self._request.migration, error)
        log.warning("%s does not arrive: %s", self._hosted.name, error, extra={"guest": self._hosted.uid})
        await self._guests.release(self._hosted)

    async def give_up(self, error: SeraiError) -> None:
        self._arrivals._over(self._request.migration, error)
        log.error("%s arrived and cannot run: %s", self._hosted.name, error)
        self._hosted.facts.state = guest_pb2.Guest.FAILED
        self._hosted.facts.status_message = str(error)
        self._hosted.presence = Presence.OWNED
        machine, self._hosted.machine = self._hosted.machine, None
        if machine is not None:
            await machine.close()
        self._inventory.changed(self._hosted)

    async def ask_source(self) -> bool:
        request = migration_pb2.QueryOwnershipRequest(guest_uid=self._hosted.uid)
        peer = self._arrivals._peers.migration(self._source_node)
        answer = await peer.QueryOwnership(request, timeout=ASK_TIMEOUT_S)
        return answer.epoch == self._request.epoch and answer.handed_to == self._arrivals._settings.node

    def start_task(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        return self._arrivals._tasks.start(work, name)


def _facts(request: migration_pb2.PrepareArrivalRequest, permit: Permit) -> guest_pb2.Guest:
    facts = guest_pb2.Guest(
        name=guest_name(permit.guest_id),
        uid=request.guest_uid,
        epoch=request.epoch,
        kernel_release=request.kernel_release,
        state=guest_pb2.Guest.RUNNING,
    )
    facts.spec.CopyFrom(request.spec)
    for moment in ("create_time", "start_time", "ready_time"):
        if request.HasField(moment):
            getattr(facts, moment).CopyFrom(getattr(request, moment))
    facts.ready = request.HasField("ready_time")
    return facts


def _shape(spec: guest_pb2.GuestSpec) -> tuple[object, ...]:
    """What the machine is built from; image, arguments and files are in its RAM by now."""
    interfaces = tuple((item.name, item.mac) for item in spec.interfaces)
    virtual_clock = spec.clock == guest_pb2.GuestSpec.VIRTUAL
    return spec.vcpus, spec.memory_bytes, interfaces, virtual_clock, spec.mode == guest_pb2.GuestSpec.FULL


def _mismatch(what: str, theirs: int, ours: int) -> StateError:
    return StateError(
        f"the guest cannot come here: its {what} is {theirs}, this node's is {ours}",
        hint="run the same version of Serai on both nodes",
        reason="VERSION_MISMATCH",
    )
