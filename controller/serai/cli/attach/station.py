"""An IPv4 host with one interface, in user space: ARP, ping, and TCP connections that it opens. Pure."""

from __future__ import annotations

import ipaddress
import itertools
import secrets

from serai.cli.attach.packets import (
    ACK,
    BROADCAST,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    PROTOCOL_ICMP,
    PROTOCOL_TCP,
    RST,
    Arp,
    Ip,
    Packet,
    Segment,
    checksum,
    ethernet,
    split_frame,
)
from serai.cli.attach.tcp import Connection, State

ARP_RETRY_S = 0.5
_FIRST_PORT, _LAST_PORT = 49152, 65535
"""Dynamic ports (RFC 6335)."""
_MAX_WAITING = 256
"""Packets kept for a neighbour that has not answered yet."""

Peer = tuple[Ip, int, int]
"""Address and port of the other side, port of ours."""


class IpStation:
    """`gateway`, where given, leads to what is not in the subnet. Times are seconds, never going back."""

    def __init__(self, mac: bytes, address: ipaddress.IPv4Interface, gateway: Ip | None = None) -> None:
        self.mac = mac
        self.address = address
        self._gateway = gateway
        self._neighbours: dict[Ip, bytes] = {}
        self._waiting: dict[Ip, list[Packet]] = {}
        self._asked: dict[Ip, float] = {}
        self._connections: dict[Peer, Connection] = {}
        self._frames: list[bytes] = []
        self._ports = itertools.cycle(range(_FIRST_PORT, _LAST_PORT + 1))

    def connect(self, address: Ip, port: int, now: float) -> Connection:
        """Begin a connection; look at its state and failure."""
        while (peer := (address, port, next(self._ports))) in self._connections:
            pass
        connection = Connection(peer[2], port, secrets.randbits(32), now)
        self._connections[peer] = connection
        return connection

    def receive(self, frame: bytes, now: float) -> None:
        """A frame has arrived. Whatever is in it, at worst it is dropped."""
        destination, source, ethertype, body = split_frame(frame)
        if destination not in (self.mac, BROADCAST):
            return
        if ethertype == ETHERTYPE_ARP:
            self._receive_arp(body)
        elif ethertype == ETHERTYPE_IPV4:
            packet = Packet.decode(body)
            if packet is not None and packet.destination == self.address.ip:
                self._neighbours.setdefault(packet.source, source)
                self._receive_packet(packet, now)

    def poll(self, now: float) -> list[bytes]:
        """The frames to send now."""
        for peer, connection in list(self._connections.items()):
            connection.tick(now)
            for segment in connection.outgoing:
                self._send(
                    Packet(
                        self.address.ip,
                        peer[0],
                        PROTOCOL_TCP,
                        segment.encode(self.address.ip, peer[0]),
                    )
                )
            connection.outgoing.clear()
            if connection.state is State.CLOSED:
                del self._connections[peer]
        for hop in self._waiting:
            if now >= self._asked.get(hop, 0.0):
                self._asked[hop] = now + ARP_RETRY_S
                self._frames.append(Arp(1, self.mac, self.address.ip, bytes(6), hop).encode(BROADCAST))
        frames, self._frames = self._frames, []
        return frames

    @property
    def deadline(self) -> float | None:
        """When `poll` has something to do although nothing arrived."""
        times = [
            connection.deadline
            for connection in self._connections.values()
            if connection.deadline is not None
        ]
        times += [self._asked.get(hop, 0.0) for hop in self._waiting]
        return min(times, default=None)

    def _receive_arp(self, body: bytes) -> None:
        arp = Arp.decode(body)
        if arp is None or arp.target != self.address.ip:
            return
        self._neighbours[arp.sender] = arp.sender_mac
        if arp.operation == 1:
            reply = Arp(2, self.mac, self.address.ip, arp.sender_mac, arp.sender)
            self._frames.append(reply.encode(arp.sender_mac))
        for packet in self._waiting.pop(arp.sender, ()):
            self._send(packet)

    def _receive_packet(self, packet: Packet, now: float) -> None:
        if packet.protocol == PROTOCOL_ICMP and packet.payload[:1] == b"\x08":
            rest = packet.payload[4:]
            reply = b"\0\0" + checksum(b"\0\0\0\0" + rest).to_bytes(2, "big") + rest
            self._send(Packet(self.address.ip, packet.source, PROTOCOL_ICMP, reply))
        elif packet.protocol == PROTOCOL_TCP:
            segment = Segment.decode(packet.payload)
            if segment is not None:
                self._receive_segment(packet.source, segment, now)

    def _receive_segment(self, source: Ip, segment: Segment, now: float) -> None:
        peer = (source, segment.source_port, segment.destination_port)
        connection = self._connections.get(peer)
        if connection is not None:
            connection.receive(segment, now)
        elif not segment.flags & RST:
            # To nobody (RFC 9293, 3.10.7.1).
            answer = Segment(
                segment.destination_port,
                segment.source_port,
                segment.acknowledgement if segment.flags & ACK else 0,
                (segment.sequence + len(segment.payload) + 1) % (1 << 32),
                RST if segment.flags & ACK else RST | ACK,
                0,
            )
            payload = answer.encode(self.address.ip, source)
            self._send(Packet(self.address.ip, source, PROTOCOL_TCP, payload))

    def _send(self, packet: Packet) -> None:
        on_link = packet.destination in self.address.network or self._gateway is None
        hop = packet.destination if on_link or self._gateway is None else self._gateway
        if hop in self._neighbours:
            body = packet.encode()
            self._frames.append(ethernet(self._neighbours[hop], self.mac, ETHERTYPE_IPV4, body))
            return
        waiting = self._waiting.setdefault(hop, [])
        if len(waiting) < _MAX_WAITING:
            waiting.append(packet)
