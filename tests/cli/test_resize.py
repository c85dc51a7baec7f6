"""`serai vm resize` on a local cluster: the guest's own view, the books, refusals."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.test_repair import CLUSTER, VNET, Cluster, type_at

pytestmark = pytest.mark.guest


@pytest.fixture
def running_pair(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path / "state")
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    (tmp_path / "pair.xml").write_text(VNET)
    cluster.run("cluster", "up", "-f", str(tmp_path / "cluster.yaml"))
    try:
        cluster.run("vnet", "request", "-f", str(tmp_path / "pair.xml"), "--cluster", "fragile")
        yield cluster
    finally:
        cluster.run("cluster", "down", "--cluster", "fragile")


def allocated(cluster: Cluster) -> tuple[int, int]:
    """vCPUs and bytes that the agents say they have promised."""
    nodes = json.loads(cluster.run("node", "list", "--cluster", "fragile", "-o", "json"))
    return (
        sum(int(node["allocated"].get("vcpus", 0)) for node in nodes),
        sum(int(node["allocated"].get("memory_bytes", 0)) for node in nodes),
    )


def resize(cluster: Cluster, *options: str, expect: int = 0) -> str:
    return cluster.run("vm", "resize", "pair/one", *options, "--cluster", "fragile", expect=expect)


def test_up_and_down_while_it_runs(running_pair: Cluster) -> None:
    cluster = running_pair
    before = cluster.show("one")
    said = resize(cluster, "--vcpus", "4", "--memory", "256MiB")
    assert "resized to 4 vCPUs and 256 MiB; the guest sees 4 processors" in said
    assert "\r\n4\r\n" in type_at(cluster, "one", "nproc")
    size = json.loads(resize(cluster, "--vcpus", "2", "--memory", "192MiB", "-o", "json"))
    assert (size["vcpus"], size["guest_vcpus"]) == (2, 2)
    assert int(size["guest_memory_bytes"]) < 192 << 20
    after = cluster.show("one")
    assert (after["vcpus"], int(after["memory_bytes"])) == (2, 192 << 20)
    assert before["start_time"] == after["start_time"], "it ran all the while"
    with pytest.raises(AssertionError, match="short of vCPUs: 62 more asked"):
        resize(cluster, "--vcpus", "64")
    with pytest.raises(AssertionError, match="nothing to change"):
        resize(cluster)
    other = cluster.show("two")
    expected = (2 + other["vcpus"], (192 << 20) + int(other["memory_bytes"]))
    deadline = time.monotonic() + 20  # the agents' word comes with their heartbeats
    while allocated(cluster) != expected:
        assert time.monotonic() < deadline, allocated(cluster)
