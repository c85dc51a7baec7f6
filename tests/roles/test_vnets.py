from __future__ import annotations

from tests.roles.bench import Bench

from serai.v1.guest_pb2 import Guest
from serai.v1.operator_pb2 import GetVnetRequest, ListVnetsRequest, Vnet


async def test_create_list_delete_over_two_providers(bench: Bench) -> None:
    operation = await bench.create()
    assert [step.name for step in operation.steps] == [
        "describe", "match", "split", "embed", "allocate", "provision", "configure"
    ]  # fmt: skip
    vnet = await bench.operator.GetVnet(GetVnetRequest(name="vnets/demo"))
    assert vnet.state == Vnet.RUNNING
    assert vnet.provider_count == 2
    assert all(node.ready and node.state == Guest.RUNNING for node in vnet.nodes)
    assert len((await bench.operator.ListVnets(ListVnetsRequest())).vnets) == 1
    assert sum(len(agent.guests) for agent in bench.agents.values()) == 3
    assert await bench.residue()
    await bench.delete("vnets/demo")
    assert await bench.residue() == []
