"""A program of fourteen instructions for the guest: have the kernel make new random numbers from its pool.

BusyBox cannot do that ioctl. Without it a copied guest would give out the numbers of its twin for up to a
minute after something new was written to /dev/urandom (Linux: drivers/char/random.c, CRNG_RESEED_INTERVAL).
"""

from __future__ import annotations

import struct

ASSEMBLY = """
    addi a0, zero, -100      # openat(AT_FDCWD,
    auipc a1, 0
    addi a1, a1, 52          #   the path behind the last instruction,
    addi a2, zero, 1         #   O_WRONLY)
    addi a7, zero, 56
    ecall
    lui a1, 0x5              # ioctl(it, RNDRESEEDCRNG)
    addi a1, a1, 0x207
    addi a2, zero, 0
    addi a7, zero, 29
    ecall
    sltu a0, zero, a0        # exit(whether that failed)
    addi a7, zero, 93
    ecall
"""
_INSTRUCTIONS = (
    *(0xF9C00513, 0x00000597, 0x03458593, 0x00100613, 0x03800893, 0x00000073),
    *(0x000055B7, 0x20758593, 0x00000613, 0x01D00893, 0x00000073),
    *(0x00A03533, 0x05D00893, 0x00000073),
)
"""`ASSEMBLY`; a test compares them, as this package stands apart from the assembler."""

CODE = struct.pack(f"<{len(_INSTRUCTIONS)}I", *_INSTRUCTIONS)
_ADDRESS, _HEADERS = 0x10000, 64 + 56


def program() -> bytes:
    """The ELF executable (System V ABI: ELF-64, one segment; RISC-V psABI: machine 243)."""
    content = CODE + b"/dev/urandom\0"
    size = _HEADERS + len(content)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(b"\x7fELF\x02\x01\x01", 2, 243, 1, _ADDRESS + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0),
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _ADDRESS, _ADDRESS, size, size, 4096)
    return header + segment + content
