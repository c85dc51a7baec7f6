"""Sealed records: what is sealed opens, and anything else is refused."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.errors import IntegrityError, InvalidInputError, SeraiError, UnavailableError
from serai.wire.records import (
    END,
    HEADER_BYTES,
    OVERHEAD_BYTES,
    PREAMBLE_BYTES,
    ChannelSecret,
    Direction,
    Opener,
    RecordHeader,
    Sealer,
    parse_preamble,
)
from serai.wire.streams import CallbackStream, RecordStream, dial_socket, receive_preamble

SECRET = ChannelSecret(bytes(range(16)), b"k" * 32)
DATA = 7


def pair(secret: ChannelSecret = SECRET) -> tuple[Sealer, Opener]:
    return Sealer(secret, Direction.INITIATOR), Opener(secret, Direction.INITIATOR)


@given(
    st.lists(
        st.tuples(
            st.integers(1, 255), st.binary(max_size=300), st.integers(0, 255), st.integers(0, 2**64 - 1)
        ),
        max_size=8,
    ),
    st.sampled_from([16, 32]),
)
def test_what_is_sealed_opens(records: list[tuple[int, bytes, int, int]], key_bytes: int) -> None:
    sealer, opener = pair(ChannelSecret(os.urandom(16), os.urandom(key_bytes)))
    for kind, payload, flags, argument in records:
        sealed = sealer.seal(kind, payload, flags=flags, argument=argument)
        header, opened = opener.open(sealed)
        assert (header.kind, header.flags, header.argument) == (kind, flags, argument)
        assert opened == payload
        assert len(payload) < 8 or payload not in sealed


@given(st.binary(min_size=1, max_size=64), st.data())
def test_any_changed_bit_is_noticed(payload: bytes, data: st.DataObject) -> None:
    sealer, opener = pair()
    record = bytearray(sealer.seal(DATA, payload, argument=5))
    bit = data.draw(st.integers(0, len(record) * 8 - 1))
    record[bit // 8] ^= 1 << bit % 8
    with pytest.raises(IntegrityError):
        opener.open(record)


@given(st.permutations(range(4)))
def test_any_other_order_is_noticed(order: list[int]) -> None:
    sealer, opener = pair()
    records = [sealer.seal(DATA, bytes([number])) for number in range(4)]
    if order == sorted(order):
        assert [opener.open(records[number])[1][0] for number in order] == order
        return
    with pytest.raises(IntegrityError):
        for number in order:
            opener.open(records[number])


def test_replay_and_loss_are_noticed_and_final() -> None:
    sealer, opener = pair()
    first, second, third = (sealer.seal(DATA, b"x") for _ in range(3))
    opener.open(first)
    with pytest.raises(IntegrityError, match="record 0 came where 1 was due"):
        opener.open(first)
    with pytest.raises(IntegrityError):
        opener.open(second)
    _, fresh = pair()
    fresh.open(first)
    with pytest.raises(IntegrityError, match="lost"):
        fresh.open(third)


def test_the_other_direction_stream_or_channel_does_not_open() -> None:
    record = Sealer(SECRET, Direction.INITIATOR).seal(DATA, b"x")
    others = [
        Opener(SECRET, Direction.RESPONDER),
        Opener(SECRET, Direction.INITIATOR, stream=1),
        Opener(ChannelSecret.generate(), Direction.INITIATOR),
    ]
    for opener in others:
        with pytest.raises(IntegrityError, match="forged"):
            opener.open(record)


def test_lengths_are_bounded() -> None:
    with pytest.raises(InvalidInputError):
        Sealer(SECRET, Direction.INITIATOR, maximum=10).seal(DATA, bytes(11))
    record = Sealer(SECRET, Direction.INITIATOR).seal(DATA, bytes(11))
    with pytest.raises(IntegrityError, match="at most 10"):
        Opener(SECRET, Direction.INITIATOR, maximum=10).parse_header(record[:HEADER_BYTES])
    for length in (0, OVERHEAD_BYTES - 1, len(record) - 1):
        with pytest.raises(IntegrityError):
            pair()[1].open(record[:length])


def test_nothing_follows_the_end() -> None:
    sealer, opener = pair()
    opener.open(sealer.seal(END))
    assert opener.ended
    with pytest.raises(InvalidInputError):
        sealer.seal(DATA)


def test_no_nonce_is_used_twice_under_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    spent: list[bytes] = []
    for direction in Direction:
        for stream in (0, 1, 65535):
            sealer = Sealer(SECRET, direction, stream=stream)
            spent += [sealer._nonce(sequence) for sequence in (0, 1, 2**32, 2**63)]
    assert len(set(spent)) == len(spent)


def test_preamble() -> None:
    preamble = SECRET.preamble(3)
    assert parse_preamble(preamble) == (SECRET.identifier, 3)
    SECRET.check_preamble(preamble)
    with pytest.raises(IntegrityError):
        ChannelSecret(SECRET.identifier, b"j" * 16).check_preamble(preamble)
    with pytest.raises(IntegrityError):
        SECRET.check_preamble(SECRET.preamble(4)[:8] + preamble[8:])
    for bad in (b"", b"GET / HTTP/1.1\r\n".ljust(PREAMBLE_BYTES), preamble[:-1]):
        with pytest.raises(IntegrityError):
            parse_preamble(bad)
    assert repr(b"k" * 32) not in repr(SECRET)


class Acceptor:
    """A listening socket whose first connection becomes a blocking stream."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"

    def accept(self, **options: int) -> RecordStream:
        sock, _ = self.listener.accept()
        sock.settimeout(5)
        preamble = sock.recv(PREAMBLE_BYTES, socket.MSG_WAITALL)
        SECRET.check_preamble(preamble)
        return RecordStream(sock, SECRET, Direction.RESPONDER, stream=parse_preamble(preamble)[1], **options)


@pytest.fixture
def acceptor() -> Iterator[Acceptor]:
    it = Acceptor()
    with it.listener:
        yield it


def test_bulk_goes_straight_into_memory(acceptor: Acceptor) -> None:
    size = 3 * 1024 * 1024 + 4096
    source = memoryview(os.urandom(size))
    destination = memoryview(bytearray(size))

    def send() -> None:
        with RecordStream.dial(acceptor.address, SECRET, stream=2) as stream:
            for offset in range(0, size, 1 << 20):
                stream.send(DATA, source[offset : offset + (1 << 20)], argument=offset)
            stream.finish()
            assert stream.receive() is not None

    thread = threading.Thread(target=send)
    thread.start()
    with acceptor.accept() as stream:
        while (header := stream.receive_header()) is not None:
            stream.receive_into(destination[header.argument : header.argument + header.length])
        stream.send(DATA, b"thanks")
        thread.join(5)
    assert destination == source
    assert stream.bytes_received == size + 5 * OVERHEAD_BYTES


def test_a_cut_stream_is_told_from_a_finished_one(acceptor: Acceptor) -> None:
    with RecordStream.dial(acceptor.address, SECRET) as sender, acceptor.accept() as receiver:
        sender.send(DATA, b"one")
        sender.shutdown()
        assert receiver.receive() is not None
        with pytest.raises(UnavailableError) as caught:
            receiver.receive()
        assert caught.value.reason == "STREAM_TRUNCATED"


def test_a_silent_peer_times_out(acceptor: Acceptor) -> None:
    with (
        RecordStream.dial(acceptor.address, SECRET, timeout=0.05) as stream,
        acceptor.accept(),
        pytest.raises(UnavailableError, match="in time"),
    ):
        stream.receive()


def test_shutdown_wakes_a_waiting_thread(acceptor: Acceptor) -> None:
    with RecordStream.dial(acceptor.address, SECRET) as stream, acceptor.accept():
        caught: list[SeraiError] = []

        def wait() -> None:
            try:
                stream.receive()
            except SeraiError as error:
                caught.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        stream.shutdown()
        thread.join(5)
        assert [type(error) for error in caught] == [UnavailableError]


def test_nobody_listens() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(UnavailableError, match=address):
            RecordStream.dial(address, SECRET)


class Collector:
    """One end of a CallbackStream and what happened to it."""

    def __init__(self, sock: socket.socket, direction: Direction, queue: list[bytes] | None = None) -> None:
        self.received: list[bytes] = []
        self.queue = queue or []
        self.closed: asyncio.Future[SeraiError | None] = asyncio.get_running_loop().create_future()
        self.stream = CallbackStream(
            sock, SECRET, direction, on_record=self.take, on_idle=self.pump, on_closed=self.closed.set_result
        )

    def take(self, header: RecordHeader, payload: memoryview) -> None:
        self.received.append(bytes(payload))

    def pump(self) -> None:
        while self.queue and self.stream.idle:
            payload = self.queue.pop(0)
            self.stream.payload[: len(payload)] = payload
            self.stream.send(DATA, len(payload))
        if not self.queue and self.stream.idle:
            self.stream.finish()


async def connected(
    change: Callable[[socket.socket], None] | None = None,
) -> tuple[socket.socket, socket.socket]:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        dialled = await dial_socket(f"127.0.0.1:{listener.getsockname()[1]}", SECRET)
        accepted, _ = await loop.sock_accept(listener)
    SECRET.check_preamble(await receive_preamble(accepted, 5))
    return dialled, accepted


async def test_callback_streams_carry_more_than_the_socket_buffers() -> None:
    dialled, accepted = await connected()
    records = [os.urandom(size) for size in (0, 1, 1 << 20, 100, 1 << 20, 3)] * 3
    receiver = Collector(accepted, Direction.RESPONDER)
    sender = Collector(dialled, Direction.INITIATOR, list(records))
    sender.pump()
    assert await asyncio.wait_for(receiver.closed, 10) is None
    assert receiver.received == records
    assert not sender.closed.done()


async def test_callback_stream_reports_forgery_once() -> None:
    dialled, accepted = await connected()
    receiver = Collector(accepted, Direction.RESPONDER)
    record = bytearray(Sealer(SECRET, Direction.INITIATOR).seal(DATA, b"frame"))
    record[-1] ^= 1
    dialled.send(record + Sealer(SECRET, Direction.INITIATOR).seal(DATA, b"frame"))
    error = await asyncio.wait_for(receiver.closed, 5)
    assert isinstance(error, IntegrityError)
    assert receiver.received == []
    dialled.close()


async def test_callback_stream_reports_a_cut() -> None:
    dialled, accepted = await connected()
    receiver = Collector(accepted, Direction.RESPONDER)
    dialled.send(Sealer(SECRET, Direction.INITIATOR).seal(DATA, b"frame")[:-1])
    dialled.close()
    error = await asyncio.wait_for(receiver.closed, 5)
    assert isinstance(error, UnavailableError)


async def test_a_preamble_must_come_in_time() -> None:
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        with pytest.raises(UnavailableError, match="preamble"):
            await receive_preamble(left, 0.05)
        right.send(b"GET / HTTP/1.1\r\n".ljust(PREAMBLE_BYTES))
        with pytest.raises(IntegrityError):
            await receive_preamble(left, 5)
