"""Daemons: readiness, failure to start, and that only our own processes are ever signalled."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from serai.cli.local import processes
from serai.cli.local.processes import DaemonSpec
from serai.errors import UnavailableError

SERVES = "import pathlib, signal, sys; pathlib.Path(sys.argv[1]).write_text('{\"port\": 7}'); signal.pause()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SERVES


def spec(folder: Path, program: str) -> DaemonSpec:
    ready = folder / "ready.json"
    argv = (sys.executable, "-c", program, str(ready))
    return DaemonSpec(name="part", argv=argv, ready_file=ready, log_file=folder / "log", environment={})


def test_started_ready_and_stopped(tmp_path: Path) -> None:
    part = spec(tmp_path, SERVES)
    daemon = processes.start(part)
    assert processes.wait_ready(part, daemon, timeout=20.0) == {"port": 7}
    assert daemon.alive()
    assert processes.stop([daemon], grace=10.0) == []
    assert not daemon.alive()


def test_one_that_ignores_sigterm_is_killed_and_named(tmp_path: Path) -> None:
    part = spec(tmp_path, STUBBORN)
    daemon = processes.start(part)
    processes.wait_ready(part, daemon, timeout=20.0)
    assert processes.stop([daemon], grace=0.2) == ["part"]
    assert not daemon.alive()


def test_one_that_ends_while_starting_tells_its_last_words(tmp_path: Path) -> None:
    part = spec(tmp_path, "raise SystemExit('port 7 is busy')")
    daemon = processes.start(part)
    with pytest.raises(UnavailableError, match="port 7 is busy") as caught:
        processes.wait_ready(part, daemon, timeout=20.0)
    assert str(part.log_file) in caught.value.hint


def test_a_pid_used_again_is_not_ours(tmp_path: Path) -> None:
    stranger = processes.Daemon(name="old", pid=os.getpid(), start_ticks=1, log_file=tmp_path / "log")
    assert not stranger.alive()
    assert processes.stop([stranger], grace=5.0) == []
