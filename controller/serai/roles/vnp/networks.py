"""Creating and deleting networks: match, split, embed, allocate, provision; and the way back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable

from serai.errors import InvalidInputError, NotFoundError, SeraiError, UnavailableError
from serai.roles.names import check_label, new_handle, unique_label
from serai.roles.operations import Progress
from serai.roles.settling import settle
from serai.roles.vnp.plan import (
    build_request,
    check_topology,
    first_name,
    links_of,
    providers_of,
    realise_links,
    slice_parts,
    split,
)
from serai.roles.vnp.providers import choose
from serai.roles.vnp.records import NetworkRecord, NetworkState, NodeEntry
from serai.roles.vnp.state import VnpState
from serai.v1.guest_pb2 import Guest, GuestSize
from serai.v1.infrastructure_pb2 import Advertisement, AllocateSliceRequest, Slice, UpdateSliceRequest
from serai.v1.operation_pb2 import Operation, Step
from serai.v1.provider_pb2 import CreateNetworkRequest

log = logging.getLogger(__name__)

CREATE_STEPS = ("match", "split", "embed", "allocate", "provision")
SEEN_SECONDS = 10.0
"""How long after the acknowledgement of a slice its state may take to be heard on the watch."""

RETRY_SECONDS = 1.0
"""Pause between attempts to release a slice at a provider that does not answer."""


class Networks:
    """Everything that changes a network, except moving its nodes."""

    def __init__(self, state: VnpState) -> None:
        self._state = state

    async def begin(self, request: CreateNetworkRequest, owner: str) -> NetworkRecord:
        """Check the request and take the name."""
        check_topology(request.topology)
        name = f"networks/{check_label(request.network_id, 'network id')}"
        record = NetworkRecord(
            name=name,
            owner=owner,
            state=NetworkState.CREATING,
            nodes={node.id: NodeEntry(node=node, handle=new_handle()) for node in request.topology.nodes},
            links={},
            create_time=time.time(),
        )
        return await self._state.networks.create(record)

    async def create(self, name: str, request: CreateNetworkRequest, progress: Progress) -> None:
        """Make the network run; any failure leaves nothing at any provider."""
        async with self._state.locks[name]:
            try:
                async with progress.step("match"):
                    advertisements = await self._match(request)
                async with progress.step("split"):
                    record = await self._split(name, request, advertisements)
                async with progress.step("embed", f"{len(record.slices)} providers"):
                    await self._allocate(record, validate_only=True)
                if request.validate_only:
                    await progress.skip_rest()
                    await self._state.networks.delete(name)
                    return
                async with progress.step("allocate"):
                    await self._allocate(record, validate_only=False)
                async with progress.step("provision"):
                    await self._provision(record, progress)
                await self._state.networks.update(name, _become_running)
                await self._wait_seen(name)
            except BaseException:
                await asyncio.shield(self._abandon(name))
                raise

    async def delete(self, name: str) -> None:
        """Release every slice, trying for as long as it takes, then forget the network."""
        for operation in self._state.operations.running(name, but="DeleteNetwork"):
            with contextlib.suppress(SeraiError):
                await self._state.operations.cancel(operation.name)
                await self._state.operations.wait(operation.name)
        async with self._state.locks[name]:
            if name in self._state.networks:
                await self._state.networks.update(
                    name, lambda it: setattr(it, "state", NetworkState.DELETING)
                )
                while not await self._release_all(name):  # noqa: ASYNC110 - tries again, waits for nobody here
                    await asyncio.sleep(RETRY_SECONDS)
        self._state.locks.pop(name, None)

    async def delete_node(self, name: str, node: str) -> None:
        """Remove a node and its links from a running network."""
        state = self._state
        async with state.locks[name]:
            record = state.networks.get(name)
            if node not in record.nodes:
                raise NotFoundError(f"{name} has no node {node!r}", hint="list its nodes")
            incident = links_of(record.links, node)
            for provider in {record.nodes[node].provider, *providers_of(incident.values())}:
                gone = [entry.slice_link for entry in incident.values() if provider in entry.providers]
                await choose(state.providers, provider).infrastructure.UpdateSlice(
                    UpdateSliceRequest(
                        name=record.slices[provider],
                        remove_links=gone,
                        remove_nodes=[node] if provider == record.nodes[node].provider else [],
                    )
                )

            def forget(changed: NetworkRecord) -> None:
                del changed.nodes[node]
                for link in incident:
                    del changed.links[link]

            await state.networks.update(name, forget)
            await self.release_empty(name)

    async def note_size(self, name: str, node: str, size: GuestSize) -> None:
        """A node has been resized: what it is moved with from now on."""

        def enter(changed: NetworkRecord) -> None:
            guest = changed.nodes[node].node.guest
            guest.vcpus, guest.memory_bytes = size.vcpus, size.memory_bytes

        await self._state.networks.update(name, enter)

    async def release_empty(self, name: str) -> None:
        """Give back slices in which nothing of the network is left."""
        record = self._state.networks.get(name)
        used = {entry.provider for entry in record.nodes.values()} | set(providers_of(record.links.values()))
        for provider in record.slices.keys() - used:
            await self._release(name, provider)

    async def _match(self, request: CreateNetworkRequest) -> list[Advertisement]:
        advertisements = await self._state.advertisements()
        if not advertisements:
            raise UnavailableError(
                "no provider of infrastructure can be reached",
                hint=f"are {', '.join(sorted(self._state.providers))} running?",
                reason="NO_PROVIDER",
            )
        for node in request.topology.nodes:
            wanted = node.constraints.provider
            if wanted and wanted not in self._state.providers:
                raise InvalidInputError(
                    f"node {node.id!r} asks for provider {wanted!r}, which is not known here",
                    hint=f"known: {', '.join(sorted(self._state.providers))}",
                )
            if wanted and not self._state.providers[wanted].reachable:
                raise UnavailableError(
                    f"node {node.id!r} asks for provider {wanted!r}, which cannot be reached",
                    hint="is it running?",
                    reason="PROVIDER_UNREACHABLE",
                )
        return advertisements

    async def _split(
        self, name: str, request: CreateNetworkRequest, advertisements: Iterable[Advertisement]
    ) -> NetworkRecord:
        topology = request.topology
        found = await asyncio.to_thread(
            split, list(advertisements), build_request(topology.nodes, topology.links)
        )

        def note(record: NetworkRecord) -> None:
            for key, provider in found.providers.items():
                record.nodes[key].provider = provider
            record.links = realise_links(topology.links, found, first_name)
            # Names first, then requests: whatever happens, what may exist can be released by name.
            used = {entry.provider for entry in record.nodes.values()}
            record.slices = {provider: f"slices/{unique_label(record.id)}" for provider in sorted(used)}

        return await self._state.networks.update(name, note)

    async def _allocate(self, record: NetworkRecord, *, validate_only: bool) -> None:
        async def allocate(provider: str, slice_name: str) -> None:
            nodes, links = slice_parts(record, provider)
            request = AllocateSliceRequest(
                slice_id=slice_name.partition("/")[2],
                nodes=nodes,
                links=links,
                expires_in_s=self._state.settings.reservation_s,
                request_id="" if validate_only else slice_name,
                validate_only=validate_only,
            )
            reply = await choose(self._state.providers, provider).infrastructure.AllocateSlice(request)
            if not validate_only:
                await self.note_handles(record.name, provider, reply)

        await settle(allocate(provider, slice_name) for provider, slice_name in record.slices.items())

    async def note_handles(self, name: str, provider: str, reply: Slice) -> None:
        """Enter what `provider` calls its nodes."""

        def note(record: NetworkRecord) -> None:
            for node in reply.nodes:
                entry = record.nodes.get(node.id)
                if entry is not None and entry.provider == provider:
                    entry.provider_handle = node.handle
                    entry.guest_uid = node.guest_uid or entry.guest_uid

        await self._state.networks.update(name, note)

    async def _provision(self, record: NetworkRecord, progress: Progress) -> None:
        fractions = dict.fromkeys(record.slices, 0.0)

        async def provision(provider: str, slice_name: str) -> None:
            async def report(operation: Operation) -> None:
                fractions[provider] = _fraction(operation)
                message = next((step.message for step in operation.steps if step.state == Step.RUNNING), "")
                progress.report("provision", sum(fractions.values()) / len(fractions), message)

            await choose(self._state.providers, provider).provision(slice_name, report)

        tasks = [asyncio.create_task(provision(*item)) for item in record.slices.items()]
        try:
            # The first failure ends the others: all would be released anyway.
            await _all_or_first_error(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait_seen(self, name: str) -> None:
        """Until every node is seen ready on the watches: who asks now is told what was acknowledged."""

        def seen() -> bool:
            record = self._state.networks.get(name)
            for entry in record.nodes.values():
                provider = self._state.providers[entry.provider]
                there = provider.find_node(record.slices[entry.provider], entry.node.id)
                if there is None or not (there.ready or there.state == Guest.FAILED):
                    return False
            return True

        with contextlib.suppress(TimeoutError), self._state.networks.watch() as watcher:
            async with asyncio.timeout(SEEN_SECONDS):
                while not seen():
                    await watcher.changes()

    async def _abandon(self, name: str) -> None:
        """Undo a creation. What a provider does not hear now is released in the background."""
        if name not in self._state.networks:
            return
        await self._state.networks.update(name, lambda it: setattr(it, "state", NetworkState.DELETING))
        await self._release_all(name)

    async def _release_all(self, name: str) -> bool:
        """Release every slice and forget the network; False if a provider did not answer."""
        record = self._state.networks.get(name)
        done = await settle(self._release(name, provider) for provider in record.slices)
        if all(done):
            await self._state.networks.delete(name)
        return all(done)

    async def _release(self, name: str, provider: str) -> bool:
        try:
            record = self._state.networks.get(name)
            await choose(self._state.providers, provider).release(record.slices[provider])
        except SeraiError as error:
            log.warning("the slice of %s at %s is still to be released: %s", name, provider, error)
            return False

        def forget(changed: NetworkRecord) -> None:
            changed.slices.pop(provider, None)

        await self._state.networks.update(name, forget)
        return True

    async def sweep_forever(self) -> None:
        """Finish deletions that nobody waits for any more."""
        while True:
            for record in self._state.networks:
                if record.state is NetworkState.DELETING and not self._state.locks[record.name].locked():
                    async with self._state.locks[record.name]:
                        if record.name in self._state.networks:
                            await self._release_all(record.name)
            await asyncio.sleep(RETRY_SECONDS)


async def _all_or_first_error(tasks: Iterable[asyncio.Task[None]]) -> None:
    for done in asyncio.as_completed(list(tasks)):
        await done


def _fraction(operation: Operation) -> float:
    if not operation.steps:
        return 0.0
    return sum(1.0 if step.state == Step.DONE else step.progress for step in operation.steps) / len(
        operation.steps
    )


def _become_running(record: NetworkRecord) -> None:
    record.state = NetworkState.RUNNING
    record.running_time = time.time()
