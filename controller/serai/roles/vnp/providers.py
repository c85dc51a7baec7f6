"""A VNP's view of the PIPs that it buys from: their slices, watched."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from serai.errors import SeraiError, UnavailableError
from serai.roles.remote_operations import follow
from serai.v1.attachment_pb2_grpc import AttachmentServiceStub
from serai.v1.console_pb2_grpc import ConsoleServiceStub
from serai.v1.infrastructure_pb2 import (
    Advertisement,
    GetAdvertisementRequest,
    ProvisionSliceRequest,
    ReleaseSliceRequest,
    Slice,
    SliceNode,
    WatchSlicesRequest,
)
from serai.v1.infrastructure_pb2_grpc import InfrastructureServiceStub
from serai.v1.operation_pb2 import Operation
from serai.wire.rpc import Channel

if TYPE_CHECKING:
    from serai.v1.attachment_pb2_grpc import AttachmentServiceAsyncStub
    from serai.v1.console_pb2_grpc import ConsoleServiceAsyncStub
    from serai.v1.infrastructure_pb2_grpc import InfrastructureServiceAsyncStub

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.5


class Provider:
    """One PIP. `slices` are those of ours there, as it last said; `on_change` names one that changed."""

    def __init__(self, name: str, channel: Callable[[], Channel], on_change: Callable[[str], None]) -> None:
        self.name = name
        self.slices: dict[str, Slice] = {}
        self.reachable = False
        self._channel = channel
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None

    @property
    def channel(self) -> Channel:
        """The connection."""
        return self._channel()

    @property
    def infrastructure(self) -> InfrastructureServiceAsyncStub:
        """Its slices."""
        return InfrastructureServiceStub(self.channel)

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
        self._task = asyncio.create_task(self._watch_forever(), name=f"watch slices of {self.name}")

    async def close(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def advertise(self) -> Advertisement:
        """What it offers now."""
        advertisement: Advertisement = await self.infrastructure.GetAdvertisement(GetAdvertisementRequest())
        return advertisement

    async def provision(self, slice_name: str, on_change: Callable[[Operation], Awaitable[None]]) -> None:
        """Make a reserved slice real."""
        operation = await self.infrastructure.ProvisionSlice(ProvisionSliceRequest(name=slice_name))
        await follow(self.channel, operation, on_change)

    async def release(self, slice_name: str) -> None:
        """Give a slice back; no error if it does not exist."""

        async def ignore(_: Operation) -> None:
            return

        operation = await self.infrastructure.ReleaseSlice(ReleaseSliceRequest(name=slice_name))
        await follow(self.channel, operation, ignore)

    def find_node(self, slice_name: str, node: str) -> SliceNode | None:
        """A virtual node as last heard."""
        found = self.slices.get(slice_name, Slice())
        return next((item for item in found.nodes if item.id == node), None)

    async def _watch_forever(self) -> None:
        while True:
            with contextlib.suppress(SeraiError):
                await self._watch()
            if self.reachable:
                log.warning("provider %s cannot be reached", self.name)
            self.reachable = False
            for name in self.slices:
                self._on_change(name)
            await asyncio.sleep(RETRY_SECONDS)

    async def _watch(self) -> None:
        call: Any = self.infrastructure.WatchSlices(WatchSlicesRequest())
        found: dict[str, Slice] = {}
        try:
            async for message in call:
                if message.HasField("slice"):
                    _note(found, message.slice)
                if message.synchronized and not self.reachable:
                    gone = self.slices.keys() - found.keys()
                    self.slices, self.reachable = found, True
                    for name in (*found, *gone):
                        self._on_change(name)
                elif self.reachable:
                    self._on_change(message.slice.name)
        finally:
            call.cancel()


def _note(slices: dict[str, Slice], heard: Slice) -> None:
    if heard.state == Slice.RELEASED:
        slices.pop(heard.name, None)
    else:
        slices[heard.name] = heard


def choose(providers: dict[str, Provider], name: str) -> Provider:
    """The provider of that name; UnavailableError for one that we do not buy from (any more)."""
    if name not in providers:
        raise UnavailableError(
            f"provider {name!r} is not known here",
            hint=f"known: {', '.join(sorted(providers))}",
            provider=name,
        )
    return providers[name]
