"""The database behind a role's state: one table of records, written in batches by one task.

SQLite in write-ahead mode by default; any database that SQLAlchemy reaches asynchronously by URL. A write is
durable against the end of this process when `Database.written` has returned.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Column, DateTime, MetaData, String, Table, Text, event, func, select, tuple_
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from serai.errors import UnavailableError

log = logging.getLogger(__name__)

_metadata = MetaData()
_records = Table(
    "records",
    _metadata,
    Column("collection", String(64), primary_key=True),
    Column("name", String(255), primary_key=True),
    Column("body", Text, nullable=False),
    Column("update_time", DateTime(timezone=True), server_default=func.now()),
)

_Key = tuple[str, str]


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite+aiosqlite:///{path}"


class Database:
    """Records by collection and name. `open` makes it."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._pending: dict[_Key, str | None] = {}
        self._waiters: list[asyncio.Future[None]] = []
        self._wake = asyncio.Event()
        self._closing = False
        self._writer = asyncio.create_task(self._write_forever(), name="database writer")

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connect and make the table. UnavailableError names the URL and the cause."""
        engine = create_async_engine(url)
        try:
            if engine.dialect.name == "sqlite":
                event.listen(engine.sync_engine, "connect", _configure_sqlite)
                await asyncio.to_thread(_probe_sqlite, engine.url.database or ":memory:")
            async with engine.begin() as connection:
                await connection.run_sync(_metadata.create_all)
        except (SQLAlchemyError, sqlite3.Error, OSError) as error:
            await engine.dispose()
            raise _unavailable("open", engine, error) from error
        return cls(engine)

    async def load(self, collection: str) -> list[tuple[str, str]]:
        """Name and body of every record of `collection`, by name."""
        query = select(_records.c.name, _records.c.body).where(_records.c.collection == collection)
        try:
            async with self._engine.connect() as connection:
                rows = await connection.execute(query.order_by(_records.c.name))
                return [(row.name, row.body) for row in rows]
        except SQLAlchemyError as error:
            raise _unavailable("read", self._engine, error) from error

    def put(self, collection: str, name: str, body: str | None) -> None:
        """Write `body` soon, or remove the record if it is None; later writes of the same record win."""
        self._pending[collection, name] = body
        self._wake.set()

    async def written(self) -> None:
        """Return when all that was put is durable; UnavailableError when it could not be written.

        What failed stays pending and is tried again with the next write.
        """
        if not self._pending and not self._waiters:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._wake.set()
        await waiter

    async def close(self) -> None:
        """Write what is pending and disconnect."""
        self._closing = True
        self._wake.set()
        await self._writer
        await self._engine.dispose()

    async def _write_forever(self) -> None:
        while not (self._closing and not self._pending and not self._waiters):
            await self._wake.wait()
            self._wake.clear()
            await self._write_batch()

    async def _write_batch(self) -> None:
        batch, self._pending = self._pending, {}
        waiters, self._waiters = self._waiters, []
        failure: Exception | None = None
        try:
            if batch:
                await self._write(batch)
        except (SQLAlchemyError, OSError) as error:
            log.error("state could not be written: %s", error)
            failure = _unavailable("write", self._engine, error)
            if not self._closing:
                self._pending = {**batch, **self._pending}
        for waiter in waiters:
            if waiter.done():
                continue
            if failure is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(failure)

    async def _write(self, batch: dict[_Key, str | None]) -> None:
        rows = [
            {"collection": collection, "name": name, "body": body}
            for (collection, name), body in batch.items()
            if body is not None
        ]
        async with self._engine.begin() as connection:
            for keys in _chunks(list(batch), 200):
                # Delete and insert is an upsert in every dialect.
                condition = tuple_(_records.c.collection, _records.c.name).in_(keys)
                await connection.execute(_records.delete().where(condition))
            if rows:
                await connection.execute(_records.insert(), rows)


def _chunks(items: list[_Key], size: int) -> Sequence[list[_Key]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _probe_sqlite(path: str) -> None:
    """Raise sqlite3.Error if the file cannot be used: the asynchronous driver leaves a thread behind then."""
    connection = sqlite3.connect(path)
    try:
        connection.execute("PRAGMA schema_version").fetchone()
    finally:
        connection.close()


def _configure_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # In WAL mode this survives the end of the process at any instant; a power cut may cost the last changes.
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.close()


def _unavailable(doing: str, engine: AsyncEngine, error: Exception) -> UnavailableError:
    url = engine.url.render_as_string(hide_password=True)
    cause = str(getattr(error, "orig", None) or error)
    return UnavailableError(
        f"cannot {doing} the state in {url}: {cause}",
        hint="is there space, and may this user write there?",
        reason="STATE_UNAVAILABLE",
    )
