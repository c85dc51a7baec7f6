"""The main job, whole: what `make demo` runs, and what Ctrl-C leaves of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = os.pathsep.join(str(ROOT / folder) for folder in ("agents", "controller", "proto"))
SHA256 = re.compile(r"[0-9a-f]{64}")

pytestmark = pytest.mark.guest


def start_demo(state: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "serai.cli.main", "demo", *arguments],
        env={**os.environ, "PYTHONPATH": SOURCES, "SERAI_STATE": str(state), "COLUMNS": "160"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def processes_of(state: Path) -> list[int]:
    """Every live process that was started for this state directory: the environment is inherited."""
    marker = f"SERAI_STATE={state}\0".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker in (entry / "environ").read_bytes() + b"\0":
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def wait_for(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)


def test_the_main_job(tmp_path: Path) -> None:
    state, file = tmp_path / "state", tmp_path / "report.json"
    demo = start_demo(state, "--report", str(file))
    output, _ = demo.communicate(timeout=240)
    assert demo.returncode == 0, output
    report = json.loads(file.read_text())
    assert report["ok"] is True
    assert report["failures"] == []
    assert (report["vnet"]["nodes"], report["vnet"]["links"], report["vnet"]["providers"]) == (3, 3, 2)
    assert {guest["name"] for guest in report["guests"]} == {"client", "router", "server"}
    for guest in report["guests"]:
        assert guest["instructions"] > 100_000_000
        assert re.match(r"\d+\.\d+", guest["kernel"])
    assert report["ping"]["sent"] == report["ping"]["received"] > 40
    assert report["transfer"]["bytes"] >= 8 << 20
    assert SHA256.fullmatch(report["transfer"]["sha256_sent"])
    assert report["transfer"]["sha256_sent"] == report["transfer"]["sha256_received"]
    assert report["transfer"]["spans_migration"]
    assert report["isolation"]["foreign_frames"] == 0
    moved = report["migration"]
    assert moved["from"].startswith("alpha/")
    assert moved["to"].startswith("beta/")
    assert SHA256.fullmatch(moved["digest_source"])
    assert moved["digest_source"] == moved["digest_destination"]
    assert moved["rounds"] >= 1
    assert moved["bytes_sent"] > 1 << 20
    assert 0 < moved["downtime_ms"] < moved["total_ms"]
    assert report["residue"] == {"guests": 0, "allocated_memory_bytes": 0}
    assert processes_of(state) == []
    assert not list(state.rglob("*.pem"))


@pytest.mark.parametrize("moment", ["agents", "guests"])
def test_control_c_leaves_nothing(tmp_path: Path, moment: str) -> None:
    state = tmp_path / "state"
    demo = start_demo(state)
    try:
        if moment == "agents":
            wait_for(lambda: len(processes_of(state)) >= 3, seconds=60, what="daemons started")
        else:
            wait_for(lambda: len(processes_of(state)) >= 12, seconds=120, what="guests started")
    finally:
        demo.send_signal(signal.SIGINT)
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, output
    assert "Traceback" not in output
    assert processes_of(state) == []
    assert not list(state.rglob("cluster.json"))
