"""The life of a slice: reserved, provisioned, changed, released."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection as Several
from collections.abc import Iterable, Mapping

from serai.embedding import Substrate
from serai.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    SeraiError,
    StateError,
)
from serai.roles.names import check_label, new_handle, unique_label
from serai.roles.operations import Progress
from serai.roles.pip.ledger import border_labels, used_labels
from serai.roles.pip.peering import Peering
from serai.roles.pip.plan import Station, Surroundings, bridge_uid, occupied_ends, plan_link
from serai.roles.pip.realise import (
    activate_segments,
    create_guests,
    create_segments,
    start_guests,
    wait_ready,
)
from serai.roles.pip.records import (
    End,
    LinkPlacement,
    NodePlacement,
    Parts,
    Presence,
    SliceRecord,
    SliceState,
)
from serai.roles.pip.state import PipState
from serai.roles.pip.substrate import (
    Placements,
    build_request,
    find_placements,
    free_substrate,
    still_fit,
    without_node,
)
from serai.roles.settling import settle
from serai.v1.infrastructure_pb2 import AllocateSliceRequest, SliceLink, SliceNode, UpdateSliceRequest

DEFAULT_RESERVATION_S = 60.0
MAX_RESERVATION_S = 600.0
EMBEDDING_ATTEMPTS = 3

PROVISION_STEPS = ("create", "connect", "start", "ready")


class Slices:
    """Everything that changes a slice, except migration."""

    def __init__(self, state: PipState, peering: Peering) -> None:
        self._state = state
        self._peering = peering

    async def allocate(self, request: AllocateSliceRequest, owner: str) -> SliceRecord:
        """Embed and reserve until the expiry; CapacityError names the resource that is short."""
        name = f"slices/{check_label(request.slice_id, 'slice id')}"
        if name in self._state.slices:
            raise AlreadyExistsError(
                f"slice {name!r} exists already", hint="choose another id", resource=name
            )
        check_shape(request.nodes, request.links)
        seconds = min(request.expires_in_s or DEFAULT_RESERVATION_S, MAX_RESERVATION_S)
        async with self._state.embedding:
            parts = await self.embed(request.nodes, request.links, beside=Parts(), slice_name=name)
            record = SliceRecord(
                name=name,
                owner=owner,
                state=SliceState.RESERVED,
                parts=parts,
                expire_time=time.time() + seconds,
            )
            if request.validate_only:
                return record
            await self._state.slices.create(record)
        try:
            beyond = await self._peering.connect(request.links)
            return await self._state.slices.update(name, lambda it: self.route(it.parts, beyond))
        except BaseException:
            await asyncio.shield(self.dismantle(name))
            raise

    async def embed(
        self,
        nodes: Iterable[SliceNode],
        links: Iterable[SliceLink],
        *,
        beside: Parts,
        slice_name: str,
        pinned: Mapping[str, str] | None = None,
        avoid: str = "",
    ) -> Parts:
        """Placements for `nodes` and `links` next to what is in place already; no node goes to `avoid`.

        The caller holds the embedding lock until it has reserved them.
        """
        nodes, links = list(nodes), list(links)
        self._check_labels(links, slice_name)
        new = {node.id for node in nodes}
        fixed = {key: node.node for key, node in beside.nodes.items() if node.takes_room and key not in new}
        request = build_request(nodes, links, fixed=fixed, pinned=pinned or {})
        provider = self._state.settings.name
        for _ in range(EMBEDDING_ATTEMPTS):
            found = await asyncio.to_thread(find_placements, self._free(avoid), request, provider)
            # Peers take bandwidth at the borders, and nodes come and go, without our lock.
            if still_fit(self._free(avoid), request, found):
                return Parts(
                    nodes={node.id: _place_node(node, found) for node in nodes},
                    links={link.id: LinkPlacement(link=link, path=found.paths[link.id]) for link in links},
                )
        raise ConflictError(
            f"provider {provider} changes faster than it can be embedded on", hint="try again"
        )

    def _free(self, avoid: str) -> Substrate:
        state = self._state
        substrate = free_substrate(state.settings, state.reachable(), state.usage())
        return without_node(substrate, avoid) if avoid else substrate

    def route(self, parts: Parts, beyond: Mapping[str, Station], occupied: Several[End] = ()) -> None:
        """Plan the segments of the links of `parts`, in place."""
        settings = self._state.settings
        around = Surroundings(
            stations={
                name: Station(f"{settings.name}/{name}", agent.address)
                for name, agent in self._state.agents.items()
            },
            delay_ms={frozenset((link.a, link.b)): link.delay for link in settings.links},
            border_delay_ms={border.name: border.delay for border in settings.borders},
            beyond=beyond,
        )
        for key, placement in parts.links.items():
            parts.links[key] = plan_link(placement.link, placement.path, around, occupied)

    async def provision(self, name: str, progress: Progress) -> None:
        """Make a reservation real; any failure undoes everything of the slice."""
        state = self._state
        async with state.locks[name]:
            record = state.slices.get(name)
            if record.state is not SliceState.RESERVED or record.expire_time < time.time():
                raise StateError(
                    f"{name} is {record.state}, not reserved",
                    hint="a reservation expires; allocate again",
                    reason="NOT_RESERVED",
                )
            try:
                await state.slices.update(name, _begin_provisioning)
                await self._realise(name, progress)
            except BaseException:
                await asyncio.shield(self.dismantle(name))
                raise

    async def _realise(self, name: str, progress: Progress) -> None:
        state = self._state
        parts = state.slices.get(name).parts
        nodes, links = list(parts.nodes.values()), list(parts.links.values())
        async with progress.step("create", f"{len(nodes)} guests"):
            uids = await create_guests(state.agents, nodes)
            record = await state.slices.update(name, lambda it: note_uids(it.parts, uids))
        async with progress.step("connect", f"{sum(len(link.segments) for link in links)} segments"):
            await create_segments(state.agents, links, guest_uids(record.parts))
        async with progress.step("start"):
            await start_guests(state.agents, nodes)
        async with progress.step("ready"):
            ready = 0

            def count(node: NodePlacement) -> None:
                nonlocal ready
                ready += 1
                progress.report(
                    "ready", ready / len(nodes), f"{node.spec.id} is ready, {ready} of {len(nodes)}"
                )

            await wait_ready(state.agents, nodes, state.settings.ready_deadline_s, count)
        await state.slices.update(name, _become_running)

    async def update(self, request: UpdateSliceRequest) -> SliceRecord:
        """See the contract. The additions are all or nothing; what follows them can be repeated."""
        state = self._state
        async with state.locks[request.name]:
            record = state.slices.get(request.name)
            if record.state is not SliceState.RUNNING:
                raise StateError(f"{request.name} is {record.state}, not running", reason="NOT_RUNNING")
            if request.validate_only:
                await self._try_to_add(record, request)
                return record
            if request.add_nodes or request.add_links:
                record = await self._add(record, request)
            await self._activate(record, request.activate_links)
            return await self._remove(record.name, set(request.remove_nodes), set(request.remove_links))

    async def _try_to_add(self, record: SliceRecord, request: UpdateSliceRequest) -> None:
        """CapacityError and InvalidInputError as for the additions themselves; nothing is reserved."""
        check_shape(request.add_nodes, request.add_links, known=record.parts)
        async with self._state.embedding:
            await self.embed(
                request.add_nodes, request.add_links, beside=record.parts, slice_name=record.name
            )

    async def _add(self, record: SliceRecord, request: UpdateSliceRequest) -> SliceRecord:
        state = self._state
        parts = record.parts
        check_shape(request.add_nodes, request.add_links, known=parts)
        async with state.embedding:
            pending = await self.embed(
                request.add_nodes, request.add_links, beside=parts, slice_name=record.name
            )
            await state.slices.update(record.name, lambda it: setattr(it, "pending", pending))
        try:
            beyond = await self._peering.connect(request.add_links)
            return await self._realise_pending(record.name, beyond)
        except BaseException:
            await asyncio.shield(self.drop_pending(record.name))
            raise

    async def _realise_pending(self, name: str, beyond: Mapping[str, Station]) -> SliceRecord:
        state = self._state
        record = await state.slices.update(
            name, lambda it: self.route(it.pending, beyond, occupied_ends(it.parts))
        )
        nodes = list(record.pending.nodes.values())
        uids = await create_guests(state.agents, nodes)
        record = await state.slices.update(name, lambda it: note_uids(it.pending, uids))
        uids = guest_uids(record.parts.merged(record.pending))
        await create_segments(state.agents, record.pending.links.values(), uids)
        await start_guests(state.agents, nodes)
        return await state.slices.update(name, _merge_pending)

    async def drop_pending(self, name: str) -> None:
        """Undo additions that did not come to an end."""
        record = self._state.slices.get(name)
        kept = {
            (end.border, end.label)
            for placement in record.parts.links.values()
            for end in border_labels(placement.link)
        }
        gone = [
            placement.link
            for placement in record.pending.links.values()
            if not any((end.border, end.label) in kept for end in border_labels(placement.link))
        ]
        await self._state.remover.remove(record.pending)
        await self._peering.disconnect(gone)
        await self._state.slices.update(name, lambda it: setattr(it, "pending", Parts()))

    async def _activate(self, record: SliceRecord, links: Iterable[str]) -> None:
        chosen = [_find_link(record, link) for link in links]
        if not chosen:
            return
        await activate_segments(self._state.agents, chosen)

        def note(changed: SliceRecord) -> None:
            for placement in chosen:
                for segment in changed.parts.links[placement.link.id].segments:
                    segment.active = True

        await self._state.slices.update(record.name, note)

    async def _remove(self, name: str, nodes: set[str], links: set[str]) -> SliceRecord:
        record = self._state.slices.get(name)
        if not nodes and not links:
            return record
        parts = record.parts
        gone = Parts(
            nodes={key: parts.nodes[key] for key in nodes if key in parts.nodes},
            links={key: parts.links[key] for key in links if key in parts.links},
        )
        _check_no_dangling(parts.without(nodes, links))
        await self._state.remover.remove(gone, snapshots=True)
        await self._peering.disconnect(placement.link for placement in gone.links.values())
        return await self._state.slices.update(
            name, lambda it: setattr(it, "parts", it.parts.without(nodes, links))
        )

    async def release(self, name: str) -> None:
        """End everything of a slice; what it is doing is cancelled first."""
        running = self._state.operations.running(name, but="ReleaseSlice")
        for operation in running:
            with contextlib.suppress(SeraiError):
                await self._state.operations.cancel(operation.name)
                await self._state.operations.wait(operation.name)
        async with self._state.locks[name]:
            await self.dismantle(name)
        self._state.locks.pop(name, None)

    async def dismantle(self, name: str) -> None:
        """Remove all that a slice consists of, then the slice. No error when it is gone already."""
        state = self._state
        if name not in state.slices:
            return
        record = await state.slices.update(name, lambda it: setattr(it, "state", SliceState.RELEASING))
        links = [
            placement.link for parts in (record.parts, record.pending) for placement in parts.links.values()
        ]
        await settle(
            [state.remover.remove(record.parts, snapshots=True), state.remover.remove(record.pending)]
        )
        await self._peering.disconnect(links)
        await state.slices.delete(name)

    async def expire_forever(self) -> None:
        """Let reservations vanish when their time is over."""
        with self._state.slices.watch() as watcher:
            while True:
                reserved = [record for record in self._state.slices if record.state is SliceState.RESERVED]
                for record in reserved:
                    if record.expire_time < time.time():
                        await self._expire(record.name)
                soonest = min((record.expire_time for record in reserved), default=None)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if soonest is None else max(0.05, soonest - time.time())):
                        await watcher.changes()

    async def _expire(self, name: str) -> None:
        async with self._state.locks[name]:
            record = self._state.slices.find(name)
            if record is not None and record.state is SliceState.RESERVED:
                await self.dismantle(name)

    def _check_labels(self, links: Iterable[SliceLink], slice_name: str) -> None:
        seen: set[tuple[str, int]] = set()
        for link in links:
            for end in border_labels(link):
                self._state.border(end.border)
                key = (end.border, end.label)
                taken = used_labels(self._state.slices, end.border, beside=slice_name)
                if not end.label or key in seen or end.label in taken:
                    raise AlreadyExistsError(
                        f"label {end.label} is in use at border {end.border}",
                        hint="choose another label, random and not 0",
                        reason="LABEL_IN_USE",
                        border=end.border,
                    )
                seen.add(key)


def _place_node(node: SliceNode, found: Placements) -> NodePlacement:
    return NodePlacement(
        spec=node,
        handle=new_handle(),
        node=found.nodes[node.id],
        guest_id=unique_label(node.id),
        guest_uid=bridge_uid(node.id) if node.bridge else node.arrival.guest_uid,
        presence=_first_presence(node),
    )


def _first_presence(node: SliceNode) -> Presence:
    if node.bridge:
        return Presence.BRIDGE
    return Presence.ARRIVING if node.HasField("arrival") else Presence.PLANNED


def check_shape(nodes: Iterable[SliceNode], links: Iterable[SliceLink], known: Parts | None = None) -> None:
    """InvalidInputError unless ids are unique labels and links end at interfaces that exist or at borders."""
    known = known or Parts()
    interfaces = {
        key: {item.name for item in placement.spec.guest.interfaces} for key, placement in known.nodes.items()
    }
    bridges = {key for key, placement in known.nodes.items() if placement.spec.bridge}
    for node in nodes:
        if node.bridge:
            bridges.add(node.id)
        if check_label(node.id, "node id") in interfaces:
            raise InvalidInputError(f"the slice has two nodes {node.id!r}")
        interfaces[node.id] = {item.name for item in node.guest.interfaces}
    link_ids = set(known.links)
    for link in links:
        if check_label(link.id, "link id") in link_ids:
            raise InvalidInputError(f"the slice has two links {link.id!r}")
        link_ids.add(link.id)
        for end in (link.a, link.b):
            if end.HasField("border") or end.interface.node in bridges:
                continue
            if end.interface.interface not in interfaces.get(end.interface.node, ()):
                where = f"{end.interface.node}.{end.interface.interface}"
                raise InvalidInputError(f"link {link.id!r} ends at {where}, which does not exist")


def note_uids(parts: Parts, uids: Mapping[str, str]) -> None:
    """Enter what the agents called the guests."""
    for key, uid in uids.items():
        parts.nodes[key].guest_uid = uid


def guest_uids(parts: Parts) -> dict[str, str]:
    """Guest by virtual node."""
    return {key: node.guest_uid for key, node in parts.nodes.items()}


def _find_link(record: SliceRecord, link: str) -> LinkPlacement:
    if link not in record.parts.links:
        raise NotFoundError(f"{record.name} has no link {link!r}", resource=link)
    return record.parts.links[link]


def _begin_provisioning(record: SliceRecord) -> None:
    record.state = SliceState.PROVISIONING
    record.expire_time = 0.0


def _become_running(record: SliceRecord) -> None:
    record.state = SliceState.RUNNING
    _arrive(record.parts)


def _merge_pending(record: SliceRecord) -> None:
    _arrive(record.pending)
    record.parts = record.parts.merged(record.pending)
    record.pending = Parts()


def _arrive(parts: Parts) -> None:
    for node in parts.nodes.values():
        if node.presence is Presence.PLANNED:
            node.presence = Presence.HERE


def _check_no_dangling(parts: Parts) -> None:
    for key, placement in parts.links.items():
        for end in (placement.link.a, placement.link.b):
            if end.HasField("interface") and end.interface.node not in parts.nodes:
                raise StateError(
                    f"node {end.interface.node!r} still has the link {key!r}", hint="remove the link with it"
                )
