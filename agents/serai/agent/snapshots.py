"""Snapshots of this node's guests: taken while they run, restored, and copied into new guests."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import secrets
import time
import uuid

import numpy as np

from serai.agent.guests import Guests, now
from serai.agent.inventory import Hosted, Inventory
from serai.agent.records import Records
from serai.agent.spec import build_config, check_guest_id, check_spec, demand_of, guest_name
from serai.errors import InvalidInputError, NotFoundError, SeraiError, StateError
from serai.hypervisor.driver import PAGE_SIZE, Driver, GuestState
from serai.hypervisor.driver import Guest as Machine
from serai.hypervisor.snapshot_store import SnapshotStore, SnapshotWriter, Stored, page_numbers
from serai.v1 import guest_pb2

log = logging.getLogger(__name__)

MAX_ROUNDS = 6
FEW_PAGES = 512
"""Copied in about a millisecond: no further round would make the pause shorter."""

_SEED_BYTES = 32
_LOCALLY_ADMINISTERED = 0x02


class Snapshots:
    """Everything that may be done with snapshots; takes a guest's lock like every other operation on it."""

    def __init__(
        self,
        store: SnapshotStore,
        *,
        driver: Driver,
        guests: Guests,
        inventory: Inventory,
        records: Records,
    ) -> None:
        self._store = store
        self._driver = driver
        self._guests = guests
        self._inventory = inventory
        self._records = records
        self._checked: dict[str, int] = {}
        """RAM files, open, of snapshots that were written or checked by this process, by name."""
        self._clones: dict[str, Hosted] = {}
        self._lock = asyncio.Lock()

    def close(self) -> None:
        """Let go of the files."""
        for name in list(self._checked):
            self._forget(name)

    # Taking.

    async def create(self, name: str, snapshot_id: str, *, keep: bool) -> guest_pb2.Snapshot:
        """Write a snapshot of a running guest. Raises StateError, AlreadyExistsError, CapacityError."""
        check_guest_id(snapshot_id)
        hosted = self._inventory.get(name)
        async with hosted.lock:
            self._guests.expect_mine(hosted, "take a snapshot of")
            machine = hosted.machine
            if machine is None or machine.state is not GuestState.RUNNING:
                raise StateError(
                    f"cannot take a snapshot of {name}: it is {hosted.state.value}", hint="start it first"
                )
            if machine.config.disks:
                raise StateError(f"cannot take a snapshot of {name}: it has disks", reason="HAS_DISKS")
            writer = await asyncio.to_thread(self._store.begin, snapshot_id, len(machine.ram))
            try:
                return await self._take(hosted, machine, writer, snapshot_id, keep)
            finally:
                await asyncio.to_thread(writer.abandon)

    async def _take(
        self, hosted: Hosted, machine: Machine, writer: SnapshotWriter, snapshot_id: str, keep: bool
    ) -> guest_pb2.Snapshot:
        began = time.monotonic()
        snapshot = guest_pb2.Snapshot(
            name=f"snapshots/{snapshot_id}",
            guest=hosted.name,
            guest_uid=hosted.uid,
            spec=hosted.facts.spec,
            create_time=now(),
            kernel_release=hosted.facts.kernel_release,
            keep=keep,
            snapshot_version=self._driver.snapshot_version,
        )
        state, rest = await self._copy(machine, writer, snapshot)
        await asyncio.to_thread(writer.write_pages, *rest)
        snapshot.total_ms = (time.monotonic() - began) * 1e3
        stored, ram = await asyncio.to_thread(
            writer.finish,
            guest_uid=hosted.uid,
            snapshot_version=self._driver.snapshot_version,
            state=state,
            description=snapshot.SerializeToString(deterministic=True),
        )
        # Just written from memory: a copy need not read it all again first.
        self._checked[snapshot_id] = ram
        log.info(
            "snapshot %s of %s, %.1f ms of pause",
            snapshot_id,
            hosted.name,
            snapshot.pause_ms,
            extra={"guest": hosted.uid},
        )
        return _describe(stored)

    async def _copy(
        self, machine: Machine, writer: SnapshotWriter, snapshot: guest_pb2.Snapshot
    ) -> tuple[bytes, tuple[np.ndarray, np.ndarray]]:
        """Copy RAM in rounds, each what was written during the one before, then the rest in a pause."""
        await machine.start_dirty_log()
        try:
            ram = np.frombuffer(machine.ram, dtype=np.uint8).reshape(-1, PAGE_SIZE)
            await asyncio.to_thread(writer.write_all, machine.ram)
            snapshot.rounds = 1
            dirty = page_numbers(await machine.take_dirty_pages(), len(ram))
            while len(dirty) > FEW_PAGES and snapshot.rounds < MAX_ROUNDS:
                before = len(dirty)
                await asyncio.to_thread(writer.write_pages, dirty, ram[dirty])
                snapshot.rounds += 1
                dirty = page_numbers(await machine.take_dirty_pages(), len(ram))
                if len(dirty) > before // 2:
                    break  # another round would not be much shorter
            asked = time.monotonic()
            await machine.pause()
            try:
                last = page_numbers(await machine.take_dirty_pages(), len(ram))
                dirty = np.union1d(dirty, last)
                rest = (dirty, ram[dirty])
                state = await machine.save_state()
            finally:
                if machine.state is GuestState.PAUSED:
                    await machine.resume()
            snapshot.pause_ms = (time.monotonic() - asked) * 1e3
            del ram
            return state, rest
        finally:
            if machine.state is GuestState.RUNNING:
                await machine.stop_dirty_log()

    # Looking.

    def get(self, name: str) -> guest_pb2.Snapshot:
        """NotFoundError, or HypervisorError when it is damaged."""
        return _describe(self._store.get(parse_snapshot_name(name)))

    def list(self, guest: str = "") -> list[guest_pb2.Snapshot]:
        """All of this node, or of one guest."""
        found = [_describe(stored) for stored in self._store.list()]
        return [snapshot for snapshot in found if guest in ("", snapshot.guest)]

    async def delete(self, name: str) -> None:
        """NotFoundError. Guests copied from it go on."""
        snapshot_id = parse_snapshot_name(name)
        self._forget(snapshot_id)
        await asyncio.to_thread(self._store.delete, snapshot_id)

    def guest_gone(self, hosted: Hosted) -> None:
        """Delete the snapshots of a guest that was deleted, but for those to be kept."""
        for stored in self._store.list():
            if stored.manifest.guest_uid == hosted.uid and not _describe(stored).keep:
                self._forget(stored.manifest.name)
                with contextlib.suppress(SeraiError, OSError):
                    self._store.delete(stored.manifest.name)

    # Using.

    async def restore(self, name: str) -> Hosted:
        """Let the snapshot's guest go on from it; until it has been checked the guest is left alone."""
        stored = self._store.get(parse_snapshot_name(name))
        snapshot = _describe(stored)
        hosted = self._inventory.find(stored.manifest.guest_uid)
        if hosted is None:
            raise NotFoundError(
                f"{snapshot.guest}, whose snapshot {name} is, is not on this node",
                hint="move it here first, or clone the snapshot",
                reason="GUEST_ELSEWHERE",
            )
        async with hosted.lock:
            self._guests.expect_mine(hosted, "restore")
            self._check_version(stored)
            if hosted.facts.spec != snapshot.spec:
                raise StateError(
                    f"{hosted.name} is not of the shape that {name} has", reason="SHAPE_MISMATCH"
                )
            state, ram = await self._open(stored)
            scrollback = b"" if hosted.machine is None else hosted.machine.read_scrollback()
            await self._guests.drop_machine(hosted)
            machine = await self._driver.create_copy(build_config(hosted.uid, snapshot.spec, None), ram)
            try:
                await machine.restore(state, scrollback=scrollback)
                self._guests.adopt(hosted, machine)
                await machine.resume()
            except BaseException:
                await self._guests.drop_machine(hosted)
                await machine.close()
                raise
        log.info("%s goes on from %s", hosted.name, name, extra={"guest": hosted.uid})
        return hosted

    async def clone(self, request: guest_pb2.CloneGuestRequest) -> Hosted:
        """A new guest of a snapshot's memory, under its own identity."""
        check_guest_id(request.guest_id)
        earlier = self._clones.get(request.request_id) if request.request_id else None
        if earlier is not None and self._inventory.find(earlier.uid) is earlier:
            return earlier
        stored = self._store.get(parse_snapshot_name(request.snapshot))
        self._check_version(stored)
        snapshot = _describe(stored)
        spec = guest_pb2.GuestSpec()
        spec.CopyFrom(snapshot.spec)
        _set_interfaces(spec, request)
        check_spec(spec)
        hosted = await self._clone(stored, snapshot, spec, request)
        if request.request_id:
            self._clones[request.request_id] = hosted
        return hosted

    async def _clone(
        self,
        stored: Stored,
        snapshot: guest_pb2.Snapshot,
        spec: guest_pb2.GuestSpec,
        request: guest_pb2.CloneGuestRequest,
    ) -> Hosted:
        uid, name = str(uuid.uuid4()), guest_name(request.guest_id)
        facts = guest_pb2.Guest(
            name=name,
            uid=uid,
            epoch=1,
            spec=spec,
            create_time=now(),
            start_time=now(),
            state=guest_pb2.Guest.DEFINED,
            kernel_release=snapshot.kernel_release,
        )
        hosted = Hosted(facts, None)
        self._inventory.expect_free(name)
        self._guests.reserve(uid, demand_of(spec))
        try:
            self._inventory.add(hosted)
            async with hosted.lock:
                state, ram = await self._open(stored)
                record = asyncio.to_thread(self._records.own, uid, 1, facts.SerializeToString())
                machine, _ = await asyncio.gather(self._copy_machine(uid, spec, ram, state), record)
                await machine.identify(_identity(request, spec))
                self._guests.adopt(hosted, machine)
                await machine.resume()
        except BaseException:
            await self._guests.forget(hosted)
            raise
        log.info("cloned %s from %s", name, request.snapshot, extra={"guest": uid})
        return hosted

    async def _copy_machine(self, uid: str, spec: guest_pb2.GuestSpec, ram: int, state: bytes) -> Machine:
        machine = await self._driver.create_copy(build_config(uid, spec, None), ram)
        try:
            await machine.restore(state)
        except BaseException:
            await machine.close()
            raise
        return machine

    async def _open(self, stored: Stored) -> tuple[bytes, int]:
        """State and RAM, checked; the descriptor stays this object's."""
        name = stored.manifest.name
        state = stored.state()
        async with self._lock:
            if name not in self._checked:
                ram = stored.open_ram()
                try:
                    await asyncio.to_thread(stored.check_ram, ram)
                except BaseException:
                    os.close(ram)
                    raise
                self._checked[name] = ram
        return state, self._checked[name]

    def _check_version(self, stored: Stored) -> None:
        if stored.manifest.snapshot_version != self._driver.snapshot_version:
            raise StateError(
                f"snapshots/{stored.manifest.name} is of version {stored.manifest.snapshot_version},"
                f" this node's is {self._driver.snapshot_version}",
                hint="use it with the version of Serai that wrote it",
                reason="SNAPSHOT_VERSION",
            )

    def _forget(self, name: str) -> None:
        ram = self._checked.pop(name, None)
        if ram is not None:
            os.close(ram)


def parse_snapshot_name(name: str) -> str:
    """The id in ``snapshots/ID``; InvalidInputError for anything else."""
    collection, _, snapshot_id = name.partition("/")
    if collection != "snapshots" or not snapshot_id:
        raise InvalidInputError(f"{name!r} is not a snapshot's name", hint="write snapshots/ID", name=name)
    return check_guest_id(snapshot_id)


def _describe(stored: Stored) -> guest_pb2.Snapshot:
    snapshot = guest_pb2.Snapshot.FromString(bytes.fromhex(stored.manifest.description))
    snapshot.stored_bytes = stored.manifest.stored_bytes
    return snapshot


def _set_interfaces(spec: guest_pb2.GuestSpec, request: guest_pb2.CloneGuestRequest) -> None:
    """The clone's own addresses at the interfaces that its memory knows."""
    names = [interface.name for interface in spec.interfaces]
    if request.interfaces:
        if [interface.name for interface in request.interfaces] != names:
            raise InvalidInputError(
                f"the snapshot's guest has the interfaces {', '.join(names) or 'none'}",
                hint="give the same names in the same order",
            )
        del spec.interfaces[:]
        spec.interfaces.extend(request.interfaces)
        return
    for interface in spec.interfaces:
        first, *rest = secrets.token_bytes(6)
        interface.mac = bytes([first & 0xFC | _LOCALLY_ADMINISTERED, *rest])


def _identity(request: guest_pb2.CloneGuestRequest, spec: guest_pb2.GuestSpec) -> str:
    """What the guest is told; `agents/serai/images/guest/host-channel` reads it."""
    words = [
        f"hostname={request.hostname or request.guest_id}",
        f"seed={secrets.token_hex(_SEED_BYTES)}",
        f"clock={int(time.time())}",
        *(f"mac={interface.name},{interface.mac.hex(':')}" for interface in spec.interfaces),
    ]
    if request.startup:
        words.append(f"startup={base64.b64encode(request.startup).decode()}")
    return " ".join(words)
