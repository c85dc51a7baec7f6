"""Console device (VIRTIO 1.2, section 5.3) with one port: hvc0, the host channel.

The guest writes lines to it and reads lines from it; see `serai.machine.process` for what they say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from serai.machine.snapshot import Section, load_section
from serai.machine.virtio.queue import gather, scatter
from serai.machine.virtio.transport import VirtioDevice

MAXIMUM_LINE = 4096
"""Bytes of a line from the guest; what is longer is cut."""

INPUT_LIMIT = 16 * 1024
"""Bytes kept for a guest that does not read."""

RECEIVE, TRANSMIT = 0, 1


@dataclass
class ConsoleState:
    """Input the guest has not read and the start of a line it has not ended."""

    VERSION: ClassVar[int] = 1

    pending: bytes
    partial: bytes


class Console(VirtioDevice):
    """The device; `line_received(text)` is called with each line the guest writes."""

    device_id = 3
    queue_sizes = (64, 64)

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.line_received: Callable[[str], None] = lambda line: None
        self._pending = bytearray()
        self._partial = bytearray()

    def send_line(self, line: str) -> bool:
        """A line for the guest; False when it has too much unread."""
        data = line.encode() + b"\n"
        if len(self._pending) + len(data) > INPUT_LIMIT:
            return False
        self._pending += data
        self.transport.serve(RECEIVE)
        return True

    def serve(self, index: int) -> None:
        """See `VirtioDevice.serve`."""
        queue = self.transport.queues[index]
        done = False
        while index == TRANSMIT or self._pending:
            chain = queue.pop()
            if chain is None:
                break
            written = 0
            if index == TRANSMIT:
                self._receive(gather(self.transport.memory, chain.readable))
            else:
                written = scatter(self.transport.memory, chain.writable, bytes(self._pending))
                del self._pending[:written]
            queue.push(chain.head, written)
            done = True
        if done:
            queue.publish()

    def _receive(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._extend(line)
            text = self._partial.decode("utf-8", "replace").strip()
            self._partial.clear()
            if text:
                self.line_received(text)
        self._extend(rest)

    def _extend(self, data: bytes) -> None:
        self._partial += data[: MAXIMUM_LINE - len(self._partial)]

    def wants_notification(self, index: int) -> bool:
        """Fresh input buffers matter only while input waits for them."""
        return index == TRANSMIT or bool(self._pending)

    def reset(self) -> None:
        """See `VirtioDevice.reset`."""
        self._pending.clear()
        self._partial.clear()

    def save(self) -> ConsoleState:
        """See `VirtioDevice.save`."""
        return ConsoleState(bytes(self._pending), bytes(self._partial))

    def restore(self, sections: dict[str, Section], name: str) -> None:
        """See `VirtioDevice.restore`."""
        state = load_section(sections, name, ConsoleState)
        self._pending[:] = state.pending[:INPUT_LIMIT]
        self._partial[:] = state.partial[:MAXIMUM_LINE]
