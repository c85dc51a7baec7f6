"""The user-space IP stack: against a peer of the test's on a lossy wire, and against garbage."""

from __future__ import annotations

import ipaddress
import random
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serai.cli.attach.forward import Forward
from serai.cli.attach.packets import (
    ACK,
    FIN,
    PSH,
    RST,
    SYN,
    Arp,
    Ip,
    Packet,
    Segment,
    checksum,
    ethernet,
    split_frame,
)
from serai.cli.attach.station import IpStation
from serai.cli.attach.tcp import Connection, State
from serai.errors import InvalidInputError

MAC, GUEST_MAC = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"
ADDRESS = ipaddress.IPv4Interface("10.0.0.254/24")
GUEST = Ip("10.0.0.1")


class Server:
    """A peer that is as simple as RFC 9293 allows: it echoes, and acknowledges only what is in order."""

    def __init__(self, window: int = 65535) -> None:
        self.window = window
        self.expected = 0
        self.next = 1 << 31
        self.base = self.next
        self.sent = bytearray()
        """All that is to be sent, from the byte after SYN on."""
        self.acknowledged = self.pushed = 0
        self.got = bytearray()
        self.fin_seen = self.fin_sent = False
        self.opened = False

    def answer(self, segment: Segment) -> list[Segment]:
        if segment.flags & SYN:
            self.opened, self.expected = True, segment.sequence + 1
            return [self._make(SYN | ACK, self.base)]
        if not self.opened:
            return []
        if segment.flags & ACK:
            acknowledged = (segment.acknowledgement - self.base - 1) % (1 << 32)
            if acknowledged <= len(self.sent) + 1:
                self.acknowledged = max(self.acknowledged, acknowledged)
        if segment.sequence % (1 << 32) == self.expected % (1 << 32):
            self.got += segment.payload
            self.sent += segment.payload
            self.expected += len(segment.payload)
            if segment.flags & FIN:
                self.expected += 1
                self.fin_seen = True
        if segment.payload or segment.flags & FIN:
            return self.say(self.pushed) or [self._make(ACK, self.base + 1 + self.pushed)]
        return self.say(self.pushed)

    def resend(self) -> list[Segment]:
        """From the first byte on that is not acknowledged."""
        self.fin_sent = False
        return self.say(min(self.acknowledged, len(self.sent)))

    def say(self, start: int) -> list[Segment]:
        """What is to be sent from `start` on, within the peer's window; FIN when all is said."""
        out = []
        for offset in range(start, min(len(self.sent), self.acknowledged + 20_000), 1000):
            piece = bytes(self.sent[offset : offset + 1000])
            out.append(self._make(ACK | PSH, self.base + 1 + offset, piece))
            self.pushed = offset + len(piece)
        if self.fin_seen and self.acknowledged == len(self.sent) and not self.fin_sent:
            out.append(self._make(ACK | FIN, self.base + 1 + len(self.sent)))
            self.fin_sent = True
        return out

    def _make(self, flags: int, sequence: int, payload: bytes = b"") -> Segment:
        return Segment(
            80, 50000, sequence % (1 << 32), self.expected % (1 << 32), flags, self.window, payload, mss=0
        )


def exchange(
    data: bytes, loss: float, seed: int, window: int = 65535, sequence: int = 0
) -> tuple[Server, bytes, Connection]:
    """Send `data` to an echo server over a wire that loses, and close; what came back."""
    chance = random.Random(seed)
    connection = Connection(50000, 80, sequence, 0.0)
    server = Server(window)
    now, back, rest = 0.0, bytearray(), data
    for _ in range(20_000):
        outgoing, connection.outgoing = connection.outgoing, []
        answers = [
            answer for segment in outgoing if chance.random() >= loss for answer in server.answer(segment)
        ]
        if not outgoing:
            now += 0.05
            answers = server.resend() if server.opened else []
        for answer in answers:
            if chance.random() >= loss:
                connection.receive(answer, now)
        back += connection.read()
        if rest and connection.state is State.OPEN:
            piece, rest = rest[:5000], rest[5000:]
            connection.write(piece, now)
        if not rest and connection.state is State.OPEN:
            connection.close(now)
        connection.tick(now)
        if connection.state is State.CLOSED and not connection.outgoing:
            break
    return server, bytes(back), connection


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(0, 60_000),
    loss=st.sampled_from([0.0, 0.02, 0.1]),
    seed=st.integers(0, 1 << 30),
    window=st.sampled_from([500, 8000, 65535]),
    sequence=st.sampled_from([0, 1 << 31, (1 << 32) - 1, (1 << 32) - 3000]),
)
def test_everything_arrives_once_and_in_order(
    size: int, loss: float, seed: int, window: int, sequence: int
) -> None:
    data = random.Random(seed).randbytes(size)
    server, back, connection = exchange(data, loss, seed, window, sequence)
    assert connection.failure is None
    assert bytes(server.got) == data
    assert back == data
    assert connection.state is State.CLOSED and connection.ended


def test_a_peer_that_is_silent_is_given_up() -> None:
    connection = Connection(50000, 80, 7, 0.0)
    while connection.deadline is not None:
        connection.tick(connection.deadline)
    assert connection.failure is not None and "does not answer" in connection.failure.message
    assert 3 < len(connection.outgoing) < 20


def test_a_refusal_is_one_and_a_forged_one_is_not() -> None:
    connection = Connection(50000, 80, 7, 0.0)
    connection.receive(Segment(80, 50000, 0, 12345, RST | ACK, 0), 0.0)
    assert connection.state is State.OPENING
    connection.receive(Segment(80, 50000, 0, 8, RST | ACK, 0), 0.0)
    assert connection.failure is not None and "refused" in connection.failure.message


def test_a_station_resolves_and_answers() -> None:
    station = IpStation(MAC, ADDRESS)
    station.connect(GUEST, 80, 0.0)
    (question,) = station.poll(0.0)
    assert split_frame(question)[0] == b"\xff" * 6
    arp = Arp.decode(split_frame(question)[3])
    assert arp is not None and (arp.operation, arp.target) == (1, GUEST)
    assert station.poll(0.1) == []
    assert len(station.poll(0.6)) == 1, "asked again"
    station.receive(Arp(2, GUEST_MAC, GUEST, MAC, ADDRESS.ip).encode(MAC), 0.7)
    (syn,) = [frame for frame in station.poll(0.7) if split_frame(frame)[2] == 0x0800][:1]
    assert split_frame(syn)[0] == GUEST_MAC
    packet = Packet.decode(split_frame(syn)[3])
    assert packet is not None and checksum(split_frame(syn)[3][:20]) == 0
    segment = Segment.decode(packet.payload)
    assert segment is not None and (segment.flags, segment.destination_port) == (SYN, 80)
    pseudo = (
        packet.source.packed
        + packet.destination.packed
        + bytes([0, 6])
        + len(packet.payload).to_bytes(2, "big")
    )
    assert checksum(pseudo + packet.payload) == 0
    station.receive(Arp(1, GUEST_MAC, GUEST, bytes(6), ADDRESS.ip).encode(b"\xff" * 6), 1.0)
    replies = [Arp.decode(split_frame(it)[3]) for it in station.poll(1.0) if split_frame(it)[2] == 0x0806]
    assert any(reply is not None and reply.operation == 2 and reply.sender_mac == MAC for reply in replies)


def test_a_ping_is_answered() -> None:
    station = IpStation(MAC, ADDRESS)
    body = b"\x08\0\0\0\0\1\0\1payload"
    body = body[:2] + checksum(body).to_bytes(2, "big") + body[4:]
    frame = ethernet(MAC, GUEST_MAC, 0x0800, Packet(GUEST, ADDRESS.ip, 1, body).encode())
    station.receive(frame, 0.0)
    (reply,) = station.poll(0.0)
    packet = Packet.decode(split_frame(reply)[3])
    assert packet is not None and packet.payload[0] == 0 and packet.payload[4:] == body[4:]
    assert checksum(packet.payload) == 0


def test_what_is_not_in_the_subnet_goes_through_the_gateway() -> None:
    station = IpStation(MAC, ADDRESS, GUEST)
    station.connect(Ip("192.168.0.1"), 80, 0.0)
    arp = Arp.decode(split_frame(station.poll(0.0)[0])[3])
    assert arp is not None and arp.target == GUEST


@given(st.binary(max_size=200), st.sampled_from([0x0800, 0x0806, 0x86DD]), st.booleans())
def test_garbage_is_dropped(body: bytes, ethertype: int, valid_ip: bool) -> None:
    station = IpStation(MAC, ADDRESS)
    station.connect(GUEST, 80, 0.0)
    if valid_ip:
        body = Packet(GUEST, ADDRESS.ip, 6, body).encode()
    station.receive(MAC + GUEST_MAC + ethertype.to_bytes(2, "big") + body, 0.0)
    station.receive(body, 0.0)
    station.poll(1.0)


@pytest.mark.parametrize(
    "text", ["", "80", "a:1:2:3", "127.0.0.1:80:10.0.0.1", "1:10.0.0.1:0", "h:1:10.0.0.1:2"]
)
def test_a_wrong_forward_says_how(text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Forward.parse(text)
    assert "127.0.0.1:8080" in caught.value.hint


def test_forwards() -> None:
    assert Forward.parse("8080:10.0.0.1:80") == Forward("127.0.0.1", 8080, GUEST, 80)
    assert Forward.parse("0.0.0.0:8080:10.0.0.1:80").host == socket.inet_ntoa(bytes(4))
