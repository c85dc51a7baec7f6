"""The data plane of one node: guests' ports, the switch, and the channels to other nodes.

Everything runs in the agent's event loop and nothing in it waits for a guest, a peer or a broker: what
cannot be passed on is queued within bounds, then dropped and counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from serai.errors import InvalidInputError, NotFoundError
from serai.hypervisor.driver import FramePort
from serai.network.bridge import Bridge
from serai.network.capture import Capture
from serai.network.listener import DataListener, SocketHandler
from serai.network.peers import ChannelOffer, OpenChannel, Peer, PeerCounters
from serai.network.ports import Port, PortCounters, PortState
from serai.network.switch import (
    AttachmentPoint,
    BridgePort,
    Delivery,
    FlowCounters,
    GuestPort,
    PeerLabel,
    Segment,
    SegmentConfig,
    Switch,
)
from serai.network.taps import Tap
from serai.wire.records import ChannelSecret, Direction

_MAX_NAME_BYTES = 255


@dataclass(frozen=True, slots=True)
class SegmentStatus:
    """A segment as it is now; `active` at both its points."""

    config: SegmentConfig
    active: bool
    a_to_b: FlowCounters
    b_to_a: FlowCounters


@dataclass(frozen=True, slots=True)
class Counters:
    """All of a node. The last three are frames dropped for want of a segment, of a port, of permission."""

    ports: dict[GuestPort, PortCounters]
    segments: dict[str, SegmentStatus]
    peers: dict[str, PeerCounters]
    unconnected: int
    portless: int
    refused: int


class DataPlane:
    """One per agent. `node_name` is as in the certificate, ``PROVIDER/NODE``.

    `open_channel` asks a peer's agent for a channel, whose agent answers with its `accept_channel`.
    """

    def __init__(
        self, node_name: str, open_channel: OpenChannel, *, data_address: str = "127.0.0.1:0"
    ) -> None:
        self.node_name = node_name
        self._open_channel = open_channel
        self._listener = DataListener(data_address)
        self._switch = Switch()
        self._ports: dict[GuestPort, Port] = {}
        self._redirects: dict[GuestPort, str] = {}
        self._peers: dict[str, Peer] = {}
        self._bridges: dict[str, Bridge] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._portless = 0
        self._refused = 0

    async def start(self) -> None:
        """Listen for peers. Raises AlreadyExistsError or UnavailableError naming the address."""
        self._loop = asyncio.get_running_loop()
        await self._listener.start()

    async def close(self) -> None:
        """Disconnect everything; safe to repeat."""
        await self._listener.close()
        if self._timer is not None:
            self._timer.cancel()
        for port in self._ports.values():
            port.close()
        self._ports.clear()
        for peer in self._peers.values():
            await peer.close()
        self._peers.clear()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # Channels.

    @property
    def data_address(self) -> str:
        """``HOST:PORT`` that peers dial for frames and migration data."""
        return self._listener.address

    def accept_channel(self, peer: str, secret: ChannelSecret | None = None) -> ChannelOffer:
        """Expect a channel for frames from `peer`, whose name its certificate has proved."""
        secret = secret or ChannelSecret.generate()
        self._listener.expect(
            secret, lambda sock, stream: self._peer(peer).adopt(sock, secret, Direction.RESPONDER)
        )
        return ChannelOffer(secret, self.data_address)

    def register_channel(
        self, secret: ChannelSecret, handler: SocketHandler, *, streams: int = 1, seconds: float = 30.0
    ) -> ChannelOffer:
        """Expect another channel, such as a migration's: `handler` takes over each connected socket."""
        self._listener.expect(secret, handler, streams=streams, seconds=seconds)
        return ChannelOffer(secret, self.data_address)

    def forget_channel(self, secret: ChannelSecret) -> None:
        """Refuse connections of a registered channel from now on; no error when there is none."""
        self._listener.forget(secret.identifier)

    # Segments.

    def create_segment(self, config: SegmentConfig) -> SegmentStatus:
        """Connect two attachment points; active at those that have no segment yet.

        The same again is no error. Raises AlreadyExistsError for another one of that name, InvalidInputError.
        """
        for point in (config.a, config.b):
            self._check_point(point)
        known = any(segment.config.name == config.name for segment in self._switch.segments())
        segment = self._switch.create(config)
        if not known:
            for node in _nodes(segment):
                self._peer(node).require()
            for point in _bridge_ports(segment):
                self._bridges.setdefault(point.bridge, Bridge()).add(point.port)
        return self._status(segment)

    def activate_segment(self, name: str) -> SegmentStatus:
        """Let frames leave over it from now on, at both its points. Raises NotFoundError."""
        return self._status(self._switch.activate(name))

    def delete_segment(self, name: str) -> None:
        """Remove it; where it was active, the latest that remains takes over. Raises NotFoundError."""
        segment = self._switch.delete(name)
        for node in _nodes(segment):
            self._release_peer(node)
        for point in _bridge_ports(segment):
            if not self._switch.is_connected(point):
                bridge = self._bridges[point.bridge]
                bridge.remove(point.port)
                if not bridge.ports:
                    del self._bridges[point.bridge]

    def list_segments(self) -> list[SegmentStatus]:
        """All, in the order of their creation."""
        return [self._status(segment) for segment in self._switch.segments()]

    def get_segment(self, name: str) -> SegmentStatus:
        """Raises NotFoundError."""
        return self._status(self._switch.get(name))

    # Guests' ports.

    def bind_port(self, guest_uid: str, interface: str, driver: FramePort) -> None:
        """The guest is here and takes frames, those held first. Replaces what the port was before."""
        self._stop_redirect(GuestPort(guest_uid, interface))
        self._port(guest_uid, interface).bind(driver)

    def hold_port(self, guest_uid: str, interface: str, *, redirect_from: str | None = None) -> None:
        """The guest is frozen, or will arrive: keep its frames (at most 4096, 4 MiB) until it is bound.

        From then on only the node `redirect_from`, which it comes from, may send frames for it by
        redirection.
        """
        self._stop_redirect(GuestPort(guest_uid, interface))
        port = self._port(guest_uid, interface)
        port.hold()
        if redirect_from is not None:
            port.redirect_from = redirect_from

    def redirect_port(self, guest_uid: str, interface: str, peer: str) -> None:
        """The guest has left to the node `peer`: send its frames after it, those held first.

        Raises NotFoundError. Lasts until `unbind_port`, or until the guest is held or bound here again.
        """
        name = GuestPort(guest_uid, interface)
        port = self._existing_port(name)
        self._stop_redirect(name)
        link = self._peer(peer)
        link.require()
        self._redirects[name] = peer
        port.redirect(lambda frames: link.send(name, frames))

    def unbind_port(self, guest_uid: str, interface: str) -> None:
        """Forget the port; no error when there is none. Its segments stay."""
        name = GuestPort(guest_uid, interface)
        port = self._ports.pop(name, None)
        if port is not None:
            port.close()
            self._stop_redirect(name)

    def port_state(self, guest_uid: str, interface: str) -> PortState:
        """Raises NotFoundError."""
        return self._existing_port(GuestPort(guest_uid, interface)).state

    def capture(self, guest_uid: str, interface: str = "", *, snapshot_length: int = 0) -> Capture:
        """Copies of the frames at a guest's port, or at all of them. Raises NotFoundError.

        `snapshot_length` cuts the copies; 0 keeps all. Close what is returned.
        """
        ports = [
            port
            for name, port in self._ports.items()
            if name.guest_uid == guest_uid and interface in ("", name.interface)
        ]
        if not ports:
            raise NotFoundError(f"guest {guest_uid} has no port {interface}".rstrip(), guest=guest_uid)

        def forget(it: Capture) -> None:
            for port in ports:
                port.captures.remove(it)

        capture = Capture(snapshot_length, forget)
        for port in ports:
            port.captures.append(capture)
        return capture

    def join(self, guest_uid: str, interface: str, mac: bytes) -> Tap:
        """A further station on the wire of a guest's port. Raises NotFoundError, InvalidInputError.

        One that has the address there already is ended. Close what is returned; it ends with the port.
        """
        return self._existing_port(GuestPort(guest_uid, interface)).join(mac)

    def counters(self) -> Counters:
        """Of everything; the objects are live."""
        return Counters(
            {name: port.counters for name, port in self._ports.items()},
            {status.config.name: status for status in self.list_segments()},
            {node: peer.counters for node, peer in self._peers.items()},
            self._switch.unconnected,
            self._portless,
            self._refused,
        )

    # Frames.

    def frames_from(self, node: str, label: int, frames: Sequence[bytes]) -> None:
        """From a peer, on a virtual link."""
        self._enter(PeerLabel(node, label), frames)

    def redirected_from(self, node: str, port: GuestPort, frames: Sequence[bytes]) -> None:
        """From the peer that a guest came from."""
        existing = self._ports.get(port)
        # Back to where they came from would be for ever.
        back = self._redirects.get(port) == node
        if existing is None or existing.redirect_from != node or back:
            self._refused += len(frames)
            return
        existing.receive(frames)

    def _enter(self, point: AttachmentPoint, frames: Sequence[bytes]) -> None:
        delivery = self._switch.forward(point, frames, self._loop.time())
        if delivery is not None:
            self._leave(delivery)
        self._schedule()

    def _leave(self, delivery: Delivery) -> None:
        destination = delivery.destination
        if isinstance(destination, PeerLabel):
            self._peer(destination.node).send(destination.label, delivery.frames)
            return
        if isinstance(destination, BridgePort):
            self._bridge(destination, delivery.frames)
            return
        port = self._ports.get(destination)
        if port is None:
            self._portless += len(delivery.frames)
            return
        port.receive(delivery.frames)

    def _bridge(self, arrived: BridgePort, frames: Sequence[bytes]) -> None:
        bridge = self._bridges[arrived.bridge]
        for port, leaving in bridge.forward(arrived.port, frames, self._loop.time()).items():
            self._enter(BridgePort(arrived.bridge, port), leaving)

    def _schedule(self) -> None:
        due = self._switch.next_release
        if due is None or (self._timer is not None and self._timer.when() <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._release)

    def _release(self) -> None:
        self._timer = None
        for delivery in self._switch.release(self._loop.time()):
            self._leave(delivery)
        self._schedule()

    # Helpers.

    def _status(self, segment: Segment) -> SegmentStatus:
        return SegmentStatus(segment.config, self._switch.is_active(segment), segment.a_to_b, segment.b_to_a)

    def _check_point(self, point: AttachmentPoint) -> None:
        if isinstance(point, PeerLabel):
            if point.node == self.node_name:
                raise InvalidInputError(
                    f"{point.node} is this node itself", hint="connect two ports of one node by one segment"
                )
        elif isinstance(point, BridgePort):
            _check_port_name(GuestPort(point.bridge, point.port))
        else:
            _check_port_name(point)

    def _peer(self, node: str) -> Peer:
        peer = self._peers.get(node)
        if peer is None:
            peer = self._peers[node] = Peer(node, self._open_channel, self)
        return peer

    def _release_peer(self, node: str) -> None:
        self._peers[node].release()

    def _port(self, guest_uid: str, interface: str) -> Port:
        name = GuestPort(guest_uid, interface)
        _check_port_name(name)
        port = self._ports.get(name)
        if port is None:
            port = self._ports[name] = Port(name, self._enter)
        return port

    def _existing_port(self, name: GuestPort) -> Port:
        try:
            return self._ports[name]
        except KeyError:
            raise NotFoundError(f"there is no port {name} on {self.node_name}", port=name) from None

    def _stop_redirect(self, name: GuestPort) -> None:
        node = self._redirects.pop(name, None)
        if node is not None:
            self._release_peer(node)


def _check_port_name(name: GuestPort) -> None:
    for text in (name.guest_uid, name.interface):
        if not 0 < len(text.encode()) <= _MAX_NAME_BYTES:
            raise InvalidInputError(
                f"{text[:40]!r} cannot name a guest or an interface", hint="1 to 255 bytes"
            )


def _bridge_ports(segment: Segment) -> list[BridgePort]:
    return [point for point in segment.points if isinstance(point, BridgePort)]


def _nodes(segment: Segment) -> list[str]:
    return [point.node for point in segment.points if isinstance(point, PeerLabel)]
