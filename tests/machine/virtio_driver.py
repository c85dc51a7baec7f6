"""The guest's half of virtio, as simple as can be, and the means to misbehave."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from serai.machine.board import RAM_BASE
from serai.machine.memory import GuestMemory
from serai.machine.virtio.transport import (
    FEATURE_RING_EVENT_INDEX,
    FEATURE_RING_INDIRECT,
    FEATURE_VERSION_1,
    VirtioDevice,
    VirtioMmio,
)

NEXT, WRITE, INDIRECT = 1, 2, 4
ALL = FEATURE_VERSION_1 | FEATURE_RING_INDIRECT | FEATURE_RING_EVENT_INDEX


@dataclass
class Slot:
    """A device in a slot over 1 MiB of RAM, with what its line does."""

    device: VirtioDevice
    ram: bytearray = field(default_factory=lambda: bytearray(1 << 20))
    level: bool = False
    rises: int = 0

    def __post_init__(self) -> None:
        self.memory = GuestMemory(memoryview(self.ram), RAM_BASE)
        self.transport = VirtioMmio(self.device, self.memory, self._line)
        self.transport.frozen = False

    def _line(self, level: bool) -> None:
        self.rises += level and not self.level
        self.level = level


class Queue:
    """Driver's side of one queue at `base`: descriptors, then rings, on a page of their own."""

    def __init__(self, slot: Slot, index: int, size: int, base: int) -> None:
        self.slot, self.index, self.size = slot, index, size
        self.descriptors, self.available, self.used = base, base + 0x1000, base + 0x2000
        self.next_free = self.available_index = self.used_seen = 0
        write = slot.transport.write
        write(0x30, 4, index)
        write(0x38, 4, size)
        for register, address in ((0x80, self.descriptors), (0x90, self.available), (0xA0, self.used)):
            write(register, 4, address & 0xFFFF_FFFF)
            write(register + 4, 4, address >> 32)
        write(0x44, 4, 1)

    def describe(self, number: int, address: int, length: int, flags: int, following: int = 0) -> None:
        entry = struct.pack("<QIHH", address, length, flags, following)
        self.slot.memory.write(self.descriptors + 16 * number, entry)

    def offer(self, *buffers: tuple[int, int, bool]) -> int:
        """Make a chain of (address, length, writable) available; returns its head."""
        head = self.next_free % self.size
        for position, (address, length, writable) in enumerate(buffers):
            last = position == len(buffers) - 1
            number = self.next_free % self.size
            flags = (WRITE if writable else 0) | (0 if last else NEXT)
            self.describe(number, address, length, flags, (number + 1) % self.size)
            self.next_free += 1
        self.expose(head)
        return head

    def expose(self, head: int) -> None:
        slot = self.available + 4 + 2 * (self.available_index % self.size)
        self.slot.memory.write_u16(slot, head & 0xFFFF)
        self.available_index += 1
        self.slot.memory.write_u16(self.available + 2, self.available_index & 0xFFFF)

    def notify(self) -> None:
        self.slot.transport.write(0x50, 4, self.index)

    def completed(self) -> list[tuple[int, int]]:
        """(head, bytes written) of what came back since the last call."""
        index = self.slot.memory.read_u16(self.used + 2)
        done = []
        while self.used_seen & 0xFFFF != index:
            address = self.used + 4 + 8 * (self.used_seen % self.size)
            done.append(struct.unpack("<II", self.slot.memory.read(address, 8)))
            self.used_seen += 1
        return done

    @property
    def used_event(self) -> int:
        return self.available + 4 + 2 * self.size


def set_up(slot: Slot, *, features: int = ALL, size: int = 8) -> list[Queue]:
    """What a driver does before DRIVER_OK; returns its queues."""
    transport = slot.transport
    assert transport.read(0, 4) == 0x74726976
    assert transport.read(4, 4) == 2
    transport.write(0x70, 4, 0)
    transport.write(0x70, 4, 3)
    for half in (0, 1):
        transport.write(0x24, 4, half)
        transport.write(0x20, 4, features >> 32 * half & 0xFFFF_FFFF)
    transport.write(0x70, 4, 11)
    assert transport.read(0x70, 4) == 11, "the device refused the features"
    queues = [
        Queue(slot, index, size, RAM_BASE + 0x4000 * (1 + index)) for index in range(len(transport.queues))
    ]
    transport.write(0x70, 4, 15)
    return queues
