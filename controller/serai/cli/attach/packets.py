"""Ethernet, ARP, IPv4, ICMP and TCP as bytes: what a user-space station needs, and no more.

Checksums are computed for what is sent and not checked on what comes: frames travel inside authenticated
streams, and a guest that offloads checksums to its device leaves them unfinished.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

ETHERTYPE_IPV4, ETHERTYPE_ARP = 0x0800, 0x0806
PROTOCOL_ICMP, PROTOCOL_TCP = 1, 6
FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
BROADCAST = b"\xff" * 6
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_TCP = struct.Struct("!HHIIBBHHH")
_ETHERNET_BYTES = 14
_OPTION_MSS = 2
_MORE_FRAGMENTS_OR_OFFSET = 0x3FFF

Ip = ipaddress.IPv4Address


@dataclass(frozen=True, slots=True)
class Arp:
    """RFC 826 for IPv4 over Ethernet; operation 1 asks, 2 answers."""

    operation: int
    sender_mac: bytes
    sender: Ip
    target_mac: bytes
    target: Ip

    def encode(self, destination: bytes) -> bytes:
        """As a whole frame."""
        body = _ARP.pack(
            1, ETHERTYPE_IPV4, 6, 4, self.operation,
            self.sender_mac, self.sender.packed, self.target_mac, self.target.packed,
        )  # fmt: skip
        return ethernet(destination, self.sender_mac, ETHERTYPE_ARP, body)

    @classmethod
    def decode(cls, body: bytes) -> Arp | None:
        """None for anything else than IPv4 over Ethernet."""
        if len(body) < _ARP.size:
            return None
        hardware, protocol, six, four, operation, sender_mac, sender, target_mac, target = _ARP.unpack_from(
            body
        )
        if (hardware, protocol, six, four) != (1, ETHERTYPE_IPV4, 6, 4):
            return None
        return cls(operation, sender_mac, Ip(sender), target_mac, Ip(target))


@dataclass(frozen=True, slots=True)
class Packet:
    """An IPv4 packet (RFC 791) that is whole, without options."""

    source: Ip
    destination: Ip
    protocol: int
    payload: bytes

    def encode(self) -> bytes:
        """Header with its checksum, then the payload."""
        length = _IPV4.size + len(self.payload)
        fields = (0x45, 0, length, 0, 0x4000, 64, self.protocol)
        ends = (self.source.packed, self.destination.packed)
        header = _IPV4.pack(*fields, 0, *ends)
        return _IPV4.pack(*fields, checksum(header), *ends) + self.payload

    @classmethod
    def decode(cls, body: bytes) -> Packet | None:
        """None for what is not IPv4, is cut short, or is a fragment."""
        if len(body) < _IPV4.size:
            return None
        first, _, length, _, fragment, _, protocol, _, source, destination = _IPV4.unpack_from(body)
        header = (first & 15) * 4
        if first >> 4 != 4 or not _IPV4.size <= header <= length <= len(body):
            return None
        if fragment & _MORE_FRAGMENTS_OR_OFFSET:
            return None
        return cls(Ip(source), Ip(destination), protocol, body[header:length])


@dataclass(frozen=True, slots=True)
class Segment:
    """A TCP segment (RFC 9293, 3.1); `mss` only with SYN, 0 for none."""

    source_port: int
    destination_port: int
    sequence: int
    acknowledgement: int
    flags: int
    window: int
    payload: bytes = b""
    mss: int = 0

    def encode(self, source: Ip, destination: Ip) -> bytes:
        """Header with its checksum over the pseudo header, then the payload."""
        options = struct.pack("!BBH", _OPTION_MSS, 4, self.mss) if self.mss else b""
        length = _TCP.size + len(options)

        def header(sum_: int) -> bytes:
            return (
                _TCP.pack(
                    self.source_port, self.destination_port, self.sequence, self.acknowledgement,
                    length // 4 << 4, self.flags, self.window, sum_, 0,
                )
                + options
            )  # fmt: skip

        pseudo = source.packed + destination.packed
        pseudo += struct.pack("!BBH", 0, PROTOCOL_TCP, length + len(self.payload))
        return header(checksum(pseudo + header(0) + self.payload)) + self.payload

    @classmethod
    def decode(cls, body: bytes) -> Segment | None:
        """None for what is cut short."""
        if len(body) < _TCP.size:
            return None
        source, destination, sequence, acknowledgement, offset, flags, window, _, _ = _TCP.unpack_from(body)
        length = (offset >> 4) * 4
        if not _TCP.size <= length <= len(body):
            return None
        mss = _find_mss(body[_TCP.size : length])
        return cls(source, destination, sequence, acknowledgement, flags, window, body[length:], mss)


def _find_mss(options: bytes) -> int:
    position = 0
    while position < len(options):
        kind = options[position]
        if kind == 0:
            break
        if kind == 1:
            position += 1
            continue
        length = options[position + 1] if position + 1 < len(options) else 0
        if length < 2:
            break
        if kind == _OPTION_MSS and length == 4 and position + 4 <= len(options):
            return int.from_bytes(options[position + 2 : position + 4], "big")
        position += length
    return 0


def ethernet(destination: bytes, source: bytes, ethertype: int, body: bytes) -> bytes:
    """A frame, padded to the least length (IEEE 802.3)."""
    return (destination + source + ethertype.to_bytes(2, "big") + body).ljust(60, b"\0")


def split_frame(frame: bytes) -> tuple[bytes, bytes, int, bytes]:
    """Destination, source, EtherType, body; an EtherType of 0 for what is no frame."""
    if len(frame) < _ETHERNET_BYTES:
        return b"", b"", 0, b""
    return frame[:6], frame[6:12], int.from_bytes(frame[12:14], "big"), frame[14:]


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
