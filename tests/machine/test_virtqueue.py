"""Virtqueues against drivers that lie."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.machine.virtio_driver import ALL, INDIRECT, NEXT, WRITE, Queue, Slot, set_up

from serai.machine.board import RAM_BASE
from serai.machine.snapshot import pack, unpack
from serai.machine.virtio.entropy import Entropy
from serai.machine.virtio.net import Net
from serai.machine.virtio.transport import FEATURE_VERSION_1, STATUS_NEEDS_RESET

BUFFER = RAM_BASE + 0x40000


def entropy() -> tuple[Slot, Queue]:
    slot = Slot(Entropy("entropy0", seed=b"s"))
    return slot, set_up(slot)[0]


def needs_reset(slot: Slot) -> bool:
    return bool(slot.transport.read(0x70, 4) & STATUS_NEEDS_RESET)


def test_a_request_comes_back_with_its_length_and_an_interrupt() -> None:
    slot, queue = entropy()
    head = queue.offer((BUFFER, 100, True), (BUFFER + 4096, 28, True))
    queue.notify()
    assert queue.completed() == [(head, 128)]
    assert slot.level
    assert slot.transport.read(0x60, 4) == 1
    slot.transport.write(0x64, 4, 1)
    assert not slot.level
    assert any(slot.memory.read(BUFFER, 100))


def test_indices_wrap_at_sixteen_bits() -> None:
    slot, queue = entropy()
    done = 0
    for _ in range(66_000):
        queue.offer((BUFFER, 1, True))
        queue.notify()
        done += len(queue.completed())
    assert done == 66_000
    assert not needs_reset(slot)


def test_indirect_descriptors() -> None:
    slot, queue = entropy()
    table = RAM_BASE + 0x50000
    slot.memory.write(table, struct.pack("<QIHHQIHH", BUFFER, 10, WRITE | NEXT, 1, BUFFER + 64, 20, WRITE, 0))
    queue.describe(0, table, 32, INDIRECT)
    queue.expose(0)
    queue.notify()
    assert queue.completed() == [(0, 30)]


def test_the_event_index_decides_about_interrupts() -> None:
    slot, queue = entropy()
    slot.memory.write_u16(queue.used_event, 2)  # interrupt when the third request is done
    for expected in (0, 0, 1):
        queue.offer((BUFFER, 1, True))
        queue.notify()
        assert slot.rises == expected
    assert slot.memory.read_u16(queue.used + 4 + 8 * queue.size) == 3


def test_without_event_index_the_flag_decides() -> None:
    slot = Slot(Entropy("entropy0", seed=b"s"))
    queue = set_up(slot, features=FEATURE_VERSION_1)[0]
    slot.memory.write_u16(queue.available, 1)
    queue.offer((BUFFER, 1, True))
    queue.notify()
    assert not slot.level
    slot.memory.write_u16(queue.available, 0)
    queue.offer((BUFFER, 1, True))
    queue.notify()
    assert slot.level


def loop(queue: Queue) -> None:
    queue.describe(0, BUFFER, 1, WRITE | NEXT, 1)
    queue.describe(1, BUFFER, 1, WRITE | NEXT, 0)
    queue.expose(0)


def outside(queue: Queue) -> None:
    queue.describe(0, 0xFFFF_FFFF_FFFF_FFF0, 64, WRITE)
    queue.expose(0)


def beyond_the_table(queue: Queue) -> None:
    queue.expose(queue.size)


def index_too_far(queue: Queue) -> None:
    queue.slot.memory.write_u16(queue.available + 2, queue.size + 1)


def nested_indirect(queue: Queue) -> None:
    table = RAM_BASE + 0x50000
    queue.slot.memory.write(table, struct.pack("<QIHH", table, 16, INDIRECT, 0))
    queue.describe(0, table, 16, INDIRECT)
    queue.expose(0)


def odd_indirect(queue: Queue) -> None:
    queue.describe(0, BUFFER, 17, INDIRECT)
    queue.expose(0)


def readable_after_writable(queue: Queue) -> None:
    queue.describe(0, BUFFER, 1, WRITE | NEXT, 1)
    queue.describe(1, BUFFER, 1, 0)
    queue.expose(0)


def too_much(queue: Queue) -> None:
    table = RAM_BASE + 0x50000
    for number in range(8):
        entry = struct.pack("<QIHH", RAM_BASE, 0x100000, WRITE | NEXT, number + 1)
        queue.slot.memory.write(table + 16 * number, entry)
    queue.slot.memory.write(table + 16 * 7, struct.pack("<QIHH", RAM_BASE, 0x100000, WRITE, 0))
    queue.describe(0, table, 128, INDIRECT)
    queue.expose(0)


@pytest.mark.parametrize(
    "misbehave",
    [loop, outside, beyond_the_table, index_too_far, nested_indirect, odd_indirect, readable_after_writable],
)
def test_a_lying_driver_gets_needs_reset_and_can_start_over(misbehave: object) -> None:
    slot, queue = entropy()
    assert callable(misbehave)
    misbehave(queue)
    queue.notify()
    assert needs_reset(slot)
    assert slot.transport.read(0x60, 4) & 2, "the driver is told by a configuration interrupt"
    slot.ram[:] = bytes(len(slot.ram))
    queue = set_up(slot)[0]
    queue.offer((BUFFER, 4, True))
    queue.notify()
    assert queue.completed() == [(0, 4)]


def test_the_bytes_of_one_request_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    slot, queue = entropy()
    monkeypatch.setattr("serai.machine.virtio.queue.MAXIMUM_CHAIN_BYTES", 4 << 20)
    too_much(queue)
    queue.notify()
    assert needs_reset(slot)


def test_misplaced_rings_are_refused() -> None:
    for register, value in ((0x80, 8), (0x90, 1), (0xA0, 2), (0x84, 0xFFFF_FFFF), (0x38, 3), (0x38, 4096)):
        slot = Slot(Entropy("entropy0"))
        transport = slot.transport
        transport.write(0x38, 4, 8)
        for address in (0x80, 0x90, 0xA0):
            transport.write(address, 4, RAM_BASE & 0xFFFF_FFFF)
        transport.write(register, 4, value + (RAM_BASE if register in (0x80, 0x90, 0xA0) else 0))
        transport.write(0x44, 4, 1)
        assert transport.read(0x44, 4) == 0
        assert needs_reset(slot)


def test_features_not_offered_and_old_drivers_are_refused() -> None:
    for features in (ALL | 1 << 50, 0):
        slot = Slot(Entropy("entropy0"))
        with pytest.raises(AssertionError, match="refused"):
            set_up(slot, features=features)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**64 - 1))
def test_no_garbage_raises(seed: int) -> None:
    """Random rings, registers and notifications: the device may give up, but never with an exception."""
    source = random.Random(seed)
    slot = Slot(Net("net0", bytes(6)))
    queues = set_up(slot, features=ALL | 1 << 15)
    for _ in range(12):
        queue = source.choice(queues)
        address = source.choice([BUFFER, RAM_BASE - 8, RAM_BASE + (1 << 20) - 8, source.getrandbits(64)])
        length = source.choice([0, 1, 12, 1526, 16, 0xFFFF_FFFF])
        queue.describe(source.randrange(8), address, length, source.randrange(8), source.choice([0, 1, 7, 9]))
        queue.expose(source.choice([0, 3, 7, 8, 65535]))
        if source.random() < 0.1:
            slot.transport.write(source.randrange(0, 0x108, 4), 4, source.getrandbits(32))
        queue.notify()
        assert isinstance(slot.device, Net)
        slot.device.receive(bytes(source.randrange(1, 2000)))
        slot.device.flush()


def test_state_survives_in_a_snapshot() -> None:
    slot, queue = entropy()
    queue.offer((BUFFER, 8, True))
    queue.notify()
    queue.completed()
    saved = unpack(pack(slot.transport.save()))
    other = Slot(Entropy("entropy0", seed=b"s"), ram=slot.ram)
    other.transport.restore(saved)
    assert other.level, "an interrupt that was not acknowledged is still raised"
    queue.slot = other
    queue.offer((BUFFER, 8, True))
    queue.notify()
    assert queue.completed() == [(1, 8)]


def test_a_frozen_device_leaves_ram_alone_until_it_is_thawed() -> None:
    slot, queue = entropy()
    queue.offer((BUFFER, 8, True))
    slot.transport.frozen = True
    queue.notify()
    assert queue.completed() == []
    slot.transport.frozen = False
    slot.transport.serve(0)
    assert queue.completed() == [(0, 8)]
