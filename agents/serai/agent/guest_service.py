"""``serai.v1.GuestService``: thin; what it does is in `Guests` and `Consoles`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from serai.agent.consoles import Consoles
from serai.agent.guests import Guests
from serai.agent.inventory import Hosted, Inventory
from serai.agent.pages import paginate
from serai.agent.snapshot_service import SnapshotMethods
from serai.agent.snapshots import Snapshots
from serai.agent.spec import guest_name, parse_guest_name
from serai.errors import InvalidInputError, NotFoundError, StateError
from serai.hypervisor.driver import TracedInstruction
from serai.v1 import guest_pb2


class GuestService(SnapshotMethods):
    """Guests on this node, for its provider."""

    def __init__(
        self,
        guests: Guests,
        inventory: Inventory,
        consoles: Consoles,
        delete_departed: Callable[[str], bool],
        end_migrations: Callable[[Hosted], Awaitable[None]],
        *,
        snapshots: Snapshots,
    ) -> None:
        self._snapshots = snapshots
        self._guests = guests
        self._inventory = inventory
        self._consoles = consoles
        self._delete_departed = delete_departed
        self._end_migrations = end_migrations

    async def CreateGuest(self, request: guest_pb2.CreateGuestRequest, context: Any) -> guest_pb2.Guest:
        """Define, and perhaps start."""
        hosted = await self._guests.create(
            request.guest_id, request.spec, start=request.start, request_id=request.request_id
        )
        return hosted.describe()

    async def StartGuest(self, request: guest_pb2.StartGuestRequest, context: Any) -> guest_pb2.Guest:
        """Run it."""
        hosted = await self._guests.start(_checked(request.name))
        return hosted.describe()

    async def StopGuest(self, request: guest_pb2.StopGuestRequest, context: Any) -> guest_pb2.Guest:
        """Power it off."""
        if not 0 <= request.grace_seconds <= 600:
            raise InvalidInputError(f"grace_seconds is {request.grace_seconds}", hint="0 to 600")
        hosted = await self._guests.stop(_checked(request.name), request.grace_seconds)
        return hosted.describe()

    async def DeleteGuest(
        self, request: guest_pb2.DeleteGuestRequest, context: Any
    ) -> guest_pb2.DeleteGuestResponse:
        """End and forget it; for one that has left, stop sending its frames after it."""
        name = _checked(request.name)
        departed = self._delete_departed(name)
        try:
            hosted = self._inventory.get(name)
        except NotFoundError:
            if not departed and not request.allow_missing:
                raise
            return guest_pb2.DeleteGuestResponse()
        await self._end_migrations(hosted)
        if self._inventory.find(hosted.uid) is hosted:
            await self._guests.delete(hosted)
        return guest_pb2.DeleteGuestResponse()

    async def GetGuest(self, request: guest_pb2.GetGuestRequest, context: Any) -> guest_pb2.Guest:
        """One guest."""
        return self._inventory.get(_checked(request.name)).describe()

    async def ListGuests(
        self, request: guest_pb2.ListGuestsRequest, context: Any
    ) -> guest_pb2.ListGuestsResponse:
        """Guests by name."""
        page, token = paginate(
            list(self._inventory), lambda hosted: hosted.name, request.page_size, request.page_token
        )
        return guest_pb2.ListGuestsResponse(
            guests=[hosted.describe() for hosted in page], next_page_token=token
        )

    async def WatchGuests(
        self, request: guest_pb2.WatchGuestsRequest, context: Any
    ) -> AsyncIterator[guest_pb2.WatchGuestsResponse]:
        """All, then each that changes."""
        async for change in self._inventory.watch():
            yield change

    async def GetGuestStatistics(
        self, request: guest_pb2.GetGuestRequest, context: Any
    ) -> guest_pb2.GuestStatistics:
        """Counters; zeros for a guest without a machine."""
        machine = self._inventory.get(_checked(request.name)).machine
        if machine is None:
            return guest_pb2.GuestStatistics()
        counters = await machine.statistics()
        return guest_pb2.GuestStatistics(
            instructions=counters.instructions,
            cpu_seconds=counters.cpu_seconds,
            boot_seconds=counters.ready_seconds or 0.0,
            exits=counters.exits,
            events=counters.events,
            vcpus=counters.vcpus,
            memory_bytes=counters.memory_bytes,
            balloon=counters.balloon,
            costs={
                cause: guest_pb2.EventCost(events=events, nanoseconds=spent)
                for cause, (events, spent) in counters.costs.items()
            },
        )

    async def TraceGuest(
        self, request: guest_pb2.TraceGuestRequest, context: Any
    ) -> AsyncIterator[guest_pb2.TraceGuestResponse]:
        """Single steps until enough is recorded."""
        machine = self._inventory.get(_checked(request.name)).machine
        if machine is None:
            raise StateError(f"{request.name} has no machine to trace", hint="start it first")
        pieces = machine.trace(count=request.count, low=request.low, high=request.high, steps=request.steps)
        recorded = 0
        async for piece in pieces:
            recorded += len(piece.instructions)
            yield guest_pb2.TraceGuestResponse(
                records=[_trace_record(item) for item in piece.instructions],
                steps=piece.steps,
                finished=piece.finished,
                reason=f"{recorded} instructions traced" if piece.finished else "",
            )

    async def ResizeGuest(self, request: guest_pb2.ResizeGuestRequest, context: Any) -> guest_pb2.GuestSize:
        """Change its size while it runs."""
        return await self._guests.resize(_checked(request.name), request.vcpus, request.memory_bytes)

    async def AttachConsole(
        self, requests: AsyncIterator[guest_pb2.ConsoleInput], context: Any
    ) -> AsyncIterator[guest_pb2.ConsoleOutput]:
        """The serial console, until the caller closes its input or the guest is gone."""
        inputs = aiter(requests)
        first = await anext(inputs, None)
        if first is None:
            raise InvalidInputError("no first message", hint="name the guest in it")
        hosted = self._inventory.get(_checked(first.name))
        async for output in self._consoles.attach(hosted, first.data, inputs):
            yield output


def _checked(name: str) -> str:
    return guest_name(parse_guest_name(name))


def _trace_record(item: TracedInstruction) -> guest_pb2.TraceRecord:
    return guest_pb2.TraceRecord(
        address=item.address,
        word=item.word,
        text=item.text,
        hart=item.hart,
        privilege=item.privilege,
        trapped=item.trapped,
        interrupt=item.interrupt,
        step=item.step,
    )
