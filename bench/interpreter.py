"""The interpreter against qemu-system-riscv64 (TCG) on the same programs in the same run.

CPU time of whole processes (user + system), medians of interleaved repetitions. The programs are assembled
by Serai's own assembler, need no operating system and power off through the test device of QEMU's virt board,
which the bench plays for Serai.

    python bench/interpreter.py [--repetitions N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "agents"))

from serai.machine.core import Core
from serai.machine.hart import ClockSource, ExitReason
from serai.machine.isa.assembler import assemble

RAM_BASE = 0x8000_0000
RAM_SIZE = 64 << 20
POWER_OFF = """
    li t5, 0x100000         # the test device of the virt board
    li t6, 0x5555
    sw t6, 0(t5)
stop: j stop
"""
PROGRAMS = {
    "integer loop": """
        li s0, {count}
    loop:
        add t0, t0, t1
        addi t2, t0, 3
        xor t1, t2, t1
        andi t3, t1, 7
        or t4, t0, t3
        sltu a0, t4, t2
        sub a1, t4, a0
        slli a2, a1, 3
        xor t1, t1, a2
        addi s0, s0, -1
        bnez s0, loop
    """,
    "sieve, 4 MiB": """
        li s0, {count}
        lui s1, 0x40000
        lui s2, 0x200
        add s1, s1, s1
        add s1, s1, s2          # the table, 2 MiB behind RAM's start
        lui s3, 0x400           # its size
    again:
        li t0, 2
    outer:
        add t1, s1, t0
        lbu t2, 0(t1)
        bnez t2, next
        mv t3, t0
    inner:
        add t3, t3, t0
        bgeu t3, s3, next
        add t4, s1, t3
        sb t0, 0(t4)
        j inner
    next:
        addi t0, t0, 1
        li t1, 2048
        bltu t0, t1, outer
        mv t3, s1               # clear the table for the next round
        add t4, s1, s3
    clear:
        sd x0, 0(t3)
        addi t3, t3, 8
        bltu t3, t4, clear
        addi s0, s0, -1
        bnez s0, again
    """,
    "calls": """
        li s0, {count}
        auipc sp, 0x400
    loop:
        mv a0, s0
        call twice
        addi s0, s0, -1
        bnez s0, loop
        j end
    twice:
        addi sp, sp, -16
        sd ra, 8(sp)
        call leaf
        call leaf
        ld ra, 8(sp)
        addi sp, sp, 16
        ret
    leaf:
        addi a0, a0, 1
        ret
    end:
    """,
}
COUNTS = {"integer loop": 200_000_000, "sieve, 4 MiB": 24, "calls": 60_000_000}


def run_here(image: bytes) -> int:
    """Run an image to its power-off; return the instructions retired. (The child of the measurement.)"""
    ram = mmap.mmap(-1, RAM_SIZE)
    ram[: len(image)] = image
    core = Core(ram, ram_base=RAM_BASE, firmware_emulated=False, clock=ClockSource.VIRTUAL)
    while core.run(1 << 40) is not ExitReason.MMIO_STORE:
        pass
    return core.instructions


def children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(command: list[str]) -> tuple[float, float, str]:
    """Return CPU seconds, wall seconds and output of a process."""
    cpu, wall = children_cpu(), time.monotonic()
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    return children_cpu() - cpu, time.monotonic() - wall, done.stdout


def compare(name: str, qemu: str, directory: Path, repetitions: int) -> dict[str, float | str]:
    source = PROGRAMS[name].format(count=COUNTS[name]) + POWER_OFF
    path = directory / "program.bin"
    path.write_bytes(assemble(source, RAM_BASE))
    here = [sys.executable, __file__, "--image", str(path)]
    there = [qemu, "-machine", "virt", "-m", "64M", "-display", "none", "-serial", "none", "-monitor", "none"]
    there += ["-bios", "none", "-kernel", str(path)]
    ours, theirs, instructions = [], [], 0
    for _ in range(repetitions):
        cpu, _, output = measure(here)
        ours.append(cpu)
        instructions = int(output)
        theirs.append(measure(there)[0])
    own, peer = statistics.median(ours), statistics.median(theirs)
    return {
        "program": name,
        "instructions": instructions,
        "serai_cpu_s": round(own, 3),
        "qemu_cpu_s": round(peer, 3),
        "serai_mips": round(instructions / own / 1e6),
        "qemu_mips": round(instructions / peer / 1e6),
        "ratio": round(peer / own, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--image", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.image:
        print(run_here(options.image.read_bytes()))
        return
    qemu = shutil.which("qemu-system-riscv64")
    if qemu is None:
        sys.exit("qemu-system-riscv64 is not installed: it is the peer of this bench")
    run_here(assemble(POWER_OFF, RAM_BASE))  # compile the machine now, not while measuring
    print(f"whole-process CPU, median of {options.repetitions}, load {os.getloadavg()[0]:.1f}")
    print(f"{'program':<16}{'instructions':>14}{'Serai MIPS':>12}{'QEMU MIPS':>12}{'Serai/QEMU':>12}")
    results = []
    with tempfile.TemporaryDirectory() as directory:
        for name in PROGRAMS:
            found = compare(name, qemu, Path(directory), options.repetitions)
            results.append(found)
            print(
                f"{name:<16}{found['instructions']:>14,}{found['serai_mips']:>12}"
                f"{found['qemu_mips']:>12}{found['ratio']:>11}x"
            )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
