"""`serai cluster up` when it cannot: one clear message, and nothing left behind."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.cli.test_commands import serai

CLUSTER = """
name: tiny
broker: none
providers:
  - name: alpha
    nodes: [{{name: a1, port: {port}}}]
"""


def write_cluster(folder: Path, port: int = 0) -> Path:
    file = folder / "cluster.yaml"
    file.write_text(CLUSTER.format(port=port))
    return file


def processes_of(state: Path) -> list[str]:
    """Live processes started for this state directory: they inherit the environment."""
    marker = f"SERAI_STATE={state}\0".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (entry / "environ").read_bytes() + b"\0":
                found.append(entry.name)
        except OSError:
            continue
    return found


def test_a_running_cluster_is_not_started_again(tmp_path: Path) -> None:
    state, file = tmp_path / "state", write_cluster(tmp_path)
    first = serai(state, "cluster", "up", "-f", str(file))
    assert first.returncode == 0, first.stderr
    running = processes_of(state)
    second = serai(state, "cluster", "up", "-f", str(file))
    assert second.returncode == 5
    assert "already running" in second.stderr
    assert "serai cluster down --cluster tiny" in second.stderr
    assert processes_of(state) == running
    assert serai(state, "cluster", "down", "--cluster", "tiny").returncode == 0
    assert processes_of(state) == []


def test_a_busy_port_is_named(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = serai(state, "cluster", "up", "-f", str(write_cluster(tmp_path, port)))
    assert result.returncode == 4
    assert f"127.0.0.1:{port}" in result.stderr
    assert processes_of(state) == []
    assert not list(state.rglob("cluster.json"))
