"""Guest memory over a sealed record stream; both ends run in threads. docs/migration.md has the format.

Records (``serai.wire.records``), numbers big-endian:

===========  ===========================================================================================
PAGES 1      argument: round; payload: count u32, count page numbers u32, count pages
ZERO 2       argument: round; payload: page numbers u32: these have become zero
BARRIER 3    argument: round; flag 1: the last one, 2: look at what came before; no payload. The receiver
             answers with the same record
ABSENT 4     argument: round; payload: bitmap (bit n % 8 of byte n // 8): pages that follow after the guest
STATE 5      payload: VerifyArrivalRequest. Answered by STATE: VerifyArrivalResponse, or with flag 1 why not
             (google.rpc.Status)
GO 6         payload: CommitArrivalRequest. Answered by GO: CommitArrivalResponse
WANT 7       from the destination: page numbers u32 that the guest waits for; empty to say that it lives
DONE 8       payload: digest of all pages as the source sent them; answered with the destination's
===========  ===========================================================================================
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from google.rpc.status_pb2 import Status

from serai.errors import IntegrityError
from serai.hypervisor.driver import PAGE_SIZE
from serai.migration.digests import PageDigests
from serai.migration.memory import populate
from serai.migration.pages import WORDS, Extents, Numbers, Pages, glance, numbers_of, page_view, zero_mask
from serai.wire.records import RecordHeader
from serai.wire.status import status_to_error
from serai.wire.streams import RecordStream

STREAM_VERSION = 2

PAGES, ZERO, BARRIER, ABSENT, STATE, GO, WANT, DONE = range(1, 9)
REFUSED = 1
LAST = 1
LOOK = 2
BATCH = 256
"""Pages in a record."""

MAX_RECORD = 4 + BATCH * (4 + PAGE_SIZE)
_LOOK_PAGES = 1024
_COUNT = struct.Struct("!I")
_NONE: Numbers = np.empty(0, dtype=np.uint32)


@dataclass(slots=True)
class Sent:
    """What one round carried."""

    pages: int = 0
    zero_pages: int = 0
    bytes: int = 0
    seconds: float = 0.0
    changed: Numbers = field(default_factory=lambda: _NONE)


class PageSender:
    """The source's end. Pages are copied first, and only the copy is looked at: the guest goes on writing."""

    def __init__(
        self,
        stream: RecordStream,
        ram: memoryview,
        *,
        bandwidth_bps: int = 0,
        extents: Callable[[], Extents] | None = None,
    ) -> None:
        """`extents` says which pages of RAM hold anything; the others are zero and are not looked at."""
        self._stream = stream
        self._ram = page_view(ram)
        self._extents = extents or (lambda: [(0, len(self._ram))])
        self._bytes_per_s = bandwidth_bps / 8
        self._record = bytearray(MAX_RECORD)
        self._batch = np.empty((BATCH, WORDS), dtype=np.uint64)
        self._filled = np.zeros(len(self._ram), dtype=np.bool_)
        self._glances = np.zeros((len(self._ram), 2), dtype=np.uint64)
        self.digests = PageDigests(len(self._ram))
        self.pages_done = 0
        """Of the round under way; read by others to show progress."""

    @property
    def page_count(self) -> int:
        """Pages of RAM."""
        return len(self._ram)

    @property
    def bytes_sent(self) -> int:
        """On the wire, with headers and tags."""
        return self._stream.bytes_sent

    def pages_in_use(self) -> Numbers:
        """The pages that may hold something."""
        pieces = [np.arange(start, end, dtype=np.uint32) for start, end in self._extents()]
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.uint32)

    def send_round(self, number: int, pages: Numbers, *, last: bool = False, look: bool = False) -> Sent:
        """Send `pages` as they are now and return when the destination has written them.

        After the last round `ask` or `confirm_last` follows, and this returns at once.

        With `look`, both sides meanwhile look at all of RAM, the source for pages that differ from what was
        sent of them (`Sent.changed`: the dirty log must name them), the destination for pages that have
        changed since they came.
        Raises UnavailableError when the stream is lost, IntegrityError when the answer is not one.
        """
        started, before = time.monotonic(), self._stream.bytes_sent
        sent = Sent()
        self.pages_done = 0
        for start in range(0, len(pages), BATCH):
            self._send_batch(number, pages[start : start + BATCH], sent)
            self.pages_done = min(start + BATCH, len(pages))
            self.pace(started, before)
        if last:
            sent.bytes = self._stream.bytes_sent - before
            sent.seconds = time.monotonic() - started
            return sent
        self._stream.send(BARRIER, flags=LOOK if look else 0, argument=number)
        sent.changed = self.find_changed() if look else _NONE
        answer = self._stream.receive()
        if answer is None or (answer[0].kind, answer[0].argument) != (BARRIER, number):
            raise IntegrityError(f"the destination did not confirm round {number}", reason="STREAM_INVALID")
        sent.bytes = self._stream.bytes_sent - before
        sent.seconds = time.monotonic() - started
        return sent

    def change_stream(self, stream: RecordStream) -> None:
        """Go on over another one."""
        self._stream = stream

    def confirm_last(self, number: int) -> None:
        """Return when the destination has written what was sent; the state goes another way."""
        self._stream.send(BARRIER, flags=LAST, argument=number)
        self._stream.receive()

    def send_absent(self, number: int, pages: Numbers) -> None:
        """Say that `pages` follow after the guest; in the digest they count as zero until they do."""
        bits = np.zeros(len(self._ram), dtype=np.bool_)
        bits[pages] = True
        self._stream.send(ABSENT, np.packbits(bits, bitorder="little").tobytes(), argument=number)
        self.digests.clear(pages)

    def send_rest(self, pages: Numbers, sent: Sent) -> None:
        """Send absent pages, those that are zero by number only."""
        batch = self._ram[pages]
        zero = zero_mask(batch)
        if not zero.all():
            self._send_pages(0, pages[~zero], batch[~zero] if zero.any() else batch)
        if zero.any():
            self._stream.send(ZERO, pages[zero].astype(">u4").tobytes())
            self.digests.clear(pages[zero])
        sent.zero_pages += int(zero.sum())
        sent.pages += len(pages) - int(zero.sum())

    def ask(self, kind: int, payload: bytes) -> bytes:
        """Send STATE or GO and wait for its answer. Raises what the destination gives as its reason."""
        self._stream.send(kind, payload)
        answer = self._stream.receive()
        if answer is None or answer[0].kind != kind:
            raise IntegrityError("the destination answered something else", reason="STREAM_INVALID")
        if answer[0].flags & REFUSED:
            raise status_to_error(Status.FromString(answer[1]))
        return answer[1]

    def find_changed(self) -> Numbers:
        """Pages that differ from what was sent of them, by looking at all RAM in use (10 ms for 256 MiB)."""
        changed = self._filled.copy()  # what was sent with contents and is not in use any more is zero now
        for start, end in self._extents():
            changed[start:end] = (glance(self._ram[start:end]) != self._glances[start:end]).any(axis=1)
        return np.flatnonzero(changed).astype(np.uint32)

    def _send_batch(self, number: int, pages: Numbers, sent: Sent) -> None:
        batch = self._batch[: len(pages)]
        np.take(self._ram, pages, axis=0, out=batch, mode="clip")
        zero = zero_mask(batch)
        self._glances[pages] = glance(batch)
        full = pages[~zero]
        if len(full):
            self._send_pages(number, full, batch[~zero] if zero.any() else batch)
        # The destination's memory is zero already: only what was sent full once has to be cleared.
        cleared = pages[zero & self._filled[pages]]
        if len(cleared):
            self._stream.send(ZERO, cleared.astype(">u4").tobytes(), argument=number)
            self.digests.clear(cleared)
        self._filled[pages] = ~zero
        sent.pages += len(full)
        sent.zero_pages += len(pages) - len(full)

    def _send_pages(self, number: int, pages: Numbers, contents: Pages) -> None:
        start = _COUNT.size + 4 * len(pages)
        length = start + len(pages) * PAGE_SIZE
        _COUNT.pack_into(self._record, 0, len(pages))
        self._record[_COUNT.size : start] = pages.astype(">u4").tobytes()
        payload = memoryview(self._record)[:length]
        payload[start:] = contents.data.cast("B")
        self._stream.send(PAGES, payload, argument=number)
        self.digests.update(pages, payload[start:])

    def pace(self, started: float, before: int) -> None:
        """Wait while more was sent than the bandwidth allows."""
        if self._bytes_per_s:
            due = started + (self._stream.bytes_sent - before) / self._bytes_per_s
            time.sleep(max(0.0, due - time.monotonic()))


class PageReceiver:
    """The destination's end: writes into guest RAM whatever an authenticated but untrusted peer sends."""

    def __init__(self, stream: RecordStream, ram: memoryview, on_progress: Callable[[], None]) -> None:
        self._stream = stream
        self._ram = page_view(ram)
        self._payload = memoryview(bytearray(MAX_RECORD))
        self._on_progress = on_progress
        self._glances = np.zeros((len(self._ram), 2), dtype=np.uint64)
        self._written = np.zeros(len(self._ram), dtype=np.bool_)
        self.digests = PageDigests(len(self._ram))
        self.absent: Numbers = _NONE
        """Pages that follow after the guest."""

    def run(self) -> bytes | None:
        """Receive until the last barrier (None) or the source's state, which is returned.

        Raises UnavailableError or IntegrityError.
        """
        while True:
            header, payload = self._receive()
            if header.kind == STATE:
                return bytes(payload)
            if self._take(header, payload):
                return None
            self._on_progress()

    def wait_for(self, kind: int) -> bytes:
        """The next record, which has to be of this kind."""
        header, payload = self._receive()
        if header.kind != kind:
            raise _invalid(f"record {header.sequence} is of kind {header.kind}, due was {kind}")
        return bytes(payload)

    def run_rest(
        self, stream: RecordStream, missing: np.ndarray[Any, Any], arrived: Callable[[Numbers], None]
    ) -> bytes:
        """Receive absent pages until DONE, whose payload is returned.

        `missing` has a byte a page, not 0 while it is absent; other pages are left alone: the guest may have
        written them. Each is cleared once its page is in place, and `arrived` told.
        """
        self._stream = stream
        while True:
            header, payload = self._receive()
            if header.kind == DONE:
                return bytes(payload)
            if header.kind not in (PAGES, ZERO):
                raise _invalid(f"record {header.sequence} of kind {header.kind} among the last pages")
            take = self._write if header.kind == PAGES else self._clear
            numbers = take(payload, missing)
            missing[numbers] = 0
            arrived(numbers)
            self._on_progress()

    def _receive(self) -> tuple[RecordHeader, memoryview]:
        header = self._stream.receive_header()
        if header is None:
            raise IntegrityError("the stream ended before its last round", reason="STREAM_INVALID")
        payload = self._payload[: header.length]
        self._stream.receive_into(payload)
        return header, payload

    def _look_again(self) -> None:
        """Hash what has changed since it arrived. Nothing should have; then the digests do not match."""
        written = np.flatnonzero(self._written).astype(np.uint32)
        # Pages that never came are not looked at: reading them would make the kernel find memory for them.
        for start in range(0, len(written), _LOOK_PAGES):
            numbers = written[start : start + _LOOK_PAGES]
            differ = (glance(self._ram[numbers]) != self._glances[numbers]).any(axis=1)
            if differ.any():
                self._note(numbers[differ])

    def release(self) -> None:
        """Let go of RAM, which can then be unmapped; nothing can be received any more."""
        self._ram = np.empty((0, WORDS), dtype=np.uint64)

    def _take(self, header: RecordHeader, payload: memoryview) -> bool:
        """Obey one record; True after the last."""
        if header.kind == PAGES:
            self._write(payload)
        elif header.kind == ZERO:
            self._clear(payload)
        elif header.kind == ABSENT:
            self.absent = numbers_of(bytes(payload), len(self._ram))
            self.digests.clear(self.absent)
        elif header.kind == BARRIER:
            if header.flags & LOOK:
                self._look_again()
            self._stream.send(BARRIER, argument=header.argument)
            return bool(header.flags & LAST)
        else:
            raise _invalid(f"record {header.sequence} is of the unknown kind {header.kind}")
        return False

    def _write(self, payload: memoryview, only: np.ndarray[Any, Any] | None = None) -> Numbers:
        if len(payload) < _COUNT.size:
            raise _invalid("a record of pages is cut")
        (count,) = _COUNT.unpack_from(payload)
        start = _COUNT.size + 4 * count
        if not count or len(payload) != start + count * PAGE_SIZE:
            raise _invalid(f"a record claims {count} pages and has {len(payload)} bytes")
        numbers = self._numbers(payload[_COUNT.size : start])
        contents = np.frombuffer(payload[start:], dtype=np.uint64).reshape(-1, WORDS)
        if only is not None and not only[numbers].all():
            wanted = only[numbers] != 0
            numbers, contents = numbers[wanted], contents[wanted]
        populate(self._ram, numbers[~self._written[numbers]])
        self._ram[numbers] = contents
        self._written[numbers] = True
        self._note(numbers)
        return numbers

    def _clear(self, payload: memoryview, only: np.ndarray[Any, Any] | None = None) -> Numbers:
        numbers = self._numbers(payload)
        if only is not None:
            numbers = numbers[only[numbers] != 0]
        # Pages that never came are zero: writing them would make the kernel find memory for them.
        full = numbers[self._written[numbers]]
        self._ram[full] = 0
        self._glances[numbers] = 0
        self.digests.clear(numbers)
        return numbers

    def _note(self, numbers: Numbers) -> None:
        """Hash what RAM holds now, not what the record said: this is the check of the whole way."""
        contents = self._ram[numbers]
        self._glances[numbers] = glance(contents)
        self.digests.update(numbers, contents.data.cast("B"))

    def _numbers(self, payload: memoryview) -> Numbers:
        if not payload or len(payload) % 4:
            raise _invalid("a list of page numbers is empty or cut")
        numbers = np.frombuffer(payload, dtype=">u4").astype(np.uint32)
        if int(numbers.max()) >= len(self._ram):
            raise _invalid(f"page {int(numbers.max())} is beyond the guest's {len(self._ram)} pages")
        return numbers


def _invalid(message: str) -> IntegrityError:
    return IntegrityError(f"migration stream: {message}", reason="STREAM_INVALID")
