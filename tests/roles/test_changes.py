"""Changing a VNet while it runs: the least is done, and a failure leaves what was there."""

from __future__ import annotations

from typing import Any

import pytest
from tests.roles.bench import Bench, until

from serai.errors import (
    CancelledByUserError,
    CapacityError,
    DescriptionError,
    HypervisorError,
    NotFoundError,
    SeraiError,
    StateError,
)
from serai.v1.infrastructure_pb2 import ListSlicesRequest
from serai.v1.operation_pb2 import GetOperationRequest, Operation, Step
from serai.v1.operation_pb2_grpc import OperationServiceStub
from serai.v1.operator_pb2 import (
    CreateVnetRequest,
    DiffVnetRequest,
    GetVnetRequest,
    UpdateVnetRequest,
    Vnet,
    VnetChange,
    VnetNodeRequest,
)
from serai.wire.identity import Role

NAME = "vnets/small"


def document(*, a: str = "", nodes: str = "", links: str = "", wire: str = "1Mbit/s") -> bytes:
    """Node a with three interfaces, of which one is linked to node b."""
    return f"""<vnet xmlns="urn:serai:vnet:1" name="small">
      <node name="a" provider="alpha" {a}>
        <interface name="eth0"/><interface name="eth1"/><interface name="eth2"/>
      </node>
      <node name="b" provider="beta"/>
      {nodes}
      <link name="wire" bandwidth="{wire}"><end node="a" interface="eth0"/><end node="b"/></link>
      {links}
    </vnet>""".encode()


def spare(name: str, number: int, provider: str = "alpha", more: str = "") -> tuple[str, str]:
    """A node on interface `number` of a."""
    return (
        f'<node name="{name}" provider="{provider}" {more}/>',
        f'<link name="to-{name}" bandwidth="2Mbit/s">'
        f'<end node="a" interface="eth{number}"/><end node="{name}"/></link>',
    )


C_NODE, C_LINK = spare("c", 1, "beta")
WITH_C = document(nodes=C_NODE, links=C_LINK)


async def update(bench: Bench, wanted: bytes, **options: Any) -> Operation:
    return await bench.outcome(await begin(bench, wanted, **options))


async def begin(bench: Bench, wanted: bytes, **options: Any) -> Operation:
    request = UpdateVnetRequest(name=NAME, document=wanted, **options)
    operation: Operation = await bench.operator.UpdateVnet(request)
    return operation


async def differences(bench: Bench, wanted: bytes) -> list[tuple[str, str, str]]:
    reply = await bench.operator.DiffVnet(DiffVnetRequest(name=NAME, document=wanted))
    return [(VnetChange.Action.Name(it.action), it.element, it.field) for it in reply.changes]


def inventory(bench: Bench) -> dict[str, tuple[dict[str, str], set[str]]]:
    """Guests by uid and segments of every agent."""
    return {
        name: ({guest.name: guest.uid for guest in agent.guests.values()}, set(agent.segments))
        for name, agent in bench.agents.items()
    }


def usage(bench: Bench) -> list[Any]:
    states = [bench.roles()[Role.PIP, name].state for name in ("alpha", "beta")]
    found = [state.usage() for state in states]
    return [
        {key: value for key, value in books.items() if value}
        for item in found
        for books in (item.vcpus, item.memory_bytes, item.link_bps, item.border_bps)
    ]


async def names(bench: Bench) -> tuple[list[str], list[str]]:
    vnet: Vnet = await bench.operator.GetVnet(GetVnetRequest(name=NAME))
    assert vnet.state == Vnet.RUNNING
    nodes = [node.name.rpartition("/")[2] for node in vnet.nodes]
    assert all(node.ready for node in vnet.nodes)
    return sorted(nodes), sorted(link.id for link in vnet.links)


async def test_a_node_comes_and_goes_and_the_others_do_not_notice(bench: Bench) -> None:
    await bench.create(document())
    before, booked = inventory(bench), usage(bench)
    assert await differences(bench, WITH_C) == [("ADD", "c", ""), ("ADD", "to-c", "")]
    operation = await update(bench, WITH_C)
    steps = {step.name: step.state for step in operation.steps}
    assert [name for name, state in steps.items() if state == Step.DONE] == [
        "compare", "plan", "reserve", "provision", "activate", "remove"
    ]  # fmt: skip
    assert await names(bench) == (["a", "b", "c"], ["to-c", "wire"])
    during = inventory(bench)
    for place, (guests, segments) in before.items():
        assert guests.items() <= during[place][0].items() and segments <= during[place][1]
    assert await differences(bench, WITH_C) == []
    await update(bench, document())
    assert await names(bench) == (["a", "b"], ["wire"])
    assert (inventory(bench), usage(bench)) == (before, booked)
    await bench.delete(NAME)
    assert await bench.residue() == []


async def test_the_same_again_touches_nothing(bench: Bench) -> None:
    await bench.create(WITH_C)
    before = inventory(bench)
    operation = await update(bench, WITH_C + b"<!-- said differently -->")
    assert [step.name for step in operation.steps if step.state == Step.DONE] == ["compare"]
    assert inventory(bench) == before
    vnet = await bench.operator.GetVnet(GetVnetRequest(name=NAME))
    assert vnet.document.endswith(b"<!-- said differently -->")


async def test_a_provider_takes_part_only_as_long_as_it_is_needed(bench: Bench) -> None:
    alone = b'<vnet xmlns="urn:serai:vnet:1" name="small"><node name="a" provider="alpha"/></vnet>'
    two = alone.replace(b"</vnet>", b'<node name="b" provider="beta"/></vnet>')
    await bench.create(alone)
    await update(bench, two)
    assert await names(bench) == (["a", "b"], [])
    assert len((await bench.pip("beta").ListSlices(ListSlicesRequest())).slices) == 1
    await update(bench, alone)
    assert len((await bench.pip("beta").ListSlices(ListSlicesRequest())).slices) == 0
    await bench.delete(NAME)
    assert await bench.residue() == []


async def test_a_link_changes_over_without_its_guests(bench: Bench) -> None:
    await bench.create(document())
    before = inventory(bench)
    wanted = document(wire="3Mbit/s")
    assert await differences(bench, wanted) == [("CHANGE", "wire", "bandwidth")]
    await update(bench, wanted)
    after = inventory(bench)
    for place in before:
        assert before[place][0] == after[place][0]
        assert not before[place][1] & after[place][1]
        assert len(before[place][1]) == len(after[place][1])
    assert all(segment.active for agent in bench.agents.values() for segment in agent.segments.values())
    border = bench.roles()[Role.PIP, "alpha"].state.usage().border_bps
    assert dict(border) == {"ab": 3_000_000}


async def test_a_restart_is_never_done_unasked(bench: Bench) -> None:
    await bench.create(document())
    before = inventory(bench)
    wanted = document(a='memory="256MiB"')
    with pytest.raises(StateError) as caught:
        await update(bench, wanted)
    assert caught.value.reason == "NEEDS_RESTART" and "memory" in caught.value.message
    assert inventory(bench) == before
    operation = await update(bench, wanted, allow_restart=True)
    assert "clear" in [step.name for step in operation.steps if step.state == Step.DONE]
    assert await names(bench) == (["a", "b"], ["wire"])
    after = inventory(bench)
    assert [after[f"beta/{node}"][0] for node in ("b1", "b2")] == [
        before[f"beta/{node}"][0] for node in ("b1", "b2")
    ]
    alpha = [agent for name, agent in bench.agents.items() if name.startswith("alpha")]
    assert [g.spec.memory_bytes for it in alpha for g in it.guests.values()] == [256 << 20]
    assert await differences(bench, wanted) == []
    await bench.delete(NAME)
    assert await bench.residue() == []


async def test_the_only_node_is_created_anew(bench: Bench) -> None:
    only = '<vnet xmlns="urn:serai:vnet:1" name="small"><node name="a" vcpus="%d"/></vnet>'
    await bench.create((only % 1).encode())
    await update(bench, (only % 2).encode(), allow_restart=True)
    assert await names(bench) == (["a"], [])
    await bench.delete(NAME)
    assert await bench.residue() == []


async def test_a_node_moves_where_the_description_says(bench: Bench) -> None:
    await bench.create(WITH_C)
    node, link = spare("c", 1, "alpha")
    wanted = document(nodes=node, links=link)
    assert await differences(bench, wanted) == [("CHANGE", "c", "provider")]
    await update(bench, wanted)
    there = await bench.operator.GetVnetNode(VnetNodeRequest(name=f"{NAME}/nodes/c"))
    assert there.provider == "alpha"
    assert await differences(bench, wanted) == []
    await bench.delete(NAME)
    assert await bench.residue() == []


async def test_a_dry_run_finds_room_and_changes_nothing(bench: Bench) -> None:
    await bench.create(document())
    before, booked = inventory(bench), usage(bench)
    await update(bench, WITH_C, validate_only=True)
    node, link = spare("c", 1, "beta", 'memory="64GiB"')
    with pytest.raises(CapacityError):
        await update(bench, document(nodes=node, links=link), validate_only=True)
    assert (inventory(bench), usage(bench)) == (before, booked)
    assert await names(bench) == (["a", "b"], ["wire"])


async def fails_and_leaves_everything(bench: Bench, wanted: bytes, error: type[SeraiError]) -> SeraiError:
    before, booked = inventory(bench), usage(bench)
    with pytest.raises(error) as caught:
        await update(bench, wanted)
    assert (inventory(bench), usage(bench)) == (before, booked)
    assert await names(bench) == (["a", "b"], ["wire"])
    return caught.value


async def test_no_room_leaves_everything(bench: Bench) -> None:
    await bench.create(document())
    node, link = spare("c", 1, "beta", 'memory="64GiB"')
    error = await fails_and_leaves_everything(bench, document(nodes=node, links=link), CapacityError)
    assert "memory" in error.message


@pytest.mark.parametrize("method", ["CreateGuest", "CreateSegment", "StartGuest"])
@pytest.mark.parametrize("provider", ["alpha", "beta"])
async def test_an_agent_that_fails_leaves_everything(bench: Bench, method: str, provider: str) -> None:
    """`c` comes to each provider in turn; the change of `wire` has parts at both."""
    await bench.create(document())
    for name, agent in bench.agents.items():
        if name.startswith(provider):
            agent.fail[method] = HypervisorError("out of luck")
    node, link = spare("c", 1, provider)
    wanted = document(nodes=node, links=link, wire="2Mbit/s")
    await fails_and_leaves_everything(bench, wanted, HypervisorError)
    for agent in bench.agents.values():
        agent.fail.clear()
    await update(bench, wanted)
    assert await names(bench) == (["a", "b", "c"], ["to-c", "wire"])
    await bench.delete(NAME)
    assert await bench.residue() == []


async def test_links_that_cannot_be_activated_are_undone(bench: Bench) -> None:
    await bench.create(document())
    for name in ("beta/b1", "beta/b2"):
        bench.agents[name].fail["ActivateSegment"] = HypervisorError("out of luck")
    await fails_and_leaves_everything(bench, document(wire="2Mbit/s"), HypervisorError)


async def test_a_guest_that_dies_while_it_starts_leaves_everything(bench: Bench) -> None:
    await bench.create(document())
    before, booked = inventory(bench), usage(bench)
    present = {name for agent in bench.agents.values() for name in agent.guests}
    for agent in bench.agents.values():
        agent.never_ready = True
    operation = await begin(bench, WITH_C)

    def started() -> list[tuple[Any, str]]:
        return [
            (agent, name)
            for agent in bench.agents.values()
            for name, guest in agent.guests.items()
            if name not in present and guest.HasField("start_time")
        ]

    await until(lambda: bool(started()))
    agent, name = started()[0]
    agent.crash_guest(name)
    with pytest.raises(HypervisorError, match="killed by SIGKILL"):
        await bench.outcome(operation)
    assert (inventory(bench), usage(bench)) == (before, booked)
    assert await names(bench) == (["a", "b"], ["wire"])


async def test_a_cancelled_change_leaves_everything(bench: Bench) -> None:
    await bench.create(document())
    before, booked = inventory(bench), usage(bench)
    present = {name for agent in bench.agents.values() for name in agent.guests}
    for agent in bench.agents.values():
        agent.never_ready = True
    operation = await begin(bench, WITH_C)
    await until(lambda: any(agent.guests.keys() - present for agent in bench.agents.values()))
    stub = OperationServiceStub(bench.channel(Role.VNO, "operator"))
    await stub.CancelOperation(GetOperationRequest(name=operation.name))
    with pytest.raises(CancelledByUserError):
        await bench.outcome(operation)
    assert (inventory(bench), usage(bench)) == (before, booked)
    assert await differences(bench, document()) == []


async def test_deleting_what_is_being_changed(bench: Bench) -> None:
    await bench.create(document())
    for agent in bench.agents.values():
        agent.never_ready = True
    operation = await begin(bench, WITH_C)
    await until(lambda: sum(len(agent.guests) for agent in bench.agents.values()) == 3)
    await bench.delete(NAME)
    assert (await bench.settled(operation)).failure.reason == "CANCELLED"
    assert await bench.residue() == []


async def test_one_change_at_a_time(bench: Bench) -> None:
    await bench.create(document())
    for agent in bench.agents.values():
        agent.never_ready = True
    operation = await begin(bench, WITH_C)
    with pytest.raises(StateError):
        await begin(bench, document())
    stub = OperationServiceStub(bench.channel(Role.VNO, "operator"))
    await stub.CancelOperation(GetOperationRequest(name=operation.name))
    await bench.settled(operation)


async def test_what_cannot_be_changed(bench: Bench) -> None:
    with pytest.raises(NotFoundError):
        await begin(bench, document())
    await bench.operator.CreateVnet(CreateVnetRequest(document=document()))
    with pytest.raises(StateError):
        await begin(bench, document())
    with pytest.raises(DescriptionError):
        await differences(bench, document(a='memory="much"'))


async def test_a_node_deleted_by_hand_comes_back(bench: Bench) -> None:
    await bench.create(WITH_C)
    await bench.outcome(await bench.operator.DeleteVnetNode(VnetNodeRequest(name=f"{NAME}/nodes/c")))
    assert await differences(bench, WITH_C) == [("ADD", "c", ""), ("ADD", "to-c", "")]
    await update(bench, WITH_C)
    assert await names(bench) == (["a", "b", "c"], ["to-c", "wire"])
