"""A whole local cluster whose processes are killed and started again around guests that never stop."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serai.cli.context import Context
from serai.cli.local.processes import Daemon
from serai.v1 import guest_pb2
from serai.v1.console_pb2_grpc import ConsoleServiceStub

ROOT = Path(__file__).resolve().parents[2]
SOURCES = os.pathsep.join(str(ROOT / folder) for folder in ("agents", "controller", "proto"))

pytestmark = pytest.mark.guest

CLUSTER = """
name: fragile
providers:
  - name: alpha
    nodes: [{name: a1}, {name: a2}]
    links: [{a: a1, b: a2}]
"""

VNET = """
<vnet xmlns="urn:serai:vnet:1" name="pair">
  <node name="one"><interface name="eth0" address="10.1.0.1/24"/></node>
  <node name="two"><interface name="eth0" address="10.1.0.2/24"/></node>
  <link name="wire"><end node="one" interface="eth0"/><end node="two" interface="eth0"/></link>
</vnet>
"""


@dataclass
class Cluster:
    """A cluster of this test's own, by its command line."""

    state: Path

    def run(self, *arguments: str, expect: int = 0, seconds: float = 180) -> str:
        environment = {**os.environ, "PYTHONPATH": SOURCES, "SERAI_STATE": str(self.state)}
        done = subprocess.run(
            [sys.executable, "-m", "serai.cli.main", *arguments],
            env={**environment, "COLUMNS": "200", "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout

    @property
    def context(self) -> Context:
        return Context(self.state / "clusters" / "fragile")

    def daemon(self, name: str) -> Daemon:
        return next(daemon for daemon in self.context.state().daemons if daemon.name == name)

    def kill(self, name: str) -> None:
        os.kill(self.daemon(name).pid, signal.SIGKILL)

    def guests(self) -> dict[str, int]:
        """Pids of the guests' processes by uid."""
        files = self.context.directory.glob("daemons/agent-*/state/guests/*.pid")
        return {file.stem: int(file.read_text().split()[0]) for file in files}

    def show(self, vm: str) -> dict[str, Any]:
        return dict(json.loads(self.run("vm", "show", f"pair/{vm}", "--cluster", "fragile", "-o", "json")))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path / "state")
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    (tmp_path / "pair.xml").write_text(VNET)
    cluster.run("cluster", "up", "-f", str(tmp_path / "cluster.yaml"))
    try:
        cluster.run("vnet", "request", "-f", str(tmp_path / "pair.xml"), "--cluster", "fragile")
        yield cluster
    finally:
        guests = cluster.guests()
        cluster.run("cluster", "down", "--cluster", "fragile")
        assert not [pid for pid in guests.values() if running(pid)]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def type_at(cluster: Cluster, vm: str, line: str) -> str:
    """What the guest prints after `line`, typed at its console through the controller."""
    return asyncio.run(_type_at(cluster, vm, line))


async def _type_at(cluster: Cluster, vm: str, line: str) -> str:
    async with cluster.context.operator() as channel, asyncio.timeout(60):
        call: Any = ConsoleServiceStub(channel).OpenConsole()
        await call.write(guest_pb2.ConsoleInput(name=f"vnets/pair/nodes/{vm}"))
        await call.read()
        await call.write(guest_pb2.ConsoleInput(data=f"{line}; echo over-$((6*7))\n".encode()))
        output = b""
        while b"over-42" not in output:
            output += (await call.read()).data
        call.cancel()
        return output.decode(errors="replace")


def until_running(cluster: Cluster) -> None:
    """Wait, by the command line, until the controller sees both guests run."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        listed = json.loads(cluster.run("vm", "list", "--cluster", "fragile", "-o", "json"))
        if [vm["state"] for vm in listed] == ["RUNNING", "RUNNING"]:
            return
    raise AssertionError(cluster.run("vm", "list", "--cluster", "fragile"))


def test_guests_outlive_their_agents_and_the_controller(cluster: Cluster) -> None:
    guests = cluster.guests()
    assert len(guests) == 2
    type_at(cluster, "one", "mark=remembered")
    started = cluster.show("one")
    for name in ("agent-alpha-a1", "agent-alpha-a2"):
        cluster.kill(name)
    assert cluster.run("cluster", "repair", "--cluster", "fragile").count("started again") == 2
    assert cluster.guests() == guests and all(running(pid) for pid in guests.values())
    until_running(cluster)
    assert "remembered" in type_at(cluster, "one", "echo $mark")
    assert cluster.show("one").get("start_time") == started.get("start_time")
    assert "0% packet loss" in type_at(cluster, "one", "ping -c 5 -i 0.2 10.1.0.2")

    cluster.kill("controller")
    cluster.run("cluster", "repair", "--cluster", "fragile")
    until_running(cluster)
    assert "0% packet loss" in type_at(cluster, "one", "ping -c 5 -i 0.2 10.1.0.2")
    assert cluster.guests() == guests
    cluster.run("vnet", "delete", "pair", "--cluster", "fragile")
    assert not cluster.guests() and not any(running(pid) for pid in guests.values())


def test_down_ends_guests_whose_agent_was_killed(cluster: Cluster) -> None:
    guests = cluster.guests()
    cluster.kill("agent-alpha-a1")
    cluster.kill("agent-alpha-a2")
    assert all(running(pid) for pid in guests.values())
    cluster.run("cluster", "down", "--cluster", "fragile", "--keep-logs")
    assert not any(running(pid) for pid in guests.values())
    # And what a killed machine's cluster left is ended before the next one starts.
    cluster.run("cluster", "up", "-f", str(cluster.state.parent / "cluster.yaml"))
    assert re.search(r"running", cluster.run("cluster", "status", "--cluster", "fragile"))


def test_a_guest_goes_back_to_a_snapshot(cluster: Cluster) -> None:
    type_at(cluster, "one", "mark=before")
    assert "paused" in cluster.run("vm", "snapshot", "pair/one", "--cluster", "fragile")
    type_at(cluster, "one", "mark=after")
    listed = json.loads(cluster.run("vm", "snapshots", "pair/one", "--cluster", "fragile", "-o", "json"))
    assert [snapshot["name"] for snapshot in listed] == ["1"]
    cluster.run("vm", "restore", "pair/one", "1", "--cluster", "fragile")
    until_running(cluster)
    assert "before" in type_at(cluster, "one", "echo $mark")
    assert "0% packet loss" in type_at(cluster, "one", "ping -c 5 -i 0.2 10.1.0.2")
    cluster.run("vm", "delete-snapshot", "pair/one", "1", "--cluster", "fragile")
    assert json.loads(cluster.run("vm", "snapshots", "pair/one", "--cluster", "fragile", "-o", "json")) == []
    with_snapshots = list(cluster.context.directory.glob("daemons/agent-*/state/snapshots/*"))
    assert with_snapshots == []
