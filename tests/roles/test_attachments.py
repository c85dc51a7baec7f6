"""End users attach through a provider that hosts nothing of the VNet, and leave nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.roles.bench import Bench, until
from tests.roles.test_real_agents import find, real  # noqa: F401 - a fixture

from serai.errors import ForbiddenError, NotFoundError, SeraiError
from serai.v1.attachment_pb2 import AttachInput, AttachOutput, AttachPort
from serai.v1.attachment_pb2_grpc import AttachmentServiceStub
from serai.v1.operator_pb2 import (
    AttachmentGrant,
    GrantAttachmentRequest,
    ListAttachmentGrantsRequest,
    MigrateVnetNodeRequest,
    RevokeAttachmentGrantRequest,
)
from serai.wire.identity import Identity, Role

EVERYBODY = b"\xff" * 6
GUEST = b"\x02\0\0\0\0\x99"
TYPE = b"\x88\xb5"
"""EtherType for experiments (IEEE 802): it need not be IP."""


class Station:
    """An attached end user."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.mac = b""
        self.attachment: Any = None
        self.received: list[bytes] = []
        self.failure: SeraiError | None = None
        self.ended = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for output in self.call:
                self._take(output)
        except SeraiError as error:
            self.failure = error
        finally:
            self.ended.set()

    def _take(self, output: AttachOutput) -> None:
        if output.HasField("attachment"):
            assert self.attachment is None, "told twice that it is attached"
            self.attachment, self.mac = output.attachment, output.attachment.mac
        self.received += output.frames

    async def send(self, to: bytes, data: bytes, source: bytes = b"") -> None:
        frame = to + (source or self.mac) + TYPE + data
        await self.call.write(AttachInput(frames=[frame]))

    async def close(self) -> None:
        self.call.cancel()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)


@asynccontextmanager
async def station(bench: Bench, token: str, provider: str = "beta") -> AsyncIterator[Station]:
    """A user with a certificate of its own, who attaches at `provider`."""
    credentials = bench.authority.issue(Identity(Role.USER, "somebody"))
    stub = AttachmentServiceStub(bench.channel(Role.PIP, provider, credentials))
    call: Any = stub.Attach()
    user = Station(call)
    try:
        await call.write(AttachInput(token=token))
        yield user
    finally:
        await user.close()


@asynccontextmanager
async def attached(bench: Bench, token: str, provider: str = "beta") -> AsyncIterator[Station]:
    async with station(bench, token, provider) as user:
        await until(lambda: user.attachment is not None or user.failure is not None)
        assert user.failure is None, user.failure
        yield user


async def grant(bench: Bench, node: str = "client", **options: Any) -> AttachmentGrant:
    request = GrantAttachmentRequest(node=f"vnets/demo/nodes/{node}", **options)
    granted: AttachmentGrant = await bench.operator.GrantAttachment(request)
    return granted


def taps(bench: Bench) -> int:
    return sum(
        len(port.taps) for agent in bench.agents.values() for port in agent.agent.data_plane._ports.values()
    )


def got(guest: Any, port: str, data: bytes) -> int:
    return sum(data in frame for frame in guest.port(port).received)


async def test_a_station_on_the_wire(real: Bench) -> None:  # noqa: F811
    await real.create()
    granted = await grant(real)
    assert (granted.interface, granted.address, granted.gateway) == ("eth0", "10.1.0.254/24", "10.1.0.2")
    _, client = find(real, "client")
    _, router = find(real, "router")
    _, server = find(real, "server")
    async with attached(real, granted.token) as user:
        assert user.attachment.address == "10.1.0.254/24"
        # To all: the guest beside it and the one at the other end of the wire, and nobody else.
        await user.send(EVERYBODY, b"from the user")
        await until(
            lambda: got(client, "eth0", b"from the user") == got(router, "eth0", b"from the user") == 1
        )
        # To it alone: from either, and not to the other.
        client.port("eth0").send(user.mac + GUEST + TYPE + b"from the client")
        router.port("eth0").send(user.mac + GUEST[:5] + b"\x98" + TYPE + b"from the router")
        await until(lambda: len(user.received) == 2)
        assert {frame[14:] for frame in user.received} == {b"from the client", b"from the router"}
        # To the guest alone; what is between the guests is not the user's.
        await user.send(GUEST, b"to the client")
        await until(lambda: got(client, "eth0", b"to the client") == 1)
        client.port("eth0").send(GUEST[:5] + b"\x98" + GUEST + TYPE + b"between guests")
        await until(lambda: got(router, "eth0", b"between guests") == 1)
        client.port("eth0").send(EVERYBODY + GUEST + TYPE + b"to everybody")
        await until(lambda: got(router, "eth0", b"to everybody") == 1)
        await until(lambda: len(user.received) == 3)
        assert user.received[2][14:] == b"to everybody"
        assert got(router, "eth0", b"to the client") == got(router, "eth0", b"from the client") == 0
        assert not server.port("eth0").received and not server.port("eth1").received
    await until(lambda: taps(real) == 0)
    await real.delete("vnets/demo")
    assert await real.residue() == []


async def test_a_station_cannot_speak_for_others(real: Bench) -> None:  # noqa: F811
    await real.create()
    granted = await grant(real)
    _, client = find(real, "client")
    async with attached(real, granted.token) as user:
        await user.send(EVERYBODY, b"forged", source=GUEST)
        await user.call.write(AttachInput(frames=[b"short", bytes(100_000)]))
        await user.send(EVERYBODY, b"honest")
        await until(lambda: got(client, "eth0", b"honest") == 1)
        assert got(client, "eth0", b"forged") == 0 and len(client.port("eth0").received) == 1


async def refused(bench: Bench, token: str, provider: str = "beta") -> None:
    async with station(bench, token, provider) as user:
        async with asyncio.timeout(5):
            await user.ended.wait()
        assert isinstance(user.failure, ForbiddenError) and user.failure.reason == "CREDENTIAL_REFUSED"
        assert user.attachment is None
    assert taps(bench) == 0


async def test_wrong_credentials_are_refused(real: Bench) -> None:  # noqa: F811
    await real.create()
    granted = await grant(real)
    operator, identifier, secret = granted.token.split(".")
    other = await grant(real, "server")
    for token in (
        "nonsense",
        f"{operator}.{identifier}.{secret[:-1]}x",
        f"{operator}.{identifier}.",
        f"elsewhere.{identifier}.{secret}",
        f"{operator}.{other.token.split('.')[1]}.{secret}",
        "../../etc.x.y",
    ):
        await refused(real, token)
    short = await grant(real, lifetime_s=0.05)
    await until(lambda: time.time() > short.expire_time.ToNanoseconds() / 1e9)
    await refused(real, short.token)
    await real.operator.RevokeAttachmentGrant(RevokeAttachmentGrantRequest(name=granted.name))
    await refused(real, granted.token)
    listed = await real.operator.ListAttachmentGrants(ListAttachmentGrantsRequest())
    assert granted.name not in {item.name for item in listed.grants}
    assert not any(item.token for item in listed.grants)
    stored = [record.model_dump_json() for record in real.roles()[Role.VNO, "operator"].state.grants.records]
    assert stored and not any(other.token.split(".")[2] in text for text in stored)


async def test_a_handle_is_no_credential(real: Bench) -> None:  # noqa: F811
    """Who knows what a node is called is not therefore let in."""
    await real.create()
    state = real.roles()[Role.PIP, "alpha"].state
    handle = next(node.handle for record in state.slices for node in record.parts.nodes.values())
    credentials = real.authority.issue(Identity(Role.USER, "somebody"))
    call: Any = AttachmentServiceStub(real.channel(Role.PIP, "alpha", credentials)).Attach()
    await call.write(AttachInput(port=AttachPort(name=handle, interface="eth0", mac=GUEST)))
    with pytest.raises(NotFoundError):
        await call.read()
    vnp = real.authority.issue(Identity(Role.VNP, "vnp"))
    call = AttachmentServiceStub(real.channel(Role.PIP, "beta", vnp)).Attach()
    await call.write(AttachInput(token=(await grant(real)).token))
    with pytest.raises(ForbiddenError):
        await call.read()
    assert taps(real) == 0


@pytest.mark.parametrize("end", ["revoke", "expire", "delete"])
async def test_an_attachment_ends_with_its_credential(real: Bench, end: str) -> None:  # noqa: F811
    await real.create()
    granted = await grant(real, lifetime_s=1.0 if end == "expire" else 0)
    async with attached(real, granted.token) as user:
        if end == "revoke":
            await real.operator.RevokeAttachmentGrant(RevokeAttachmentGrantRequest(name=granted.name))
        elif end == "delete":
            await real.delete("vnets/demo")
        async with asyncio.timeout(8):
            await user.ended.wait()
        assert user.failure is not None or end == "delete"
    await until(lambda: taps(real) == 0)
    if end == "delete":
        assert await real.residue() == []
        assert not len(real.roles()[Role.VNO, "operator"].state.grants.records)


async def test_a_user_who_dies_leaves_nothing(real: Bench) -> None:  # noqa: F811
    await real.create()
    granted = await grant(real)
    credentials = real.authority.issue(Identity(Role.USER, "somebody"))
    channel = real.channel(Role.PIP, "beta", credentials)
    user = Station(AttachmentServiceStub(channel).Attach())
    await user.call.write(AttachInput(token=granted.token))
    await until(lambda: user.attachment is not None)
    assert taps(real) == 1
    await channel.close()
    await until(lambda: taps(real) == 0)
    await user.close()


async def test_detaching_in_order(real: Bench) -> None:  # noqa: F811
    await real.create()
    granted = await grant(real)
    async with attached(real, granted.token) as user:
        await user.call.done_writing()
        async with asyncio.timeout(5):
            await user.ended.wait()
        assert user.failure is None
        assert taps(real) == 0


async def test_who_attaches_again_takes_over(real: Bench) -> None:  # noqa: F811
    await real.create()
    granted = await grant(real)
    async with attached(real, granted.token) as first, attached(real, granted.token) as second:
        assert first.mac == second.mac
        assert taps(real) == 1


@pytest.mark.parametrize("destination", ["alpha", "beta/b2"])
async def test_an_attachment_follows_its_guest(real: Bench, destination: str) -> None:  # noqa: F811
    await real.create()
    granted = await grant(real)
    here, _ = find(real, "client")
    if destination == "alpha":
        destination = {"alpha/a1": "alpha/a2", "alpha/a2": "alpha/a1"}[here]
    async with attached(real, granted.token) as user:
        request = MigrateVnetNodeRequest(name="vnets/demo/nodes/client", destination=destination)
        await real.outcome(await real.operator.MigrateVnetNode(request))
        there, client = find(real, "client")
        assert there == destination
        await until(lambda: taps(real) == 1)
        await user.send(EVERYBODY, b"after the move")
        await until(lambda: got(client, "eth0", b"after the move") == 1)
        assert user.failure is None
    await until(lambda: taps(real) == 0)
