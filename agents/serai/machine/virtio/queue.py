"""The device's side of a split virtqueue (VIRTIO 1.2, section 2.7).

All that is read here was written by the guest and is hostile: indices, addresses, lengths and chains are
checked, loops end, and whatever is wrong raises `VirtqueueError` or `GuestAccessError`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from serai.machine.errors import VirtqueueError
from serai.machine.memory import GuestMemory

MAXIMUM_CHAIN_BYTES = 16 << 20
"""More than any driver asks of these devices in one request; bounds the work one request can cause."""

DESCRIPTOR_NEXT = 1
DESCRIPTOR_WRITE = 2
DESCRIPTOR_INDIRECT = 4

_AVAILABLE_NO_INTERRUPT = 1
_DESCRIPTOR = struct.Struct("<QIHH")
_DESCRIPTOR_BYTES = 16
_USED_ELEMENT = struct.Struct("<II")


@dataclass(slots=True)
class Chain:
    """A request: buffers to read from and buffers to write to, in order, as (address, length)."""

    head: int
    readable: list[tuple[int, int]]
    writable: list[tuple[int, int]]

    @property
    def readable_bytes(self) -> int:
        """Bytes the driver sent."""
        return sum(length for _, length in self.readable)

    @property
    def writable_bytes(self) -> int:
        """Bytes the driver has room for."""
        return sum(length for _, length in self.writable)


@dataclass
class QueueState:
    """Everything of a queue that is not in guest memory."""

    size: int
    ready: bool
    descriptors: int
    available: int
    used: int
    next_available: int
    next_used: int
    signalled: int


class Virtqueue:
    """One split virtqueue. The transport sets the addresses, the device pops requests and pushes results."""

    def __init__(self, memory: GuestMemory, maximum_size: int) -> None:
        self._memory = memory
        self.maximum_size = maximum_size
        self.event_index = False
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.size = self.maximum_size
        self.ready = False
        self.descriptors = self.available = self.used = 0
        self._next_available = self._next_used = self._signalled = 0

    def enable(self) -> None:
        """Start using the rings. Raises VirtqueueError when they are misplaced (2.7: alignment 16, 2, 4)."""
        size = self.size
        if not 0 < size <= self.maximum_size or size & size - 1:
            raise VirtqueueError(f"a queue of {size} entries (at most {self.maximum_size}, a power of two)")
        rings = (
            (self.descriptors, _DESCRIPTOR_BYTES * size, 16),
            (self.available, 6 + 2 * size, 2),
            (self.used, 6 + 8 * size, 4),
        )
        for address, length, alignment in rings:
            if address % alignment:
                raise VirtqueueError(f"a ring at {address:#x} is not aligned to {alignment} bytes")
            self._memory.offset(address, length)
        self.ready = True

    def pop(self) -> Chain | None:
        """The next request, or None. Raises VirtqueueError or GuestAccessError on rings that lie."""
        if not self.ready:
            return None
        memory, size = self._memory, self.size
        waiting = memory.read_u16(self.available + 2) - self._next_available & 0xFFFF
        if waiting == 0:
            return None
        if waiting > size:
            raise VirtqueueError(f"the available index is {waiting} ahead in a queue of {size}")
        head = memory.read_u16(self.available + 4 + 2 * (self._next_available & size - 1))
        chain = self._walk(head)
        self._next_available = self._next_available + 1 & 0xFFFF
        return chain

    def _walk(self, head: int) -> Chain:
        chain = Chain(head, [], [])
        budget = self._collect(chain, self.descriptors, self.size, head, self.size, indirect=False)
        assert budget >= 0
        if chain.readable_bytes + chain.writable_bytes > MAXIMUM_CHAIN_BYTES:
            raise VirtqueueError(f"a request of more than {MAXIMUM_CHAIN_BYTES} bytes")
        return chain

    def _collect(
        self, chain: Chain, table: int, entries: int, index: int, budget: int, *, indirect: bool
    ) -> int:
        """Follow one table from `index`; at most `budget` descriptors, which also ends every loop."""
        memory = self._memory
        while True:
            if index >= entries:
                raise VirtqueueError(f"descriptor {index} in a table of {entries}")
            if budget <= 0:
                raise VirtqueueError(f"a chain of more than {self.size} descriptors, or a loop")
            budget -= 1
            offset = memory.offset(table + _DESCRIPTOR_BYTES * index, _DESCRIPTOR_BYTES)
            address, length, flags, following = _DESCRIPTOR.unpack_from(memory.ram, offset)
            if flags & DESCRIPTOR_INDIRECT:
                if indirect or flags & DESCRIPTOR_NEXT:
                    raise VirtqueueError("an indirect table within one, or one that has a successor")
                if length == 0 or length % _DESCRIPTOR_BYTES:
                    raise VirtqueueError(f"an indirect table of {length} bytes")
                count = length // _DESCRIPTOR_BYTES
                return self._collect(chain, address, count, 0, budget, indirect=True)
            memory.offset(address, length)
            if flags & DESCRIPTOR_WRITE:
                chain.writable.append((address, length))
            elif chain.writable:
                raise VirtqueueError("a readable buffer after a writable one")
            else:
                chain.readable.append((address, length))
            if not flags & DESCRIPTOR_NEXT:
                return budget
            index = following

    def unpop(self) -> None:
        """Give the request back that was popped last; it will be popped again."""
        self._next_available = self._next_available - 1 & 0xFFFF

    def push(self, head: int, written: int) -> None:
        """Return a request with the number of bytes written into it; visible after `publish`."""
        slot = self.used + 4 + 8 * (self._next_used & self.size - 1)
        self._memory.write(slot, _USED_ELEMENT.pack(head, written))
        self._next_used = self._next_used + 1 & 0xFFFF

    def publish(self) -> None:
        """Show the pushed requests to the driver."""
        self._memory.write_u16(self.used + 2, self._next_used)

    def request_notification(self) -> None:
        """Have the driver notify of the next request; without the event index it always does."""
        if self.event_index and self.ready:
            self._memory.write_u16(self.used + 4 + 8 * self.size, self._next_available)

    def should_interrupt(self) -> bool:
        """Whether the driver wants to hear of what was published since this was last asked (2.7.7)."""
        previous, self._signalled = self._signalled, self._next_used
        if previous == self._next_used:
            return False
        if self.event_index:
            event = self._memory.read_u16(self.available + 4 + 2 * self.size)
            return (self._next_used - event - 1 & 0xFFFF) < (self._next_used - previous & 0xFFFF)
        return not self._memory.read_u16(self.available) & _AVAILABLE_NO_INTERRUPT

    def save(self) -> QueueState:
        """The state for a snapshot."""
        return QueueState(
            self.size,
            self.ready,
            self.descriptors,
            self.available,
            self.used,
            self._next_available,
            self._next_used,
            self._signalled,
        )

    def restore(self, state: QueueState) -> None:
        """Take over a saved state. Raises VirtqueueError or GuestAccessError when it cannot be."""
        for index in (state.next_available, state.next_used, state.signalled):
            if not 0 <= index <= 0xFFFF:
                raise VirtqueueError(f"a ring index of {index}")
        self.size = state.size
        self.descriptors, self.available, self.used = state.descriptors, state.available, state.used
        self._next_available, self._next_used = state.next_available, state.next_used
        self._signalled = state.signalled
        self.ready = False
        if state.ready:
            self.enable()


def gather(memory: GuestMemory, buffers: list[tuple[int, int]]) -> bytes:
    """What the driver sent, in one piece."""
    if len(buffers) == 1:
        return memory.read(*buffers[0])
    return b"".join(memory.view(address, length) for address, length in buffers)


def scatter(memory: GuestMemory, buffers: list[tuple[int, int]], data: bytes | memoryview) -> int:
    """Write `data` into the driver's buffers; returns how much fitted."""
    written = 0
    for address, length in buffers:
        piece = data[written : written + length]
        if not piece:
            break
        memory.write(address, piece)
        written += len(piece)
    return written
