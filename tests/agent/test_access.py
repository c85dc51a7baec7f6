"""Every RPC of an agent refuses every role that its table does not name; the tests come from the table."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty
from tests.agent.harness import Client, Site

from serai.agent.access import OWNER_ROLES, PEER_ROLES, access_table
from serai.agent.daemon import Agent
from serai.errors import ForbiddenError, SeraiError
from serai.v1 import attachment_pb2, guest_pb2, link_pb2, migration_pb2, node_pb2
from serai.wire.identity import Role
from serai.wire.rpc import Channel

OWNERS = {Role.AGENT: "beta/b1", Role.PIP: "alpha"}
TABLE = access_table()
CONTRACTS = (node_pb2, guest_pb2, link_pb2, migration_pb2, attachment_pb2)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture
async def agent(site: Site, tmp_path: Path) -> AsyncIterator[Agent]:
    async with site.agent("alpha/a1", state_dir=tmp_path) as agent:
        yield agent


def test_the_table_is_of_every_service_and_says_what_the_design_says() -> None:
    served = {
        f"/{service.full_name}/{method.name}"
        for file in CONTRACTS
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert TABLE.keys() == served
    peer = {method for method, roles in TABLE.items() if roles == PEER_ROLES}
    assert {method.split("/")[1] for method in peer} == {
        "serai.v1.MigrationPeerService",
        "serai.v1.ChannelService",
    }
    assert all(roles == OWNER_ROLES for method, roles in TABLE.items() if method not in peer)


async def call(channel: Channel, method: str) -> None:
    """Call with an empty request, whatever kind of method it is; ends after the first answer."""
    service, name = method.strip("/").split("/")
    descriptor = find(service, name)
    kind = f"{'stream' if descriptor.client_streaming else 'unary'}_" + (
        "stream" if descriptor.server_streaming else "unary"
    )
    multi = getattr(channel, kind)(method, lambda _: b"", Empty.FromString)
    if descriptor.client_streaming:
        started = multi()
        await started.write(Empty())
        await started.read()
    elif descriptor.server_streaming:
        started = multi(Empty(), timeout=10)
        await started.read()
        started.cancel()
    else:
        await multi(Empty(), timeout=10)


def find(service: str, name: str) -> Any:
    for file in CONTRACTS:
        found = file.DESCRIPTOR.services_by_name.get(service.rpartition(".")[2])
        if found is not None:
            return found.methods_by_name[name]
    raise AssertionError(service)


@pytest.mark.parametrize("role", Role)
async def test_each_rpc_refuses_every_role_but_its_own(site: Site, agent: Agent, role: Role) -> None:
    async with site.connect(agent, role, OWNERS.get(role, "somebody")) as client:
        for method, roles in TABLE.items():
            if role in roles:
                await expect_admitted(client, method)
            else:
                with pytest.raises(ForbiddenError) as caught:
                    await call(client.channel, method)
                assert caught.value.reason == "ROLE_NOT_ALLOWED", method


async def expect_admitted(client: Client, method: str) -> None:
    """An empty request may be wrong, but not for want of rights."""
    if method.endswith(("/WatchMigration", "/AttachConsole")):
        return  # they need a name; other tests use them
    try:
        await call(client.channel, method)
    except ForbiddenError as error:
        assert error.reason == "NOT_PERMITTED" and method.endswith("PrepareArrival"), method
    except SeraiError:
        pass


async def test_each_rpc_of_the_owner_refuses_another_provider(site: Site, agent: Agent) -> None:
    async with site.connect(agent, Role.PIP, "beta") as client:
        for method, roles in TABLE.items():
            if Role.PIP in roles:
                with pytest.raises(ForbiddenError) as caught:
                    await call(client.channel, method)
                assert caught.value.reason == "OTHER_PROVIDER", method
