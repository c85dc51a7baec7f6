"""Settings by flag, environment, file and default, in that order; and the durable records."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest

from serai.agent.records import Holding, Records
from serai.agent.settings import SOURCE, AgentSettings
from serai.errors import AlreadyExistsError, ConflictError, InvalidInputError, SeraiError, StateError

REQUIRED = {"node": "alpha/a1", "credentials": "c", "state_dir": "s"}


def load(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], file: Path | None = None, **env: str
) -> AgentSettings:
    for name, value in env.items():
        monkeypatch.setenv(f"SERAI_AGENT_{name.upper()}", value)
    parsed = SOURCE.parse_arguments(flags)
    return SOURCE.load(parsed, file or parsed.pop("config", None))


def test_flags_beat_environment_beats_file_beats_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(
        "node: alpha/a1\ncredentials: c\nstate_dir: s\nvcpus: 2\nmemory: 3GiB\nheartbeat_s: 0.25\n"
    )
    settings = load(monkeypatch, ["--vcpus", "4", "--config", str(file)], vcpus="3", memory="2GiB")
    assert (settings.vcpus, settings.memory, settings.heartbeat_s) == (4, 2 << 30, 0.25)
    assert (settings.provider, settings.node_id, settings.driver) == ("alpha", "a1", "emulated")


def test_all_errors_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--node", "a1", "--vcpus", "0", "--listen", "nowhere", "--heartbeat-s", "2"]
    with pytest.raises(InvalidInputError) as caught:
        load(monkeypatch, flags)
    for word in ("node", "vcpus", "listen", "heartbeat_s", "credentials", "state_dir"):
        assert word in caught.value.message


@pytest.mark.parametrize("content", ["- a\n", "{", "nodes: alpha/a1\n"])
def test_a_file_that_holds_no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(content)
    with pytest.raises(InvalidInputError):
        load(monkeypatch, [], file, **REQUIRED)
    with pytest.raises(InvalidInputError, match="nothing"):
        load(monkeypatch, [], tmp_path / "nothing", **REQUIRED)


def test_epochs_never_go_back_and_survive(tmp_path: Path) -> None:
    with Records(tmp_path) as records:
        records.own("u", 1, b"guest", request_id="r")
        records.hand_over("u", 2, "beta/b1", "host:1", "migrations/m")
        with pytest.raises(ConflictError, match="epoch 2 is over"):
            records.own("u", 2, b"guest")
        with pytest.raises(ConflictError):
            records.hand_over("u", 1, "beta/b2", "host:2", "migrations/n")
    with Records(tmp_path) as records:
        record = records.get("u")
        assert record is not None and record.holding is Holding.HANDED and record.guest == b"guest"
        assert (record.epoch, record.peer, record.peer_address) == (2, "beta/b1", "host:1")
        assert (record.migration, record.settled) == ("migrations/m", False)
        records.settle("u")
        record = records.get("u")
        assert record is not None and record.settled and record.guest == b""
        records.own("u", 3, b"again", origin="beta/b1")
        records.end("u")
        record = records.get("u")
        assert record is not None and record.holding is Holding.ENDED and record.epoch == 3


def test_a_guest_that_never_moved_leaves_no_trace(tmp_path: Path) -> None:
    with Records(tmp_path) as records:
        records.own("u", 1, b"guest")
        records.end("u")
        assert records.all() == []


def test_one_agent_a_directory_and_a_clear_word_about_damage(tmp_path: Path) -> None:
    with Records(tmp_path) as records, pytest.raises(AlreadyExistsError, match="another agent uses"):
        Records(tmp_path)
    with pytest.raises(StateError):
        records.own("u", 1, b"guest")
    (tmp_path / "records.sqlite").write_bytes(b"not a database" * 1000)
    for extra in ("records.sqlite-wal", "records.sqlite-shm"):
        (tmp_path / extra).unlink(missing_ok=True)
    with pytest.raises(SeraiError, match="cannot be used"):
        Records(tmp_path)


def test_a_full_disk_is_said_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Records(tmp_path) as records:
        records.own("u", 1, b"guest")
        pages = records._database.execute("PRAGMA page_count").fetchone()[0]
        records._database.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(SeraiError, match="full"):
            records.own("v", 1, os.urandom(1 << 20))
        assert [record.uid for record in records.all()] == ["u"]
        records._database.execute("PRAGMA max_page_count = 1000000")
        records.own("v", 1, b"guest")
    with contextlib.closing(sqlite3.connect(tmp_path / "records.sqlite")) as database:
        assert database.execute("SELECT count(*) FROM guest").fetchone() == (2,)


def test_every_setting_is_in_the_manual() -> None:
    manual = (Path(__file__).resolve().parents[2] / "docs" / "agent.md").read_text()
    listed = [line.split("`")[1] for line in manual.splitlines() if line.startswith("| `")]
    assert sorted(listed) == sorted(AgentSettings.model_fields)
