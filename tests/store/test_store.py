"""The records of a role: durable, watched, atomic."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Annotated

import pytest

from serai.errors import AlreadyExistsError, IntegrityError, NotFoundError, UnavailableError
from serai.store import Collection, Database, Record, Stored
from serai.store.database import sqlite_url
from serai.v1.operation_pb2 import Operation


class Sheep(Record):
    legs: int = 4
    wool: bytes = b""
    operation: Annotated[Operation, Stored()] = Operation()


def set_legs(legs: int, sheep: Sheep) -> None:
    sheep.legs = legs


async def open_flock(path: Path) -> tuple[Database, Collection[Sheep]]:
    database = await Database.open(sqlite_url(path))
    flock = Collection(database, "flock", Sheep, "sheep")
    await flock.load()
    return database, flock


async def test_what_was_written_is_there_again(tmp_path: Path) -> None:
    database, flock = await open_flock(tmp_path / "a.sqlite")
    operation = Operation(name="operations/x", done=True)
    await flock.create(Sheep(name="dolly", wool=b"\x00\xff", operation=operation))
    await flock.create(Sheep(name="shaun"))
    await flock.update("dolly", lambda sheep: setattr(sheep, "legs", 3))
    await flock.delete("shaun")
    await flock.delete("shaun")
    await database.close()
    database, flock = await open_flock(tmp_path / "a.sqlite")
    assert list(flock) == [Sheep(name="dolly", legs=3, wool=b"\x00\xff", operation=operation)]
    await database.close()


async def test_durable_before_the_call_returns(tmp_path: Path) -> None:
    """Seen by a second connection while the first is still open, as after a crash."""
    database, flock = await open_flock(tmp_path / "a.sqlite")
    await flock.create(Sheep(name="dolly"))
    other, same = await open_flock(tmp_path / "a.sqlite")
    assert [sheep.name for sheep in same] == ["dolly"]
    await other.close()
    await database.close()


async def test_names_are_taken_and_missed(tmp_path: Path) -> None:
    database, flock = await open_flock(tmp_path / "a.sqlite")
    await flock.create(Sheep(name="dolly"))
    with pytest.raises(AlreadyExistsError, match="dolly"):
        await flock.create(Sheep(name="dolly"))
    with pytest.raises(NotFoundError, match="shaun"):
        await flock.update("shaun", lambda sheep: None)
    await database.close()


async def test_a_change_that_raises_changes_nothing(tmp_path: Path) -> None:
    database, flock = await open_flock(tmp_path / "a.sqlite")
    await flock.create(Sheep(name="dolly"))

    def change(sheep: Sheep) -> None:
        sheep.legs = 5
        raise ValueError

    with pytest.raises(ValueError):
        await flock.update("dolly", change)
    assert flock.get("dolly").legs == 4
    await database.close()


async def test_a_watcher_sees_the_latest_of_each(tmp_path: Path) -> None:
    database, flock = await open_flock(tmp_path / "a.sqlite")
    with flock.watch() as watcher:
        await flock.create(Sheep(name="dolly"))
        for legs in (3, 2, 1):
            flock.revise("dolly", partial(set_legs, legs))
        await flock.create(Sheep(name="shaun"))
        await flock.delete("shaun")
        changes = await watcher.changes()
    assert [(change.record.name, change.record.legs, change.deleted) for change in changes] == [
        ("dolly", 1, False),
        ("shaun", 4, True),
    ]
    await database.close()


async def test_concurrent_writers_lose_nothing(tmp_path: Path) -> None:
    database, flock = await open_flock(tmp_path / "a.sqlite")
    await flock.create(Sheep(name="dolly", legs=0))

    async def grow() -> None:
        for _ in range(50):
            await flock.update("dolly", lambda sheep: setattr(sheep, "legs", sheep.legs + 1))

    await asyncio.gather(*(grow() for _ in range(10)))
    await database.close()
    database, flock = await open_flock(tmp_path / "a.sqlite")
    assert flock.get("dolly").legs == 500
    await database.close()


async def test_a_write_that_fails_is_told_and_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, flock = await open_flock(tmp_path / "a.sqlite")
    await flock.create(Sheep(name="shaun"))
    write = database._write

    async def full(batch: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(database, "_write", full)
    with pytest.raises(UnavailableError, match="no space left"):
        await flock.create(Sheep(name="dolly"))
    assert "dolly" not in flock
    with pytest.raises(UnavailableError, match="no space left"):
        await flock.update("shaun", partial(set_legs, 3))
    monkeypatch.setattr(database, "_write", write)
    await flock.create(Sheep(name="timmy"))
    await database.close()
    database, flock = await open_flock(tmp_path / "a.sqlite")
    assert {sheep.name: sheep.legs for sheep in flock} == {"shaun": 3, "timmy": 4}
    await database.close()


async def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    database, _ = await open_flock(tmp_path / "a.sqlite")
    database.put("flock", "dolly", '{"name": "dolly", "legs": "many"}')
    await database.close()
    database = await Database.open(sqlite_url(tmp_path / "a.sqlite"))
    with pytest.raises(IntegrityError, match="flock/dolly"):
        await Collection(database, "flock", Sheep, "sheep").load()
    await database.close()


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    file = tmp_path / "a.sqlite"
    file.write_bytes(b"no database at all" * 1000)
    with pytest.raises(UnavailableError, match=r"a\.sqlite.*not a database"):
        await Database.open(sqlite_url(file))


async def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="nowhere"):
        await Database.open(sqlite_url(tmp_path / "nowhere" / "a.sqlite"))
