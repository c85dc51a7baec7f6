"""What goes wrong while a VNet is made or unmade: a clear reason, and nothing left anywhere."""

from __future__ import annotations

import asyncio
import uuid
from functools import partial
from typing import Any

import pytest
from tests.roles.bench import SAME_ADDRESSES, TWO_PROVIDERS, Bench, until
from tests.roles.test_migration import migrate, where

from serai.errors import (
    AlreadyExistsError,
    CancelledByUserError,
    CapacityError,
    DescriptionError,
    HypervisorError,
    InvalidInputError,
    NotFoundError,
    SeraiError,
    StateError,
    UnavailableError,
)
from serai.v1.guest_pb2 import Guest, GuestInterface, GuestSpec
from serai.v1.infrastructure_pb2 import (
    AllocateSliceRequest,
    BorderLabel,
    GetSliceRequest,
    ProvisionSliceRequest,
    SliceLink,
    SliceLinkEnd,
    SliceNode,
)
from serai.v1.operation_pb2 import GetOperationRequest, Step
from serai.v1.operation_pb2_grpc import OperationServiceStub
from serai.v1.operator_pb2 import CreateVnetRequest, DeleteVnetRequest, GetVnetRequest, ListVnetsRequest, Vnet
from serai.v1.topology_pb2 import InterfaceReference
from serai.wire.identity import Role


def vnet(nodes: str, links: str = "") -> bytes:
    return f'<vnet xmlns="urn:serai:vnet:1" name="small">{nodes}{links}</vnet>'.encode()


async def refused(bench: Bench, document: bytes, error: type[SeraiError]) -> SeraiError:
    with pytest.raises(error) as caught:
        await bench.create(document)
    assert await bench.residue() == []
    return caught.value


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (vnet('<node name="a" memory="4GiB"/>'), "memory"),
        (vnet('<node name="a" vcpus="9"/>'), "vCPUs"),
        (vnet('<node name="a" location="moon"/>'), "moon"),
        (vnet('<node name="a" image="windows"/>'), "windows"),
        (
            vnet(
                '<node name="a" provider="alpha"/><node name="b" provider="beta"/>',
                '<link bandwidth="200Mbit/s"><end node="a"/><end node="b"/></link>',
            ),
            "bit/s",
        ),
        (
            vnet(
                '<node name="a" provider="alpha"/><node name="b" provider="beta"/>',
                '<link delay="1ms"><end node="a"/><end node="b"/></link>',
            ),
            "ms",
        ),
    ],
)
async def test_a_shortage_names_its_resource(bench: Bench, document: bytes, words: str) -> None:
    error = await refused(bench, document, CapacityError)
    assert words in error.message


async def test_an_unknown_provider_is_named(bench: Bench) -> None:
    error = await refused(bench, vnet('<node name="a" provider="gamma"/>'), InvalidInputError)
    assert "gamma" in error.message and "alpha" in error.hint


async def test_all_errors_of_a_description_at_once(bench: Bench) -> None:
    document = vnet('<node name="a" memory="many"/>', '<link><end node="b"/><end node="c"/></link>')
    with pytest.raises(DescriptionError) as caught:
        await bench.operator.CreateVnet(CreateVnetRequest(document=document))
    assert (
        "many" in caught.value.message and "'b'" in caught.value.message and "line 1" in caught.value.message
    )


async def test_a_provider_that_refuses_in_the_middle(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    slices = bench.roles()[Role.PIP, "beta"]._slices
    allocate = slices.allocate

    async def refuse(request: AllocateSliceRequest, owner: str) -> Any:
        if request.validate_only:
            return await allocate(request, owner)
        raise CapacityError("sold out")

    monkeypatch.setattr(slices, "allocate", refuse)
    error = await refused(bench, TWO_PROVIDERS, CapacityError)
    assert error.message == "sold out"


@pytest.mark.parametrize("method", ["CreateGuest", "CreateSegment", "StartGuest"])
async def test_an_agent_that_fails(bench: Bench, method: str) -> None:
    bench.agents["beta/b1"].fail[method] = HypervisorError("out of luck")
    bench.agents["beta/b2"].fail[method] = HypervisorError("out of luck")
    error = await refused(bench, TWO_PROVIDERS, HypervisorError)
    assert error.message == "out of luck"
    for agent in bench.agents.values():
        agent.fail.clear()
    await bench.create()


async def test_a_guest_that_fails_while_it_starts(bench: Bench) -> None:
    agent = bench.agents["beta/b1"]
    agent.never_ready = bench.agents["beta/b2"].never_ready = True
    operation = await bench.operator.CreateVnet(CreateVnetRequest(document=TWO_PROVIDERS))
    there = next(
        await _any([item.reached["StartGuest"].wait() for item in (agent, bench.agents["beta/b2"])], bench)
    )
    await until(lambda: any(guest.state == Guest.RUNNING for guest in there.guests.values()))
    there.crash_guest(next(iter(there.guests)))
    with pytest.raises(HypervisorError, match="killed by SIGKILL"):
        await bench.outcome(operation)
    assert await bench.residue() == []


async def _any(waits: list[Any], bench: Bench) -> Any:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    return (bench.agents[name] for name in ("beta/b1", "beta/b2") if bench.agents[name].guests)


async def test_an_agent_that_dies_while_its_guests_start(bench: Bench) -> None:
    for name in ("beta/b1", "beta/b2"):
        bench.agents[name].never_ready = True
    operation = await bench.operator.CreateVnet(CreateVnetRequest(document=TWO_PROVIDERS))
    there = next(
        await _any(
            [bench.agents[name].reached["StartGuest"].wait() for name in ("beta/b1", "beta/b2")], bench
        )
    )
    address = there.address
    await there.stop()
    with pytest.raises(UnavailableError) as caught:
        await bench.outcome(operation)
    assert there.node in caught.value.message
    # What could not be removed there is remembered, and removed when the agent is back.
    beta = bench.roles()[Role.PIP, "beta"].state
    assert len(beta.leftovers) > 0
    await there.start(bench.authority, address)
    await until(lambda: len(beta.leftovers) == 0)
    assert await bench.residue() == []


async def test_a_cancelled_creation_leaves_nothing(bench: Bench) -> None:
    bench.agents["alpha/a1"].hold["CreateSegment"].clear()
    bench.agents["alpha/a2"].hold["CreateSegment"].clear()
    operation = await bench.operator.CreateVnet(CreateVnetRequest(document=TWO_PROVIDERS))
    await _reached(bench, "CreateSegment", "alpha/a1", "alpha/a2")
    stub = OperationServiceStub(bench.channel(Role.VNO, "operator"))
    await stub.CancelOperation(GetOperationRequest(name=operation.name))
    # Its outcome is known only when the agent has answered: it is waited for, then undone.
    bench.agents["alpha/a1"].hold["CreateSegment"].set()
    bench.agents["alpha/a2"].hold["CreateSegment"].set()
    with pytest.raises(CancelledByUserError):
        await bench.outcome(operation)
    assert await bench.residue() == []


async def _reached(bench: Bench, method: str, *nodes: str) -> None:
    await until(lambda: any(bench.agents[node].reached[method].is_set() for node in nodes))


async def test_deleting_what_is_being_created(bench: Bench) -> None:
    for agent in bench.agents.values():
        agent.never_ready = True
    operation = await bench.operator.CreateVnet(CreateVnetRequest(document=TWO_PROVIDERS))
    await _reached(bench, "StartGuest", *bench.agents)
    await bench.delete("vnets/demo")
    assert (await bench.settled(operation)).failure.reason == "CANCELLED"
    assert await bench.residue() == []


def one_node(name: str, memory: int = 64 << 20) -> SliceNode:
    interfaces = [GuestInterface(name="eth0", mac=b"\x02\0\0\0\0\1")]
    return SliceNode(
        id=name, guest=GuestSpec(image="debian", vcpus=1, memory_bytes=memory, interfaces=interfaces)
    )


def half_link(node: str, label: int, bandwidth: int = 0) -> SliceLink:
    return SliceLink(
        id="half",
        a=SliceLinkEnd(interface=InterfaceReference(node=node, interface="eth0")),
        b=SliceLinkEnd(border=BorderLabel(border="ab", label=label)),
        bandwidth_bps=bandwidth,
    )


async def test_a_reservation_expires(bench: Bench) -> None:
    alpha = bench.pip("alpha")
    request = AllocateSliceRequest(
        slice_id="short", nodes=[one_node("a")], links=[half_link("a", 7, 1000)], expires_in_s=0.3
    )
    await alpha.AllocateSlice(request)
    beta = bench.roles()[Role.PIP, "beta"].state
    assert beta.usage().border_bps["ab"] == 1000
    await until(lambda: len(bench.roles()[Role.PIP, "alpha"].state.slices) == 0)
    assert await bench.residue() == []
    with pytest.raises(NotFoundError):
        await alpha.ProvisionSlice(ProvisionSliceRequest(name="slices/short"))


async def test_labels_conflict_before_anything_is_made(bench: Bench) -> None:
    alpha = bench.pip("alpha")
    first = AllocateSliceRequest(slice_id="one", nodes=[one_node("a")], links=[half_link("a", 7)])
    await alpha.AllocateSlice(first)
    second = AllocateSliceRequest(slice_id="two", nodes=[one_node("a")], links=[half_link("a", 7)])
    with pytest.raises(AlreadyExistsError, match="label 7"):
        await alpha.AllocateSlice(second)
    with pytest.raises(NotFoundError):
        await alpha.GetSlice(GetSliceRequest(name="slices/two"))


async def test_reservations_are_exact(bench: Bench) -> None:
    """Two GiB on each of two nodes: four slices of one GiB fit, a fifth does not, and says what is short."""
    alpha = bench.pip("alpha")
    for number in range(4):
        request = AllocateSliceRequest(slice_id=f"s{number}", nodes=[one_node("a", 1 << 30)])
        await alpha.AllocateSlice(request)
    with pytest.raises(CapacityError, match="memory"):
        await alpha.AllocateSlice(AllocateSliceRequest(slice_id="s4", nodes=[one_node("a", 4096)]))


async def test_concurrent_reservations_do_not_overbook(bench: Bench) -> None:
    alpha = bench.pip("alpha")
    requests = [AllocateSliceRequest(slice_id=f"s{n}", nodes=[one_node("a", 1 << 30)]) for n in range(8)]
    outcomes = await asyncio.gather(*(alpha.AllocateSlice(r) for r in requests), return_exceptions=True)
    assert sum(isinstance(item, CapacityError) for item in outcomes) == 4


async def test_the_same_request_happens_once(bench: Bench) -> None:
    request = CreateVnetRequest(document=TWO_PROVIDERS, request_id=str(uuid.uuid4()))
    first, second = await asyncio.gather(
        bench.operator.CreateVnet(request), bench.operator.CreateVnet(request)
    )
    assert first.name == second.name
    await bench.outcome(first)
    assert (await bench.operator.CreateVnet(request)).name == first.name
    assert sum(len(agent.guests) for agent in bench.agents.values()) == 3
    other = CreateVnetRequest(document=SAME_ADDRESSES, request_id=request.request_id)
    with pytest.raises(InvalidInputError, match="request_id"):
        await bench.operator.CreateVnet(other)
    with pytest.raises(AlreadyExistsError):
        await bench.operator.CreateVnet(CreateVnetRequest(document=TWO_PROVIDERS))


async def test_validate_only_makes_nothing(bench: Bench) -> None:
    operation = await bench.create(validate_only=True)
    states = {step.name: step.state for step in operation.steps}
    assert states["embed"] == Step.DONE and states["allocate"] == Step.SKIPPED
    assert await bench.residue() == []


async def test_a_dead_guest_degrades_its_vnet(bench: Bench) -> None:
    await bench.create()
    agent = next(agent for agent in bench.agents.values() if agent.guests)
    agent.crash_guest(next(iter(agent.guests)))

    async def state() -> Vnet:
        vnet: Vnet = await bench.operator.GetVnet(GetVnetRequest(name="vnets/demo"))
        return vnet

    async with asyncio.timeout(5):
        while (seen := await state()).state != Vnet.DEGRADED:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert [node.status_message for node in seen.nodes if node.state == Guest.FAILED] == ["killed by SIGKILL"]


async def test_a_silent_agent_degrades_the_vnet_until_it_is_heard_again(bench: Bench) -> None:
    await bench.create()
    agent = next(agent for agent in bench.agents.values() if agent.guests)
    agent.hold["WatchNode"].clear()

    async def becomes(state: Vnet.State) -> None:
        async with asyncio.timeout(8):
            while (await bench.operator.GetVnet(GetVnetRequest(name="vnets/demo"))).state != state:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    await becomes(Vnet.DEGRADED)
    agent.hold["WatchNode"].set()
    await becomes(Vnet.RUNNING)


async def test_lists_come_in_pages(bench: Bench) -> None:
    for name in ("one", "two", "three"):
        await bench.create(vnet('<node name="a"/>'), vnet_id=name)
    seen, token = [], ""
    while True:
        page = await bench.operator.ListVnets(ListVnetsRequest(page_size=2, page_token=token))
        seen += [item.name for item in page.vnets]
        token = page.next_page_token
        if not token:
            break
    assert seen == ["vnets/one", "vnets/three", "vnets/two"]
    with pytest.raises(InvalidInputError):
        await bench.operator.ListVnets(ListVnetsRequest(page_token="%%%"))


async def test_deleting_what_does_not_exist(bench: Bench) -> None:
    with pytest.raises(NotFoundError, match="vnets/none"):
        await bench.operator.DeleteVnet(DeleteVnetRequest(name="vnets/none"))
    await bench.outcome(
        await bench.operator.DeleteVnet(DeleteVnetRequest(name="vnets/none", allow_missing=True))
    )


async def test_a_cancelled_operation_that_is_done(bench: Bench) -> None:
    operation = await bench.create()
    stub = OperationServiceStub(bench.channel(Role.VNO, "operator"))
    with pytest.raises(StateError):
        await stub.CancelOperation(GetOperationRequest(name=operation.name))


async def test_a_guest_created_too_late_is_removed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent answers after the PIP has given up: the guest that then shows up is nobody's."""
    for agent in bench.agents.values():
        agent.hold["CreateGuest"].clear()
    for pip in ("alpha", "beta"):
        for known in bench.roles()[Role.PIP, pip].state.agents.values():
            create = known.guest_stub.CreateGuest
            monkeypatch.setattr(known.guest_stub, "CreateGuest", partial(create, timeout=0.2))
    with pytest.raises(UnavailableError):
        await bench.create()
    for agent in bench.agents.values():
        agent.hold["CreateGuest"].set()
    await until(lambda: sum(agent.created for agent in bench.agents.values()) == 3)
    await until(lambda: not any(agent.guests for agent in bench.agents.values()))
    assert await bench.residue() == []


async def test_links_through_a_restarted_agent_come_back(bench: Bench) -> None:
    await bench.create()
    for node in ("client", "router"):
        if await where(bench, node) != "alpha/a1":
            await migrate(bench, node, "alpha/a1")
    agent = bench.agents["alpha/a2"]
    assert agent.segments and not agent.guests
    before = {name: segment.SerializeToString() for name, segment in agent.segments.items()}
    address = agent.address
    await agent.stop()
    assert not agent.segments
    await agent.start(bench.authority, address)
    await until(lambda: agent.segments.keys() == before.keys())
    assert {name: segment.SerializeToString() for name, segment in agent.segments.items()} == before


async def test_what_happens_is_published(bench: Bench) -> None:
    bus = bench.roles()[Role.VNO, "operator"].state.bus
    async with bus.subscribe() as events:
        await bench.create()
        seen = []
        async with asyncio.timeout(5):
            async for event in events:
                seen.append(event)
                if getattr(event.data, "state", "") == "RUNNING" and event.type == "vnet.state":
                    break
    states = [event.data.state for event in seen if event.type == "vnet.state"]
    assert states == ["CREATING", "RUNNING"]
    done = [
        event.data.step for event in seen if event.type == "operation.progress" and event.data.state == "DONE"
    ]
    assert done[:7] == ["describe", "match", "split", "embed", "allocate", "provision", "configure"]
