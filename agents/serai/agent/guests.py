"""The life of guests on this node: created, started, stopped, deleted, recorded and wired."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import uuid
from collections.abc import Callable

from google.protobuf.timestamp_pb2 import Timestamp

from serai.agent.capacity import Capacity, Demand
from serai.agent.inventory import Hosted, Inventory, Presence
from serai.agent.records import Holding, Record, Records
from serai.agent.sizes import check_growth, note_size, refusal, same_but_size
from serai.agent.spec import (
    ImageSource,
    build_config,
    check_guest_id,
    check_spec,
    demand_of,
    guest_name,
    with_limits,
)
from serai.agent.tasks import TaskSet
from serai.errors import CapacityError, InvalidInputError, SeraiError, StateError
from serai.hypervisor.driver import Driver, GuestState
from serai.hypervisor.driver import Guest as Machine
from serai.network.dataplane import DataPlane
from serai.v1 import guest_pb2

log = logging.getLogger(__name__)

_LIVING = (GuestState.RUNNING, GuestState.PAUSED)
_RESIZE_SECONDS = 30.0
_AGENT_ENDED = "the agent ended while the guest ran, and the guest with it"


def now() -> Timestamp:
    """This moment."""
    moment = Timestamp()
    moment.GetCurrentTime()
    return moment


class Guests:
    """Everything that may be done to a guest except moving it."""

    def __init__(
        self,
        *,
        driver: Driver,
        images: ImageSource,
        records: Records,
        capacity: Capacity,
        inventory: Inventory,
        data_plane: DataPlane,
        tasks: TaskSet,
    ) -> None:
        self._driver = driver
        self._images = images
        self._records = records
        self._capacity = capacity
        self._inventory = inventory
        self._data_plane = data_plane
        self._tasks = tasks
        self._creations: dict[str, asyncio.Future[Hosted]] = {}
        self._requests: dict[str, str] = {}
        self.on_gone: Callable[[Hosted], None] = lambda hosted: None
        """Called when a guest has been deleted."""

    async def load(self) -> None:
        """List what the records say this node owns, and adopt those whose processes outlived the agent.

        A process is adopted only for a guest that the records give to this node, or that it keeps frozen for
        one which may not have got it; every other is ended.
        """
        for record in self._records.all():
            if record.holding is Holding.OWNED:
                await self._load_owned(record)
            elif record.holding is Holding.HANDED and not record.settled:
                await self._load_frozen(record)
        for uid in self._driver.survivors():
            log.warning("ending the process of guest %s, which is not this node's", uid, extra={"guest": uid})
            self._driver.discard(uid)

    async def _load_owned(self, record: Record) -> None:
        facts = guest_pb2.Guest.FromString(record.guest)
        machine = await self._adopt_process(facts)
        if machine is None:
            if facts.state in (guest_pb2.Guest.RUNNING, guest_pb2.Guest.PAUSED):
                facts.state, facts.status_message, facts.ready = guest_pb2.Guest.FAILED, _AGENT_ENDED, False
            elif facts.state == guest_pb2.Guest.DEFINED:
                facts.state = guest_pb2.Guest.STOPPED
        hosted = Hosted(facts, None)
        self._keep_room(facts)
        self._inventory.add(hosted)
        if record.request_id:
            self._requests[record.request_id] = facts.uid
        if machine is not None:
            self.adopt(hosted, machine)
            log.info("adopted %s, which is %s", hosted.name, machine.state.value, extra={"guest": facts.uid})
            await self._go_on(hosted, machine)

    async def _load_frozen(self, record: Record) -> None:
        """Handed over, not acknowledged: the copy here stays frozen until it is known whose it is."""
        facts = guest_pb2.Guest.FromString(record.guest)
        machine = await self._adopt_process(facts)
        if machine is None:
            return
        if machine.state is not GuestState.PAUSED:
            await machine.close()
            return
        hosted = Hosted(facts, None, Presence.OUTGOING)
        hosted.migration = record.migration
        self._keep_room(facts)
        self._inventory.add(hosted)
        self.adopt(hosted, machine)
        for interface in facts.spec.interfaces:
            self._data_plane.hold_port(facts.uid, interface.name)

    def _keep_room(self, facts: guest_pb2.Guest) -> None:
        # None is left when the settings have shrunk; such a guest is listed and does not start.
        with contextlib.suppress(CapacityError):
            self._capacity.reserve(facts.uid, demand_of(facts.spec))

    async def _adopt_process(self, facts: guest_pb2.Guest) -> Machine | None:
        if facts.uid not in self._driver.survivors():
            return None
        try:
            machine = await self._driver.adopt(build_config(facts.uid, facts.spec, None))
            if machine is not None and any(machine.absent):
                # Who knew how to get its pages ended with the agent: the source has it as it was handed over.
                log.error("%s ends: pages of it were still on their way", facts.name)
                await machine.close()
                return None
            return machine
        except SeraiError as error:
            log.error("%s cannot be adopted: %s", facts.name, error, extra={"guest": facts.uid})
            self._driver.discard(facts.uid)
            return None

    async def _go_on(self, hosted: Hosted, machine: Machine) -> None:
        """Run a guest of this node that the end of its agent caught frozen, and note what it said since."""
        try:
            if machine.state is GuestState.PAUSED:
                await machine.resume()
            await self._note_change(hosted, machine)
        except SeraiError as error:
            log.error("%s cannot go on: %s", hosted.name, error, extra={"guest": hosted.uid})

    async def reclaim(self, uid: str, epoch: int) -> bool:
        """Run the frozen copy of a guest that its destination never got; whether there is one."""
        hosted = self._inventory.find(uid)
        if hosted is None or hosted.machine is None or hosted.presence is not Presence.OUTGOING:
            return False
        hosted.facts.epoch = epoch
        await asyncio.to_thread(self._records.own, uid, epoch, hosted.facts.SerializeToString())
        hosted.presence, hosted.migration = Presence.OWNED, ""
        self.wire(hosted)
        await self._go_on(hosted, hosted.machine)
        return True

    def frozen(self, uid: str) -> Machine | None:
        """The copy that is kept of a guest which was handed over."""
        hosted = self._inventory.find(uid)
        return hosted.machine if hosted is not None and hosted.presence is Presence.OUTGOING else None

    async def let_go(self, uid: str) -> None:
        """Free the frozen copy of a guest that its destination has."""
        hosted = self._inventory.find(uid)
        if hosted is not None and hosted.presence is Presence.OUTGOING:
            await self.release(hosted)

    async def create(
        self, guest_id: str, spec: guest_pb2.GuestSpec, *, start: bool = False, request_id: str = ""
    ) -> Hosted:
        """Define a guest and perhaps start it; all of it happens, or nothing is left.

        Raises InvalidInputError, AlreadyExistsError, CapacityError, ImageError, HypervisorError.
        """
        check_guest_id(guest_id)
        check_spec(spec)
        spec = with_limits(spec, self._images)
        if not request_id:
            return await self._create(guest_id, spec, start, request_id)
        earlier = self._inventory.find(self._requests.get(request_id, ""))
        if earlier is None and request_id not in self._creations:
            # Repeats that come while the first one is under way wait for it.
            task = asyncio.ensure_future(self._create(guest_id, spec, start, request_id))
            self._creations[request_id] = task
            task.add_done_callback(lambda _: self._creations.pop(request_id, None))
        hosted = earlier if earlier is not None else await asyncio.shield(self._creations[request_id])
        if hosted.name != guest_name(guest_id) or not _asks_for(hosted, spec):
            raise InvalidInputError(
                f"request_id {request_id!r} was used for another guest, {hosted.name}",
                hint="use a new request_id for a new guest",
                reason="REQUEST_ID_REUSED",
            )
        return hosted

    async def _create(self, guest_id: str, spec: guest_pb2.GuestSpec, start: bool, request_id: str) -> Hosted:
        uid, name = str(uuid.uuid4()), guest_name(guest_id)
        config = build_config(uid, spec, self._images)
        facts = guest_pb2.Guest(name=name, uid=uid, epoch=1, create_time=now(), state=guest_pb2.Guest.DEFINED)
        facts.spec.CopyFrom(spec)
        hosted = Hosted(facts, None)
        self._inventory.expect_free(name)
        self._capacity.reserve(uid, demand_of(spec))
        try:
            # The name is taken from here on: what else is created meanwhile clashes.
            self._inventory.add(hosted)
            async with hosted.lock:
                machine = await self._driver.create(config)
                self.adopt(hosted, machine)
                serialized = facts.SerializeToString()
                await asyncio.to_thread(self._records.own, uid, 1, serialized, request_id=request_id)
                if start:
                    await self._start(hosted, machine)
        except BaseException:
            await self.forget(hosted)
            raise
        if request_id:
            self._requests[request_id] = uid
        log.info("created %s", name, extra={"guest": uid})
        return hosted

    def adopt(self, hosted: Hosted, machine: Machine) -> None:
        """Make `machine` the guest's: watch it and wire its interfaces."""
        hosted.machine = machine
        hosted.unsubscribe()
        hosted.unsubscribe = machine.subscribe(functools.partial(self._machine_changed, hosted))
        if hosted.presence is Presence.OWNED:
            self.wire(hosted)
        self._inventory.changed(hosted)

    def wire(self, hosted: Hosted) -> None:
        """Connect the guest's interfaces to the switch; frames held for them follow at once."""
        if hosted.machine is not None:
            for interface, port in hosted.machine.ports.items():
                self._data_plane.bind_port(hosted.uid, interface, port)

    async def start(self, name: str) -> Hosted:
        """Run a guest that is defined or has ended; a running one is left alone."""
        hosted = self._inventory.get(name)
        async with hosted.lock:
            self.expect_mine(hosted, "start")
            if hosted.state in _LIVING:
                return hosted
            machine = hosted.machine
            if machine is None or machine.state is not GuestState.DEFINED:
                machine = await self._rebuild(hosted)
            await self._start(hosted, machine)
        return hosted

    async def _rebuild(self, hosted: Hosted) -> Machine:
        """A fresh machine for a guest whose last one has ended."""
        config = build_config(hosted.uid, hosted.facts.spec, self._images)
        self._capacity.reserve(hosted.uid, demand_of(hosted.facts.spec))
        if hosted.machine is not None:
            hosted.unsubscribe()
            await hosted.machine.close()
            hosted.machine = None
        machine = await self._driver.create(config)
        for stale in ("start_time", "ready_time"):
            hosted.facts.ClearField(stale)
        hosted.facts.status_message = ""
        hosted.facts.ready = False
        self.adopt(hosted, machine)
        return machine

    async def _start(self, hosted: Hosted, machine: Machine) -> None:
        hosted.facts.start_time.CopyFrom(now())
        await machine.start()
        log.info("started %s", hosted.name, extra={"guest": hosted.uid})

    async def stop(self, name: str, grace_seconds: float) -> Hosted:
        """Power a guest off; one that does not run is left alone."""
        hosted = self._inventory.get(name)
        async with hosted.lock:
            self.expect_mine(hosted, "stop")
            if hosted.machine is not None and hosted.state not in (GuestState.STOPPED, GuestState.FAILED):
                await hosted.machine.stop(grace_seconds=grace_seconds)
                log.info("stopped %s", hosted.name, extra={"guest": hosted.uid})
        return hosted

    async def resize(self, name: str, vcpus: int, memory_bytes: int) -> guest_pb2.GuestSize:
        """Change a guest's size, 0 for what stays; returns when the guest confirms it.

        Raises StateError, CapacityError naming what is short. What grows is reserved first; a guest that does
        not do as asked keeps the size it had.
        """
        hosted = self._inventory.get(name)
        async with hosted.lock:
            self.expect_mine(hosted, "resize")
            spec = hosted.facts.spec
            wanted = Demand(vcpus or spec.vcpus, memory_bytes or spec.memory_bytes)
            if hosted.state is GuestState.RUNNING:
                size = await self._resize_running(hosted, wanted)
            elif hosted.machine is None or hosted.state in (GuestState.STOPPED, GuestState.FAILED):
                self._capacity.change(hosted.uid, wanted)
                size = guest_pb2.GuestSize()
            else:
                raise StateError(
                    f"{name} is {hosted.state.value}", hint="resize it while it runs, or stopped"
                )
            note_size(spec, wanted)
            hosted.resized = True
            size.vcpus, size.memory_bytes = spec.vcpus, spec.memory_bytes
            size.maximum_vcpus, size.maximum_memory_bytes = spec.maximum_vcpus, spec.maximum_memory_bytes
            self._inventory.changed(hosted)
            await asyncio.to_thread(self._records.update, hosted.uid, hosted.describe().SerializeToString())
        log.info("resized %s", name, extra={"guest": hosted.uid, "vcpus": size.vcpus})
        return size

    async def _resize_running(self, hosted: Hosted, wanted: Demand) -> guest_pb2.GuestSize:
        spec, machine = hosted.facts.spec, hosted.machine
        assert machine is not None
        check_growth(hosted.name, spec, wanted)
        if not hosted.facts.ready:
            raise StateError(f"{hosted.name} is still starting up", hint="wait until it is ready")
        old = demand_of(spec)
        more = Demand(max(old.vcpus, wanted.vcpus), max(old.memory_bytes, wanted.memory_bytes))
        self._capacity.change(hosted.uid, more)
        try:
            view = await machine.resize(
                vcpus=wanted.vcpus, memory_bytes=wanted.memory_bytes, timeout_seconds=_RESIZE_SECONDS
            )
        except TimeoutError:
            reached = await machine.statistics()
            # What it has by now is its own until it has given it back.
            held = Demand(
                min(max(old.vcpus, reached.vcpus), more.vcpus),
                min(max(old.memory_bytes, reached.memory_bytes), more.memory_bytes),
            )
            self._capacity.change(hosted.uid, held)
            raise refusal(hosted.name, wanted, reached.vcpus, reached.memory_bytes, _RESIZE_SECONDS) from None
        except BaseException:
            self._capacity.change(hosted.uid, old)
            raise
        self._capacity.change(hosted.uid, wanted)
        return guest_pb2.GuestSize(
            guest_vcpus=view.vcpus,
            guest_memory_bytes=view.memory_total,
            guest_free_bytes=view.memory_free,
        )

    async def delete(self, hosted: Hosted) -> None:
        """End a guest whatever its state and forget it; StateError while it is being moved."""
        async with hosted.lock:
            self.expect_mine(hosted, "delete")
            await self.forget(hosted)
        log.info("deleted %s", hosted.name, extra={"guest": hosted.uid})
        self.on_gone(hosted)

    async def drop_machine(self, hosted: Hosted) -> None:
        """End the guest's machine; another takes its place."""
        if hosted.machine is not None:
            hosted.unsubscribe()
            machine, hosted.machine = hosted.machine, None
            await machine.close()

    async def forget(self, hosted: Hosted) -> None:
        """Leave nothing of it, records included."""
        await asyncio.to_thread(self._records.end, hosted.uid)
        await self.release(hosted)

    async def release(self, hosted: Hosted, *, keep_ports: bool = False) -> None:
        """Free what a guest that is not this node's any more holds here; the records stay as they are."""
        hosted.unsubscribe()
        if hosted.machine is not None:
            await hosted.machine.close()
            hosted.machine = None
        if not keep_ports:
            self.unwire(hosted)
        self._capacity.release(hosted.uid)
        self._inventory.remove(hosted)

    def unwire(self, hosted: Hosted) -> None:
        """Take the guest's interfaces from the switch."""
        for interface in hosted.facts.spec.interfaces:
            self._data_plane.unbind_port(hosted.uid, interface.name)

    def expect_mine(self, hosted: Hosted, doing: str) -> None:
        """StateError when the guest has gone, is arriving, or is being moved away."""
        try:
            here = self._inventory.get(hosted.name) is hosted
        except SeraiError:
            here = False
        if not here:
            raise StateError(f"cannot {doing} {hosted.name}: it was deleted", hint="list the node's guests")
        if hosted.presence is not Presence.OWNED or hosted.migration:
            raise StateError(
                f"cannot {doing} {hosted.name} while {hosted.migration or 'a migration'} moves it",
                hint="wait for the migration, or cancel it",
                reason="MIGRATING",
                guest=hosted.name,
                migration=hosted.migration,
            )

    def reserve(self, uid: str, demand: Demand) -> None:
        """Promise a guest its resources; CapacityError."""
        self._capacity.reserve(uid, demand)

    def withdraw(self, uid: str, spec: guest_pb2.GuestSpec) -> None:
        """Take back what was kept ready for a guest that does not come."""
        for interface in spec.interfaces:
            self._data_plane.unbind_port(uid, interface.name)
        self._capacity.release(uid)

    async def stop_all(self, grace_seconds: float) -> None:
        """Power every guest off, all at once."""
        running = [
            hosted for hosted in self._inventory if hosted.machine is not None and hosted.state in _LIVING
        ]
        stops = [hosted.machine.stop(grace_seconds=grace_seconds) for hosted in running if hosted.machine]
        for hosted, outcome in zip(
            running, await asyncio.gather(*stops, return_exceptions=True), strict=True
        ):
            if isinstance(outcome, BaseException):
                log.error("%s did not stop: %s", hosted.name, outcome, extra={"guest": hosted.uid})
        for hosted in self._inventory:
            if hosted.presence is Presence.OWNED:
                self._records.update(hosted.uid, hosted.describe().SerializeToString())

    def _machine_changed(self, hosted: Hosted, machine: Machine) -> None:
        if hosted.machine is not machine:
            return
        if machine.state is GuestState.FAILED:
            log.warning("%s failed: %s", hosted.name, machine.failure, extra={"guest": hosted.uid})
        self._inventory.changed(hosted)
        if hosted.presence is Presence.OWNED:
            self._tasks.start(self._note_change(hosted, machine), f"note a change of {hosted.name}")

    async def _note_change(self, hosted: Hosted, machine: Machine) -> None:
        """Ask whether the guest is ready by now, and keep what is known on the disk."""
        if machine.state is GuestState.RUNNING and not hosted.facts.ready:
            statistics = await machine.statistics()
            if statistics.ready_seconds is not None and not hosted.facts.ready:
                self.mark_ready(hosted, statistics.kernel_release)
        if hosted.presence is Presence.OWNED:
            await asyncio.to_thread(self._records.update, hosted.uid, hosted.describe().SerializeToString())

    def mark_ready(self, hosted: Hosted, kernel_release: str) -> None:
        """The guest has said that its start-up is complete."""
        hosted.facts.ready = True
        hosted.facts.kernel_release = kernel_release
        hosted.facts.ready_time.CopyFrom(now())
        log.info("%s is ready", hosted.name, extra={"guest": hosted.uid, "kernel": kernel_release})
        self._inventory.changed(hosted)


def _asks_for(hosted: Hosted, spec: guest_pb2.GuestSpec) -> bool:
    """Whether `spec` is what this guest was asked for with; it may have been resized since."""
    if hosted.resized:
        return same_but_size(hosted.facts.spec, spec)
    return hosted.facts.spec == spec
