"""Snapshots through all three roles: named by their owner, found after a move, gone with their node."""

from __future__ import annotations

from typing import Any

import pytest
from tests.roles.bench import Bench

from serai.errors import InvalidInputError, NotFoundError, StateError
from serai.v1.guest_pb2 import Guest, ListNodeSnapshotsRequest, NodeSnapshotRequest
from serai.v1.operator_pb2 import GetVnetRequest, MigrateVnetNodeRequest

CLIENT, SERVER = "vnets/demo/nodes/client", "vnets/demo/nodes/server"


def of(node: str, snapshot: str) -> NodeSnapshotRequest:
    return NodeSnapshotRequest(node=node, snapshot=snapshot)


async def names(bench: Bench, node: str) -> list[str]:
    found = await bench.operator.ListVnetNodeSnapshots(ListNodeSnapshotsRequest(node=node))
    assert {snapshot.guest for snapshot in found.snapshots} <= {node}
    return [snapshot.name for snapshot in found.snapshots]


def kept(bench: Bench) -> list[str]:
    return [name for agent in bench.agents.values() for name in agent.snapshots]


async def place_of(bench: Bench, name: str) -> str:
    vnet = await bench.operator.GetVnet(GetVnetRequest(name="vnets/demo"))
    node = next(node for node in vnet.nodes if node.name == name)
    return f"{node.provider}/{node.placement}"


async def test_taken_listed_restored_deleted(bench: Bench) -> None:
    await bench.create()
    taken = await bench.operator.SnapshotVnetNode(of(CLIENT, "first"))
    assert (taken.name, taken.guest) == ("first", CLIENT)
    await bench.operator.SnapshotVnetNode(of(SERVER, "first"))
    await bench.operator.SnapshotVnetNode(of(CLIENT, "second"))
    assert await names(bench, CLIENT) == ["first", "second"]
    assert await names(bench, SERVER) == ["first"]
    assert (await bench.operator.RestoreVnetNode(of(CLIENT, "first"))).state == Guest.RUNNING
    await bench.operator.DeleteVnetNodeSnapshot(of(CLIENT, "first"))
    assert await names(bench, CLIENT) == ["second"]
    assert await names(bench, SERVER) == ["first"], "another guest's of the same name"


@pytest.mark.parametrize(
    ("snapshot", "error"),
    [("first", InvalidInputError), ("Not a name", InvalidInputError), ("x" * 41, InvalidInputError)],
)
async def test_names_are_checked(bench: Bench, snapshot: str, error: Any) -> None:
    await bench.create()
    await bench.operator.SnapshotVnetNode(of(CLIENT, "first"))
    with pytest.raises(error):
        await bench.operator.SnapshotVnetNode(of(CLIENT, snapshot))


async def test_what_is_not_there_is_said(bench: Bench) -> None:
    await bench.create()
    for call in (bench.operator.RestoreVnetNode, bench.operator.DeleteVnetNodeSnapshot):
        with pytest.raises(NotFoundError, match="no snapshot nothing"):
            await call(of(CLIENT, "nothing"))
    with pytest.raises(NotFoundError):
        await bench.operator.SnapshotVnetNode(of("vnets/demo/nodes/nobody", "s"))


async def test_it_stays_where_it_was_taken_and_goes_with_the_node(bench: Bench) -> None:
    await bench.create()
    await bench.operator.SnapshotVnetNode(of(SERVER, "here"))
    before = await place_of(bench, SERVER)
    other = {"beta/b1": "beta/b2", "beta/b2": "beta/b1"}[before]
    await bench.outcome(
        await bench.operator.MigrateVnetNode(MigrateVnetNodeRequest(name=SERVER, destination=other))
    )
    assert await place_of(bench, SERVER) == other
    assert await names(bench, SERVER) == ["here"]
    with pytest.raises(StateError, match="has moved"):
        await bench.operator.RestoreVnetNode(of(SERVER, "here"))
    assert len(kept(bench)) == 1
    await bench.delete("vnets/demo")
    assert kept(bench) == []
