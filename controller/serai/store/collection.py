"""Records of one kind: held in memory, written through to the database, watched.

A change is visible in memory at once and atomically (no await in between), which makes "check, then reserve"
correct without locks; whoever acts on it outside this process first awaits durability.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from serai.errors import AlreadyExistsError, IntegrityError, NotFoundError, UnavailableError
from serai.store.database import Database


class Record(BaseModel):
    """Base of what is kept. Never change one that a collection holds: go through `Collection.update`."""

    model_config = ConfigDict(
        arbitrary_types_allowed=True, extra="ignore", ser_json_bytes="base64", val_json_bytes="base64"
    )

    name: str


R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Change(Generic[R]):
    """A record as it is now, or as it was last when `deleted`."""

    record: R
    deleted: bool = False


class Watcher(Generic[R]):
    """Changes for one observer. A slow one sees the latest state of each record, not each step."""

    def __init__(self) -> None:
        self._changes: dict[str, Change[R]] = {}
        self._wake = asyncio.Event()

    def notify(self, change: Change[R]) -> None:
        """Keep `change` for the observer."""
        self._changes.pop(change.record.name, None)
        self._changes[change.record.name] = change
        self._wake.set()

    async def changes(self) -> list[Change[R]]:
        """What has changed since the last call, in order; waits until there is something."""
        await self._wake.wait()
        self._wake.clear()
        changes, self._changes = self._changes, {}
        return list(changes.values())


class Collection(Generic[R]):
    """The records of `kind` under `collection` in `database`; `load` first."""

    def __init__(self, database: Database, collection: str, kind: type[R], noun: str) -> None:
        self._database = database
        self._collection = collection
        self._kind = kind
        self._noun = noun
        self._records: dict[str, R] = {}
        self._watchers: list[Watcher[R]] = []
        self._listeners: list[Callable[[Change[R]], None]] = []

    async def load(self) -> None:
        """Read all records; IntegrityError names one that cannot be read."""
        for name, body in await self._database.load(self._collection):
            try:
                self._records[name] = self._kind.model_validate_json(body)
            except (ValidationError, ValueError) as error:
                raise IntegrityError(
                    f"{self._collection}/{name} in the state cannot be read: {error}",
                    hint="restore the database from a backup",
                ) from error

    def __iter__(self) -> Iterator[R]:
        return iter(list(self._records.values()))

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def find(self, name: str) -> R | None:
        """The record of that name, or None."""
        return self._records.get(name)

    def get(self, name: str) -> R:
        """The record of that name; NotFoundError."""
        record = self._records.get(name)
        if record is None:
            raise NotFoundError(
                f"{self._noun} {name!r} does not exist", hint=f"list the {self._noun}s", resource=name
            )
        return record

    async def create(self, record: R) -> R:
        """Add `record`; AlreadyExistsError when the name is taken. Returns when it is durable.

        UnavailableError when it cannot be written: it is then not there.
        """
        if record.name in self._records:
            raise AlreadyExistsError(
                f"{self._noun} {record.name!r} exists already",
                hint="choose another name, or delete it first",
                resource=record.name,
            )
        self._set(record)
        try:
            await self._database.written()
        except UnavailableError:
            # Its caller is told that it does not exist, so it must not.
            self._forget(record)
            raise
        return record

    async def update(self, name: str, change: Callable[[R], None]) -> R:
        """Apply `change` to a copy and replace the record by it. Returns when it is durable.

        UnavailableError when it cannot be written yet: it holds all the same, and is written with the next
        change.
        """
        record = self.revise(name, change)
        await self._database.written()
        return record

    def revise(self, name: str, change: Callable[[R], None]) -> R:
        """As `update`, without waiting for durability: where a loss would do no harm."""
        record = self.get(name).model_copy(deep=True)
        change(record)
        self._set(record)
        return record

    def touch(self, name: str) -> None:
        """Tell watchers that what a record describes has changed, though the record has not."""
        record = self._records.get(name)
        if record is not None:
            self._notify(Change(record))

    async def delete(self, name: str) -> None:
        """Remove it; no error when it does not exist."""
        record = self._records.get(name)
        if record is None:
            return
        self._forget(record)
        await self._database.written()

    def listen(self, listener: Callable[[Change[R]], None]) -> None:
        """Call `listener` with every change from now on, for as long as the collection lives."""
        self._listeners.append(listener)

    @contextmanager
    def watch(self) -> Iterator[Watcher[R]]:
        """A watcher of all changes from now on."""
        watcher: Watcher[R] = Watcher()
        self._watchers.append(watcher)
        try:
            yield watcher
        finally:
            self._watchers.remove(watcher)

    def _set(self, record: R) -> None:
        self._records[record.name] = record
        self._database.put(self._collection, record.name, record.model_dump_json())
        self._notify(Change(record))

    def _forget(self, record: R) -> None:
        self._records.pop(record.name, None)
        self._database.put(self._collection, record.name, None)
        self._notify(Change(record, deleted=True))

    def _notify(self, change: Change[R]) -> None:
        for listener in self._listeners:
            listener(change)
        for watcher in self._watchers:
            watcher.notify(change)
