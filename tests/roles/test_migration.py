from __future__ import annotations

import asyncio

import pytest
from tests.roles.bench import Bench

from serai.errors import (
    CancelledByUserError,
    HypervisorError,
    InvalidInputError,
    NotFoundError,
    SeraiError,
)
from serai.v1.operation_pb2 import GetOperationRequest, Operation
from serai.v1.operation_pb2_grpc import OperationServiceStub
from serai.v1.operator_pb2 import GetVnetRequest, MigrateVnetNodeRequest, Vnet, VnetNodeRequest
from serai.wire.identity import Role


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


@pytest.mark.parametrize("destination", ["beta/b1", "alpha"])
@pytest.mark.parametrize("phase", ["prepare", "stream", "freeze"])
async def test_a_failure_before_hand_over_changes_nothing(bench: Bench, phase: str, destination: str) -> None:
    await bench.create()
    source = await where(bench, "client")
    destination = elsewhere(source) if destination == "alpha" else destination
    before = snapshot(bench)
    bench.agents[source].fail[phase] = HypervisorError(f"no {phase} today")
    with pytest.raises(SeraiError, match=f"no {phase} today"):
        await migrate(bench, "client", destination)
    assert snapshot(bench) == before
    assert await where(bench, "client") == source
    check_links(bench)
    await migrate(bench, "client", destination)
    await bench.delete("vnets/demo")
    assert await bench.residue() == []


@pytest.mark.parametrize("destination", ["beta/b1", "alpha"])
async def test_a_failure_after_hand_over_is_a_move(bench: Bench, destination: str) -> None:
    """The source could not tidy up, but the guest is the destination's: so are its links."""
    await bench.create()
    source = await where(bench, "client")
    destination = elsewhere(source) if destination == "alpha" else destination
    bench.agents[source].fail["release"] = HypervisorError("too late")
    await migrate(bench, "client", destination)
    assert await where(bench, "client") == destination
    check_links(bench)
    await bench.delete("vnets/demo")
    assert await bench.residue() == []


@pytest.mark.parametrize("destination", ["beta/b1", "alpha"])
async def test_a_cancelled_migration_changes_nothing(bench: Bench, destination: str) -> None:
    await bench.create()
    source = await where(bench, "client")
    destination = elsewhere(source) if destination == "alpha" else destination
    before = snapshot(bench)
    agent = bench.agents[source]
    agent.hold["stream"].clear()
    request = MigrateVnetNodeRequest(name="vnets/demo/nodes/client", destination=destination)
    operation = await bench.operator.MigrateVnetNode(request)
    async with asyncio.timeout(5):
        await agent.reached["stream"].wait()
    stub = OperationServiceStub(bench.channel(Role.VNO, "operator"))
    await stub.CancelOperation(GetOperationRequest(name=operation.name))
    with pytest.raises(CancelledByUserError):
        await bench.outcome(operation)
    assert snapshot(bench) == before


@pytest.mark.parametrize("method", ["PermitArrival", "CreateSegment"])
@pytest.mark.parametrize("destination", ["beta/b1", "alpha"])
async def test_a_destination_that_refuses(bench: Bench, method: str, destination: str) -> None:
    await bench.create()
    source = await where(bench, "client")
    destination = elsewhere(source) if destination == "alpha" else destination
    before = snapshot(bench)
    bench.agents[destination].fail[method] = HypervisorError("not here")
    with pytest.raises(HypervisorError, match="not here"):
        await migrate(bench, "client", destination)
    assert snapshot(bench) == before


async def test_places_that_cannot_be(bench: Bench) -> None:
    await bench.create()
    for destination, error in (
        ("gamma", NotFoundError),
        ("beta/b9", SeraiError),
        (await where(bench, "client"), InvalidInputError),
    ):
        with pytest.raises(error) as caught:
            await migrate(bench, "client", destination)
        assert destination.rpartition("/")[2] in caught.value.message
    with pytest.raises(NotFoundError):
        await migrate(bench, "nobody", "beta")


async def test_a_place_is_chosen_where_none_is_named(bench: Bench) -> None:
    await bench.create()
    source = await where(bench, "client")
    await migrate(bench, "client", "")
    assert await where(bench, "client") != source
    check_links(bench)


async def test_the_slice_of_a_new_provider_comes_and_goes(bench: Bench) -> None:
    document = b'<vnet xmlns="urn:serai:vnet:1" name="demo"><node name="x" provider="alpha"/></vnet>'
    await bench.create(document)
    await migrate(bench, "x", "beta")
    vnet = await bench.operator.GetVnet(GetVnetRequest(name="vnets/demo"))
    assert vnet.provider_count == 1
    assert bench.agents["alpha/a1"].is_empty and bench.agents["alpha/a2"].is_empty
    await bench.delete("vnets/demo")
    assert await bench.residue() == []


def elsewhere(place: str) -> str:
    """The other node of its provider."""
    return {"alpha/a1": "alpha/a2", "alpha/a2": "alpha/a1"}[place]


def snapshot(bench: Bench) -> dict[str, tuple[list[str], list[str], int]]:
    """What each agent has; and all that is reserved."""
    seen = {
        node: (sorted(agent.guests), sorted(agent.segments), len(agent.permits))
        for node, agent in bench.agents.items()
    }
    for name in ("alpha", "beta"):
        state = bench.roles()[Role.PIP, name].state
        usage = state.usage()
        books = [usage.vcpus, usage.memory_bytes, usage.border_bps]
        seen[name] = (
            sorted(str(sorted(book.items())) for book in books),
            sorted(item.name for item in state.connections),
            len(state.leftovers),
        )
    return seen
