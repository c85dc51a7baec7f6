"""Network device (VIRTIO 1.2, section 5.1): one pair of queues, mergeable receive buffers, no offloads yet.

The twelve bytes of `struct virtio_net_hdr` stand before every frame in the queues and are zero; the frames
that cross to the host carry none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from serai.machine.errors import ConfigurationError, VirtqueueError
from serai.machine.snapshot import Section, load_section
from serai.machine.virtio.queue import Chain, Virtqueue, gather, scatter
from serai.machine.virtio.transport import VirtioDevice

FEATURE_MAC = 1 << 5
FEATURE_MERGEABLE_BUFFERS = 1 << 15
FEATURE_STATUS = 1 << 16

MAXIMUM_FRAME = 65_550
"""Bytes of the longest frame: 64 KiB of payload under an Ethernet header."""

BACKLOG_FRAMES = 1024
"""Frames held for a guest that has no receive buffers free; beyond it the newest are lost."""

RECEIVE, TRANSMIT = 0, 1

_HEADER_BYTES = 12
_LINK_UP = 1


@dataclass
class NetState:
    """Frames that arrived and that the guest has not taken yet."""

    VERSION: ClassVar[int] = 1

    backlog: list[bytes]


class Net(VirtioDevice):
    """The device. `transmit(frame)` takes a frame to the host; the guest's wait while not `writable()`.

    `served()` follows each batch of frames.
    """

    device_id = 1
    queue_sizes = (256, 256)

    def __init__(self, name: str, mac: bytes) -> None:
        if len(mac) != 6:
            raise ConfigurationError(f"{name}: a MAC address of {len(mac)} bytes")
        features = FEATURE_MAC | FEATURE_MERGEABLE_BUFFERS | FEATURE_STATUS
        configuration = mac + _LINK_UP.to_bytes(2, "little")
        super().__init__(name, features=features, configuration=configuration)
        self.transmit: Callable[[bytes], None] = lambda frame: None
        self.writable: Callable[[], bool] = lambda: True
        self.served: Callable[[], None] = lambda: None
        self.lost = 0
        self._backlog: deque[bytes] = deque()

    def receive(self, frame: bytes) -> bool:
        """A frame for the guest, delivered by the next `flush`; False when the backlog is full."""
        if len(self._backlog) >= BACKLOG_FRAMES or not 0 < len(frame) <= MAXIMUM_FRAME:
            self.lost += 1
            return False
        self._backlog.append(frame)
        return True

    def flush(self) -> None:
        """Deliver what `receive` took, with one interrupt for all."""
        if self._backlog:
            self.transport.serve(RECEIVE)

    def resume_transmission(self) -> None:
        """The host can take frames again."""
        self.transport.serve(TRANSMIT)

    def serve(self, index: int) -> None:
        """See `VirtioDevice.serve`."""
        queue = self.transport.queues[index]
        if index == RECEIVE:
            self._serve_receive(queue)
        else:
            self._serve_transmit(queue)

    def _serve_transmit(self, queue: Virtqueue) -> None:
        done = False
        while self.writable():
            chain = queue.pop()
            if chain is None:
                break
            if _HEADER_BYTES < chain.readable_bytes <= _HEADER_BYTES + MAXIMUM_FRAME:
                self.transmit(gather(self.transport.memory, chain.readable)[_HEADER_BYTES:])
            queue.push(chain.head, 0)
            done = True
        if done:
            queue.publish()
            self.served()

    def _serve_receive(self, queue: Virtqueue) -> None:
        delivered = False
        while self._backlog:
            chains = self._take_buffers(queue, _HEADER_BYTES + len(self._backlog[0]))
            if chains is None:
                break
            frame = self._backlog.popleft()
            delivered = True
            self._fill(queue, chains, frame)
        if delivered:
            queue.publish()

    def _take_buffers(self, queue: Virtqueue, needed: int) -> list[Chain] | None:
        """Buffers for `needed` bytes, or None (and none taken) when the driver has not given enough."""
        chains: list[Chain] = []
        room = 0
        mergeable = self.transport.negotiated(FEATURE_MERGEABLE_BUFFERS)
        while room < needed:
            chain = queue.pop()
            if chain is None:
                for _ in chains:
                    queue.unpop()
                return None
            if chain.writable_bytes < _HEADER_BYTES or (not mergeable and chain.writable_bytes < needed):
                raise VirtqueueError(f"a receive buffer of {chain.writable_bytes} bytes")
            chains.append(chain)
            room += chain.writable_bytes
        return chains

    def _fill(self, queue: Virtqueue, chains: list[Chain], frame: bytes) -> None:
        # num_buffers, the last two bytes, is one without mergeable buffers too (5.1.6.4.1).
        data = memoryview(bytes(_HEADER_BYTES - 2) + len(chains).to_bytes(2, "little") + frame)
        for chain in chains:
            written = scatter(self.transport.memory, chain.writable, data)
            queue.push(chain.head, written)
            data = data[written:]

    def wants_notification(self, index: int) -> bool:
        """Fresh receive buffers matter only while frames wait for them."""
        return index == TRANSMIT or bool(self._backlog)

    def reset(self) -> None:
        """See `VirtioDevice.reset`; frames for the old driver are nobody's."""
        self._backlog.clear()

    def save(self) -> NetState:
        """See `VirtioDevice.save`."""
        return NetState(list(self._backlog))

    def restore(self, sections: dict[str, Section], name: str) -> None:
        """See `VirtioDevice.restore`; frames that came before the restore stay, behind the saved ones."""
        state = load_section(sections, name, NetState)
        early = list(self._backlog)
        self._backlog.clear()
        for frame in [*state.backlog, *early]:
            self.receive(frame)
