"""A VNO's view of its VNP: its networks, watched."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from serai.errors import NotFoundError, SeraiError
from serai.v1.attachment_pb2_grpc import AttachmentServiceStub
from serai.v1.console_pb2_grpc import ConsoleServiceStub
from serai.v1.provider_pb2 import GetNetworkRequest, Network, NetworkNode, WatchNetworksRequest
from serai.v1.provider_pb2_grpc import ProviderServiceStub
from serai.wire.rpc import Channel

if TYPE_CHECKING:
    from serai.v1.attachment_pb2_grpc import AttachmentServiceAsyncStub
    from serai.v1.console_pb2_grpc import ConsoleServiceAsyncStub
    from serai.v1.provider_pb2_grpc import ProviderServiceAsyncStub

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.5


class Upstream:
    """The VNP. `networks` are ours, as it last said; `on_change` names one that changed."""

    def __init__(self, channel: Callable[[], Channel], on_change: Callable[[str], None]) -> None:
        self.networks: dict[str, Network] = {}
        self.reachable = False
        self._channel = channel
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None

    @property
    def channel(self) -> Channel:
        """The connection."""
        return self._channel()

    @property
    def provider(self) -> ProviderServiceAsyncStub:
        """Its networks."""
        return ProviderServiceStub(self.channel)

    @property
    def attachments(self) -> AttachmentServiceAsyncStub:
        """Its ends of attachments."""
        return AttachmentServiceStub(self.channel)

    @property
    def consoles(self) -> ConsoleServiceAsyncStub:
        """Its consoles."""
        return ConsoleServiceStub(self.channel)

    def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.create_task(self._watch_forever(), name="watch networks")

    async def close(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def find_node(self, network: str, node: str) -> NetworkNode:
        """The node with its handle, asked for now; NotFoundError."""
        found: Network = await self.provider.GetNetwork(GetNetworkRequest(name=network))
        for item in found.nodes:
            if item.id == node:
                return item
        raise NotFoundError(f"the VNet has no node {node!r}", hint="list its nodes", resource=node)

    async def _watch_forever(self) -> None:
        while True:
            with contextlib.suppress(SeraiError):
                await self._watch()
            if self.reachable:
                log.warning("the VNP cannot be reached")
            self.reachable = False
            for name in self.networks:
                self._on_change(name)
            await asyncio.sleep(RETRY_SECONDS)

    async def _watch(self) -> None:
        call: Any = self.provider.WatchNetworks(WatchNetworksRequest())
        found: dict[str, Network] = {}
        try:
            async for message in call:
                if message.HasField("network"):
                    if message.network.state == Network.DELETED:
                        found.pop(message.network.name, None)
                    else:
                        found[message.network.name] = message.network
                if message.synchronized and not self.reachable:
                    gone = self.networks.keys() - found.keys()
                    self.networks, self.reachable = found, True
                    for name in (*found, *gone):
                        self._on_change(name)
                elif self.reachable:
                    self._on_change(message.network.name)
        finally:
            call.cancel()
