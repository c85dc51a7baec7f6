from __future__ import annotations

import pytest
from tests.roles.bench import Bench

from serai.v1.operation_pb2 import Operation
from serai.v1.operator_pb2 import GetVnetRequest, MigrateVnetNodeRequest, Vnet, VnetNodeRequest


async def migrate(bench: Bench, node: str, destination: str) -> Operation:
    request = MigrateVnetNodeRequest(name=f"vnets/demo/nodes/{node}", destination=destination)
    return await bench.outcome(await bench.operator.MigrateVnetNode(request))


async def where(bench: Bench, node: str) -> str:
    view = await bench.operator.GetVnetNode(VnetNodeRequest(name=f"vnets/demo/nodes/{node}"))
    return f"{view.provider}/{view.placement}"


@pytest.mark.parametrize("node", ["client", "router"])
async def test_a_node_moves_to_the_other_provider_and_back(bench: Bench, node: str) -> None:
    await bench.create()
    before = await where(bench, node)
    uid = next(
        g.uid for a in bench.agents.values() for g in a.guests.values() if g.name.startswith(f"guests/{node}")
    )
    operation = await migrate(bench, node, "beta/b2")
    assert operation.migration.rounds == 3
    assert operation.migration.destination_node == "beta/b2"
    assert await where(bench, node) == "beta/b2"
    assert [g.uid for g in bench.agents["beta/b2"].guests.values() if g.uid == uid] == [uid]
    vnet = await bench.operator.GetVnet(GetVnetRequest(name="vnets/demo"))
    assert vnet.state == Vnet.RUNNING
    check_links(bench)
    await migrate(bench, node, before)
    assert await where(bench, node) == before
    check_links(bench)
    await bench.delete("vnets/demo")
    assert await bench.residue() == []


def check_links(bench: Bench) -> None:
    """Every segment is the only one at its points, and every label has a segment at both ends."""
    ends: list[tuple[str, str, int]] = []
    for node, agent in bench.agents.items():
        points = [p.SerializeToString() for s in agent.segments.values() for p in (s.a, s.b)]
        assert len(points) == len(set(points)), f"two segments share a point at {node}"
        uids = {guest.uid for guest in agent.guests.values()}
        for segment in agent.segments.values():
            assert segment.active
            for point in (segment.a, segment.b):
                if point.HasField("peer"):
                    ends.append((node, point.peer.node, point.peer.label))
                    assert bench.agents[point.peer.node].address == point.peer.control_address
                else:
                    assert point.port.guest_uid in uids
    for node, peer, label in ends:
        assert (peer, node, label) in ends
