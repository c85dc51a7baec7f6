"""Traditional memory balloon (VIRTIO 1.2, section 5.5): the guest lends pages to the host, and has them back.

The guest boots with its largest memory; what it may use now is that less the balloon. Pages in the balloon
are given back to the host at once and read as zero when the guest takes them out again. The driver has to
tell first (VIRTIO_BALLOON_F_MUST_TELL_HOST), and must not deflate by itself when it runs out of memory: who
counts on the size would be deceived (VIRTIO_BALLOON_F_DEFLATE_ON_OOM is not offered).
"""

from __future__ import annotations

import array
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

from serai.machine.errors import VirtqueueError
from serai.machine.memory import PAGE_SIZE
from serai.machine.snapshot import Section, load_section
from serai.machine.virtio.queue import gather
from serai.machine.virtio.transport import VirtioDevice

FEATURE_MUST_TELL_HOST: Final = 1 << 0
FEATURE_STATISTICS: Final = 1 << 1

INFLATE, DEFLATE, STATISTICS = 0, 1, 2

STATISTIC_NAMES: Final = (
    *("swap_in_bytes", "swap_out_bytes", "major_faults", "minor_faults", "free_bytes", "total_bytes"),
    *("available_bytes", "cache_bytes", "huge_page_allocations", "huge_page_failures"),
)
"""By tag (5.5.6.3)."""

_CONFIGURATION = struct.Struct("<II")
_STATISTIC = struct.Struct("<HQ")
_ACTUAL_OFFSET = 4
_MAXIMUM_PAGES_OF_REQUEST = 1 << 16
_NOTHING_HELD = -1


@dataclass
class BalloonState:
    """Pages wanted and lent, and the request that waits for the next look at the statistics."""

    VERSION: ClassVar[int] = 1

    target: int
    actual: int
    held: int
    statistics: dict[str, int]


class Balloon(VirtioDevice):
    """The device; `changed()` is called when the driver has come nearer to the target."""

    device_id = 5
    queue_sizes = (128, 128, 16)

    def __init__(self, name: str, target: int) -> None:
        super().__init__(name, features=FEATURE_MUST_TELL_HOST | FEATURE_STATISTICS)
        self.changed: Callable[[], None] = lambda: None
        self.statistics: dict[str, int] = {}
        self._held = _NOTHING_HELD
        self._set(target, 0)

    def _set(self, target: int, actual: int) -> None:
        self.target, self.actual = target, actual
        self.configuration = _CONFIGURATION.pack(target, actual)

    def aim(self, pages: int) -> None:
        """Ask the driver to lend that many pages in all."""
        self._set(pages, self.actual)
        self.transport.configuration_changed()

    def refresh_statistics(self) -> None:
        """Ask for new statistics: the driver gets its buffer back and fills it again."""
        if self._held != _NOTHING_HELD and self.transport.live:
            queue = self.transport.queues[STATISTICS]
            queue.push(self._held, 0)
            self._held = _NOTHING_HELD
            queue.publish()
            self.transport.serve(STATISTICS)

    def configure(self, offset: int, width: int, value: int) -> None:
        """The driver writes `actual`."""
        if (offset, width) == (_ACTUAL_OFFSET, 4):
            self._set(self.target, value)
            self.changed()

    def serve(self, index: int) -> None:
        """See `VirtioDevice.serve`."""
        queue = self.transport.queues[index]
        done = False
        while (chain := queue.pop()) is not None:
            if index == STATISTICS:
                self._take_statistics(gather(self.transport.memory, chain.readable))
                self._held = chain.head
                return
            if chain.readable_bytes > 4 * _MAXIMUM_PAGES_OF_REQUEST:
                raise VirtqueueError(f"{chain.readable_bytes} bytes of page numbers in one request")
            if index == INFLATE:
                self._discard(gather(self.transport.memory, chain.readable))
            queue.push(chain.head, 0)
            done = True
        if done:
            queue.publish()

    def _discard(self, numbers: bytes) -> None:
        memory = self.transport.memory
        for first, count in _runs(numbers):
            memory.discard(first * PAGE_SIZE, count * PAGE_SIZE)

    def _take_statistics(self, data: bytes) -> None:
        whole = len(data) // _STATISTIC.size * _STATISTIC.size
        for tag, value in _STATISTIC.iter_unpack(data[:whole]):
            if tag < len(STATISTIC_NAMES):
                self.statistics[STATISTIC_NAMES[tag]] = value

    def reset(self) -> None:
        """The driver has gone: the pages are the guest's again."""
        self._held = _NOTHING_HELD
        self.statistics.clear()
        self._set(self.target, 0)

    def save(self) -> BalloonState:
        """See `VirtioDevice.save`."""
        return BalloonState(self.target, self.actual, self._held, dict(self.statistics))

    def restore(self, sections: dict[str, Section], name: str) -> None:
        """See `VirtioDevice.restore`."""
        state = load_section(sections, name, BalloonState)
        self._set(state.target & 0xFFFF_FFFF, state.actual & 0xFFFF_FFFF)
        self._held = state.held if 0 <= state.held < self.queue_sizes[STATISTICS] else _NOTHING_HELD
        self.statistics = {key: state.statistics[key] for key in STATISTIC_NAMES if key in state.statistics}


def _runs(numbers: bytes) -> Iterator[tuple[int, int]]:
    """Consecutive page numbers (32 bits, little-endian) as (first, count), in ascending order."""
    pages = array.array("I", numbers[: len(numbers) & ~3])
    if sys.byteorder == "big":
        pages.byteswap()
    first = count = 0
    for page in sorted(set(pages)):
        if count and page == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = page, 1
    if count:
        yield first, count
