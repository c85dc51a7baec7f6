"""Resizing through all roles, over agents that a test plays: the books are exact whatever happens."""

from __future__ import annotations

import pytest
from tests.roles.bench import Bench

from serai.errors import CapacityError
from serai.v1.guest_pb2 import GuestSize
from serai.v1.operator_pb2 import ResizeVnetNodeRequest, VnetNodeRequest
from serai.wire.identity import Role

MIB = 1 << 20


async def resize(bench: Bench, vcpus: int = 0, mebibytes: int = 0) -> GuestSize:
    request = ResizeVnetNodeRequest(name="vnets/demo/nodes/client", vcpus=vcpus, memory_bytes=mebibytes * MIB)
    size: GuestSize = await bench.operator.ResizeVnetNode(request)
    return size


def reserved(bench: Bench) -> tuple[int, int]:
    """vCPUs and bytes in the books of all providers."""
    usages = [bench.roles()[Role.PIP, name].state.usage() for name in ("alpha", "beta")]
    return (
        sum(sum(usage.vcpus.values()) for usage in usages),
        sum(sum(usage.memory_bytes.values()) for usage in usages),
    )


async def test_up_and_down_and_refused(bench: Bench) -> None:
    await bench.create()
    vcpus, memory = reserved(bench)
    node = await bench.operator.GetVnetNode(VnetNodeRequest(name="vnets/demo/nodes/client"))
    size = await resize(bench, 4, 512)
    assert (size.vcpus, size.memory_bytes) == (4, 512 * MIB)
    grown = (vcpus + 4 - node.vcpus, memory + 512 * MIB - node.memory_bytes)
    assert reserved(bench) == grown
    with pytest.raises(CapacityError, match="short of vCPUs"):
        await resize(bench, 64)
    with pytest.raises(CapacityError, match="short of bytes of memory"):
        await resize(bench, 0, 1 << 20)
    assert reserved(bench) == grown
    agent = next(agent for agent in bench.agents.values() if any("client" in name for name in agent.guests))
    agent.fail["ResizeGuest"] = CapacityError("it did not get there", reason="GUEST_DID_NOT_RESIZE")
    with pytest.raises(CapacityError, match="did not get there"):
        await resize(bench, 2, 128)
    assert reserved(bench) == grown, "the guest keeps what it had"
    await resize(bench, 1)
    assert reserved(bench) == (grown[0] - 3, grown[1])
    await bench.delete("vnets/demo")
    assert reserved(bench) == (0, 0)
