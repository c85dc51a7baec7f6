"""Interrupt controller, serial port, device tree, cpio, loader and firmware."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from tests.machine.scripted import Program, ScriptedHart

from serai.machine import board, cpio, fdt, loader, sbi
from serai.machine.board import RAM_BASE, MachineConfig
from serai.machine.errors import ConfigurationError, LoadError, SnapshotError
from serai.machine.hart import ClockSource
from serai.machine.harts import Harts
from serai.machine.memory import GuestMemory
from serai.machine.plic import Plic
from serai.machine.sbi import Firmware, SystemRequest
from serai.machine.snapshot import decode, encode
from serai.machine.uart import INPUT_LIMIT, Uart, UartState

ENABLE, CLAIM = 0x2080, 0x201004
THRESHOLD = 0x201000


class Controller:
    """A PLIC with one hart; context 1 is S-mode's."""

    def __init__(self) -> None:
        self.levels = [False, False]
        self.plic = Plic([lambda level: self._set(0, level), lambda level: self._set(1, level)])

    def _set(self, context: int, level: bool) -> None:
        self.levels[context] = level

    def enable(self, *sources: int) -> None:
        for source in sources:
            self.plic.write(4 * source, 4, 1)
        mask = sum(1 << source for source in sources)
        self.plic.write(ENABLE, 4, mask & 0xFFFF_FFFF)
        self.plic.write(ENABLE + 4, 4, mask >> 32)


def test_plic_claims_by_priority_and_holds_until_completion() -> None:
    c = Controller()
    c.enable(3, 10, 40)
    c.plic.write(4 * 40, 4, 7)
    for source in (3, 10, 40):
        c.plic.set_level(source, True)
    assert c.levels == [False, True]
    assert c.plic.read(0x1000, 4) == 1 << 3 | 1 << 10
    assert c.plic.read(0x1004, 4) == 1 << 8
    assert [c.plic.read(CLAIM, 4) for _ in range(4)] == [40, 3, 10, 0]
    assert not c.levels[1], "all are claimed"
    c.plic.set_level(3, False)
    c.plic.write(CLAIM, 4, 3)
    c.plic.write(CLAIM, 4, 10)
    assert c.plic.read(CLAIM, 4) == 10, "its line is still high"
    c.plic.write(CLAIM, 4, 11)
    assert c.plic.read(CLAIM, 4) == 0


def test_plic_threshold_masks() -> None:
    c = Controller()
    c.enable(5)
    c.plic.write(THRESHOLD, 4, 1)
    c.plic.set_level(5, True)
    assert not c.levels[1]
    c.plic.write(THRESHOLD, 4, 0)
    assert c.levels[1]
    c.plic.set_level(5, False)
    assert not c.levels[1]


def test_plic_state_travels() -> None:
    c = Controller()
    c.enable(3, 10)
    c.plic.set_level(3, True)
    c.plic.set_level(10, True)
    assert c.plic.read(CLAIM, 4) == 3
    other = Controller()
    other.plic.restore(decode(type(c.plic.save()), encode(c.plic.save())))
    assert other.levels[1]
    assert other.plic.read(CLAIM, 4) == 10
    other.plic.write(CLAIM, 4, 3)
    assert other.plic.read(CLAIM, 4) == 3
    broken = c.plic.save()
    broken.contexts.pop()
    with pytest.raises(SnapshotError):
        other.plic.restore(broken)


class Serial:
    def __init__(self) -> None:
        self.level = False
        self.uart = Uart(self._set)

    def _set(self, level: bool) -> None:
        self.level = level


def test_uart_receives_with_interrupt_and_fifo_identification() -> None:
    s = Serial()
    s.uart.write(2, 1, 0x81)  # FIFO on, trigger 8
    s.uart.write(1, 1, 1)
    assert s.uart.read(2, 1) == 0xC1
    s.uart.receive(b"ab")
    assert s.level
    assert s.uart.read(2, 1) == 0xCC, "fewer than the trigger level: time-out indication"
    s.uart.receive(b"cdefgh")
    assert s.uart.read(2, 1) == 0xC4
    assert bytes(s.uart.read(0, 1) for _ in range(8)) == b"abcdefgh"
    assert not s.level
    assert s.uart.read(5, 1) == 0x60


def test_uart_transmit_interrupt() -> None:
    s = Serial()
    s.uart.write(1, 1, 2)
    assert s.level, "enabling it with an empty transmitter raises it"
    assert s.uart.read(2, 1) & 0x0F == 2
    assert not s.level, "reading IIR clears it"
    s.uart.write(0, 1, 0x41)
    assert s.level
    assert s.uart.output == b"A"


def test_uart_divisor_loopback_scratch_and_bounds() -> None:
    s = Serial()
    s.uart.write(3, 1, 0x83)
    s.uart.write(0, 1, 2)
    s.uart.write(1, 1, 1)
    assert (s.uart.read(0, 1), s.uart.read(1, 1)) == (2, 1)
    s.uart.write(3, 1, 3)
    s.uart.write(4, 1, 0x1F)
    assert s.uart.read(6, 1) & 0xF0 == 0xF0
    s.uart.write(0, 1, 0x55)
    assert s.uart.read(0, 1) == 0x55
    assert s.uart.output == b""
    s.uart.write(7, 1, 0xA5)
    assert s.uart.read(7, 1) == 0xA5
    assert s.uart.receive(b"x" * 5000) == INPUT_LIMIT
    assert s.uart.receive(b"x") == 0


def test_uart_state_travels_and_is_checked() -> None:
    s, other = Serial(), Serial()
    s.uart.write(1, 1, 1)
    s.uart.receive(b"typed")
    other.uart.restore(decode(UartState, encode(s.uart.save())))
    assert other.level
    assert bytes(other.uart.read(0, 1) for _ in range(5)) == b"typed"
    broken = s.uart.save()
    broken.scratch = 256
    with pytest.raises(SnapshotError):
        other.uart.restore(broken)


def parse_tree(blob: bytes) -> dict[str, bytes]:
    """Property path -> value, by an independent reading of the specification."""
    magic, total, structure, strings, _, version, *_ = struct.unpack_from(">10I", blob)
    assert (magic, version, total) == (0xD00DFEED, 17, len(blob))
    found: dict[str, bytes] = {}
    path: list[str] = []
    position = structure
    while True:
        token = struct.unpack_from(">I", blob, position)[0]
        position += 4
        if token == 1:
            end = blob.index(b"\0", position)
            path.append(blob[position:end].decode())
            position = end + 4 & ~3
        elif token == 2:
            path.pop()
        elif token == 3:
            length, name = struct.unpack_from(">II", blob, position)
            position += 8
            key = blob[strings + name : blob.index(b"\0", strings + name)].decode()
            found["/".join(path) + ":" + key] = blob[position : position + length]
            position = position + length + 3 & ~3
        else:
            assert token == 9
            return found


def test_device_tree_says_what_the_board_has() -> None:
    config = MachineConfig(memory_bytes=128 << 20, command_line="quiet")
    tree = parse_tree(
        board.device_tree(
            config, slots=11, initramfs=(0x8700_0000, 0x8700_1000), random_seed=b"s" * 64, vcpus=1
        )
    )
    assert tree["/chosen:bootargs"] == b"quiet\0"
    assert tree["/chosen:linux,initrd-end"] == struct.pack(">II", 0, 0x8700_1000)
    assert tree["/memory@80000000:reg"] == struct.pack(">4I", 0, 0x8000_0000, 0, 128 << 20)
    assert tree["/cpus/cpu@0:riscv,isa"] == b"rv64imafdc\0"
    assert tree["/cpus:timebase-frequency"] == struct.pack(">I", 10_000_000)
    plic = "/soc/interrupt-controller@c000000"
    intc = tree["/cpus/cpu@0/interrupt-controller:phandle"]
    assert tree[f"{plic}:interrupts-extended"] == intc + struct.pack(">I", 11) + intc + struct.pack(">I", 9)
    irqs = [tree[f"/soc/virtio_mmio@{board.slot_address(slot):x}:interrupts"][3] for slot in range(11)]
    assert irqs == [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12], "10 is the serial port's"
    assert tree["/soc/serial@10000000:interrupt-parent"] == tree[f"{plic}:phandle"]


def test_device_tree_nodes_and_strings_are_shared() -> None:
    blob = fdt.write(fdt.Node("", {"a": 1, "b": None}, [fdt.Node("x", {"a": ["p", "q"]})]))
    assert parse_tree(blob) == {":a": b"\0\0\0\1", ":b": b"", "/x:a": b"p\0q\0"}
    assert blob.endswith(b"a\0b\0")


def test_cpio_is_what_cpio_reads(tmp_path: Path) -> None:
    archive = cpio.write({"/etc/serai/startup": (0o755, b"#!/bin/sh\n"), "etc/x": (0o600, b"abc")})
    assert len(archive) % 4 == 0
    names = [line[110 : line.index(b"\0", 110)] for line in _entries(archive)]
    assert names == [b"etc", b"etc/serai", b"etc/serai/startup", b"etc/x", b"TRAILER!!!"]
    try:
        listing = subprocess.run(["cpio", "-itv"], input=archive, capture_output=True, check=True)
    except FileNotFoundError:
        return  # the entries above were read back by hand
    assert b"-rwxr-xr-x" in listing.stdout


def _entries(archive: bytes) -> list[bytes]:
    entries, position = [], 0
    while position < len(archive):
        assert archive[position : position + 6] == b"070701"
        size, name = (
            int(archive[position + 54 : position + 62], 16),
            int(archive[position + 94 : position + 102], 16),
        )
        end = (position + 110 + name + 3 & ~3) + size + 3 & ~3
        entries.append(archive[position:end])
        position = end
    return entries


def test_cpio_appends_at_multiples_of_four_and_refuses_strange_paths() -> None:
    assert cpio.append(b"12345", {})[:5] == b"12345"
    assert cpio.append(b"12345", {"a": (0o644, b"")})[8:14] == b"070701"
    for path in ("", "/", "../x", "a/../b", "TRAILER!!!", "a\0b"):
        with pytest.raises(ConfigurationError):
            cpio.write({path: (0o644, b"")})


def image(text_offset: int = 0x200000, size: int = 0x300000, body: bytes = b"k" * 100) -> bytes:
    return struct.pack("<II6Q4s4s", 0, 0, text_offset, size, 0, 0, 0, 0, b"RISCV\0\0\0"[:4], b"")[:48] + (
        b"RISCV\0\0\0RSC\x05\0\0\0\0" + body
    )


def test_loader_places_everything_apart(tmp_path: Path) -> None:
    (tmp_path / "Image").write_bytes(image())
    (tmp_path / "initramfs").write_bytes(b"i" * 5000)
    memory = GuestMemory(memoryview(bytearray(16 << 20)), RAM_BASE)
    seen: list[tuple[int, int] | None] = []

    def tree(place: tuple[int, int] | None) -> bytes:
        seen.append(place)
        return b"tree"

    boot = loader.load(
        memory,
        kernel=tmp_path / "Image",
        initramfs=tmp_path / "initramfs",
        extra_files={"a": (0o644, b"x")},
        tree=tree,
    )
    assert boot.entry == RAM_BASE + 0x200000
    assert memory.read(boot.entry, 64) == image()[:64]
    [place] = seen
    assert place is not None
    assert place[0] % 4096 == 0
    assert boot.entry + 0x300000 < place[0] < place[1] <= boot.tree
    assert memory.read(place[0], 5000) == b"i" * 5000
    assert memory.read(place[0] + 5000, 6) == b"070701"
    assert memory.read(boot.tree, 4) == b"tree"


def test_loader_reads_elf(tmp_path: Path) -> None:
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, 243, 1, RAM_BASE + 4, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 7, 120, 0, RAM_BASE + 0x1000, 8, 24, 4096)
    (tmp_path / "elf").write_bytes(header + segment + b"12345678")
    ram = bytearray(b"\xff" * 0x3000)
    kernel = loader.load_kernel(GuestMemory(memoryview(ram), RAM_BASE), tmp_path / "elf")
    assert kernel == loader.Kernel(RAM_BASE + 4, RAM_BASE + 0x1000, RAM_BASE + 0x1018)
    assert ram[0x1000:0x1019] == b"12345678" + bytes(16) + b"\xff"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"hello", "neither"),
        (b"\x1f\x8b" + bytes(100), "gzip"),
        (image(text_offset=0x1000), "2 MiB"),
        (image(size=1 << 30), "too few"),
        (b"\x7fELF\x02\x01\x01", "headers are not whole"),
        (b"\x7fELF\x02\x01\x01".ljust(18, b"\0") + struct.pack("<H", 62).ljust(100, b"\0"), "architecture"),
        (None, "No such file"),
    ],
)
def test_loader_says_what_is_wrong(tmp_path: Path, content: bytes | None, problem: str) -> None:
    if content is not None:
        (tmp_path / "kernel").write_bytes(content)
    with pytest.raises(LoadError, match=problem) as caught:
        loader.load_kernel(GuestMemory(memoryview(bytearray(8 << 20)), RAM_BASE), tmp_path / "kernel")
    assert "kernel" in str(caught.value)


def _no_program(hart: ScriptedHart) -> Program:
    raise NotImplementedError


class Caller:
    """A machine whose first hart only makes calls."""

    def __init__(self) -> None:
        self.ram = bytearray(8192)
        self.uart = Serial().uart
        self.hart = ScriptedHart(memoryview(self.ram), _no_program)
        self.firmware = Firmware(
            Harts(lambda number: self.hart, 1, ClockSource.VIRTUAL, 1),
            GuestMemory(memoryview(self.ram), RAM_BASE),
            self.uart,
        )

    def call(self, extension: int, function: int, *arguments: int) -> tuple[int, int]:
        x = self.hart.x
        x[17], x[16] = extension, function
        x[10:16] = [*arguments, *[0] * (6 - len(arguments))]
        self.firmware.call(0)
        return x[10] - (1 << 64) if x[10] >> 63 else x[10], x[11]


def test_sbi_answers() -> None:
    hart = Caller()
    everyone = (1 << 64) - 1
    assert hart.call(sbi.BASE, 0) == (0, 0x0200_0000)
    assert hart.call(sbi.BASE, 3, sbi.TIME) == (0, 1)
    assert hart.call(sbi.BASE, 3, 0x504D55) == (0, 0)
    assert hart.call(0x504D55, 0) == (-2, 0)
    assert hart.call(sbi.TIME, 0, 12345) == (0, 0)
    assert hart.hart.deadline == 12345
    assert hart.call(sbi.IPI, 0, 1, 0) == (0, 0)
    assert hart.hart.pending == 1 << 1
    assert hart.call(sbi.IPI, 0, 2, 0) == (-3, 0)
    assert hart.call(sbi.RFENCE, 1, 0, everyone, 0, 4096) == (0, 0)
    assert hart.call(sbi.RFENCE, 0, 1, 0) == (0, 0)
    assert hart.call(sbi.RFENCE, 2, 1, 0, 0, everyone, 7) == (0, 0)
    assert hart.hart.fences == [(0, 4096), (0, everyone)], "fence.i has nothing to flush"
    assert hart.call(sbi.RFENCE, 3, 1, 0) == (-2, 0)
    assert hart.call(sbi.HSM, 2, 0) == (0, 0)
    assert hart.call(sbi.HSM, 2, 1) == (-3, 0)
    assert hart.call(sbi.HSM, 0, 0) == (-6, 0)
    assert hart.call(sbi.HSM, 0, 1, RAM_BASE) == (-3, 0)
    assert hart.call(sbi.HSM, 1) == (-1, 0), "the last hart cannot stop"
    assert hart.firmware.request is None
    assert hart.call(sbi.SRST, 0, 9) == (-3, 0)
    assert hart.call(sbi.SRST, 0, 1) == (0, 0)
    assert hart.firmware.request is SystemRequest.REBOOT


def test_sbi_debug_console() -> None:
    hart = Caller()
    hart.ram[10:15] = b"hello"
    assert hart.call(sbi.DBCN, 0, 5, RAM_BASE + 10, 0) == (0, 5)
    assert hart.call(sbi.DBCN, 2, ord("!")) == (0, 0)
    assert hart.uart.output == b"hello!"
    assert hart.call(sbi.DBCN, 1, 8, RAM_BASE, 0) == (0, 0)
    hart.uart.receive(b"ab")
    assert hart.call(sbi.DBCN, 1, 8, RAM_BASE, 0) == (0, 2)
    assert hart.ram[:2] == b"ab"
    assert hart.call(sbi.DBCN, 0, 5, RAM_BASE + 8190, 0) == (-3, 0)
    assert hart.call(sbi.DBCN, 0, 5, RAM_BASE, 1) == (-3, 0)
