"""A bare-metal guest that writes memory at a chosen rate, checks all of it, and reports over its console.

It needs no operating system, so that hundreds can be moved in a minute. ``pages`` of its working set are
visited in turn, each visit checks the word that the last one left; a filled area that is only read is checked
a few pages a tick. Each report is a line ``p PASSES g GAP e ERRORS t TICKS`` in hexadecimal, GAP being the
longest time between two looks at the clock since the last report, in ticks of 100 ns.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from serai.images.store import FileRecord, ImageStore, Manifest
from serai.machine.board import RAM_BASE, UART_BASE
from serai.machine.isa.assembler import assemble

_LINE = re.compile(rb"p ([0-9a-f]{16}) g ([0-9a-f]{16}) e ([0-9a-f]{16}) t ([0-9a-f]{16})\r\n")
_WORK = RAM_BASE + (4 << 20)
TICK_MS = 1

_PROGRAM = """
    li s0, {work}
    slli s0, s0, 32
    srli s0, s0, 32
    li s1, {pages}
    li s8, {fill}
    slli s8, s8, 32
    srli s8, s8, 32
    li s9, {fill_pages}
    li s10, 0x7F4A7C15
    li t0, 0
    mv t1, s8
filling:
    bgeu t0, s9, filled
    addi t2, t0, 1
    mul t2, t2, s10
    sd t2, 0(t1)
    sd t2, 2040(t1)
    li t3, 4096
    add t1, t1, t3
    addi t0, t0, 1
    j filling
filled:
    li t0, 0
    mv t1, s0
numbering:
    bgeu t0, s1, numbered
    sd t0, 0(t1)
    li t3, 4096
    add t1, t1, t3
    addi t0, t0, 1
    j numbering
numbered:
    li s2, 0                # page to visit next
    li s3, 0                # passes
    li s6, 0                # longest gap
    li s7, 0                # ticks
    li s11, 0               # errors
    li a5, 0                # page of the filled area to check next
    li t0, 32
    csrs sie, t0
    csrr s5, time
    mv s4, s5
tick:
    li t0, {tick}
    add s4, s4, t0
    li a3, {per_tick}
visit:
    call look
    beqz a3, checked
    beqz s1, checked
    addi a3, a3, -1
    slli t0, s2, 12
    add t0, t0, s0
    slli t1, s3, 24
    or t1, t1, s2
    ld t2, 0(t0)
    beq t1, t2, right
    addi s11, s11, 1
right:
    addi t1, s3, 1
    slli t1, t1, 24
    addi s2, s2, 1
    bltu s2, s1, same
    li s2, 0
    addi s3, s3, 1
    li t3, {last}
    or t1, t1, t3
    j leave
same:
    addi t3, s2, -1
    or t1, t1, t3
leave:
    sd t1, 0(t0)
    j visit
checked:
    li a3, {checks}
check:
    beqz a3, ticked
    beqz s9, ticked
    addi a3, a3, -1
    slli t0, a5, 12
    add t0, t0, s8
    addi t1, a5, 1
    mul t1, t1, s10
    ld t2, 0(t0)
    bne t1, t2, wrong
    ld t2, 2040(t0)
    beq t1, t2, good
wrong:
    addi s11, s11, 1
good:
    addi a5, a5, 1
    bltu a5, s9, check
    li a5, 0
    j check
ticked:
    addi s7, s7, 1
    li t0, {report}
    remu t1, s7, t0
    bnez t1, wait
    call report
wait:
    call look
    bgeu s5, s4, tick
    li t1, {paced}
    beqz t1, tick
    mv a0, s4
    li a6, 0
    li a7, 0x54494D45
    ecall
    wfi
    j wait
look:
    csrr t0, time
    sub t1, t0, s5
    mv s5, t0
    bgeu s6, t1, looked
    mv s6, t1
looked:
    ret
report:
    mv s0, ra
    li t4, {uart}
    li a0, 0x70
    mv a1, s3
    call figure
    li a0, 0x67
    mv a1, s6
    call figure
    li a0, 0x65
    mv a1, s11
    call figure
    li a0, 0x74
    mv a1, s7
    call figure
    li t0, 13
    sb t0, 0(t4)
    li t0, 10
    sb t0, 0(t4)
    li s6, 0
    mv ra, s0
    li s0, {work}
    slli s0, s0, 32
    srli s0, s0, 32
    ret
figure:
    sb a0, 0(t4)
    li t0, 32
    sb t0, 0(t4)
    li t5, 60
digit:
    srl t0, a1, t5
    andi t0, t0, 15
    li t1, 10
    bltu t0, t1, decimal
    addi t0, t0, 39
decimal:
    addi t0, t0, 48
    sb t0, 0(t4)
    addi t5, t5, -4
    bge t5, zero, digit
    li t0, 10
    li t1, 116
    beq a0, t1, last
    li t0, 32
    sb t0, 0(t4)
last:
    ret
"""


@dataclass(frozen=True)
class Workload:
    """`working_set` bytes written at `rate` bytes a second (0: as fast as it can); `fill` bytes only read."""

    name: str
    working_set: int = 0
    rate: int = 0
    fill: int = 0
    paced: bool = True

    def elf(self) -> bytes:
        """The guest's program."""
        pages, fill_pages = self.working_set >> 12, self.fill >> 12
        per_tick = (self.rate * TICK_MS // 1000) >> 12 if self.paced else 256
        code = assemble(
            _PROGRAM.format(
                work=_WORK,
                pages=pages,
                last=max(0, pages - 1),
                fill=_WORK + self.working_set,
                fill_pages=fill_pages,
                tick=10_000 * TICK_MS if per_tick or self.rate == 0 else 10_000,
                per_tick=per_tick,
                checks=4 if fill_pages else 0,
                report=100 if self.paced else 20,
                paced=int(self.paced),
                uart=UART_BASE,
            )
        )
        header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
            "<HHIQQQIHHHHHH", 2, 243, 1, RAM_BASE, 64, 0, 0, 64, 56, 1, 0, 0, 0
        )
        segment = struct.pack("<IIQQQQQQ", 1, 7, 120, RAM_BASE, RAM_BASE, len(code), len(code), 4096)
        return header + segment + code


@dataclass(frozen=True)
class Report:
    """What the guest says of itself."""

    passes: int
    gap_ms: float
    errors: int
    ticks: int


def reports(output: bytes) -> list[Report]:
    """All complete reports in a piece of console output."""
    return [
        Report(int(found[1], 16), int(found[2], 16) / 10_000, int(found[3], 16), int(found[4], 16))
        for found in _LINE.finditer(output)
    ]


def publish(root: Path, workload: Workload) -> None:
    """Make an image of it, called by its name, in the store at `root`."""
    kernel = workload.elf()
    store = ImageStore(root)

    def record(data: bytes) -> FileRecord:
        return FileRecord(sha256=hashlib.sha256(data).hexdigest(), size=len(data))

    manifest = Manifest(
        name=workload.name,
        kernel=record(kernel),
        initramfs=record(b""),
        command_line="",
        kernel_release="none",
        architecture="riscv64",
        suite="none",
        created=datetime.now(UTC),
        sources=(),
        unverified_because="made by the tests",
        recipe="tests/migration/workload.py",
    )
    with store.building() as staging:
        store.publish(manifest, kernel, b"", staging)
