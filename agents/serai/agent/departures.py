"""Guests that leave this node: the migrations it is the source of."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable

from serai.agent.consoles import Consoles
from serai.agent.guests import Guests
from serai.agent.inventory import Hosted, Inventory, Presence
from serai.agent.peers import Peers
from serai.agent.records import Holding, Record, Records
from serai.agent.settings import AgentSettings
from serai.agent.spec import demand_of
from serai.agent.tasks import TaskSet
from serai.errors import (
    CancelledByUserError,
    InvalidInputError,
    MigrationError,
    NotFoundError,
    SeraiError,
    StateError,
)
from serai.hypervisor.driver import GuestState
from serai.migration.convergence import Limits, Mode
from serai.migration.outgoing import COMMIT_TIMEOUT_S, Departure, Outgoing
from serai.migration.ownership import ask_holder
from serai.migration.progress import Progress
from serai.migration.rest import send_rest
from serai.migration.source import Holder
from serai.network.dataplane import DataPlane
from serai.v1 import guest_pb2, migration_pb2
from serai.wire.identity import Identity, Role

log = logging.getLogger(__name__)

KEPT = 200
"""Finished migrations that can still be looked at."""

_SETTLE_PAUSE_S = 1.0
_FINISH_S = 5.0
"""How long an agent that stops waits for a guest that it has handed over."""


class Departures:
    """Starts, follows and cancels migrations, and sends frames after guests that have left."""

    def __init__(
        self,
        *,
        settings: AgentSettings,
        snapshot_version: int,
        guests: Guests,
        inventory: Inventory,
        records: Records,
        consoles: Consoles,
        data_plane: DataPlane,
        peers: Peers,
        tasks: TaskSet,
        on_change: Callable[[Progress, str], None],
    ) -> None:
        self.control_address = ""
        self._settings = settings
        self._snapshot_version = snapshot_version
        self._guests = guests
        self._inventory = inventory
        self._records = records
        self._consoles = consoles
        self._data_plane = data_plane
        self._peers = peers
        self._tasks = tasks
        self._on_change = on_change
        self._all: dict[str, Progress] = {}
        self._running: dict[str, Outgoing] = {}
        self._requests: dict[str, str] = {}
        self._departed: dict[str, _Redirect] = {}

    def list(self) -> list[Progress]:
        """All that run and the latest that are over."""
        return list(self._all.values())

    def get(self, name: str) -> Progress:
        """NotFoundError."""
        progress = self._all.get(name)
        if progress is None:
            raise NotFoundError(f"{name} does not exist", hint="list the migrations", name=name)
        return progress

    async def start(self, request: migration_pb2.MigrateGuestRequest) -> Progress:
        """Begin to move a guest. Raises what can be known to be wrong before anything is touched."""
        if request.request_id in self._requests:
            progress = self.get(self._requests[request.request_id])
            if progress.resource.guest != request.name:
                raise InvalidInputError(
                    f"request_id {request.request_id!r} was used to move {progress.resource.guest}",
                    hint="use a new request_id",
                    reason="REQUEST_ID_REUSED",
                )
            return progress
        hosted = self._inventory.get(request.name)
        self._check(hosted, request)
        async with hosted.lock:
            self._check(hosted, request)
            progress = self._begin(hosted, request)
        if request.request_id:
            self._requests[request.request_id] = progress.name
        return progress

    def _check(self, hosted: Hosted, request: migration_pb2.MigrateGuestRequest) -> None:
        Identity(Role.AGENT, request.destination_node)
        if request.destination_node == self._settings.node:
            raise InvalidInputError(
                f"{hosted.name} is on {self._settings.node} already",
                hint="name another node",
                reason="SAME_NODE",
            )
        if not request.destination_address or not request.permit:
            raise InvalidInputError(
                "destination_address and permit are missing", hint="ask the destination's provider for both"
            )
        self._guests.expect_mine(hosted, "move")
        if hosted.machine is None or hosted.state is not GuestState.RUNNING:
            raise StateError(
                f"cannot move {hosted.name}: it is {hosted.state.value}",
                hint="only running guests move; start it first",
                guest=hosted.name,
                state=hosted.state.value,
            )
        if hosted.machine.config.disks:
            raise StateError(
                f"cannot move {hosted.name}: it has disks, which do not move yet", reason="HAS_DISKS"
            )

    def _begin(self, hosted: Hosted, request: migration_pb2.MigrateGuestRequest) -> Progress:
        assert hosted.machine is not None
        name = f"migrations/{uuid.uuid4()}"
        progress = Progress(
            name,
            hosted.name,
            self._settings.node,
            request.destination_node,
            lambda progress: self._on_change(progress, hosted.uid),
        )
        facts = guest_pb2.Guest()
        facts.CopyFrom(hosted.facts)
        departure = Departure(
            migration=name,
            facts=facts,
            source_node=self._settings.node,
            source_address=self.control_address,
            destination_node=request.destination_node,
            destination_address=request.destination_address,
            permit=request.permit,
            snapshot_version=self._snapshot_version,
            limits=_limits(request.options),
            bandwidth_bps=request.options.bandwidth_bps,
            stream_timeout_s=self._settings.stream_timeout_s,
        )
        hosted.migration = name
        self._remember(progress)
        self._tasks.start(self._run(hosted, departure, progress), f"carry out {name}")
        return progress

    async def _run(self, hosted: Hosted, departure: Departure, progress: Progress) -> None:
        machine = hosted.machine
        assert machine is not None
        await self._peers.learn(departure.destination_node, departure.destination_address)
        host = _LeavingGuest(self, hosted, departure)
        peer = self._peers.migration(departure.destination_node)
        outgoing = self._running[departure.migration] = Outgoing(departure, machine, host, peer, progress)
        try:
            await outgoing.run()
        finally:
            self._running.pop(departure.migration, None)
            hosted.migration = ""

    async def cancel(self, name: str) -> Progress:
        """Stop it, and return when the guest goes on here; MigrationError when it is too late."""
        progress = self.get(name)
        outgoing = self._running.get(name)
        if outgoing is None:
            if not progress.finished:
                # Begun in this turn of the loop; the task has it in the next.
                await asyncio.sleep(0)
                return await self.cancel(name)
            raise MigrationError(f"{name} is over", hint="look at its state", reason="TOO_LATE")
        outgoing.cancel(CancelledByUserError("cancelled"))
        await progress.wait_finished()
        return progress

    def recover(self, name: str) -> Progress:
        """Send now what is to follow after a guest that has moved; StateError when nothing is."""
        progress = self.get(name)
        outgoing = self._running.get(name)
        if outgoing is None:
            raise StateError(f"{name} is over", hint="look at its state", reason="NOTHING_TO_RECOVER")
        outgoing.recover()
        return progress

    async def end_for(self, hosted: Hosted) -> None:
        """The guest is about to be deleted: end its migration; StateError while that is undecided."""
        if not hosted.migration:
            return
        name = hosted.migration
        outgoing = self._running.get(name)
        # Without a task to decide it, it is one that an earlier run of the agent left.
        undecided = hosted.presence is Presence.OUTGOING if outgoing is None else outgoing.undecided
        if undecided:
            raise StateError(
                f"{hosted.name} was handed over, and its destination has not said whether it has it",
                hint="wait until the destination can be reached",
                reason="UNDECIDED",
            )
        with contextlib.suppress(MigrationError):
            await self.cancel(name)
        await self.get(name).wait_finished()

    async def close(self) -> None:
        """Cancel what can be: those guests are then stopped with the others. Let the others finish."""
        for name, outgoing in list(self._running.items()):
            with contextlib.suppress(MigrationError):
                outgoing.cancel(CancelledByUserError("the source agent is stopping"))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FINISH_S):
                    await self.get(name).wait_finished()
        for name in list(self._departed):
            self.delete_departed(name)

    def settle(self) -> None:
        """Ask about every guest that an earlier run of the agent handed over without an acknowledgement."""
        for record in self._records.all():
            if record.holding is Holding.HANDED and not record.settled:
                self._tasks.start(self._settle(record), f"settle whose {record.uid} is")

    async def _settle(self, record: Record) -> None:
        await self._peers.learn(record.peer, record.peer_address)
        peer = self._peers.migration(record.peer)
        left = False
        while True:
            try:
                holder = await ask_holder(peer, record.uid, record.epoch, self._settings.node)
                if holder is Holder.ARRIVING:
                    frozen_ns = max(0, time.time_ns() - record.frozen_at_ns)
                    request = migration_pb2.CommitArrivalRequest(
                        migration=record.migration, epoch=record.epoch, frozen_ns=frozen_ns
                    )
                    await peer.CommitArrival(request, timeout=COMMIT_TIMEOUT_S)
                    holder = Holder.DESTINATION
                frozen = self._guests.frozen(record.uid)
                if holder is Holder.DESTINATION and frozen is not None and not left:
                    # It may run there without all its pages: those are in the copy here.
                    left = True
                    with contextlib.suppress(NotFoundError):
                        await send_rest(
                            peer, record.migration, frozen, timeout_s=self._settings.stream_timeout_s
                        )
                        break
                    continue  # no arrival is known there any more: is the guest?
                break
            except SeraiError as error:
                left = False
                log.warning("undecided whose %s is: %s", record.uid, error)
                await asyncio.sleep(_SETTLE_PAUSE_S)
        if holder is Holder.DESTINATION:
            await self._guests.let_go(record.uid)
            await asyncio.to_thread(self._records.settle, record.uid)
            return
        if await self._guests.reclaim(record.uid, record.epoch + 1):
            return
        await self._own_the_lost(record)

    async def _own_the_lost(self, record: Record) -> None:
        """The destination never got it, and the copy here ended with the agent's last run."""
        facts = guest_pb2.Guest.FromString(record.guest)
        facts.epoch = record.epoch + 1
        facts.state, facts.ready = guest_pb2.Guest.FAILED, False
        facts.status_message = "the agent ended while the guest was being moved, and the guest with it"
        await asyncio.to_thread(self._records.own, record.uid, facts.epoch, facts.SerializeToString())
        with contextlib.suppress(SeraiError):
            self._guests.reserve(record.uid, demand_of(facts.spec))
        self._inventory.add(Hosted(facts, None))

    def depart(self, hosted: Hosted) -> None:
        """Send its frames after it for a while."""
        interfaces = [interface.name for interface in hosted.facts.spec.interfaces]
        self.delete_departed(hosted.name)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._settings.redirect_s, self.delete_departed, hosted.name)
        self._departed[hosted.name] = _Redirect(hosted.uid, interfaces, timer)

    def delete_departed(self, name: str) -> bool:
        """Stop sending frames after a guest that left; whether there was one."""
        redirect = self._departed.pop(name, None)
        if redirect is None:
            return False
        redirect.timer.cancel()
        for interface in redirect.interfaces:
            self._data_plane.unbind_port(redirect.uid, interface)
        return True

    def forget_departed(self, uid: str) -> None:
        """The guest comes back: its ports are used again, so leave them."""
        for name, redirect in list(self._departed.items()):
            if redirect.uid == uid:
                redirect.timer.cancel()
                del self._departed[name]

    def _remember(self, progress: Progress) -> None:
        self._all[progress.name] = progress
        for name, old in list(self._all.items()):
            if len(self._all) <= KEPT:
                break
            if old.finished:
                del self._all[name]
        self._requests = {key: name for key, name in self._requests.items() if name in self._all}


class _Redirect:
    """Ports of a guest that has left."""

    def __init__(self, uid: str, interfaces: list[str], timer: asyncio.TimerHandle) -> None:
        self.uid = uid
        self.interfaces = interfaces
        self.timer = timer


class _LeavingGuest:
    """`serai.migration.outgoing.SourceHost` for one guest."""

    def __init__(self, departures: Departures, hosted: Hosted, plan: Departure) -> None:
        self._departures = departures
        self._guests = departures._guests
        self._inventory = departures._inventory
        self._records = departures._records
        self._consoles = departures._consoles
        self._data_plane = departures._data_plane
        self._hosted = hosted
        self._plan = plan

    def hold(self) -> None:
        for interface in self._hosted.facts.spec.interfaces:
            self._data_plane.hold_port(self._hosted.uid, interface.name)

    def let_pass(self) -> None:
        self._guests.wire(self._hosted)

    async def record_hand_over(self, epoch: int) -> None:
        plan = self._plan
        await asyncio.to_thread(
            self._records.hand_over,
            self._hosted.uid,
            epoch,
            plan.destination_node,
            plan.destination_address,
            plan.migration,
        )
        self._hosted.presence = Presence.OUTGOING
        self._inventory.changed(self._hosted)

    async def record_reclaim(self, epoch: int) -> None:
        self._hosted.facts.epoch = epoch
        facts = self._hosted.facts.SerializeToString()
        await asyncio.to_thread(self._records.own, self._hosted.uid, epoch, facts)
        self._hosted.presence = Presence.OWNED
        self._inventory.changed(self._hosted)

    def redirect(self) -> None:
        node = self._plan.destination_node
        for interface in self._hosted.facts.spec.interfaces:
            self._data_plane.redirect_port(self._hosted.uid, interface.name, node)
        moved = StateError(
            f"{self._hosted.name} has moved to {node}",
            hint="attach there",
            reason="GUEST_MOVED",
            node=node,
            address=self._plan.destination_address,
        )
        self._consoles.end(self._hosted.uid, moved)

    def over(self) -> None:
        self._hosted.migration = ""
        self._departures._running.pop(self._plan.migration, None)
        self._inventory.changed(self._hosted)

    async def release(self) -> None:
        self._departures.depart(self._hosted)
        await self._guests.release(self._hosted, keep_ports=True)
        await asyncio.to_thread(self._records.settle, self._hosted.uid)


_Options = migration_pb2.MigrationOptions
_MODES = {
    _Options.MODE_UNSPECIFIED: Mode.AUTO,
    _Options.AUTO: Mode.AUTO,
    _Options.PRE_COPY: Mode.PRE_COPY,
    _Options.POST_COPY: Mode.POST_COPY,
    _Options.HYBRID: Mode.HYBRID,
    _Options.OFFLINE: Mode.OFFLINE,
}


def _limits(options: migration_pb2.MigrationOptions) -> Limits:
    if options.mode not in _MODES:
        raise InvalidInputError(f"mode {options.mode} is unknown here", hint="leave the mode out")
    if options.max_downtime_ms < 0 or options.deadline_s < 0:
        raise InvalidInputError(
            "max_downtime_ms and deadline_s cannot be negative", hint="0 means the default"
        )
    defaults = Limits()
    return Limits(
        max_downtime_s=options.max_downtime_ms / 1000 or defaults.max_downtime_s,
        deadline_s=options.deadline_s or defaults.deadline_s,
        mode=_MODES[options.mode],
    )
