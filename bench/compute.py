"""Compute: Serai against qemu-system-riscv64 (TCG) on the same guest binaries, interleaved in the same run.

Ratios are QEMU's time divided by Serai's: above 1 Serai is faster. ``steady`` compares the CPU time that more
rounds of the same load take, so start-up and translation cancel out; ``whole`` compares whole processes, from
start to power-off. Wide loads run inside Debian: the boot to its shell, then commands typed at the console.

    python bench/compute.py [--repetitions N] [--loads NAME,...] [--execution interpret] [--json FILE]

CROSS_CC names a riscv64 C compiler (default: riscv64-linux-gnu-gcc, else ``python -m ziglang cc``).
"""

from __future__ import annotations

import argparse
import json
import math
import mmap
import os
import resource
import selectors
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / name) for name in ("agents", "proto", "controller")]

from serai.machine.core import Core  # noqa: E402 - from this checkout
from serai.machine.hart import ClockSource, Execution, ExitReason  # noqa: E402

RAM_BASE = 0x8000_0000
RAM_SIZE = 160 << 20
MEMORY = "160M"
WIDE_MEMORY = 256 << 20
SHORT = 4  # the short run has a quarter of the rounds
PROMPT = b"~# "
TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Load:
    """A program: its number in guest/loads.c and the rounds of the long run."""

    number: int
    rounds: int


LOADS = {
    "integer": Load(0, 16),
    "sieve": Load(1, 32),
    "quicksort 4 MB": Load(2, 12),
    "quicksort 64 MB": Load(3, 1),
    "hash 4 MB": Load(4, 8),
    "hash 64 MB": Load(5, 8),
    "calls": Load(6, 16),
    "indirect calls": Load(7, 8),
    "copies": Load(8, 24),
    "float matrix": Load(9, 32),
    "float n-body": Load(10, 8),
}
COMMANDS = {
    "gzip": "dd if=/dev/zero bs=1024 count=2048 2>/dev/null | tr '\\0' 'abcdefgh' > /tmp/f;"
    " cat /bin/busybox /tmp/f /bin/busybox | gzip -c > /tmp/g",
    "sha256sum": "dd if=/dev/zero bs=65536 count=256 2>/dev/null | sha256sum",
    "awk": "awk 'BEGIN { for (i = 0; i < 300000; i++) { s += i * 3 % 7; a[i % 100] = s } print s }'",
    "processes": "i=0; while [ $i -lt 1000 ]; do /bin/true; i=$((i+1)); done",
}


# -- guest programs --------------------------------------------------------------------------------------


def cross_compiler() -> list[str]:
    """The command that compiles C for the guest."""
    if os.environ.get("CROSS_CC"):
        return os.environ["CROSS_CC"].split()
    if shutil.which("riscv64-linux-gnu-gcc"):
        return ["riscv64-linux-gnu-gcc", "-march=rv64gc"]
    probe = subprocess.run([sys.executable, "-c", "import ziglang"], check=False, capture_output=True)
    if probe.returncode:
        sys.exit("no compiler for the guest: install riscv64-linux-gnu-gcc or `pip install ziglang`")
    return [sys.executable, "-m", "ziglang", "cc", "-target", "riscv64-freestanding", "-fno-sanitize=all"]


def load_image(elf: bytes) -> bytes:
    """The loadable segments of an ELF file as they lie in memory from RAM_BASE on."""
    start, size, count = *struct.unpack_from("<Q", elf, 32), *struct.unpack_from("<HH", elf, 54)
    image = bytearray()
    for index in range(count):
        kind, _, offset, _, address, length = struct.unpack_from("<IIQQQQ", elf, start + index * size)
        if kind == 1 and length:
            at = address - RAM_BASE
            image.extend(bytes(max(0, at + length - len(image))))
            image[at : at + length] = elf[offset : offset + length]
    return bytes(image)


def build(directory: Path, load: Load, rounds: int) -> Path:
    """Compile a load; return its flat image."""
    elf, script = directory / "load.elf", directory / "load.ld"
    script.write_text(
        "ENTRY(_start) SECTIONS { . = 0x80000000; .text : { *(.text.start) *(.text*) }"
        " . = ALIGN(4096); .data : { *(.rodata*) *(.srodata*) *(.data*) *(.sdata*) }"
        " .bss : { *(.bss*) *(.sbss*) } }"
    )
    subprocess.run(
        [
            *cross_compiler(),
            *("-mabi=lp64d", "-O2", "-ffreestanding", "-nostdlib", "-static", "-fno-pic", "-no-pie"),
            *(
                "-mcmodel=medany",
                "-Wl,--build-id=none,--no-warn-rwx-segments",
                f"-DLOAD={load.number}",
                f"-DROUNDS={rounds}UL",
            ),
            *("-fno-tree-loop-distribute-patterns", "-T", str(script), "-o", str(elf)),
            str(ROOT / "bench" / "guest" / "loads.c"),
        ],
        check=True,
    )
    image = directory / f"load{load.number}-{rounds}.bin"
    image.write_bytes(load_image(elf.read_bytes()))
    return image


# -- processes that are measured -------------------------------------------------------------------------


def run_here(image: bytes, execution: Execution) -> None:
    """Run an image to its power-off. (The child of a measurement.)"""
    ram = mmap.mmap(-1, RAM_SIZE)
    ram[: len(image)] = image
    core = Core(
        ram, ram_base=RAM_BASE, firmware_emulated=False, clock=ClockSource.VIRTUAL, execution=execution
    )
    while (reason := core.run(1 << 40)) is not ExitReason.MMIO_STORE:
        if reason is ExitReason.FAULT:
            sys.exit(core.fault)
    print(core.instructions)


def boot_here(execution: Execution) -> None:
    """Run Debian with the console on standard input and output. (The child of a measurement.)"""
    from serai.images import ImageStore  # noqa: PLC0415 - only for wide loads
    from serai.machine.board import MachineConfig  # noqa: PLC0415
    from serai.machine.machine import Machine, MachineExit  # noqa: PLC0415

    image = ImageStore().get("debian")
    config = MachineConfig(memory_bytes=WIDE_MEMORY, kernel=image.kernel, initramfs=image.initramfs)

    def make(ram: memoryview, hart: int, clock: ClockSource) -> Core:
        return Core(ram, ram_base=RAM_BASE, hart_id=hart, clock=clock, execution=execution)

    machine = Machine(config, memoryview(mmap.mmap(-1, config.memory_bytes)), make)
    machine.boot()
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    pending, ended = b"", False
    while not ended:
        cause = machine.run(2_000_000)
        if machine.uart.output:
            os.write(1, bytes(machine.uart.output))
            machine.uart.output.clear()
        deadline = machine.harts.wait_deadline_ns() if cause is MachineExit.WAIT else 0
        if selector.select(None if deadline is None else max(deadline, 0) / 1e9):
            data = os.read(0, 4096)
            pending, ended = pending + data, not data
        pending = pending[machine.uart.receive(pending) :] if pending else pending


def children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(command: list[str]) -> tuple[float, float]:
    """Return CPU and wall seconds of a process."""
    cpu, wall = children_cpu(), time.monotonic()
    subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_SECONDS)
    return children_cpu() - cpu, time.monotonic() - wall


class Console:
    """A process whose console is its standard input and output."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def cpu(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def expect(self, marker: bytes) -> None:
        """Read up to a marker; raises EOFError or TimeoutError."""
        assert self._process.stdout
        seen, deadline = b"", time.monotonic() + TIMEOUT_SECONDS
        while marker not in seen:
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                raise EOFError(f"the guest ended before {marker!r}: {seen[-500:]!r}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {marker!r}: {seen[-500:]!r}")
            seen = seen[-1000:] + data

    def run(self, command: str) -> None:
        """Have the shell execute a command, to its end."""
        assert self._process.stdin
        self._process.stdin.write(f"{command}; echo fin''ished\n".encode())
        self._process.stdin.flush()
        self.expect(b"finished")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


# -- comparisons -----------------------------------------------------------------------------------------

Result = dict[str, str | float]


def result(name: str, ours: list[tuple[float, ...]], theirs: list[tuple[float, ...]]) -> Result:
    """Ratios of medians; the samples are (CPU of the long run, wall of it, CPU of the short run)."""
    own, peer = ([statistics.median(column) for column in zip(*rows, strict=True)] for rows in (ours, theirs))
    found: Result = {
        "name": name,
        "steady_ratio": round((peer[0] - peer[2]) / max(own[0] - own[2], 1e-3), 2),
        "whole_cpu_ratio": round(peer[0] / own[0], 2),
        "whole_wall_ratio": round(peer[1] / own[1], 2),
        "serai_cpu_s": round(own[0], 3),
        "qemu_cpu_s": round(peer[0], 3),
    }
    print(
        f"{name:<18}{found['steady_ratio']:>8}x{found['whole_cpu_ratio']:>8}x{found['whole_wall_ratio']:>8}x"
        f"{own[0]:>10.2f} s{peer[0]:>10.2f} s",
        flush=True,
    )
    return found


def compare(name: str, qemu: str, directory: Path, repetitions: int, execution: str) -> Result:
    """Measure one load."""
    load = LOADS[name]
    images = [build(directory, load, rounds) for rounds in (load.rounds, load.rounds // SHORT)]
    own = [[sys.executable, __file__, "--image", str(image), "--execution", execution] for image in images]
    peer = [
        *(qemu, "-machine", "virt", "-m", MEMORY, "-display", "none", "-serial", "none", "-monitor", "none"),
        *("-bios", "none", "-kernel"),
    ]
    ours: list[tuple[float, ...]] = []
    theirs: list[tuple[float, ...]] = []
    for _ in range(repetitions):
        ours.append((*measure(own[0]), measure(own[1])[0]))
        theirs.append((*measure([*peer, str(images[0])]), measure([*peer, str(images[1])])[0]))
    return result(name, ours, theirs)


def wide_samples(start: Callable[[], Console]) -> dict[str, tuple[float, ...]]:
    """Boot and run the commands; the first of each command's two runs warms up."""
    began = time.monotonic()
    console = start()
    try:
        console.expect(PROMPT)
        samples: dict[str, tuple[float, ...]] = {
            "Debian boot": (console.cpu(), time.monotonic() - began, 0.0)
        }
        for name, command in COMMANDS.items():
            before, wall = console.cpu(), time.monotonic()
            console.run(command)
            middle, wall = console.cpu(), time.monotonic() - wall
            console.run(command)
            samples[name] = (middle - before, wall, 2 * middle - before - console.cpu())
        return samples
    finally:
        console.close()


def compare_wide(qemu: str, repetitions: int, execution: str) -> list[Result]:
    """Measure Debian: its boot and what runs in it."""
    from serai.images import ImageStore  # noqa: PLC0415 - only for wide loads

    image = ImageStore().get("debian")
    peer = [
        *(qemu, "-machine", "virt", "-m", str(WIDE_MEMORY >> 20), "-nographic", "-kernel", str(image.kernel)),
        *("-initrd", str(image.initramfs), "-append", "console=ttyS0"),
    ]
    own = [sys.executable, __file__, "--boot", "--execution", execution]
    ours, theirs = [], []
    for _ in range(repetitions):
        ours.append(wide_samples(lambda: Console(own)))
        theirs.append(wide_samples(lambda: Console(peer)))
    return [result(name, [r[name] for r in ours], [r[name] for r in theirs]) for name in ours[0]]


def geometric_mean(results: list[Result], key: str) -> float:
    return round(math.exp(statistics.mean(math.log(max(float(r[key]), 1e-3)) for r in results)), 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--loads", default=",".join([*LOADS, "wide"]), help="names, comma-separated")
    parser.add_argument("--execution", choices=[e.value for e in Execution], default="translate")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--image", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--boot", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.image:
        run_here(options.image.read_bytes(), Execution(options.execution))
        return
    if options.boot:
        boot_here(Execution(options.execution))
        return
    qemu = shutil.which("qemu-system-riscv64")
    if qemu is None:
        sys.exit("qemu-system-riscv64 is not installed: it is the peer of this bench")
    from serai.machine.native.translator.store import load_stencils  # noqa: PLC0415

    load_stencils().wait(TIMEOUT_SECONDS)  # built now, not while measuring
    print(f"QEMU time / Serai time, medians of {options.repetitions}, load {os.getloadavg()[0]:.1f}")
    print(f"{'load':<18}{'steady':>9}{'CPU':>9}{'wall':>9}{'Serai CPU':>12}{'QEMU CPU':>12}", flush=True)
    names = options.loads.split(",")
    results = []
    with tempfile.TemporaryDirectory() as directory:
        for name in names:
            if name == "wide":
                results += compare_wide(qemu, options.repetitions, options.execution)
            else:
                results.append(compare(name, qemu, Path(directory), options.repetitions, options.execution))
    report = {
        "loads": results,
        "geomean_steady": geometric_mean(results, "steady_ratio"),
        "geomean_whole_cpu": geometric_mean(results, "whole_cpu_ratio"),
        "execution": options.execution,
        "repetitions": options.repetitions,
        "load_average": os.getloadavg()[0],
    }
    print(f"geometric means: steady {report['geomean_steady']}x, whole CPU {report['geomean_whole_cpu']}x")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
