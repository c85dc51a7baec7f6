"""The guests on this node and those who watch them."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Callable, Iterator

from serai.errors import AlreadyExistsError, NotFoundError
from serai.hypervisor.driver import Guest as Machine
from serai.hypervisor.driver import GuestState
from serai.v1 import guest_pb2

_STATES = {
    GuestState.DEFINED: guest_pb2.Guest.DEFINED,
    GuestState.RUNNING: guest_pb2.Guest.RUNNING,
    GuestState.PAUSED: guest_pb2.Guest.PAUSED,
    GuestState.STOPPED: guest_pb2.Guest.STOPPED,
    GuestState.FAILED: guest_pb2.Guest.FAILED,
}


class Presence(enum.Enum):
    """Whose guest it is, seen from here."""

    OWNED = "owned"
    INCOMING = "incoming"
    OUTGOING = "outgoing"


class Hosted:
    """A guest on this node: what is known of it (`facts`, kept durably) and its machine while it has one."""

    def __init__(
        self, facts: guest_pb2.Guest, machine: Machine | None, presence: Presence = Presence.OWNED
    ) -> None:
        self.facts = facts
        self.machine = machine
        self.presence = presence
        self.lock = asyncio.Lock()
        """Held while an operation changes the guest's life; taken in the order of arrival."""
        self.migration = ""
        """Name of the migration that moves it now."""
        self.resized = False
        """Its size is not any more the one it was created with."""
        self.unsubscribe: Callable[[], None] = lambda: None

    @property
    def name(self) -> str:
        """``guests/ID``."""
        return self.facts.name

    @property
    def uid(self) -> str:
        """Unique for ever."""
        return self.facts.uid

    @property
    def state(self) -> GuestState:
        """The machine's state; a guest without machine ended with an earlier run of the agent."""
        if self.machine is not None:
            return self.machine.state
        return GuestState.FAILED if self.facts.state == guest_pb2.Guest.FAILED else GuestState.STOPPED

    def describe(self) -> guest_pb2.Guest:
        """The resource as it is now."""
        described = guest_pb2.Guest()
        described.CopyFrom(self.facts)
        if self.presence is Presence.INCOMING:
            described.state = guest_pb2.Guest.INCOMING
        elif self.presence is Presence.OUTGOING:
            described.state = guest_pb2.Guest.OUTGOING
        else:
            described.state = _STATES[self.state]
        if self.machine is not None:
            described.status_message = self.machine.failure
        return described


class Inventory:
    """Guests by name; every change reaches every watcher, several changes of one guest as the latest."""

    def __init__(self) -> None:
        self._guests: dict[str, Hosted] = {}
        self._watchers: set[_Watcher] = set()

    def __iter__(self) -> Iterator[Hosted]:
        return iter(list(self._guests.values()))

    def __len__(self) -> int:
        return len(self._guests)

    def get(self, name: str) -> Hosted:
        """The guest of this name; NotFoundError."""
        hosted = self._guests.get(name)
        if hosted is None:
            raise NotFoundError(f"{name} is not on this node", hint="list the node's guests", name=name)
        return hosted

    def find(self, uid: str) -> Hosted | None:
        """The guest of this uid."""
        return next((hosted for hosted in self._guests.values() if hosted.uid == uid), None)

    def expect_free(self, name: str) -> None:
        """AlreadyExistsError when the name is taken."""
        if name in self._guests:
            raise AlreadyExistsError(f"{name} exists on this node", hint="choose another id", name=name)

    def add(self, hosted: Hosted) -> None:
        """House it; AlreadyExistsError when the name is taken."""
        self.expect_free(hosted.name)
        self._guests[hosted.name] = hosted
        self.changed(hosted)

    def remove(self, hosted: Hosted) -> None:
        """It is here no more; nothing happens when it is not."""
        if self._guests.get(hosted.name) is hosted:
            del self._guests[hosted.name]
            self._tell(guest_pb2.WatchGuestsResponse(guest=hosted.describe(), deleted=True))

    def changed(self, hosted: Hosted) -> None:
        """Tell the watchers."""
        if self._guests.get(hosted.name) is hosted:
            self._tell(guest_pb2.WatchGuestsResponse(guest=hosted.describe()))

    def _tell(self, change: guest_pb2.WatchGuestsResponse) -> None:
        for watcher in self._watchers:
            watcher.put(change)

    async def watch(self) -> AsyncIterator[guest_pb2.WatchGuestsResponse]:
        """All guests, then `synchronized`, then each change."""
        watcher = _Watcher()
        self._watchers.add(watcher)
        try:
            for hosted in self:
                yield guest_pb2.WatchGuestsResponse(guest=hosted.describe())
            yield guest_pb2.WatchGuestsResponse(synchronized=True)
            while True:
                for change in await watcher.take():
                    yield change
        finally:
            self._watchers.discard(watcher)


class _Watcher:
    """The changes that one watcher has not seen yet: at most two per guest, however slow it is."""

    def __init__(self) -> None:
        self._pending: dict[tuple[str, bool], guest_pb2.WatchGuestsResponse] = {}
        self._filled = asyncio.Event()

    def put(self, change: guest_pb2.WatchGuestsResponse) -> None:
        key = (change.guest.uid, change.deleted)
        self._pending.pop(key, None)
        self._pending[key] = change
        self._filled.set()

    async def take(self) -> list[guest_pb2.WatchGuestsResponse]:
        await self._filled.wait()
        self._filled.clear()
        changes = list(self._pending.values())
        self._pending.clear()
        return changes
