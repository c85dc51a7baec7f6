"""Entropy device (VIRTIO 1.2, section 5.4)."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import ClassVar

from serai.machine.snapshot import Section, load_section
from serai.machine.virtio.queue import scatter
from serai.machine.virtio.transport import VirtioDevice

MAXIMUM_REQUEST = 4096
"""Bytes given for one request; the driver asks again for more."""


@dataclass
class EntropyState:
    """How far the reproducible stream has come."""

    VERSION: ClassVar[int] = 1

    counter: int


class Entropy(VirtioDevice):
    """The device: the host's generator, or with a `seed` a stream that is the same in every run."""

    device_id = 4
    queue_sizes = (16,)

    def __init__(self, name: str, *, seed: bytes | None = None) -> None:
        super().__init__(name)
        self._seed = seed
        self._counter = 0

    def serve(self, index: int) -> None:
        """See `VirtioDevice.serve`."""
        queue = self.transport.queues[index]
        done = False
        while (chain := queue.pop()) is not None:
            data = self._random(min(chain.writable_bytes, MAXIMUM_REQUEST))
            queue.push(chain.head, scatter(self.transport.memory, chain.writable, data))
            done = True
        if done:
            queue.publish()

    def _random(self, length: int) -> bytes:
        if self._seed is None:
            return os.urandom(length)
        self._counter += 1
        return hashlib.shake_256(self._seed + self._counter.to_bytes(8, "little")).digest(length)

    def save(self) -> EntropyState:
        """See `VirtioDevice.save`."""
        return EntropyState(self._counter)

    def restore(self, sections: dict[str, Section], name: str) -> None:
        """See `VirtioDevice.restore`."""
        self._counter = load_section(sections, name, EntropyState).counter & 0xFFFF_FFFF_FFFF
