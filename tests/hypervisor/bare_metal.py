"""Guests of a few machine instructions, as ELF files."""

from __future__ import annotations

import struct
from pathlib import Path

from serai.machine.board import RAM_BASE

WFI = 0x10500073
JUMP_BACK_4 = 0xFFDFF06F
JUMP_TO_SELF = 0x0000006F

SLEEP = (WFI, JUMP_BACK_4)
SPIN = (JUMP_TO_SELF,)
COUNT = (
    0x00100293,  # li t0, 1
    0x01F29293,  # slli t0, t0, 31         t0 = RAM
    0x00100337,  # lui t1, 0x100           1 MiB
    0x006282B3,  # add t0, t0, t1
    0x00138393,  # addi t2, t2, 1
    0x0072B023,  # sd t2, 0(t0)
    0xFF9FF06F,  # j -8
)
"""Counts up in the eight bytes at COUNTER."""

COUNTER = 1 << 20


def write_elf(path: Path, program: tuple[int, ...]) -> Path:
    code = struct.pack(f"<{len(program)}I", *program)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, 243, 1, RAM_BASE, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 7, 120, RAM_BASE, RAM_BASE, len(code), len(code), 4096)
    path.write_bytes(header + segment + code)
    return path
