"""The agent's durable records: its guests, their epochs and who owns them.

The migration guarantee rests on these rows: a change is on the disk (fsync of the write-ahead log) before
the call returns, and epochs never go back. Methods block for a disk write; call them off the event loop.
"""

from __future__ import annotations

import enum
import fcntl
import os
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from serai.errors import AlreadyExistsError, ConflictError, NotFoundError, StateError, UnavailableError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS guest (
    uid TEXT PRIMARY KEY,
    epoch INTEGER NOT NULL CHECK (epoch > 0),
    holding TEXT NOT NULL CHECK (holding IN ('owned', 'handed', 'ended')),
    peer TEXT NOT NULL DEFAULT '',
    peer_address TEXT NOT NULL DEFAULT '',
    migration TEXT NOT NULL DEFAULT '',
    frozen_at_ns INTEGER NOT NULL DEFAULT 0,
    settled INTEGER NOT NULL DEFAULT 1,
    request_id TEXT NOT NULL DEFAULT '',
    guest BLOB NOT NULL
) STRICT
"""
_SEGMENTS = """
CREATE TABLE IF NOT EXISTS segment (
    name TEXT PRIMARY KEY,
    activated INTEGER NOT NULL DEFAULT 0,
    request BLOB NOT NULL
) STRICT
"""
_VERSION = 1


class Holding(enum.Enum):
    """What this node's record says about a guest."""

    OWNED = "owned"
    HANDED = "handed"
    """Given to `peer` under `epoch`."""
    ENDED = "ended"
    """Was owned here under `epoch` and deleted on purpose: nobody may revive it."""


@dataclass(frozen=True, slots=True)
class Record:
    """One guest; `guest` is a serialized ``serai.v1.Guest``.

    `peer` is where a guest that was handed over went, or where one that is owned came from ("" if nowhere).
    `settled`: the peer is known to own what was handed to it. `frozen_at_ns` is wall-clock time.
    """

    uid: str
    epoch: int
    holding: Holding
    peer: str
    peer_address: str
    migration: str
    frozen_at_ns: int
    settled: bool
    request_id: str
    guest: bytes


class Records:
    """The record file in the state directory, locked against a second agent.

    Raises AlreadyExistsError when another agent holds the directory, UnavailableError when it cannot be used.
    """

    def __init__(self, directory: Path) -> None:
        self._guard = threading.Lock()
        self._lock_file = _lock_directory(directory)
        try:
            self._database = _open_database(directory / "records.sqlite")
        except sqlite3.Error as error:
            os.close(self._lock_file)
            raise UnavailableError(
                f"{directory}/records.sqlite cannot be used: {error}",
                hint="is the disk full or the file damaged?",
                reason="STATE_UNUSABLE",
            ) from error

    def close(self) -> None:
        """Close and unlock; safe to repeat."""
        with self._guard:
            if self._lock_file >= 0:
                self._database.close()
                os.close(self._lock_file)
                self._lock_file = -1

    def get(self, uid: str) -> Record | None:
        """The record of `uid`, if there is one."""
        with self._guard:
            row = self._database.execute("SELECT * FROM guest WHERE uid = ?", (uid,)).fetchone()
        return None if row is None else _record(row)

    def all(self) -> list[Record]:
        """Every record."""
        with self._guard:
            rows = self._database.execute("SELECT * FROM guest ORDER BY rowid").fetchall()
        return [_record(row) for row in rows]

    def own(self, uid: str, epoch: int, guest: bytes, *, request_id: str = "", origin: str = "") -> None:
        """This node owns the guest under `epoch`; ConflictError unless that is higher than any recorded."""
        with self._change() as database:
            self._expect_higher(database, uid, epoch)
            database.execute(
                "INSERT OR REPLACE INTO guest (uid, epoch, holding, peer, request_id, guest)"
                " VALUES (?, ?, 'owned', ?, ?, ?)",
                (uid, epoch, origin, request_id, guest),
            )

    def update(self, uid: str, guest: bytes) -> None:
        """Keep what is known of an owned guest; nothing happens when it is not owned."""
        with self._change() as database:
            database.execute(
                "UPDATE guest SET guest = ? WHERE uid = ? AND holding = ?", (guest, uid, Holding.OWNED.value)
            )

    def hand_over(self, uid: str, epoch: int, peer: str, address: str, migration: str) -> None:
        """The guest is `peer`'s under `epoch`: the point of no return; ConflictError as for `own`."""
        with self._change() as database:
            self._expect_higher(database, uid, epoch)
            database.execute(
                "UPDATE guest SET epoch = ?, holding = 'handed', peer = ?, peer_address = ?, migration = ?,"
                " frozen_at_ns = ?, settled = 0, request_id = '' WHERE uid = ?",
                (epoch, peer, address, migration, time.time_ns(), uid),
            )

    def give_back(self, uid: str, epoch: int) -> None:
        """A guest that came here and is lost is its origin's again, under `epoch`."""
        with self._change() as database:
            self._expect_higher(database, uid, epoch)
            database.execute(
                "UPDATE guest SET epoch = ?, holding = 'handed', settled = 1, guest = x'' WHERE uid = ?",
                (epoch, uid),
            )

    def settle(self, uid: str) -> None:
        """The peer has acknowledged: nothing of the guest is needed here any more."""
        with self._change() as database:
            database.execute(
                "UPDATE guest SET settled = 1, guest = x'' WHERE uid = ? AND holding = 'handed'", (uid,)
            )

    def end(self, uid: str) -> None:
        """The guest was deleted here. A guest that never moved is forgotten, others leave their epoch."""
        with self._change() as database:
            database.execute("DELETE FROM guest WHERE uid = ? AND epoch = 1 AND holding = 'owned'", (uid,))
            database.execute(
                "UPDATE guest SET holding = 'ended', request_id = '', guest = x''"
                " WHERE uid = ? AND holding = 'owned'",
                (uid,),
            )

    def add_segment(self, name: str, request: bytes) -> None:
        """Keep how a segment was asked for; the same again changes nothing."""
        with self._change() as database:
            database.execute("INSERT OR IGNORE INTO segment (name, request) VALUES (?, ?)", (name, request))

    def activate_segment(self, name: str) -> None:
        """It was activated after all others."""
        with self._change() as database:
            database.execute(
                "UPDATE segment SET activated = 1 + (SELECT max(activated) FROM segment) WHERE name = ?",
                (name,),
            )

    def delete_segment(self, name: str) -> None:
        """Forget it."""
        with self._change() as database:
            database.execute("DELETE FROM segment WHERE name = ?", (name,))

    def segments(self) -> list[tuple[str, int, bytes]]:
        """Name, order of activation (0: never) and request of each, in the order of their creation."""
        with self._guard:
            rows = self._database.execute("SELECT * FROM segment ORDER BY rowid").fetchall()
        return [(row["name"], row["activated"], row["request"]) for row in rows]

    def _expect_higher(self, database: sqlite3.Connection, uid: str, epoch: int) -> None:
        row = database.execute("SELECT epoch, holding FROM guest WHERE uid = ?", (uid,)).fetchone()
        if row is not None and row["epoch"] >= epoch:
            raise ConflictError(
                f"guest {uid}: epoch {epoch} is over, {row['epoch']} ({row['holding']}) is recorded here",
                reason="EPOCH_OVER",
                guest=uid,
                epoch=row["epoch"],
            )

    def _change(self) -> _Transaction:
        if self._lock_file < 0:
            raise StateError("the agent's records are closed", hint="the agent is stopping")
        return _Transaction(self._guard, self._database)

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Transaction:
    """One durable change under the guard; disk errors become UnavailableError."""

    def __init__(self, guard: threading.Lock, database: sqlite3.Connection) -> None:
        self._guard = guard
        self._database = database

    def __enter__(self) -> sqlite3.Connection:
        self._guard.acquire()
        try:
            self._database.execute("BEGIN IMMEDIATE")
        except BaseException as error:
            self._guard.release()
            raise _unusable(error) from error
        return self._database

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            self._database.execute("COMMIT" if kind is None else "ROLLBACK")
        except sqlite3.Error as failure:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise _unusable(failure) from failure
        finally:
            self._guard.release()
        if isinstance(error, sqlite3.Error):
            raise _unusable(error) from error


def _unusable(error: BaseException) -> BaseException:
    if not isinstance(error, sqlite3.Error):
        return error
    return UnavailableError(
        f"the agent's records cannot be written: {error}", hint="is the disk full?", reason="STATE_UNUSABLE"
    )


def _record(row: sqlite3.Row) -> Record:
    return Record(
        uid=row["uid"],
        epoch=row["epoch"],
        holding=Holding(row["holding"]),
        peer=row["peer"],
        peer_address=row["peer_address"],
        migration=row["migration"],
        frozen_at_ns=row["frozen_at_ns"],
        settled=bool(row["settled"]),
        request_id=row["request_id"],
        guest=row["guest"],
    )


def _lock_directory(directory: Path) -> int:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UnavailableError(
            f"{directory} cannot be used: {error.strerror}",
            hint="choose another --state-dir",
            reason="STATE_UNUSABLE",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise AlreadyExistsError(
            f"another agent uses {directory}",
            hint="stop it, or choose another --state-dir",
            reason="STATE_IN_USE",
        ) from error
    return descriptor


def _open_database(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        database.row_factory = sqlite3.Row
        database.execute("PRAGMA journal_mode = WAL")
        # FULL: each commit is fsynced, which the hand-over relies on.
        database.execute("PRAGMA synchronous = FULL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise NotFoundError(
                f"{path} is of a newer Serai (format {version}, this one knows {_VERSION})",
                hint="run that version, or choose another --state-dir",
            )
        database.execute(_SCHEMA)
        database.execute(_SEGMENTS)
        database.execute(f"PRAGMA user_version = {_VERSION}")
    except BaseException:
        database.close()
        raise
    return database
