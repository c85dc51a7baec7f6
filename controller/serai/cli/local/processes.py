"""Daemons as child processes that outlive the command which starts them.

A process is remembered by pid *and* start time, so that a pid used again by something else is never
signalled.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from serai.errors import UnavailableError

_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class DaemonSpec:
    """What to start. `ready_file` is written by the daemon, as JSON, once it serves."""

    name: str
    argv: tuple[str, ...]
    ready_file: Path
    log_file: Path
    environment: Mapping[str, str]


class Daemon(BaseModel):
    """A started process, as kept in the cluster's state file."""

    model_config = ConfigDict(frozen=True)

    name: str
    pid: int
    start_ticks: int
    log_file: Path

    def alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        return _start_ticks(self.pid) == self.start_ticks


def start(spec: DaemonSpec) -> Daemon:
    """Start a daemon in its own session, its output in its log file."""
    spec.ready_file.unlink(missing_ok=True)
    spec.log_file.parent.mkdir(parents=True, exist_ok=True)
    to_log = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    # Not subprocess: the process is meant to outlive us, and Popen minds that.
    pid = os.posix_spawn(
        spec.argv[0],
        spec.argv,
        {**os.environ, **spec.environment},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(spec.log_file), to_log, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    return Daemon(name=spec.name, pid=pid, start_ticks=_start_ticks(pid) or 0, log_file=spec.log_file)


def wait_ready(spec: DaemonSpec, daemon: Daemon, *, timeout: float) -> dict[str, object]:
    """What the daemon wrote into its ready file.

    Raises UnavailableError with the end of its log when it ended or was not ready in `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not spec.ready_file.exists():
        if not daemon.alive():
            raise _start_error(f"{spec.name} ended while starting", daemon)
        if time.monotonic() > deadline:
            raise _start_error(f"{spec.name} was not ready within {timeout:.0f} s", daemon)
        time.sleep(_POLL_SECONDS)
    loaded: dict[str, object] = json.loads(spec.ready_file.read_text())
    return loaded


def stop(daemons: Iterable[Daemon], *, grace: float) -> list[str]:
    """Ask all with SIGTERM, wait `grace` seconds, end the rest; the names of those that had to be killed."""
    waiting = [daemon for daemon in daemons if _signal(daemon, signal.SIGTERM)]
    deadline = time.monotonic() + grace
    while waiting and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        waiting = [daemon for daemon in waiting if daemon.alive()]
    for daemon in waiting:
        _signal(daemon, signal.SIGKILL)
    while any(daemon.alive() for daemon in waiting):
        time.sleep(_POLL_SECONDS)
    return [daemon.name for daemon in waiting]


def log_tail(log_file: Path, *, lines: int = 8) -> str:
    """The last lines of a log, for an error message."""
    try:
        text = log_file.read_text(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def _start_error(problem: str, daemon: Daemon) -> UnavailableError:
    tail = log_tail(daemon.log_file)
    detail = f"; it last said:\n{tail}" if tail else ""
    return UnavailableError(problem + detail, hint=f"the whole log is {daemon.log_file}", daemon=daemon.name)


def _signal(daemon: Daemon, number: signal.Signals) -> bool:
    if not daemon.alive():
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(daemon.pid, number)
    return True


def _start_ticks(pid: int) -> int | None:
    """Start time of a live process in clock ticks since boot (proc(5): stat field 22); None when it is gone.

    A child of ours that has ended is collected on the way.
    """
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])
