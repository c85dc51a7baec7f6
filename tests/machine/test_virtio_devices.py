"""The devices behind the transport: network, console, disk."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from tests.machine.virtio_driver import ALL, Queue, Slot, set_up

from serai.machine.board import RAM_BASE
from serai.machine.errors import ConfigurationError, SnapshotError
from serai.machine.snapshot import pack, unpack
from serai.machine.virtio.block import Block
from serai.machine.virtio.console import Console
from serai.machine.virtio.net import BACKLOG_FRAMES, FEATURE_MERGEABLE_BUFFERS, Net
from serai.machine.virtio.transport import STATUS_NEEDS_RESET

BUFFER = RAM_BASE + 0x40000
MAC = bytes.fromhex("525400123456")


def network(features: int = ALL | FEATURE_MERGEABLE_BUFFERS) -> tuple[Slot, Net, Queue, Queue, list[bytes]]:
    net = Net("net0", MAC)
    sent: list[bytes] = []
    net.transmit = sent.append
    slot = Slot(net)
    receive, transmit = set_up(slot, features=features)
    return slot, net, receive, transmit, sent


def test_net_shows_its_mac_and_link() -> None:
    slot, *_ = network()
    assert bytes(slot.transport.read(0x100 + n, 1) for n in range(6)) == MAC
    assert slot.transport.read(0x106, 2) == 1


def test_net_transmits_without_the_header() -> None:
    slot, _, _, transmit, sent = network()
    slot.memory.write(BUFFER, bytes(12) + b"frame")
    transmit.offer((BUFFER, 12, False), (BUFFER + 12, 5, False))
    transmit.offer((BUFFER, 17, False))
    transmit.notify()
    assert sent == [b"frame", b"frame"]
    assert transmit.completed() == [(0, 0), (2, 0)]


def test_net_merges_receive_buffers_and_counts_them() -> None:
    slot, net, receive, _, _ = network()
    frame = bytes(range(200))
    for n in range(3):
        receive.offer((BUFFER + 0x1000 * n, 100, True))
    assert net.receive(frame)
    net.flush()
    assert receive.completed() == [(0, 100), (1, 100), (2, 12)]
    head = slot.memory.read(BUFFER, 100)
    assert head[:12] == bytes(10) + struct.pack("<H", 3)
    whole = head[12:] + slot.memory.read(BUFFER + 0x1000, 100) + slot.memory.read(BUFFER + 0x2000, 12)
    assert whole == frame


def test_net_takes_no_buffers_for_a_frame_that_does_not_fit_yet() -> None:
    _, net, receive, _, _ = network()
    receive.offer((BUFFER, 100, True))
    net.receive(bytes(150))
    net.flush()
    assert receive.completed() == []
    receive.offer((BUFFER + 0x1000, 100, True))
    receive.notify()
    assert receive.completed() == [(0, 100), (1, 62)]


def test_net_without_mergeable_buffers_wants_room() -> None:
    slot, net, receive, _, _ = network(ALL)
    receive.offer((BUFFER, 100, True))
    net.receive(bytes(150))
    net.flush()
    assert slot.transport.read(0x70, 4) & STATUS_NEEDS_RESET


def test_net_backlog_is_bounded_and_saved() -> None:
    slot, net, _, _, _ = network()
    taken = [net.receive(n.to_bytes(2, "big")) for n in range(BACKLOG_FRAMES + 2)]
    assert taken.count(False) == 2
    assert net.lost == 2
    other = Net("net0", MAC)
    other_slot = Slot(other, ram=slot.ram)
    other.receive(b"early")
    other_slot.transport.restore(unpack(pack(slot.transport.save())))
    assert other.save().backlog[0] == b"\0\0"
    assert len(other.save().backlog) == BACKLOG_FRAMES


def test_net_transmission_waits_for_the_host() -> None:
    slot, net, _, transmit, sent = network()
    writable = False
    net.writable = lambda: writable
    slot.memory.write(BUFFER, bytes(12) + b"frame")
    transmit.offer((BUFFER, 17, False))
    transmit.notify()
    assert sent == []
    writable = True
    net.resume_transmission()
    assert sent == [b"frame"]


def test_console_lines_both_ways() -> None:
    console = Console("console0")
    lines: list[str] = []
    console.line_received = lines.append
    slot = Slot(console)
    receive, transmit = set_up(slot)
    for piece in (b"ready ker", b"nel=6.12\r\nsecond\nrest"):
        slot.memory.write(BUFFER, piece)
        transmit.offer((BUFFER, len(piece), False))
        transmit.notify()
    assert lines == ["ready kernel=6.12", "second"]
    assert console.send_line("poweroff")
    assert receive.completed() == []
    receive.offer((BUFFER, 64, True))
    receive.notify()
    assert receive.completed() == [(0, 9)]
    assert slot.memory.read(BUFFER, 9) == b"poweroff\n"


def test_console_cuts_endless_lines_and_bounds_input() -> None:
    console = Console("console0")
    lines: list[str] = []
    console.line_received = lines.append
    slot = Slot(console)
    transmit = set_up(slot)[1]
    slot.memory.write(BUFFER, b"x" * 0x8000)
    for _ in range(4):
        transmit.offer((BUFFER, 0x8000, False))
        transmit.notify()
    slot.memory.write(BUFFER, b"\n")
    transmit.offer((BUFFER, 1, False))
    transmit.notify()
    assert [len(line) for line in lines] == [4096]
    assert not all(console.send_line("x" * 1000) for _ in range(100))


class Disk:
    def __init__(self, path: Path, *, read_only: bool = False, sectors: int = 64) -> None:
        if not path.exists():
            path.write_bytes(b"".join(bytes([n]) * 512 for n in range(sectors)))
        self.block = Block("block0", path, read_only=read_only)
        self.slot = Slot(self.block)
        self.queue = set_up(self.slot)[0]

    def request(self, kind: int, sector: int, data: bytes = b"", room: int = 0) -> tuple[int, int]:
        memory = self.slot.memory
        memory.write(BUFFER, struct.pack("<IIQ", kind, 0, sector) + data)
        buffers = [(BUFFER, 16, False)]
        if data:
            buffers.append((BUFFER + 16, len(data), False))
        if room:
            buffers.append((BUFFER + 0x8000, room, True))
        memory.write(BUFFER + 0x7000, b"\xff")
        self.queue.offer(*buffers, (BUFFER + 0x7000, 1, True))
        self.queue.notify()
        [(_, written)] = self.queue.completed()
        return memory.read(BUFFER + 0x7000, 1)[0], written


def test_block_reads_writes_and_flushes(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "disk")
    assert int.from_bytes(disk.block.configuration[:8], "little") == 64
    assert disk.request(0, 5, room=1024) == (0, 1025)
    assert disk.slot.memory.read(BUFFER + 0x8000, 1024) == bytes([5]) * 512 + bytes([6]) * 512
    assert disk.request(1, 63, data=b"z" * 512) == (0, 1)
    assert disk.request(4, 0) == (0, 1)
    assert (tmp_path / "disk").read_bytes()[-512:] == b"z" * 512
    assert disk.request(8, 0, room=20) == (0, 21)
    assert disk.slot.memory.read(BUFFER + 0x8000, 6) == b"block0"
    disk.block.close()


@pytest.mark.parametrize(
    ("kind", "sector", "data", "room", "status"),
    [
        (0, 64, b"", 512, 1),
        (0, 2**64 - 1, b"", 512, 1),
        (0, 0, b"", 100, 1),
        (1, 63, b"x" * 1024, 0, 1),
        (77, 0, b"", 0, 2),
    ],
)
def test_block_refuses(tmp_path: Path, kind: int, sector: int, data: bytes, room: int, status: int) -> None:  # noqa: PLR0917
    disk = Disk(tmp_path / "disk")
    before = (tmp_path / "disk").read_bytes()
    assert disk.request(kind, sector, data, room)[0] == status
    assert (tmp_path / "disk").read_bytes() == before
    disk.block.close()


def test_block_read_only_and_missing(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "disk", read_only=True)
    assert disk.slot.transport.read(0x10, 4) & 1 << 5
    assert disk.request(1, 0, data=b"x" * 512)[0] == 1
    disk.block.close()
    with pytest.raises(ConfigurationError, match="No such file"):
        Block("block0", tmp_path / "missing")


def test_block_state_refuses_another_disk(tmp_path: Path) -> None:
    small, large = Disk(tmp_path / "small"), Disk(tmp_path / "large", sectors=65)
    with pytest.raises(SnapshotError, match="sectors"):
        large.slot.transport.restore(unpack(pack(small.slot.transport.save())))
    small.block.close()
    large.block.close()
