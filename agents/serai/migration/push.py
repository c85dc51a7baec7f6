"""The source of pages that follow after the guest (post-copy): first those that it waits for."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable

import numpy as np

from serai.errors import IntegrityError, SeraiError
from serai.migration.pages import Numbers
from serai.migration.stream import DONE, WANT, PageSender, Sent
from serai.wire.streams import RecordStream

_BATCH = 32
"""Pages in a record of the background: a page that the guest waits for has to wait behind one."""

_TOGETHER = 8
"""Pages sent with one that was asked for: those behind it, which are likely to be needed next."""


class Pusher:
    """Sends the rest; `run` in a thread of its own, once."""

    def __init__(
        self,
        stream: RecordStream,
        sender: PageSender,
        rest: Numbers,
        on_progress: Callable[[Pusher], None],
        *,
        whole: bool = True,
    ) -> None:
        self._stream = stream
        self._sender = sender
        self._left = np.zeros(sender.page_count, dtype=np.bool_)
        self._left[rest] = True
        self._on_progress = on_progress
        self._whole = whole
        self._wanted: collections.deque[int] = collections.deque()
        self._cursor = 0
        self._answer: bytes | None = None
        self._failure: SeraiError | None = None
        self.remaining = len(rest)
        self.requested = 0
        self.sent = Sent()

    def run(self) -> tuple[bytes, bytes]:
        """Both sides' digests of all pages, once every page is there.

        Raises UnavailableError when the link is lost: what is missing, the destination knows.
        """
        reader = threading.Thread(target=self._read, name="migration-wants", daemon=True)
        reader.start()
        started, before = time.monotonic(), self._stream.bytes_sent
        try:
            while self.remaining:
                self._sender.send_rest(self._next(), self.sent)
                self.sent.bytes = self._stream.bytes_sent - before
                self._sender.pace(started, before)
                self.sent.seconds = time.monotonic() - started
                self._on_progress(self)
            # Who has not sent all of RAM has no digest of it.
            digest = self._sender.digests.root(b"") if self._whole else b""
            self._stream.send(DONE, digest)
            reader.join()
        except SeraiError as error:
            raise self._failure or error from error
        finally:
            if self._answer is None:
                self._stream.shutdown()
            reader.join()
        if self._answer is None:
            raise self._failure or IntegrityError("no answer to the last page", reason="STREAM_INVALID")
        return digest, self._answer

    def _next(self) -> Numbers:
        while self._wanted:
            page = self._wanted.popleft()
            if self._left[page]:
                self._cursor = page
                return self._take(page + np.flatnonzero(self._left[page : page + _TOGETHER]))
        window = np.flatnonzero(self._left[self._cursor :])[:_BATCH]
        if not len(window):
            self._cursor = 0
            window = np.flatnonzero(self._left)[:_BATCH]
        pages = self._take(window + self._cursor)
        self._cursor = int(pages[-1]) + 1
        return pages

    def _take(self, pages: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Numbers:
        self._left[pages] = False
        self.remaining -= len(pages)
        return pages.astype(np.uint32)

    def _read(self) -> None:
        try:
            while self._answer is None:
                record = self._stream.receive()
                if record is None or record[0].kind not in (WANT, DONE):
                    raise IntegrityError("the destination said something else", reason="STREAM_INVALID")
                if record[0].kind == DONE:
                    self._answer = record[1]
                    return
                self._want(record[1])
        except SeraiError as error:
            self._failure = error
            # Wakes the thread that sends.
            self._stream.shutdown()

    def _want(self, payload: bytes) -> None:
        if len(payload) % 4:
            raise IntegrityError("a list of wanted pages is cut", reason="STREAM_INVALID")
        pages = np.frombuffer(payload, dtype=">u4")
        if len(pages) and int(pages.max()) >= len(self._left):
            raise IntegrityError("a wanted page is beyond the guest's RAM", reason="STREAM_INVALID")
        self.requested += len(pages)
        self._wanted.extend(int(page) for page in pages)
