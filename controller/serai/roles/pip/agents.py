"""A PIP's view of one agent: alive or not, its capacity, its guests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from serai.errors import HypervisorError, SeraiError, UnavailableError
from serai.v1.attachment_pb2_grpc import AttachmentServiceStub
from serai.v1.guest_pb2 import Guest, WatchGuestsRequest
from serai.v1.guest_pb2_grpc import GuestServiceStub
from serai.v1.link_pb2_grpc import SegmentServiceStub
from serai.v1.migration_pb2_grpc import MigrationServiceStub
from serai.v1.node_pb2 import Node, WatchNodeRequest
from serai.v1.node_pb2_grpc import NodeServiceStub
from serai.wire.identity import Identity, Role
from serai.wire.rpc import connect
from serai.wire.tls import Credentials

log = logging.getLogger(__name__)

_FIRST_RETRY_S, _LAST_RETRY_S = 0.1, 2.0


class Agent:
    """One agent, watched for as long as this is open.

    `on_change` is called after every change of its reachability and of its guests; `on_arrival` when it has
    become reachable, before it counts as such.
    """

    def __init__(
        self,
        provider: str,
        node: str,
        address: str,
        credentials: Credentials,
        *,
        deadline_s: float,
        on_change: Callable[[Agent], None],
        on_arrival: Callable[[Agent], Awaitable[None]],
    ) -> None:
        self.provider = provider
        self.node = node
        self.address = address
        self.identity = Identity(Role.AGENT, f"{provider}/{node}")
        self.state: Node | None = None
        self.reachable = False
        self.known = False
        """Whether `guests` has been complete at least once."""
        self.guests: dict[str, Guest] = {}
        self._synchronizations = 0
        self._deadline_s = deadline_s
        self._on_change = on_change
        self._on_arrival = on_arrival
        self._waiting: set[asyncio.Event] = set()
        self._channel = connect(address, credentials, self.identity)
        self.node_stub = NodeServiceStub(self._channel)
        self.guest_stub = GuestServiceStub(self._channel)
        self.segment_stub = SegmentServiceStub(self._channel)
        self.attachment_stub = AttachmentServiceStub(self._channel)
        self.migration_stub = MigrationServiceStub(self._channel)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to watch."""
        self._tasks = [
            asyncio.create_task(self._keep(self._watch_node), name=f"watch node {self.node}"),
            asyncio.create_task(self._keep(self._watch_guests), name=f"watch guests of {self.node}"),
        ]

    async def close(self) -> None:
        """Stop watching and disconnect."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close()

    def expect_reachable(self) -> None:
        """UnavailableError unless it is alive."""
        if not self.reachable:
            raise UnavailableError(
                f"node {self.provider}/{self.node} is unreachable: no heartbeat from {self.address}"
                f" within {self._deadline_s:g} s",
                hint="is its agent running?",
                reason="NODE_UNREACHABLE",
                node=f"{self.provider}/{self.node}",
            )

    async def wait_ready(self, guest_name: str, seconds: float) -> Guest:
        """The guest once it has reported that it is ready.

        HypervisorError when it fails or vanishes first, UnavailableError when the agent does, or time is up.
        """
        begun = self._synchronizations

        def is_ready() -> bool:
            self.expect_reachable()
            guest = self.guests.get(guest_name)
            if guest is not None and guest.ready:
                return True
            self._check_alive(guest_name, guest, begun)
            return False

        try:
            async with asyncio.timeout(seconds):
                await self.wait_until(is_ready)
        except TimeoutError as error:
            raise UnavailableError(
                f"{guest_name} on node {self.provider}/{self.node} was not ready after {seconds:g} s",
                hint="look at its console; a larger ready_deadline_s allows slower guests",
                reason="GUEST_NOT_READY",
                node=f"{self.provider}/{self.node}",
            ) from error
        return self.guests[guest_name]

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` holds; it is asked after every change and may raise."""
        wake = asyncio.Event()
        self._waiting.add(wake)
        try:
            while not condition():
                await wake.wait()
                wake.clear()
        finally:
            self._waiting.discard(wake)

    def _check_alive(self, name: str, guest: Guest | None, begun: int) -> None:
        if guest is not None and guest.state in (Guest.FAILED, Guest.STOPPED):
            what = guest.status_message or "no reason was given"
        elif guest is None and self._synchronizations > begun:
            what = "it is not there any more; has its agent been restarted?"
        else:
            return
        raise HypervisorError(
            f"{name} on node {self.provider}/{self.node} ended before it was ready: {what}",
            hint="look at the agent's log",
            reason="GUEST_FAILED",
            node=f"{self.provider}/{self.node}",
        )

    def _changed(self) -> None:
        for wake in self._waiting:
            wake.set()
        self._on_change(self)

    async def _keep(self, watch: Callable[[], Awaitable[None]]) -> None:
        """Watch again whenever it breaks, at growing intervals while it breaks at once."""
        pause = _FIRST_RETRY_S
        while True:
            begun = asyncio.get_running_loop().time()
            with contextlib.suppress(SeraiError, TimeoutError):
                await watch()
            if asyncio.get_running_loop().time() - begun > self._deadline_s:
                pause = _FIRST_RETRY_S
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_RETRY_S)

    async def _watch_node(self) -> None:
        call: Any = self.node_stub.WatchNode(WatchNodeRequest())
        try:
            messages = aiter(call)
            while True:
                async with asyncio.timeout(self._deadline_s):
                    state = await anext(messages)
                self.state = state
                if state.state == Node.STOPPING:
                    self._lost("it is stopping")
                elif not self.reachable:
                    await self._on_arrival(self)
                    self.reachable = True
                    log.info("node %s/%s is reachable", self.provider, self.node)
                    self._changed()
        except StopAsyncIteration:
            self._lost("it ended the watch")
        except (SeraiError, TimeoutError) as error:
            self._lost(str(error) or f"silent for {self._deadline_s:g} s")
            raise
        finally:
            call.cancel()

    def _lost(self, reason: str) -> None:
        if self.reachable:
            log.warning("node %s/%s is unreachable: %s", self.provider, self.node, reason)
            self.reachable = False
            self._changed()

    async def _watch_guests(self) -> None:
        call: Any = self.guest_stub.WatchGuests(WatchGuestsRequest())
        found: dict[str, Guest] = {}
        synchronized = False
        try:
            async for message in call:
                if message.deleted:
                    found.pop(message.guest.name, None)
                elif message.HasField("guest"):
                    found[message.guest.name] = message.guest
                if message.synchronized and not synchronized:
                    synchronized = True
                    self.guests, self.known = found, True
                    self._synchronizations += 1
                if synchronized:
                    self._changed()
        finally:
            call.cancel()
