"""A sample of the hostile guests that ``make soak`` runs millions of, and the cases that once did harm."""

from __future__ import annotations

import faulthandler
import os
import struct
from pathlib import Path

import pytest
from tests.soak.hostile import GUARD, GuardedRam, in_child

from serai.machine.board import RAM_BASE
from serai.machine.errors import LoadError
from serai.machine.loader import load_kernel
from serai.machine.memory import GuestMemory

SAMPLE = 20_000


def test_hostile_guests_harm_nobody() -> None:
    why, seed, cases = in_child(1_000_000, SAMPLE)
    assert why == "", f"{why} at seed {seed}"
    assert cases >= SAMPLE


def test_the_guard_would_notice_an_access_outside_ram() -> None:
    for offset in (GUARD - 1, GUARD + 4096):
        pid = os.fork()
        if pid == 0:
            faulthandler.disable()  # it is meant to die
            ram = GuardedRam(4096)
            ram.mapping[offset] = 1
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status)


def elf(table: int, address: int, in_memory: int) -> bytes:
    head = struct.pack("<HHIQQQIHHHHHH", 2, 243, 1, RAM_BASE, table, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 7, 120, 0, address, 8, in_memory, 4096)
    return b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + head + segment + bytes(8)


@pytest.mark.parametrize(
    "data",
    [
        elf(64, RAM_BASE, (1 << 64) - 1),  # seed 71: as many zero bytes were allocated before the check
        elf(64, RAM_BASE, 1 << 40),
        elf((1 << 64) - 8, RAM_BASE, 8),  # seed 283: an offset that no buffer can have
        elf(64, (1 << 64) - 4096, 4096),
    ],
)
def test_files_that_once_did_harm(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "kernel").write_bytes(data)
    memory = GuestMemory(memoryview(bytearray(1 << 16)), RAM_BASE)
    with pytest.raises(LoadError):
        load_kernel(memory, tmp_path / "kernel")


def test_an_image_that_is_its_header_alone(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(bytes(48) + b"RISCV\0\0\0RSC\x05\0\0\0\0")
    memory = GuestMemory(memoryview(bytearray(1 << 16)), RAM_BASE)
    assert load_kernel(memory, tmp_path / "kernel").end == RAM_BASE + 64
