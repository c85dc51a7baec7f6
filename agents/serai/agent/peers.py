"""Other agents: where they are and the channels to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from serai.agent.tasks import TaskSet
from serai.errors import NotFoundError
from serai.network.peers import ChannelOffer
from serai.v1 import migration_pb2
from serai.v1.migration_pb2_grpc import ChannelServiceStub, MigrationPeerServiceStub
from serai.wire.identity import Identity, Role
from serai.wire.records import ChannelSecret
from serai.wire.rpc import Channel, connect
from serai.wire.tls import Credentials

if TYPE_CHECKING:
    from serai.v1.migration_pb2_grpc import MigrationPeerServiceAsyncStub


class Peers:
    """gRPC channels to other agents, one each, kept open."""

    def __init__(self, credentials: Credentials, tasks: TaskSet) -> None:
        self._credentials = credentials
        self._tasks = tasks
        self._addresses: dict[str, str] = {}
        self._channels: dict[str, Channel] = {}

    async def learn(self, node: str, address: str) -> None:
        """The agent of `node` ("beta/b1") is at `address` (host:port of its gRPC server)."""
        if address and self._addresses.get(node) != address:
            self._addresses[node] = address
            stale = self._channels.pop(node, None)
            if stale is not None:
                await stale.close()

    def migration(self, node: str) -> MigrationPeerServiceAsyncStub:
        """What it offers to a node that sends it a guest; NotFoundError when nobody has said where it is."""
        return MigrationPeerServiceStub(self._channel(node))

    async def open_channel(self, node: str) -> ChannelOffer:
        """Ask it for a channel for frames."""
        request = migration_pb2.OpenChannelRequest(purpose=migration_pb2.OpenChannelRequest.FRAMES)
        answer = await ChannelServiceStub(self._channel(node)).OpenChannel(request, timeout=10)
        return ChannelOffer(ChannelSecret(answer.channel_id, answer.key), answer.data_address)

    async def close(self) -> None:
        """Disconnect."""
        channels = list(self._channels.values())
        self._channels.clear()
        for channel in channels:
            await channel.close()

    def _channel(self, node: str) -> Channel:
        channel = self._channels.get(node)
        if channel is not None and channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            # It would refuse at once until its back-off is over; the node may be there again by now.
            self._tasks.start(self._channels.pop(node).close(), f"disconnect from {node}")
            channel = None
        if channel is None:
            address = self._addresses.get(node)
            if address is None:
                raise NotFoundError(f"the address of node {node} is not known here", node=node)
            channel = connect(address, self._credentials, Identity(Role.AGENT, node))
            self._channels[node] = channel
        return channel
