"""Virtual links with more than two ends: one Ethernet segment over two providers."""

from __future__ import annotations

from typing import Any

import pytest
from tests.roles.bench import Bench, until
from tests.roles.test_real_agents import find, real  # noqa: F401 - a fixture

from serai.errors import StateError
from serai.v1.operator_pb2 import (
    CreateVnetRequest,
    GetVnetRequest,
    MigrateVnetNodeRequest,
    UpdateVnetRequest,
    Vnet,
)
from serai.v1.provider_pb2 import ListNetworksRequest, MigrateNetworkNodeRequest
from serai.wire.identity import Role

PLACES = {"a": "alpha", "b": "alpha", "c": "beta", "d": "beta"}
EVERYBODY = b"\xff" * 6


def document(name: str = "lan", members: str = "abcd") -> bytes:
    nodes = "".join(f'<node name="{node}" provider="{PLACES[node]}"/>' for node in members)
    ends = "".join(f'<end node="{node}"/>' for node in members)
    text = f'<vnet xmlns="urn:serai:vnet:1" name="{name}">{nodes}'
    return f'{text}<link name="lan" bandwidth="1Mbit/s">{ends}</link></vnet>'.encode()


def mac(node: str) -> bytes:
    return b"\2\0\0\0\0" + node.encode()


def received(bench: Bench, node: str, data: bytes) -> int:
    return sum(data in frame for frame in find(bench, node)[1].port("eth0").received)


async def send(bench: Bench, source: str, to: bytes, data: bytes) -> None:
    find(bench, source)[1].port("eth0").send(to + mac(source) + b"\x88\xb5" + data)


async def everybody_hears_everybody(bench: Bench, members: str, tag: str) -> None:
    for source in members:
        data = f"{tag} from {source} to all".encode()
        await send(bench, source, EVERYBODY, data)
        others = [node for node in members if node != source]
        await until(lambda: all(received(bench, node, data) == 1 for node in others))  # noqa: B023
        assert received(bench, source, data) == 0
    for source in members:
        for target in members:
            if source != target:
                data = f"{tag} from {source} to {target} alone".encode()
                await send(bench, source, mac(target), data)
                await until(lambda: received(bench, target, data) == 1)  # noqa: B023
                assert all(received(bench, node, data) == 0 for node in members if node != target)


def bridges(bench: Bench) -> int:
    return sum(len(agent.agent.data_plane._bridges) for agent in bench.agents.values())


async def test_everybody_hears_everybody_and_nobody_else_does(real: Bench) -> None:  # noqa: F811
    await real.create(document())
    await everybody_hears_everybody(real, "abcd", "first")
    vnet: Vnet = await real.operator.GetVnet(GetVnetRequest(name="vnets/lan"))
    assert sorted(node.name[-1] for node in vnet.nodes) == list("abcd"), "the bridge is no node of anybody's"
    assert len(vnet.links) == 4 and bridges(real) == 1
    for name in ("alpha", "beta"):
        record = next(iter(real.roles()[Role.PIP, name].state.slices))
        assert sum(record.parts.nodes[key].spec.bridge for key in record.parts.nodes) <= 1
    before = {node: len(find(real, node)[1].port("eth0").received) for node in "abcd"}
    # Another VNet of the same shape and the same MAC addresses.
    other = (
        document("other").replace(b'name="a"', b'name="x"').replace(b'<end node="a"/>', b'<end node="x"/>')
    )
    await real.create(other)
    await send(real, "x", EVERYBODY, b"in the other one")
    await until(
        lambda: (
            sum(
                b"in the other one" in frame
                for agent in real.agents.values()
                for guest in agent.driver.guests.values()
                for frame in guest.port("eth0").received
            )
            == 3
        )
    )
    assert received(real, "a", b"in the other one") == 0
    assert before["a"] == len(find(real, "a")[1].port("eth0").received)
    await real.delete("vnets/other")
    await real.delete("vnets/lan")
    assert bridges(real) == 0
    assert await real.residue() == []


@pytest.mark.parametrize(("node", "destination"), [("a", "beta/b2"), ("d", "alpha/a1"), ("b", "alpha")])
async def test_a_member_moves(real: Bench, node: str, destination: str) -> None:  # noqa: F811
    await real.create(document())
    await everybody_hears_everybody(real, "abcd", "before")
    here, _ = find(real, node)
    if destination == "alpha":
        destination = {"alpha/a1": "alpha/a2", "alpha/a2": "alpha/a1"}[here]
    request = MigrateVnetNodeRequest(name=f"vnets/lan/nodes/{node}", destination=destination)
    await real.outcome(await real.operator.MigrateVnetNode(request))
    assert find(real, node)[0] == destination
    await everybody_hears_everybody(real, "abcd", "after")
    await real.delete("vnets/lan")
    assert await real.residue() == []


async def test_members_come_and_go(real: Bench) -> None:  # noqa: F811
    await real.create(document(members="abc"))
    guests = {node: find(real, node)[1] for node in "abc"}

    async def become(members: str) -> Any:
        request = UpdateVnetRequest(name="vnets/lan", document=document(members=members))
        return await real.outcome(await real.operator.UpdateVnet(request))

    await become("abcd")
    await everybody_hears_everybody(real, "abcd", "four")
    await become("bcd")
    await everybody_hears_everybody(real, "bcd", "three")
    assert all(find(real, node)[1] is guests[node] for node in "bc"), "who stays is not touched"
    await real.delete("vnets/lan")
    assert await real.residue() == []


async def test_a_bridge_does_not_move(real: Bench) -> None:  # noqa: F811
    await real.create(document())
    network = (await real.vnp.ListNetworks(ListNetworksRequest())).networks[0]
    handle = next(node.handle for node in network.nodes if node.id == "lan-bridge")
    with pytest.raises(StateError, match="bridge"):
        await real.outcome(
            await real.vnp.MigrateNetworkNode(MigrateNetworkNodeRequest(handle=handle)), Role.VNP, "vnp"
        )


async def test_no_room_on_an_arm_leaves_nothing(real: Bench) -> None:  # noqa: F811
    """A border of 100 Mbit/s cannot carry it."""
    wanted = document().replace(b"1Mbit/s", b"150Mbit/s")
    done = await real.settled(await real.operator.CreateVnet(CreateVnetRequest(document=wanted)))
    assert "bandwidth" in done.failure.message
    assert await real.residue() == []


FRAMES = {
    "IPv6": b"\x86\xdd" + b"\x60" + bytes(39) + b"payload",
    "802.1Q": b"\x81\x00\x00\x2a\x08\x00" + b"tagged",
    "802.1ad in 802.1Q": b"\x88\xa8\x00\x07\x81\x00\x00\x2a\x86\xdd" + b"twice",
    "no IP at all": b"\x88\xb5" + bytes(range(256)),
    "jumbo": b"\x08\x00" + b"\xa5" * 9000,
    "LLDP": b"\x88\xcc" + b"\x02\x07\x04",
}


@pytest.mark.parametrize("kind", FRAMES)
async def test_whatever_is_in_a_frame_arrives_unchanged(real: Bench, kind: str) -> None:  # noqa: F811
    """Over two providers and the bridge: to all, and to one."""
    await real.create(document())
    for to, targets in ((EVERYBODY, "bcd"), (mac("d"), "d")):
        frame = to + mac("a") + FRAMES[kind]
        find(real, "d")[1].port("eth0").send(EVERYBODY + mac("d") + b"\x88\xb5here")
        find(real, "a")[1].port("eth0").send(frame)
        for node in targets:
            port = find(real, node)[1].port("eth0")
            await until(lambda: frame in port.received)  # noqa: B023
