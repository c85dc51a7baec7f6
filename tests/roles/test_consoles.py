"""Consoles, captures and power through all three roles; a console survives migrations."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from tests.roles.bench import Bench
from tests.roles.test_migration import migrate

from serai.errors import InvalidInputError, NotFoundError
from serai.roles.relay import _Tail
from serai.v1.console_pb2_grpc import ConsoleServiceStub
from serai.v1.guest_pb2 import ConsoleInput, Guest, TraceGuestRequest
from serai.v1.link_pb2 import CaptureFramesRequest
from serai.v1.operator_pb2 import GetVnetRequest, StopVnetNodeRequest, VnetNodeRequest
from serai.wire.identity import Role

NAME = "vnets/demo/nodes/client"


class Terminal:
    def __init__(self, bench: Bench, name: str = NAME) -> None:
        self.call: Any = ConsoleServiceStub(bench.channel(Role.VNO, "operator")).OpenConsole()
        self.name = name
        self.seen = b""

    async def type(self, data: bytes) -> None:
        name, self.name = self.name, ""
        await self.call.write(ConsoleInput(name=name, data=data))

    async def expect(self, data: bytes) -> None:
        async with asyncio.timeout(10):
            while data not in self.seen:
                self.seen += (await self.call.read()).data

    async def close(self) -> None:
        await self.call.done_writing()
        async with asyncio.timeout(5):
            while (output := await self.call.read()) is not grpc.aio.EOF:
                self.seen += output.data


async def test_a_console_survives_every_kind_of_move(bench: Bench) -> None:
    await bench.create()
    terminal = Terminal(bench)
    await terminal.type(b"one\n")
    await terminal.expect(b"one\n")
    for number, destination in enumerate(["beta/b1", "beta/b2", "alpha/a1"]):
        await migrate(bench, "client", destination)
        await terminal.type(b"line %d\n" % number)
        await terminal.expect(b"line %d\n" % number)
    await terminal.close()
    assert terminal.seen == b"one\nline 0\nline 1\nline 2\n"
    late = Terminal(bench)
    await late.type(b"")
    await late.expect(b"line 2\n")
    assert late.seen == terminal.seen
    await late.close()


async def test_a_capture_goes_on_at_the_new_place(bench: Bench) -> None:
    await bench.create()
    stub: Any = ConsoleServiceStub(bench.channel(Role.VNO, "operator"))
    call = stub.CaptureNodeFrames(CaptureFramesRequest(name=NAME))
    first = (await call.read()).data.decode()
    assert first.startswith("alpha/")
    await migrate(bench, "client", "beta/b2")
    async with asyncio.timeout(5):
        assert (await call.read()).data == b"beta/b2"
    call.cancel()


async def test_bad_names(bench: Bench) -> None:
    await bench.create()
    for name, error in (
        ("vnets/demo/nodes/nobody", NotFoundError),
        ("vnets/none/nodes/client", NotFoundError),
        ("client", InvalidInputError),
        ("", InvalidInputError),
    ):
        terminal = Terminal(bench, name)
        with pytest.raises(error):
            await terminal.type(b"")
            await terminal.expect(b"never")


async def test_power_and_statistics(bench: Bench) -> None:
    await bench.create()
    request = VnetNodeRequest(name=NAME)
    assert (await bench.operator.GetVnetNodeStatistics(request)).instructions == 42
    trace = bench.operator.TraceVnetNode(TraceGuestRequest(name=request.name, count=7))
    assert [(item.steps, item.records[0].text) async for item in trace] == [(7, "nop")]
    await bench.operator.StopVnetNode(StopVnetNodeRequest(name=NAME))
    await becomes(bench, Guest.STOPPED)
    await bench.operator.StartVnetNode(request)
    await becomes(bench, Guest.RUNNING)


async def becomes(bench: Bench, state: Guest.State) -> None:
    async with asyncio.timeout(5):
        while (await bench.operator.GetVnetNode(VnetNodeRequest(name=NAME))).state != state:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_node_is_removed_from_a_running_vnet(bench: Bench) -> None:
    await bench.create()
    await bench.outcome(await bench.operator.DeleteVnetNode(VnetNodeRequest(name="vnets/demo/nodes/server")))
    async with asyncio.timeout(5):
        while len((vnet := await bench.operator.GetVnet(GetVnetRequest(name="vnets/demo"))).nodes) != 2:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert [link.id for link in vnet.links] == ["access"]
    assert bench.agents["beta/b1"].is_empty and bench.agents["beta/b2"].is_empty
    await bench.delete("vnets/demo")
    assert await bench.residue() == []


@pytest.mark.parametrize(
    ("seen", "scrollback", "news"),
    [
        (b"abc", b"abc", b""),
        (b"abc", b"abcdef", b"def"),
        (b"x" * 50 + b"the end of it all", b"end of it all, and more", b", and more"),
        (b"", b"abc", b"abc"),
        (b"nothing in common at all", b"something else", b"something else"),
    ],
)
def test_nothing_is_printed_twice(seen: bytes, scrollback: bytes, news: bytes) -> None:
    tail = _Tail()
    tail.add(seen)
    assert tail.news(scrollback) == news
