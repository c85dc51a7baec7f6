"""Live migration beside QEMU's, interleaved in one run -> bench/out/migration.json.

``python -m bench.migration [--repeat N] [--hops N] [--ram MIB ...]``. Serai: two real agents on this host and
a bare-metal guest that writes memory and checks it; QEMU (x86_64, TCG; left out with a message where it is
not installed): the same pages at the same rate, two processes over a Unix socket, not encrypted. Times are
medians of the repetitions; `stop_to_resume_ms` is from the last moment at which the source's copy ran to the
first at which the destination's did, from the logs of both. `cpu_s_per_gb` counts both agents, or all of
QEMU's threads but the guest's CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import qemu_guest
from tests.agent.harness import MEBIBYTE, Site
from tests.migration.move import Migration, Side, begin, follow, process_side
from tests.migration.workload import Report, Workload, publish, reports

from serai.v1 import guest_pb2

RESULT = Path(__file__).parent / "out" / "migration.json"


@dataclass(frozen=True)
class Case:
    """A load and a way to move it."""

    name: str
    workload: Workload
    mode: int
    mode_name: str


RATE = 20_000_000
CASES = (
    Case("idle", Workload("idle", 0, 0, 64 * MEBIBYTE), 1, "pre-copy"),
    Case("20 MB/s over 64 MB", Workload("rate", 64 * MEBIBYTE, RATE, 64 * MEBIBYTE), 1, "pre-copy"),
    Case("flat out over 192 MB", Workload("flat", 192 * MEBIBYTE, 0, 64 * MEBIBYTE, paced=False), 5, "auto"),
)


class Pair:
    """Two agents and one guest that goes to and fro."""

    def __init__(self, one: Side, other: Side) -> None:
        self.sides = [one, other]

    async def start(self, workload: Workload, ram_mib: int) -> None:
        source = self.sides[0]
        await source.client.create(image=workload.name, memory_bytes=ram_mib * MEBIBYTE, interfaces=[])
        await self.look(3)

    async def end(self) -> None:
        await self.sides[0].client.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name="guests/g"))

    async def look(self, count: int) -> list[Report]:
        """The guest's next reports."""
        call: Any = self.sides[0].client.guests.AttachConsole()
        await call.write(guest_pb2.ConsoleInput(name="guests/g"))
        await call.read()
        output = b""
        async with asyncio.timeout(60):
            while len(reports(output)) < count:
                output += (await call.read()).data
        call.cancel()
        return reports(output)

    async def hop(self, mode: int) -> dict[str, Any]:
        """Move it to the other side; raises when it is not well there."""
        source, destination = self.sides
        guest = await source.client.get()
        before = sum(cpu_seconds(side) for side in self.sides)
        moved = await follow(source, (await begin(source, destination, guest, mode=mode)).name)
        cpu = sum(cpu_seconds(side) for side in self.sides) - before
        if moved.state != Migration.SUCCEEDED:
            raise RuntimeError(f"it did not move: {moved.failure.message}")
        self.sides.reverse()
        seen = await self.look(2)
        if any(report.errors for report in seen):
            raise RuntimeError(f"pages hold something else than was written: {seen}")
        sent = moved.report.bytes_sent
        return {
            "total_ms": moved.report.total_ms,
            "downtime_ms": moved.report.downtime_ms,
            "stop_to_resume_ms": stop_to_resume(source, destination, guest.uid),
            "bytes": sent,
            "cpu_s_per_gb": cpu / (sent / 1e9),
            "mode": moved.report.mode,
            "rounds": moved.report.rounds,
            "pages_requested": moved.pages_requested,
            "longest_stall_ms": max(report.gap_ms for report in seen),
            "parts_ms": dict(moved.downtime_parts_ms),
        }


def cpu_seconds(side: Side) -> float:
    """Of an agent, without its guests' processes."""
    assert side.process is not None
    stat = Path(f"/proc/{side.process.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def stop_to_resume(source: Side, destination: Side, uid: str) -> float:
    """Milliseconds from the last moment at which it ran here to the first at which it ran there."""
    stood = [moment for moment, runs in _moments(source, uid) if not runs]
    ran = [moment for moment, runs in _moments(destination, uid) if runs]
    # The source's last entry is the release of the copy.
    stopped = max(moment for moment in stood if moment < ran[-1])
    return (ran[-1] - stopped) / 1e6


def _moments(side: Side, uid: str) -> list[tuple[int, bool]]:
    assert side.process is not None
    found = []
    for line in side.process.errors:
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if entry.get("guest") == uid and "runs" in entry:
                found.append((entry["monotonic_ns"], entry["runs"]))
    return sorted(found)


def median_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure; what is no figure, of the last run."""
    result: dict[str, Any] = {}
    for name, last in runs[-1].items():
        values = [run[name] for run in runs if isinstance(run.get(name), int | float)]
        number = isinstance(last, int | float) and not isinstance(last, bool)
        result[name] = statistics.median(values) if number else last
    result["runs"] = len(runs)
    if "downtime_ms" in runs[-1]:
        downtimes = [run["downtime_ms"] for run in runs if run["downtime_ms"] is not None]
        result["downtime_max_ms"] = max(downtimes, default=None)
    return result


async def run_case(pair: Pair, case: Case, ram_mib: int, repeat: int, directory: Path) -> dict[str, Any]:
    """Serai and QEMU by turns."""
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    load = case.workload
    await pair.start(load, ram_mib)
    for _ in range(repeat):
        ours.append({**await pair.hop(case.mode), "converged": True})
        if shutil.which(qemu_guest.PROGRAM):
            sector = qemu_guest.boot_sector(load.working_set, load.rate, load.fill, paced=load.paced)
            theirs.append(
                await qemu_guest.migrate(directory, ram_mib, sector, post_copy=case.mode_name != "pre-copy")
            )
    await pair.end()
    return {
        "name": case.name,
        "ram_mib": ram_mib,
        "mode": case.mode_name,
        "serai": median_of(ours),
        "qemu": median_of(theirs) if theirs else None,
    }


async def run_hops(pair: Pair, count: int) -> dict[str, int]:
    """So many hops in a row of a guest that writes, checked after each."""
    await pair.start(CASES[1].workload, 192)
    alive = 0
    for _ in range(count):
        await pair.hop(5)
        alive += 1
    await pair.end()
    return {"count": count, "alive": alive}


async def bench(repeat: int, hops: int, ram: list[int]) -> dict[str, Any]:
    """Everything."""
    if not shutil.which(qemu_guest.PROGRAM):
        print(f"{qemu_guest.PROGRAM} is not installed: no comparison", file=sys.stderr)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for case in CASES:
            publish(directory / "images", case.workload)
        site = Site(directory / "site")
        settings: dict[str, Any] = {
            "driver": "emulated",
            "memory": 4096 * MEBIBYTE,
            "environment": {"SERAI_IMAGES": str(directory / "images")},
        }
        cases = []
        async with (
            process_side(site, "alpha/a1", **settings) as one,
            process_side(site, "beta/b1", **settings) as other,
        ):
            pair = Pair(one, other)
            for ram_mib in ram:
                for case in CASES:
                    cases.append(await run_case(pair, case, ram_mib, repeat, directory))
                    print(json.dumps(cases[-1]), file=sys.stderr)
            return {"cases": cases, "hops": await run_hops(pair, hops), "load": os.getloadavg()}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--hops", type=int, default=100)
    parser.add_argument("--ram", type=int, nargs="+", default=[512, 2048], metavar="MIB")
    arguments = parser.parse_args()
    report = asyncio.run(bench(arguments.repeat, arguments.hops, arguments.ram))
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report["hops"]))


if __name__ == "__main__":
    main()
