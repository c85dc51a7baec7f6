"""``serai.v1.NodeService``: who this node is, what it has promised, and that it lives."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import AsyncIterator
from typing import Any

from serai.agent.capacity import Capacity, Demand
from serai.agent.guests import now
from serai.agent.inventory import Inventory
from serai.agent.spec import ImageSource
from serai.v1 import node_pb2
from serai.v1.node_pb2_grpc import NodeServiceServicer

_IMAGES_SECONDS = 5.0


class NodeService(NodeServiceServicer):
    """The node; `control_address` and `data_address` are set once they are bound."""

    def __init__(
        self,
        *,
        provider: str,
        node_id: str,
        capacity: Capacity,
        inventory: Inventory,
        images: ImageSource,
        heartbeat_s: float,
    ) -> None:
        self.control_address = ""
        self.data_address = ""
        self._provider = provider
        self._node_id = node_id
        self._capacity = capacity
        self._inventory = inventory
        self._images = images
        self._heartbeat_s = heartbeat_s
        self._started = now()
        self._stopping = asyncio.Event()
        self._names: list[str] = []
        self._names_due = 0.0
        self._version = importlib.metadata.version("serai") if _installed() else "0+checkout"

    def stop(self) -> None:
        """Say STOPPING from now on, to those who watch at once, and end their streams."""
        self._stopping.set()

    async def describe(self) -> node_pb2.Node:
        """The resource as it is now."""
        state = node_pb2.Node.STOPPING if self._stopping.is_set() else node_pb2.Node.READY
        return node_pb2.Node(
            name=f"nodes/{self._node_id}",
            provider=self._provider,
            state=state,
            capacity=_resources(self._capacity.total),
            allocated=_resources(self._capacity.allocated),
            control_address=self.control_address,
            data_address=self.data_address,
            version=self._version,
            start_time=self._started,
            images=await self._image_names(),
            guest_count=len(self._inventory),
        )

    async def _image_names(self) -> list[str]:
        """Read from the disk, and not with every heartbeat."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._names_due:
            self._names_due = loop.time() + _IMAGES_SECONDS
            self._names = [image.name for image in await asyncio.to_thread(self._images.list)]
        return self._names

    async def GetNode(self, request: node_pb2.GetNodeRequest, context: Any) -> node_pb2.Node:
        """Once."""
        return await self.describe()

    async def WatchNode(
        self, request: node_pb2.WatchNodeRequest, context: Any
    ) -> AsyncIterator[node_pb2.Node]:
        """Heartbeats; the last one says STOPPING."""
        while True:
            stopping = self._stopping.is_set()
            yield await self.describe()
            if stopping:
                return
            try:
                async with asyncio.timeout(self._heartbeat_s):
                    await self._stopping.wait()
            except TimeoutError:
                continue


def _resources(demand: Demand) -> node_pb2.NodeResources:
    return node_pb2.NodeResources(vcpus=demand.vcpus, memory_bytes=demand.memory_bytes)


def _installed() -> bool:
    try:
        importlib.metadata.version("serai")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
