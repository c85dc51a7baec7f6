"""The same guest work in every mode of virtualization, and on the host itself where that means something.

``python bench/virtualization.py [--runs N] [--json FILE]`` boots Debian in each mode and has its shell work.
Seconds are CPU seconds of this process on the real clock (the modes take turns within a run; medians), exits
and traps are those of the same piece of work. The host does the same with its own tools.
"""

from __future__ import annotations

import argparse
import json
import mmap
import shutil
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from serai.images import ImageStore, build_opensbi
from serai.machine.board import MachineConfig, Mode
from serai.machine.core_factory import make_hart
from serai.machine.hart import Execution
from serai.machine.machine import Machine, MachineExit

MEMORY = 128 << 20
LIMIT_SECONDS = 300
LOADS = {
    "sha256sum of 16 MiB": "head -c 16777216 /dev/zero | sha256sum >/dev/null",
    "shell loop of 50,000": "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done",
    "200 process starts": "i=0; while [ $i -lt 200 ]; do /bin/true; i=$((i+1)); done",
    "read 4 MiB through pipes": "head -c 4194304 /dev/zero | cat | cat | wc -c >/dev/null",
    "print 2,000 lines": "i=0; while [ $i -lt 2000 ]; do echo 01234567890123456789; i=$((i+1)); done",
}


@dataclass
class Measurement:
    """Medians are taken over `seconds`; counts are of the last run."""

    seconds: list[float] = field(default_factory=list)
    instructions: int = 0
    exits: int = 0
    traps: int = 0


class Bench:
    """One booted guest."""

    def __init__(self, mode: Mode, execution: Execution) -> None:
        image = ImageStore().get("debian")
        config = MachineConfig(
            memory_bytes=MEMORY,
            kernel=image.kernel,
            initramfs=image.initramfs,
            command_line=image.command_line,
            mode=mode,
            execution=execution,
            firmware=build_opensbi().kernel if mode is Mode.FULL else None,
        )
        self.machine = Machine(config, memoryview(mmap.mmap(-1, MEMORY)), make_hart)
        self.console = bytearray()
        self.machine.boot()

    def until(self, text: bytes) -> None:
        """Run until the console shows it; idle time is slept, which costs no CPU time."""
        machine = self.machine
        end = time.monotonic() + LIMIT_SECONDS
        while text not in self.console:
            cause = machine.run(1_000_000)
            self.console += machine.uart.output
            machine.uart.output.clear()
            if cause is MachineExit.WAIT:
                wait = machine.harts.wait_deadline_ns()
                time.sleep(min(wait or 0, 10_000_000) / 1e9)
            elif cause is not MachineExit.BUDGET or time.monotonic() > end:
                raise RuntimeError(f"{cause}: {machine.fault or self.console[-200:]!r}")
        self.console.clear()

    def measure(self, into: Measurement, work: str) -> None:
        """Type a command and wait for its end; "" is the boot."""
        machine = self.machine
        before = (machine.instructions, sum(machine.exits.values()), self.traps())
        began = time.process_time()
        if work:
            # The mark is put together by the shell, so that the echo of the command does not show it.
            self.type(f"{work}; echo DO''NE\n")
            self.until(b"DONE\r\n")
        else:
            self.until(b"# ")
        into.seconds.append(time.process_time() - began)
        after = (machine.instructions, sum(machine.exits.values()), self.traps())
        into.instructions, into.exits, into.traps = (b - a for a, b in zip(before, after, strict=True))

    def traps(self) -> int:
        events = self.machine.events()
        return sum(n for name, n in events.items() if name.startswith(("trap:", "interrupt:")))

    def type(self, text: str) -> None:
        for start in range(0, len(text), 16):
            self.machine.uart.receive(text[start : start + 16].encode())
            for _ in range(20):
                self.machine.run(50_000)


def on_host(work: str) -> float | None:
    """CPU seconds of the same command in the host's shell."""
    shell = shutil.which("sh")
    if shell is None:
        return None
    import resource  # noqa: PLC0415

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([shell, "-c", work], check=True, stdout=subprocess.DEVNULL, timeout=LIMIT_SECONDS)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    names = ["boot to shell", *LOADS]
    variants = [(mode, execution) for mode in Mode for execution in Execution]
    results = {variant: {name: Measurement() for name in names} for variant in variants}
    host: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(arguments.runs):
        guests = {variant: Bench(*variant) for variant in variants}
        for name in names:
            for variant, guest in guests.items():
                guest.measure(results[variant][name], LOADS.get(name, ""))
            if name in LOADS and (seconds := on_host(LOADS[name])) is not None:
                host[name].append(seconds)
    rows = []
    print(f"{'work':26} {'mode':12} {'execution':10} {'CPU s':>8} {'MIPS':>6}", end=" ")
    print(f"{'exits':>8} {'traps':>8} {'x host':>7}")
    for name in names:
        native = statistics.median(host[name]) if host[name] else None
        for mode, execution in variants:
            found = results[mode, execution][name]
            seconds = statistics.median(found.seconds)
            ratio = seconds / native if native and native > 0.005 else None
            rows.append(
                {
                    "work": name,
                    "mode": mode.value,
                    "execution": execution.value,
                    "cpu_seconds": seconds,
                    "instructions": found.instructions,
                    "exits": found.exits,
                    "traps": found.traps,
                    "host_cpu_seconds": native,
                }
            )
            mips = found.instructions / seconds / 1e6
            shown = f"{ratio:7.1f}" if ratio is not None else "      -"
            head = f"{name:26} {mode.value:12} {execution.value:10} {seconds:8.3f} {mips:6.0f}"
            print(f"{head} {found.exits:8} {found.traps:8} {shown}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
