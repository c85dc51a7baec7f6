"""The page stream and its arithmetic: round trips, and everything that a hostile peer may send."""

from __future__ import annotations

import hashlib
import mmap
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from serai.errors import IntegrityError, SeraiError, UnavailableError
from serai.hypervisor.driver import PAGE_SIZE
from serai.migration.convergence import Convergence, Decision, Limits, Mode, Round
from serai.migration.digests import PageDigests
from serai.migration.pages import numbers_of
from serai.migration.stream import BARRIER, LAST, MAX_RECORD, PAGES, ZERO, PageReceiver, PageSender
from serai.wire.records import ChannelSecret, Direction
from serai.wire.streams import RecordStream

COUNT = 700


class Pair:
    """Both ends over a real socket; the receiver runs in a thread."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.settimeout(10)
        secret = ChannelSecret.generate()
        self.here = mmap.mmap(-1, COUNT * PAGE_SIZE)
        self.there = mmap.mmap(-1, COUNT * PAGE_SIZE)
        self.stream = RecordStream(ours, secret, Direction.INITIATOR, maximum=MAX_RECORD)
        self._other = RecordStream(theirs, secret, Direction.RESPONDER, maximum=MAX_RECORD)
        self.receiver = PageReceiver(self._other, memoryview(self.there), lambda: None)
        self.outcome: Future[None] = Future()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.receiver.run()
            self.outcome.set_result(None)
        except SeraiError as error:
            self.outcome.set_exception(error)
        finally:
            self._other.shutdown()

    def close(self) -> None:
        self.stream.shutdown()
        self._thread.join(10)
        self.stream.close()
        self._other.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def everything() -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.arange(COUNT, dtype=np.uint32)


def test_rounds_bring_ram_and_digest_over(pair: Pair) -> None:
    random = np.random.default_rng(1)
    ram = np.frombuffer(pair.here, dtype=np.uint8).reshape(COUNT, PAGE_SIZE)
    ram[::3] = random.integers(0, 256, (len(ram[::3]), PAGE_SIZE), dtype=np.uint8)
    sender = PageSender(pair.stream, memoryview(pair.here))
    first = sender.send_round(1, everything())
    assert (first.pages, first.zero_pages) == (234, 466)
    ram[0] = 0
    ram[1, 5] = 7
    assert list(sender.find_changed()) == [0, 1]
    last = sender.send_round(2, np.array([0, 1], dtype=np.uint32), last=True)
    sender.confirm_last(2)
    assert (last.pages, last.zero_pages) == (1, 1)
    pair.outcome.result(10)
    assert bytes(pair.here) == bytes(pair.there)
    assert sender.digests.root(b"state") == pair.receiver.digests.root(b"state")
    assert sender.digests.root(b"state") != pair.receiver.digests.root(b"stale")


def test_the_root_is_what_the_manual_says(pair: Pair) -> None:
    pair.here[PAGE_SIZE : PAGE_SIZE + 3] = b"abc"
    sender = PageSender(pair.stream, memoryview(pair.here))
    sender.send_round(1, everything(), last=True)
    pages = [xxhash.xxh3_128(pair.here[n * PAGE_SIZE : (n + 1) * PAGE_SIZE]).digest() for n in range(COUNT)]
    head = b"serai guest digest 2" + struct.pack("!Q", COUNT)
    expected = hashlib.sha256(head + b"".join(pages) + hashlib.sha256(b"s").digest()).digest()
    assert sender.digests.root(b"s") == expected


def pages_record(numbers: list[int], *, count: int | None = None, cut: int = 0) -> bytes:
    body = struct.pack("!I", len(numbers) if count is None else count)
    body += struct.pack(f"!{len(numbers)}I", *numbers) + bytes(len(numbers) * PAGE_SIZE)
    return body[: len(body) - cut]


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (PAGES, pages_record([COUNT])),
        (PAGES, pages_record([0, 0xFFFFFFFF])),
        (PAGES, pages_record([1], count=2)),
        (PAGES, pages_record([1], count=0xFFFFFFFF)),
        (PAGES, pages_record([1, 2], cut=1)),
        (PAGES, pages_record([])),
        (PAGES, b""),
        (PAGES, b"\0\0"),
        (ZERO, struct.pack("!2I", 0, COUNT)),
        (ZERO, b"\0\0\0"),
        (ZERO, b""),
        (99, b""),
    ],
)
def test_a_hostile_record_is_refused_and_writes_nothing(pair: Pair, kind: int, payload: bytes) -> None:
    pair.there[:] = b"\x55" * len(pair.there)
    pair.stream.send(kind, payload)
    with pytest.raises(IntegrityError, match="migration stream"):
        pair.outcome.result(10)
    assert bytes(pair.there) == b"\x55" * len(pair.there)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 255), st.binary(max_size=64)), max_size=5))
def test_no_stream_of_records_does_more_than_fail(records: list[tuple[int, int, bytes]]) -> None:
    pair = Pair()
    try:
        for kind, flags, payload in records:
            pair.stream.send(kind, payload, flags=flags)
            if kind == 0:
                break
        pair.stream.shutdown()
        error = pair.outcome.exception(10)
        ended = any(kind == BARRIER and flags & LAST for kind, flags, _ in records)
        assert isinstance(error, SeraiError) or (error is None and ended)
    except SeraiError:
        pass  # the receiver had hung up before all was sent
    finally:
        pair.close()


def test_a_cut_stream_is_lost_for_the_sender_too(pair: Pair) -> None:
    sender = PageSender(pair.stream, memoryview(pair.here))
    pair.stream.send(99)
    with pytest.raises(UnavailableError):
        sender.send_round(1, everything())


def test_bandwidth_is_kept(pair: Pair) -> None:
    pair.here[:] = b"x" * len(pair.here)
    sender = PageSender(pair.stream, memoryview(pair.here), bandwidth_bps=80_000_000)
    sent = sender.send_round(1, everything())
    assert sent.bytes / sent.seconds <= 10_500_000


@given(st.lists(st.integers(0, 99), unique=True))
def test_bitmaps(pages: list[int]) -> None:
    bitmap = bytearray(13)
    for page in pages:
        bitmap[page // 8] |= 1 << page % 8
    assert list(numbers_of(bytes(bitmap), 100)) == sorted(pages)


def test_digests_of_an_empty_guest_need_no_work() -> None:
    digests = PageDigests(COUNT)
    untouched = digests.root(b"")
    digests.update(everything(), memoryview(bytes(COUNT * PAGE_SIZE)))
    assert digests.root(b"") == untouched


def lap(number: int, dirtied: int, *, sent: int = 100 << 20, seconds: float = 1.0) -> Round:
    return Round(number, sent // PAGE_SIZE, 0, sent, seconds, dirtied)


def test_freeze_when_what_is_left_fits_the_downtime() -> None:
    # 100 MiB/s and 100 ms: 10 MiB, which is 2560 pages; and another round would not leave much less.
    small = 3000 * PAGE_SIZE
    judge = Convergence(Limits())
    judge.judge(lap(1, 3000))
    assert judge.judge(lap(2, 2560, sent=small, seconds=small / (100 << 20))) is Decision.FREEZE
    judge = Convergence(Limits())
    judge.judge(lap(1, 3000))
    assert judge.judge(lap(2, 2700, sent=small, seconds=small / (100 << 20))) is Decision.CONTINUE


def test_another_round_while_that_leaves_much_less() -> None:
    judge = Convergence(Limits())
    assert judge.judge(lap(1, 2000)) is Decision.CONTINUE
    assert judge.judge(lap(2, 1000, sent=2000 * PAGE_SIZE, seconds=0.08)) is Decision.CONTINUE
    assert judge.judge(lap(3, 900, sent=1000 * PAGE_SIZE, seconds=0.04)) is Decision.FREEZE


def test_modes_decide_differently() -> None:
    assert Convergence(Limits(mode=Mode.HYBRID)).judge(lap(1, 20000)) is Decision.SWITCH
    assert Convergence(Limits(mode=Mode.HYBRID)).judge(lap(1, 60)) is Decision.FREEZE
    judge, stubborn = Convergence(Limits()), Convergence(Limits(mode=Mode.PRE_COPY))
    for number in (1, 2):
        assert judge.judge(lap(number, 25600)) is Decision.CONTINUE
    assert judge.judge(lap(3, 25600)) is Decision.SWITCH
    for number in (1, 2, 3, 4):
        assert stubborn.judge(lap(number, 25600)) is Decision.CONTINUE


def test_tiny_rounds_say_nothing_about_the_rate() -> None:
    judge = Convergence(Limits())
    assert judge.judge(lap(1, 3000)) is Decision.CONTINUE
    judge.judge(lap(2, 3000, sent=4096, seconds=1.0))
    assert judge.rate == 100 << 20
    assert judge.judge(lap(3, 64, sent=4096)) is Decision.FREEZE


def test_give_up_after_the_last_round_or_the_deadline() -> None:
    only = Mode.PRE_COPY
    assert Convergence(Limits(max_rounds=3, mode=only)).judge(lap(3, 9999)) is Decision.GIVE_UP
    assert Convergence(Limits(deadline_s=1, mode=only)).judge(lap(1, 9999)) is Decision.GIVE_UP
    assert Convergence(Limits(max_rounds=3)).judge(lap(3, 9999)) is Decision.SWITCH
    assert Convergence(Limits(max_rounds=3)).judge(lap(3, 10)) is Decision.FREEZE
