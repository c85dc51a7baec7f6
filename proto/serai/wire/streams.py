"""Record streams over sockets: blocking, for threads that move memory; with callbacks, for frames."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Self

from serai.errors import InvalidInputError, SeraiError, UnavailableError
from serai.wire.records import (
    END,
    HEADER_BYTES,
    OVERHEAD_BYTES,
    PREAMBLE_BYTES,
    Buffer,
    ChannelSecret,
    Direction,
    Opener,
    RecordHeader,
    Sealer,
    parse_preamble,
)

DEFAULT_MAXIMUM = 1024 * 1024
"""Largest payload of a record unless said otherwise, bytes: the measured optimum for bulk data."""


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``[V6]:PORT``; InvalidInputError for anything else."""
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        raise InvalidInputError(f"{address!r} is not an address", hint="write HOST:PORT", address=address)
    return host.strip("[]"), int(port)


def tune_socket(sock: socket.socket) -> None:
    """No Nagle delay, and keep-alive that notices a dead host within half a minute."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)


class RecordStream:
    """A blocking stream. One thread may send while another receives; not two of the same.

    Every method that touches the socket raises UnavailableError when the other side is gone or silent for
    longer than the socket's timeout, and IntegrityError when what came is not what was sealed.
    """

    def __init__(
        self,
        sock: socket.socket,
        secret: ChannelSecret,
        direction: Direction,
        *,
        stream: int = 0,
        maximum: int = DEFAULT_MAXIMUM,
    ) -> None:
        self._socket = sock
        self._sealer = Sealer(secret, direction, stream=stream, maximum=maximum)
        self._opener = Opener(secret, direction.opposite, stream=stream, maximum=maximum)
        self._out = memoryview(bytearray(maximum + OVERHEAD_BYTES))
        self._in = memoryview(bytearray(maximum + OVERHEAD_BYTES))
        self._header: RecordHeader | None = None
        self.bytes_sent = 0
        self.bytes_received = 0

    @classmethod
    def dial(
        cls,
        address: str,
        secret: ChannelSecret,
        *,
        stream: int = 0,
        maximum: int = DEFAULT_MAXIMUM,
        timeout: float = 30.0,
    ) -> RecordStream:
        """Connect to ``HOST:PORT`` and present the channel; every wait may take `timeout` seconds."""
        try:
            sock = socket.create_connection(split_address(address), timeout)
        except OSError as error:
            raise _lost(f"cannot connect to {address}", error) from error
        tune_socket(sock)
        result = cls(sock, secret, Direction.INITIATOR, stream=stream, maximum=maximum)
        try:
            result._send_all(memoryview(secret.preamble(stream)))
        except BaseException:
            sock.close()
            raise
        return result

    def send(self, kind: int, payload: Buffer = b"", *, flags: int = 0, argument: int = 0) -> None:
        """Seal `payload` straight from where it lies and send it."""
        length = self._sealer.seal_into(kind, payload, self._out, flags=flags, argument=argument)
        self._send_all(self._out[:length])

    def finish(self) -> None:
        """Send END; nothing can be sent afterwards."""
        self.send(END)

    def receive_header(self) -> RecordHeader | None:
        """The next record's header, None after END. `receive_into` or `receive_payload` must follow it."""
        if self._header is not None:
            raise InvalidInputError("the payload of the last record was not taken")
        if self._opener.ended:
            return None
        self._receive_exactly(self._in[:HEADER_BYTES])
        self._header = self._opener.parse_header(self._in[:HEADER_BYTES])
        if self._header.kind == END:
            self.receive_payload()
            return None
        return self._header

    def receive_into(self, destination: memoryview) -> None:
        """Take the payload of the header just received; `destination` has exactly its length."""
        header, self._header = self._header, None
        if header is None:
            raise InvalidInputError("receive_header comes first")
        sealed = self._in[: header.sealed_length]
        self._receive_exactly(sealed)
        self._opener.open_into(header, sealed, destination)

    def receive_payload(self) -> bytes:
        """As `receive_into`, into new memory."""
        payload = bytearray(self._header.length if self._header else 0)
        self.receive_into(memoryview(payload))
        return bytes(payload)

    def receive(self) -> tuple[RecordHeader, bytes] | None:
        """Header and payload of the next record, None after END."""
        header = self.receive_header()
        return None if header is None else (header, self.receive_payload())

    def set_timeout(self, seconds: float) -> None:
        """Every wait from now on may take that long."""
        self._socket.settimeout(seconds)

    def shutdown(self) -> None:
        """Wake a thread that waits in this stream: its call raises UnavailableError. Safe from any thread."""
        # Not connected any more is what was wanted.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket; safe to repeat."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _send_all(self, data: memoryview) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise _lost("the stream broke while sending", error) from error
        self.bytes_sent += len(data)

    def _receive_exactly(self, buffer: memoryview) -> None:
        filled = 0
        while filled < len(buffer):
            try:
                count = self._socket.recv_into(buffer[filled:])
            except OSError as error:
                raise _lost("the stream broke while receiving", error) from error
            if count == 0:
                raise _cut_off()
            filled += count
        self.bytes_received += filled


class CallbackStream:
    """A stream in an event loop, for many small records.

    `on_record` gets each record; its payload is valid during the call only. `on_closed` is called once: with
    None after END, otherwise with the error; not after `close`. Outgoing records are written in place: fill
    the start of `payload`, then `send`; while `idle` is False the buffer is still leaving, and `on_idle`
    tells when it has.
    """

    def __init__(
        self,
        sock: socket.socket,
        secret: ChannelSecret,
        direction: Direction,
        *,
        on_record: Callable[[RecordHeader, memoryview], None],
        on_idle: Callable[[], None],
        on_closed: Callable[[SeraiError | None], None],
        stream: int = 0,
        maximum: int = DEFAULT_MAXIMUM,
    ) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._sealer = Sealer(secret, direction, stream=stream, maximum=maximum)
        self._opener = Opener(secret, direction.opposite, stream=stream, maximum=maximum)
        self._on_record, self._on_idle, self._on_closed = on_record, on_idle, on_closed
        self._out = memoryview(bytearray(maximum + OVERHEAD_BYTES))
        self._pending = self._out[:0]
        self._in = memoryview(bytearray(2 * (maximum + OVERHEAD_BYTES)))
        self._filled = 0
        self._open = True
        self.bytes_sent = 0
        self.bytes_received = 0
        self.payload = self._out[HEADER_BYTES : HEADER_BYTES + maximum]
        """Where the next record's payload goes."""
        self._loop.add_reader(sock, self._readable)

    @property
    def idle(self) -> bool:
        """Whether a record may be sent now."""
        return self._open and not self._pending

    def send(self, kind: int, length: int, *, flags: int = 0, argument: int = 0) -> None:
        """Seal the first `length` bytes of `payload` and send them. Only while `idle`."""
        if not self.idle:
            raise InvalidInputError("the last record is still leaving")
        total = self._sealer.seal_into(kind, self.payload[:length], self._out, flags=flags, argument=argument)
        self._pending = self._out[:total]
        self._write()
        if self._open and self._pending:
            self._loop.add_writer(self._socket, self._writable)

    def finish(self) -> None:
        """Send END if that is possible at once, then close."""
        if self.idle:
            self.send(END, 0)
        self.close()

    def close(self) -> None:
        """Stop and close the socket; safe to repeat."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()

    def _writable(self) -> None:
        self._write()
        if self._open and not self._pending:
            self._loop.remove_writer(self._socket)
            self._on_idle()

    def _write(self) -> None:
        try:
            count = self._socket.send(self._pending)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(_lost("the stream broke while sending", error))
            return
        self.bytes_sent += count
        self._pending = self._pending[count:]

    def _readable(self) -> None:
        try:
            count = self._socket.recv_into(self._in[self._filled :])
        except BlockingIOError:
            return
        except OSError as error:
            self._end(_lost("the stream broke while receiving", error))
            return
        if count == 0:
            self._end(_cut_off())
            return
        self.bytes_received += count
        self._filled += count
        try:
            self._take_records()
        except SeraiError as error:
            self._end(error)

    def _take_records(self) -> None:
        """Open every complete record in the buffer and move the rest to its start."""
        start = 0
        while self._open and self._filled - start >= HEADER_BYTES:
            header = self._opener.parse_header(self._in[start : start + HEADER_BYTES])
            body = start + HEADER_BYTES
            end = body + header.sealed_length
            if end > self._filled:
                break
            payload = self._in[body : body + header.length]
            self._opener.open_into(header, self._in[body:end], payload)
            start = end
            if header.kind != END:
                self._on_record(header, payload)
        rest = self._filled - start
        if start and rest:
            self._in[:rest] = self._in[start : self._filled]
        self._filled = rest
        if self._opener.ended:
            self._end(None)

    def _end(self, error: SeraiError | None) -> None:
        if self._open:
            self.close()
            self._on_closed(error)


async def receive_preamble(sock: socket.socket, seconds: float) -> bytes:
    """Read a preamble from a non-blocking socket, not a byte more.

    Raises UnavailableError when it does not come within `seconds`, IntegrityError when it is no preamble.
    """
    loop = asyncio.get_running_loop()
    buffer = bytearray(PREAMBLE_BYTES)
    filled = 0
    try:
        async with asyncio.timeout(seconds):
            while filled < PREAMBLE_BYTES:
                count = await loop.sock_recv_into(sock, memoryview(buffer)[filled:])
                if count == 0:
                    raise _cut_off()
                filled += count
    except TimeoutError as error:
        raise UnavailableError(f"no preamble within {seconds:g} s", reason="PREAMBLE_MISSING") from error
    except OSError as error:
        raise _lost("the connection broke before its preamble", error) from error
    parse_preamble(buffer)
    return bytes(buffer)


async def dial_socket(
    address: str, secret: ChannelSecret, *, stream: int = 0, seconds: float = 10.0
) -> socket.socket:
    """A non-blocking socket connected to ``HOST:PORT`` on which the channel has been presented."""
    host, port = split_address(address)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(seconds):
            family, kind, protocol, _, target = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))[
                0
            ]
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setblocking(False)
                tune_socket(sock)
                await loop.sock_connect(sock, target)
                await loop.sock_sendall(sock, secret.preamble(stream))
            except BaseException:
                sock.close()
                raise
    except TimeoutError as error:
        raise UnavailableError(f"{address} did not answer within {seconds:g} s", address=address) from error
    except OSError as error:
        raise _lost(f"cannot connect to {address}", error) from error
    return sock


def _lost(what: str, error: OSError) -> UnavailableError:
    detail = "no answer in time" if isinstance(error, TimeoutError) else error.strerror or str(error)
    return UnavailableError(
        f"{what}: {detail}", hint="is the other side still running?", reason="STREAM_LOST"
    )


def _cut_off() -> UnavailableError:
    return UnavailableError(
        "the stream was cut before its end",
        hint="is the other side still running?",
        reason="STREAM_TRUNCATED",
    )
