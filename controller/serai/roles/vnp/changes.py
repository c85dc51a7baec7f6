"""Adding and removing nodes and links of a running network.

The additions stand beside what is in use until all of them are there; only then do the links change over and
what is not wanted any more goes. Before that point any failure undoes the additions, after it the change is
finished, whatever happens: at once, or by the next process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from serai.errors import HypervisorError, SeraiError, StateError, UnavailableError
from serai.roles.names import unique_label
from serai.roles.operations import Progress
from serai.roles.settling import settle
from serai.roles.vnp.networks import Networks
from serai.roles.vnp.plan import check_topology, plan_change, providers_of, slice_link, slice_node
from serai.roles.vnp.providers import Provider, choose
from serai.roles.vnp.records import Change, LinkEntry, NetworkRecord, NetworkState
from serai.roles.vnp.state import VnpState
from serai.v1.guest_pb2 import Guest
from serai.v1.infrastructure_pb2 import AllocateSliceRequest, Slice, SliceLink, SliceNode, UpdateSliceRequest
from serai.v1.operation_pb2 import Operation
from serai.v1.provider_pb2 import UpdateNetworkRequest

log = logging.getLogger(__name__)

CHANGE_STEPS = ("plan", "reserve", "provision", "activate", "remove")
READY_SECONDS = 180.0
"""How long an added guest may take to be ready."""
_RETRY_SECONDS = 0.5


class NetworkChanges:
    """Changes of what a network consists of."""

    def __init__(self, state: VnpState, networks: Networks) -> None:
        self._state = state
        self._networks = networks
        self._settling: set[asyncio.Task[None]] = set()

    async def update(self, request: UpdateNetworkRequest, progress: Progress) -> None:
        """Make the network what the request says; see the contract."""
        check_topology(request.topology, may_be_empty=True)
        async with self._state.locks[request.name]:
            async with progress.step("plan"):
                change = await self._plan(request)
            if request.validate_only:
                async with progress.step("reserve"):
                    await self._validate(request.name, change)
                await progress.skip_rest()
                return
            record = await self._state.networks.update(request.name, lambda it: _begin(it, change))
            try:
                async with progress.step("reserve"):
                    await self._validate(record.name, change)
                    await self._allocate(record, change)
                async with progress.step(
                    "provision", f"{len(change.nodes)} guests, {len(change.links)} links"
                ):
                    await self._provision(record, change)
                    await self._wait_ready(record.name)
                async with progress.step("activate"):
                    await self._activate(record, change)
                    await self._state.networks.update(record.name, _commit)
            except BaseException:
                await asyncio.shield(self._settle_or_leave(record.name))
                raise
            async with progress.step("remove"):
                try:
                    await self._settle(record.name)
                except asyncio.CancelledError:
                    self._settle_later(record.name)
                    raise

    async def _plan(self, request: UpdateNetworkRequest) -> Change:
        record = self._state.networks.get(request.name)
        if record.state is not NetworkState.RUNNING or record.move is not None or record.change is not None:
            raise StateError(
                f"{request.name} is {record.state} or being changed", hint="wait until it runs undisturbed"
            )
        advertisements = await self._state.advertisements()
        return await asyncio.to_thread(plan_change, record, request.topology, advertisements)

    async def _validate(self, name: str, change: Change) -> None:
        """Whether every provider has room, before anything is made anywhere."""
        record = self._state.networks.get(name)

        async def ask(provider: str) -> None:
            nodes, links = _parts(change, provider)
            there = choose(self._state.providers, provider).infrastructure
            if provider in change.new_slices:
                identifier = unique_label(record.id)
                await there.AllocateSlice(
                    AllocateSliceRequest(slice_id=identifier, nodes=nodes, links=links, validate_only=True)
                )
                return
            await there.UpdateSlice(
                UpdateSliceRequest(
                    name=record.slices[provider], add_nodes=nodes, add_links=links, validate_only=True
                )
            )

        await settle(ask(provider) for provider in _concerned(change))

    async def _allocate(self, record: NetworkRecord, change: Change) -> None:
        async def allocate(provider: str) -> None:
            nodes, links = _parts(change, provider)
            name = record.slices[provider]
            reply = await choose(self._state.providers, provider).infrastructure.AllocateSlice(
                AllocateSliceRequest(
                    slice_id=name.partition("/")[2],
                    nodes=nodes,
                    links=links,
                    expires_in_s=self._state.settings.reservation_s,
                    request_id=name,
                )
            )
            await self._note_handles(record.name, provider, reply)

        await settle(allocate(provider) for provider in change.new_slices)

    async def _provision(self, record: NetworkRecord, change: Change) -> None:
        async def ignore(_: Operation) -> None:
            return

        async def provision(provider: str) -> None:
            there = choose(self._state.providers, provider)
            name = record.slices[provider]
            if provider in change.new_slices:
                await there.provision(name, ignore)
                return
            nodes, links = _parts(change, provider)
            request = UpdateSliceRequest(name=name, add_nodes=nodes, add_links=links)
            await self._note_handles(record.name, provider, await there.infrastructure.UpdateSlice(request))

        await settle(provision(provider) for provider in _concerned(change))

    async def _note_handles(self, name: str, provider: str, reply: Slice) -> None:
        def note(record: NetworkRecord) -> None:
            for node in reply.nodes:
                entry = record.change.nodes.get(node.id) if record.change is not None else None
                if entry is not None and entry.provider == provider:
                    entry.provider_handle = node.handle
                    entry.guest_uid = node.guest_uid

        await self._state.networks.update(name, note)

    async def _wait_ready(self, name: str) -> None:
        """Until every added guest is ready on the watches; HypervisorError for one that fails before."""
        with self._state.networks.watch() as watcher:
            try:
                async with asyncio.timeout(READY_SECONDS):
                    while waiting := self._not_ready(name):
                        await watcher.changes()
            except TimeoutError:
                raise UnavailableError(
                    f"{', '.join(waiting)} did not become ready within {READY_SECONDS:.0f} s",
                    hint="look at its console",
                    reason="NOT_READY",
                ) from None

    def _not_ready(self, name: str) -> list[str]:
        record = self._state.networks.get(name)
        waiting = []
        for key, entry in record.change.nodes.items() if record.change is not None else ():
            there = choose(self._state.providers, entry.provider).find_node(
                record.slices[entry.provider], key
            )
            if there is not None and there.state == Guest.FAILED:
                raise HypervisorError(f"node {key!r} failed while it started: {there.status_message}")
            if there is None or not there.ready:
                waiting.append(key)
        return waiting

    async def _activate(self, record: NetworkRecord, change: Change) -> None:
        async def activate(provider: str) -> None:
            links = _slice_links(change.links.values(), provider)
            await self._update(
                provider, UpdateSliceRequest(name=record.slices[provider], activate_links=links)
            )

        await settle(activate(provider) for provider in providers_of(change.links.values()))

    async def settle_after_restart(self, name: str) -> None:
        """A change that the last process left: finished if it was made already, else undone."""
        async with self._state.locks[name]:
            await self._settle(name)

    async def close(self) -> None:
        """Leave what is not settled to the next process."""
        for task in list(self._settling):
            task.cancel()
        await asyncio.gather(*self._settling, return_exceptions=True)

    async def _settle_or_leave(self, name: str) -> None:
        try:
            await self._try_to_settle(name)
        except SeraiError as error:
            log.warning("the change of %s is to be settled later: %s", name, error)
            self._settle_later(name)

    def _settle_later(self, name: str) -> None:
        task = asyncio.create_task(self.settle_after_restart(name))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _settle(self, name: str) -> None:
        """Try until nothing superfluous is left: whoever does not answer now is asked again."""
        while True:
            try:
                await self._try_to_settle(name)
                return
            except SeraiError as error:
                log.info("the change of %s cannot be settled yet: %s", name, error)
            await asyncio.sleep(_RETRY_SECONDS)

    async def _try_to_settle(self, name: str) -> None:
        record = self._state.networks.find(name)
        change = record.change if record is not None else None
        if record is None or change is None or record.state is NetworkState.DELETING:
            return
        if change.old is None:
            nodes = {key: entry.provider for key, entry in change.nodes.items()}
            await self._remove(record, nodes, change.links, skip=change.new_slices)
            for provider in change.new_slices:
                await choose(self._state.providers, provider).release(record.slices[provider])
        else:
            nodes = {key: record.nodes[key].provider for key in change.gone_nodes if key in record.nodes}
            # What is to be activated was activated before `old` was noted.
            await self._remove(record, nodes, change.old)
        await self._state.networks.update(name, _finish)
        await self._networks.release_empty(name)

    async def _remove(
        self,
        record: NetworkRecord,
        nodes: dict[str, str],
        links: dict[str, LinkEntry],
        skip: Iterable[str] = (),
    ) -> None:
        async def remove(provider: str) -> None:
            request = UpdateSliceRequest(
                name=record.slices[provider],
                remove_links=_slice_links(links.values(), provider),
                remove_nodes=[key for key, place in nodes.items() if place == provider],
            )
            await self._update(provider, request)

        concerned = {*nodes.values(), *providers_of(links.values())} - set(skip)
        await settle(remove(provider) for provider in sorted(concerned))

    async def _update(self, provider: str, request: UpdateSliceRequest) -> None:
        there: Provider = choose(self._state.providers, provider)
        await there.infrastructure.UpdateSlice(request)


def _parts(change: Change, provider: str) -> tuple[list[SliceNode], list[SliceLink]]:
    nodes = [slice_node(entry) for entry in change.nodes.values() if entry.provider == provider]
    links = [
        slice_link(entry, provider, standby=True)
        for entry in change.links.values()
        if provider in entry.providers
    ]
    return nodes, links


def _slice_links(links: Iterable[LinkEntry], provider: str) -> list[str]:
    return [entry.slice_link for entry in links if provider in entry.providers]


def _concerned(change: Change) -> list[str]:
    """The providers at which something is added."""
    return sorted(
        {entry.provider for entry in change.nodes.values()} | set(providers_of(change.links.values()))
    )


def _begin(record: NetworkRecord, change: Change) -> None:
    # Names first, then requests: whatever happens, what may exist can be released by name.
    record.change = change
    for provider in change.new_slices:
        record.slices[provider] = f"slices/{unique_label(record.id)}"


def _commit(record: NetworkRecord) -> None:
    """The additions are part of the network from here on: there is no way back."""
    change = record.change
    assert change is not None
    change.old = {key: record.links[key] for key in change.gone_links}
    for key in change.gone_links:
        del record.links[key]
    record.links.update(change.links)
    record.nodes.update(change.nodes)
    for node in change.topology.nodes:
        record.nodes[node.id].node.constraints.CopyFrom(node.constraints)


def _finish(record: NetworkRecord) -> None:
    change = record.change
    if change is not None and change.old is not None:
        for key in change.gone_nodes:
            record.nodes.pop(key, None)
    record.change = None
