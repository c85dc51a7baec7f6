"""Sealed record streams on raw TCP, for guest memory and for frames between agents.

Two agents agree over mutually authenticated gRPC on a channel: a random identifier and a random key, used
once. Each TCP connection of the channel (a *stream*) starts with a preamble that proves knowledge of the
key, followed by records in both directions. A record is a header, AES-GCM ciphertext and tag (NIST SP
800-38D)::

    preamble  magic "SRAI", version u8, zero u8, stream u16, channel id 16 bytes, MAC 16 bytes
    header    kind u8, flags u8, zero u16, length u32, argument u64, sequence u64      (all big-endian)

The header is authenticated as additional data. The nonce is stream and direction (u32) followed by the
sequence number, which starts at 0 and grows by one with each record, so no nonce repeats under a key and a
record that is replayed, reordered or dropped is noticed. An END record closes a direction; a stream that
stops without one was cut.

`Sealer` and `Opener` do no I/O; ``serai.wire.streams`` moves records over sockets.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import secrets
import struct
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from serai.errors import IntegrityError, InvalidInputError, SeraiError

Buffer: TypeAlias = bytes | bytearray | memoryview

CHANNEL_ID_BYTES = 16
KEY_BYTES = (16, 32)
TAG_BYTES = 16
MAX_PAYLOAD = 4 * 1024 * 1024
"""Largest payload that any stream may allow, bytes. One mebibyte is as fast and the usual choice."""

END = 0
"""The record kind that ends a direction; it has no payload. Other kinds belong to the user of the stream."""

_MAGIC, _VERSION = b"SRAI", 1
_HEADER = struct.Struct("!BBHIQQ")
_PREAMBLE = struct.Struct("!4sBBH16s")
_NONCE = struct.Struct("!IQ")
_MAC_BYTES = 16
HEADER_BYTES = _HEADER.size
OVERHEAD_BYTES = HEADER_BYTES + TAG_BYTES
PREAMBLE_BYTES = _PREAMBLE.size + _MAC_BYTES


class Direction(enum.IntEnum):
    """Which side seals: the one that dialled, or the one that accepted."""

    INITIATOR = 0
    RESPONDER = 1

    @property
    def opposite(self) -> Direction:
        """The other side."""
        return Direction(1 - self)


@dataclass(frozen=True, slots=True)
class ChannelSecret:
    """What two agents agreed upon: a 16-byte identifier and a 128- or 256-bit key.

    Never used for two channels.
    """

    identifier: bytes
    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.identifier) != CHANNEL_ID_BYTES or len(self.key) not in KEY_BYTES:
            raise InvalidInputError(
                f"a channel has a {CHANNEL_ID_BYTES}-byte identifier and a 16- or 32-byte key, "
                f"not {len(self.identifier)} and {len(self.key)}"
            )

    @classmethod
    def generate(cls) -> ChannelSecret:
        """A new channel with a 128-bit key (a third less work than 256 bits)."""
        return cls(secrets.token_bytes(CHANNEL_ID_BYTES), secrets.token_bytes(16))

    def preamble(self, stream: int = 0) -> bytes:
        """What the initiator sends first on stream number `stream` (0 to 65535)."""
        start = _PREAMBLE.pack(_MAGIC, _VERSION, 0, stream, self.identifier)
        return start + self._mac(start)

    def check_preamble(self, preamble: Buffer) -> None:
        """Raise IntegrityError unless the sender of `preamble` knows the key."""
        start, mac = bytes(preamble[: _PREAMBLE.size]), bytes(preamble[_PREAMBLE.size :])
        if not hmac.compare_digest(self._mac(start), mac):
            raise IntegrityError(
                "a connection does not know the key of the channel it names", reason="WRONG_CHANNEL_KEY"
            )

    def _mac(self, start: bytes) -> bytes:
        return hmac.digest(self.key, b"serai channel preamble" + start, hashlib.sha256)[:_MAC_BYTES]


def parse_preamble(preamble: Buffer) -> tuple[bytes, int]:
    """Channel identifier and stream number that `preamble` claims; `check_preamble` proves them."""
    if len(preamble) != PREAMBLE_BYTES:
        raise IntegrityError(f"a preamble has {PREAMBLE_BYTES} bytes, not {len(preamble)}")
    magic, version, _, stream, identifier = _PREAMBLE.unpack_from(preamble)
    if magic != _MAGIC or version != _VERSION:
        raise IntegrityError(
            f"not a Serai stream of version {_VERSION}",
            hint="do both agents run versions of Serai that fit?",
            reason="NOT_A_CHANNEL",
        )
    return identifier, stream


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """A record's open part. `length` is the payload's; `argument` is the user's, for example a RAM offset."""

    kind: int
    flags: int
    length: int
    argument: int
    sequence: int

    @property
    def sealed_length(self) -> int:
        """Bytes that follow the header on the wire."""
        return self.length + TAG_BYTES


class _Cipher(Protocol):
    """The one thing that Sealer and Opener share: how a nonce is made."""

    def __call__(self, sequence: int) -> bytes: ...


def _nonces(direction: Direction, stream: int) -> _Cipher:
    if not 0 <= stream < 1 << 16:
        raise InvalidInputError(f"stream number {stream} is not between 0 and 65535")
    prefix = stream << 1 | direction
    return lambda sequence: _NONCE.pack(prefix, sequence)


class Sealer:
    """Seals the records of one direction of one stream. Not for use by two threads at once."""

    def __init__(
        self, secret: ChannelSecret, direction: Direction, *, stream: int = 0, maximum: int = MAX_PAYLOAD
    ) -> None:
        self._aead = AESGCM(secret.key)
        self._nonce = _nonces(direction, stream)
        self._maximum = maximum
        self._sequence = 0
        self._ended = False

    def seal_into(
        self, kind: int, payload: Buffer, buffer: memoryview, *, flags: int = 0, argument: int = 0
    ) -> int:
        """Write a complete record to the start of `buffer`; returns its length.

        `payload` may be the very place in `buffer` where the ciphertext goes (HEADER_BYTES on): no copy then.
        """
        length = len(payload)
        if length > self._maximum:
            raise InvalidInputError(
                f"a record of {length} bytes is larger than the {self._maximum} agreed on"
            )
        if self._ended:
            raise InvalidInputError("nothing can follow the END record")
        sequence = self._sequence
        # Counted before sealing: a nonce is spent even when sealing fails half-way.
        self._sequence += 1
        self._ended = kind == END
        _HEADER.pack_into(buffer, 0, kind, flags, 0, length, argument, sequence)
        total = length + OVERHEAD_BYTES
        header = bytes(buffer[:HEADER_BYTES])
        self._aead.encrypt_into(self._nonce(sequence), payload, header, buffer[HEADER_BYTES:total])
        return total

    def seal(self, kind: int, payload: Buffer = b"", *, flags: int = 0, argument: int = 0) -> bytes:
        """A complete record."""
        buffer = bytearray(len(payload) + OVERHEAD_BYTES)
        self.seal_into(kind, payload, memoryview(buffer), flags=flags, argument=argument)
        return bytes(buffer)


class Opener:
    """Opens the records of one direction of one stream; after the first error it opens nothing more."""

    def __init__(
        self, secret: ChannelSecret, direction: Direction, *, stream: int = 0, maximum: int = MAX_PAYLOAD
    ) -> None:
        self._aead = AESGCM(secret.key)
        self._nonce = _nonces(direction, stream)
        self._maximum = maximum
        self._sequence = 0
        self._failure: SeraiError | None = None
        self.ended = False
        """Whether the END record has come; without it, the end of the stream is a cut."""

    def parse_header(self, header: Buffer) -> RecordHeader:
        """Read the first HEADER_BYTES of a record. Authentic only once `open_into` has returned.

        Raises IntegrityError for a sequence number that is not the next, a length beyond the maximum, or a
        record after END.
        """
        if self._failure is not None:
            raise self._failure
        kind, flags, zero, length, argument, sequence = _HEADER.unpack_from(header)
        if sequence != self._sequence:
            raise self._fail(
                f"record {sequence} came where {self._sequence} was due: replayed, reordered or lost",
                "WRONG_SEQUENCE",
            )
        if zero or length > self._maximum:
            raise self._fail(
                f"record {sequence} claims {length} bytes; at most {self._maximum} are allowed", "TOO_LONG"
            )
        if self.ended:
            raise self._fail(f"record {sequence} follows the end of its stream", "AFTER_END")
        return RecordHeader(kind, flags, length, argument, sequence)

    def open_into(self, header: RecordHeader, sealed: Buffer, destination: Buffer) -> None:
        """Decrypt `sealed` (ciphertext and tag) into `destination`, which has exactly `header.length` bytes.

        `destination` may be the start of `sealed`. Raises IntegrityError; the destination is then garbage.
        """
        if self._failure is not None:
            raise self._failure
        if header.sequence != self._sequence:
            raise self._fail(f"record {header.sequence} is opened out of order", "WRONG_SEQUENCE")
        associated = _HEADER.pack(
            header.kind, header.flags, 0, header.length, header.argument, header.sequence
        )
        try:
            self._aead.decrypt_into(self._nonce(header.sequence), sealed, associated, destination)
        except InvalidTag:
            raise self._fail(
                f"record {header.sequence} is not what the other side sealed: damaged or forged", "WRONG_TAG"
            ) from None
        self._sequence += 1
        self.ended = header.kind == END

    def open(self, record: Buffer) -> tuple[RecordHeader, bytes]:
        """Header and payload of one complete record."""
        view = memoryview(record)
        if len(view) < OVERHEAD_BYTES:
            raise self._fail(f"a record has at least {OVERHEAD_BYTES} bytes, not {len(view)}", "TRUNCATED")
        header = self.parse_header(view[:HEADER_BYTES])
        if len(view) != HEADER_BYTES + header.sealed_length:
            raise self._fail(f"record {header.sequence} is cut or padded", "TRUNCATED")
        payload = bytearray(header.length)
        self.open_into(header, view[HEADER_BYTES:], payload)
        return header, bytes(payload)

    def _fail(self, message: str, reason: str) -> IntegrityError:
        self._failure = IntegrityError(message, hint="open a new channel", reason=reason)
        return self._failure
