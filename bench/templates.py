"""Guests from one template: how soon each executes, and what memory it costs.

``python -m bench.templates [--clones N]`` boots one Debian guest on an agent of its own process, takes a
snapshot, and clones it N times, each as soon as the one before is ready. Times are the caller's: from sending
CloneGuest to its answer, which leaves the agent after the guest was set running, so they are upper bounds of
the time to the first instruction. Peer: a cold start of the same image in the same run. Memory is that of the
clones' processes, from /proc/PID/smaps_rollup; shared pages are counted in parts (Pss).
Result: bench/out/templates.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from serai.v1.guest_pb2 import (
    CloneGuestRequest,
    CreateGuestRequest,
    CreateSnapshotRequest,
    GetGuestRequest,
    Guest,
    GuestInterface,
    GuestSpec,
    WatchGuestsRequest,
)
from serai.v1.guest_pb2_grpc import GuestServiceStub
from serai.wire.identity import Identity, Role
from serai.wire.rpc import connect
from serai.wire.tls import CertificateAuthority

NODE = "bench/b1"
MEBIBYTE = 1 << 20
RESULT = Path(__file__).parent / "out" / "templates.json"


async def main(clones: int, memory: int) -> None:
    """Measure and write the result."""
    with tempfile.TemporaryDirectory(prefix="serai-bench-") as folder:
        home = Path(folder)
        authority = CertificateAuthority.create(home / "ca")
        authority.issue(Identity(Role.AGENT, NODE), home / "credentials")
        agent, address = await _start_agent(home, clones, memory)
        credentials = authority.issue(Identity(Role.PIP, "bench"))
        channel = connect(address, credentials, Identity(Role.AGENT, NODE))
        try:
            result = await _measure(GuestServiceStub(channel), home, clones, memory)
        finally:
            await channel.close()
            agent.terminate()
            await agent.wait()
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


async def _start_agent(home: Path, clones: int, memory: int) -> tuple[asyncio.subprocess.Process, str]:
    settings = {
        "node": NODE,
        "credentials": home / "credentials",
        "state-dir": home / "state",
        "vcpus": clones + 2,
        "memory": (clones + 2) * memory,
        "stop-grace-s": 0,
        "log-level": "warning",
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    agent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "serai.agent.main", *flags), stdout=asyncio.subprocess.PIPE
    )
    assert agent.stdout is not None
    return agent, str(json.loads(await agent.stdout.readline())["control_address"])


async def _measure(stub: Any, home: Path, clones: int, memory: int) -> dict[str, Any]:
    spec = GuestSpec(
        image="debian",
        vcpus=1,
        memory_bytes=memory,
        interfaces=[GuestInterface(name="eth0", mac=b"\2\0\0\0\0\1")],
    )
    # The first start on a machine compiles the CPU core: not what is measured.
    await stub.CreateGuest(CreateGuestRequest(guest_id="warm", spec=spec, start=True))
    await _until_ready(stub, "warm")
    began = time.perf_counter()
    await stub.CreateGuest(CreateGuestRequest(guest_id="origin", spec=spec, start=True))
    await _until_ready(stub, "origin")
    cold = time.perf_counter() - began
    snapshot = await stub.CreateSnapshot(CreateSnapshotRequest(guest="guests/origin", snapshot_id="template"))
    first, ready = [], []
    for number in range(clones):
        began = time.perf_counter()
        request = CloneGuestRequest(snapshot=snapshot.name, guest_id=f"clone-{number}")
        answer = await stub.CloneGuest(request)
        first.append((time.perf_counter() - began) * 1e3)
        assert answer.state == Guest.RUNNING
        await _until_ready(stub, f"clone-{number}")
        ready.append((time.perf_counter() - began) * 1e3)
    moved = [await stub.GetGuestStatistics(GetGuestRequest(name=f"guests/clone-{n}")) for n in range(clones)]
    return {
        "memory_mib": memory / MEBIBYTE,
        "clones": clones,
        "alive": sum(counters.instructions > 0 for counters in moved),
        "snapshot_pause_ms": round(snapshot.pause_ms, 2),
        "snapshot_stored_mib": round(snapshot.stored_bytes / MEBIBYTE, 1),
        "cold_start_to_ready_ms": round(cold * 1e3, 1),
        "first_instruction_ms": _summary(first),
        "ready_ms": _summary(ready),
        "load_average": os.getloadavg()[0],
        "process_mib": _memory(home, {answer.uid for answer in await _clones(stub, clones)}),
    }


async def _clones(stub: Any, clones: int) -> list[Guest]:
    return [await stub.GetGuest(GetGuestRequest(name=f"guests/clone-{n}")) for n in range(clones)]


async def _until_ready(stub: Any, guest_id: str) -> None:
    call = stub.WatchGuests(WatchGuestsRequest())
    async with asyncio.timeout(120):
        async for change in call:
            if change.guest.name == f"guests/{guest_id}" and change.guest.ready:
                break
    call.cancel()


def _memory(home: Path, uids: set[str]) -> dict[str, dict[str, float]]:
    """Of the clones' processes: resident, in parts where shared, theirs alone, of that the guest's RAM."""
    rows: list[dict[str, int]] = []
    for uid in uids:
        pid = int((home / "state" / "guests" / f"{uid}.pid").read_text().split()[0])
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        values = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        alone = values["Private_Clean"] + values["Private_Dirty"]
        row = {"rss": values["Rss"], "pss": values["Pss"], "alone": alone, "guest_ram_alone": _written(pid)}
        rows.append(row)
    return {key: _summary([row[key] / 1024 for row in rows]) for key in rows[0]}


def _written(pid: int) -> int:
    """KiB of the template that the guest has copied by writing to it (proc(5), smaps)."""
    total, of_ram = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            of_ram = line.endswith("/ram")
        elif of_ram and line.startswith("Private_Dirty:"):
            total += int(line.split()[1])
    return total


def _summary(values: list[float]) -> dict[str, float]:
    ascending = sorted(values)
    return {
        "median": round(statistics.median(values), 2),
        "p95": round(ascending[min(len(values) - 1, int(0.95 * len(values)))], 2),
        "maximum": round(ascending[-1], 2),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clones", type=int, default=100)
    parser.add_argument("--memory", type=int, default=128, help="MiB of each guest")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.clones, arguments.memory * MEBIBYTE))
