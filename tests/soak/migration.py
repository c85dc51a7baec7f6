"""Migrations of a real guest under load between two real agents, with a random fault in each.

``python -m tests.soak.migration --runs 1000 [--seed N] [--seconds S] [--out FILE]``. After each fault and its
repair: exactly one copy of the guest runs, no two ever ran at the same time (from both agents' logs of when
a copy may run), every page of it holds what the guest wrote (it checks them itself), and it is lost only if
its only copy was killed. A violation is printed with its seed; ``--seed N --runs 1`` repeats it.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.agent.harness import MEBIBYTE, AgentProcess, Client, Site
from tests.migration.move import Migration, running_step
from tests.migration.workload import Report, Workload, publish, reports
from tests.soak.proxy import Proxy

from serai.errors import NotFoundError, SeraiError
from serai.v1 import guest_pb2, migration_pb2

Guest = guest_pb2.Guest
WORKLOAD = Workload("soak", 6 * MEBIBYTE, 12 * MEBIBYTE, 12 * MEBIBYTE)
MEMORY = 32 * MEBIBYTE
STEPS = ("prepare", "stream", "freeze", "hand-over", "resume", "drain", "release")
FAULTS = (
    "none",
    *("kill source agent", "kill destination agent", "kill source guest", "kill destination guest"),
    *("cut", "reset", "stall", "damage"),
)
MODES = ("PRE_COPY", "POST_COPY", "HYBRID", "OFFLINE", "AUTO")
PATIENCE_S = 60.0
PROXY_HOST = "127.0.0.2"


@dataclass
class Node:
    """An agent behind its proxies; killed and started again at the same addresses."""

    site: Site
    name: str
    environment: dict[str, str]
    ports: tuple[int, int]
    stack: contextlib.AsyncExitStack
    log: list[str] = field(default_factory=list)
    process: AgentProcess | None = None
    client: Client | None = None
    proxies: list[Proxy] = field(default_factory=list)
    killed: list[int] = field(default_factory=list)
    """When its agent was killed, CLOCK_MONOTONIC."""

    async def open(self) -> None:
        for port in self.ports:
            self.proxies.append(await self.stack.enter_async_context(Proxy(PROXY_HOST, port)))
        await self.start()

    async def start(self) -> None:
        control, data = self.ports
        settings = self.site.settings(
            self.name,
            driver="emulated",
            memory=256 * MEBIBYTE,
            listen=f"127.0.0.1:{control}",
            data_listen=f"127.0.0.1:{data}",
            advertise_host=PROXY_HOST,
            stream_timeout_s=3,
            orphan_s=60,
        )
        self.process = await AgentProcess.launch(settings, self.environment)
        self.process.announced["control_address"] = f"127.0.0.1:{control}"
        self.client = self.site.connect(self.process)

    @property
    def here(self) -> Client:
        assert self.client is not None
        return self.client

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.process.returncode is None

    @property
    def address(self) -> str:
        """As the other agent is told: through the proxy."""
        return f"{PROXY_HOST}:{self.ports[0]}"

    def lines(self) -> list[str]:
        return self.log + (self.process.errors if self.process else [])

    async def kill(self) -> None:
        assert self.process is not None
        self.killed.append(time.monotonic_ns())
        await self.process.kill()
        self.log += self.process.errors
        self.process = None
        if self.client is not None:
            await self.client.channel.close()
            self.client = None

    async def find(self) -> guest_pb2.Guest | None:
        try:
            return await self.here.get()
        except NotFoundError:
            return None


@dataclass
class Outcome:
    """One run."""

    step: str
    fault: str
    mode: str
    result: str
    violations: list[str]


class Soak:
    """Two nodes and a guest that goes to and fro."""

    def __init__(self, nodes: tuple[Node, Node]) -> None:
        self._nodes = nodes
        self._uid = ""

    async def run(self, seed: int) -> Outcome:
        """One migration with one fault."""
        random_ = random.Random(seed)
        source, destination = await self._place()
        step, fault, mode = random_.choice(STEPS), random_.choice(FAULTS), random_.choice(MODES)
        try:
            begun = await self._begin(source, destination, mode, random_.choice((0, 150_000_000)))
            reached = await self._until(source, begun.name, step)
            await asyncio.sleep(random_.choice((0.0, random_.uniform(0, 0.02))))
            lost_allowed = await self._break(fault, source, destination)
            await asyncio.sleep(random_.uniform(0, 0.5))
            await self._repair()
            result, violations = await self._judge(lost_allowed, begun.name, source)
            if "DEFECT" in result:
                violations.append("an agent met a defect: see its log")
        except (SeraiError, TimeoutError, AssertionError) as error:
            reached, result, violations = step, "error", [f"the run itself failed: {error!r}"]
            await self._repair()
        violations += overlaps(self._nodes, self._uid)
        return Outcome(reached, fault, mode, result, violations)

    async def _place(self) -> tuple[Node, Node]:
        """The nodes, the guest's first; a guest is made where there is none."""
        for node in self._nodes:
            guest = await node.find()
            if guest is not None and guest.state == Guest.RUNNING:
                self._uid = guest.uid
                return node, self._nodes[1 - self._nodes.index(node)]
        for node in self._nodes:
            if await node.find() is not None:
                await node.here.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name="guests/g"))
        first = self._nodes[0]
        made = await first.here.create(image=WORKLOAD.name, memory_bytes=MEMORY, interfaces=[])
        self._uid = made.uid
        await self._watch_reports(first, 2)
        return first, self._nodes[1]

    async def _begin(self, source: Node, destination: Node, mode: str, bandwidth: int) -> Migration:
        async with asyncio.timeout(PATIENCE_S):
            guest = await source.here.get()
            permit = await destination.here.migrations.PermitArrival(
                migration_pb2.PermitArrivalRequest(
                    guest_uid=guest.uid,
                    source_node=source.name,
                    spec=guest.spec,
                    guest_id="g",
                    expires_in_s=5,
                )
            )
            return await source.here.migrations.MigrateGuest(
                migration_pb2.MigrateGuestRequest(
                    name=guest.name,
                    destination_node=destination.name,
                    destination_address=destination.address,
                    permit=permit.permit,
                    options=migration_pb2.MigrationOptions(mode=mode, bandwidth_bps=bandwidth),
                )
            )

    async def _until(self, source: Node, name: str, step: str) -> str:
        """Return when `step` runs or is over; the step that runs then, "over" if none does."""
        latest = Migration()
        request = migration_pb2.GetMigrationRequest(name=name)
        async with asyncio.timeout(PATIENCE_S):
            async for latest in source.here.migrations.WatchMigration(request):
                now = running_step(latest)
                if now and STEPS.index(now) >= STEPS.index(step):
                    return now
        return "over"

    async def _break(self, fault: str, source: Node, destination: Node) -> bool:
        """Lay the fault in; whether the guest may be lost by it."""
        what, _, where = fault.partition(" ")
        if what == "kill":
            node = source if where.startswith("source") else destination
            if where.endswith("agent"):
                await node.kill()
                return False
            return kill_guest(node)
        for proxy in (*source.proxies, *destination.proxies):
            {"cut": proxy.cut, "reset": proxy.reset, "stall": proxy.stall, "damage": proxy.damage}.get(
                what, lambda: None
            )()
        return False

    async def _repair(self) -> None:
        for node in self._nodes:
            for proxy in node.proxies:
                proxy.heal()
            if not node.alive:
                await node.start()

    async def _judge(self, lost_allowed: bool, name: str, source: Node) -> tuple[str, list[str]]:
        settled = await self._settle()
        running = [node for node, guest in settled if guest is not None and guest.state == Guest.RUNNING]
        others = [
            f"{node.name}: {Guest.State.Name(guest.state)} {guest.status_message}"
            for node, guest in settled
            if guest is not None and guest.state != Guest.RUNNING
        ]
        if len(running) > 1:
            return "two", ["two copies are listed as running"]
        if not running:
            return "lost", [] if lost_allowed else [f"no copy runs: {others}"]
        if others:
            return "residue", [f"beside the copy that runs: {others}"]
        violations = []
        seen = await self._watch_reports(running[0], 2)
        if any(report.errors for report in seen):
            violations.append(f"pages hold something else than was written: {seen[-1]}")
        if running[0] is not source:
            return "moved", violations
        return f"stayed{await self._why(source, name)}", violations

    async def _why(self, source: Node, name: str) -> str:
        """The agent's reason, if it has not been killed since."""
        with contextlib.suppress(NotFoundError):
            request = migration_pb2.GetMigrationRequest(name=name)
            failure = (await source.here.migrations.GetMigration(request)).failure
            return f": {failure.reason or 'cancelled'}"
        return ""

    async def _settle(self) -> list[tuple[Node, guest_pb2.Guest | None]]:
        """Both nodes' guests, once nothing is on its way any more."""
        limit = time.monotonic() + PATIENCE_S
        while True:
            found = [(node, await node.find()) for node in self._nodes]
            states = [guest.state for _, guest in found if guest is not None]
            moving = any(state in (Guest.INCOMING, Guest.OUTGOING) for state in states)
            busy = False
            for node in self._nodes:
                listed = await node.here.migrations.ListMigrations(migration_pb2.ListMigrationsRequest())
                busy |= any(not item.HasField("end_time") for item in listed.migrations)
            if not moving and not busy and states.count(Guest.RUNNING) <= 1 and len(states) == 1:
                return found
            if time.monotonic() > limit:
                return found
            await asyncio.sleep(0.05)

    async def _watch_reports(self, node: Node, count: int) -> list[Report]:
        """So many reports of the guest that are new."""
        call: Any = node.here.guests.AttachConsole()
        await call.write(guest_pb2.ConsoleInput(name="guests/g"))
        output = b""
        async with asyncio.timeout(PATIENCE_S):
            await call.read()  # what was said before
            while len(reports(output)) < count:
                output += (await call.read()).data
        call.cancel()
        return reports(output)


def kill_guest(node: Node) -> bool:
    """SIGKILL to the processes of guests of this node's agent; whether there was one."""
    assert node.process is not None
    agent = node.process.process.pid
    killed = False
    for zygote in _children(agent):
        for guest in _children(zygote):
            with contextlib.suppress(ProcessLookupError):
                os.kill(guest, signal.SIGKILL)
                killed = True
    return killed


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def overlaps(nodes: tuple[Node, Node], uid: str) -> list[str]:
    """Moments at which copies on both nodes might run, from what the agents logged."""
    events: list[tuple[int, int, bool]] = []
    for number, node in enumerate(nodes):
        own: list[tuple[int, int, bool]] = []
        for line in node.lines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if entry.get("guest") == uid and "runs" in entry:
                    own.append((entry["monotonic_ns"], number, entry["runs"]))
        events += _with_kills(own, node.killed, number)
    found = []
    running = [False, False]
    for moment, number, runs in sorted(events):
        running[number] = runs
        if all(running):
            found.append(f"both ran at {moment}")
    return found


def _with_kills(
    own: list[tuple[int, int, bool]], kills: list[int], number: int
) -> list[tuple[int, int, bool]]:
    """A copy that the next agent found standing had stopped before its agent was killed."""
    added = []
    for killed in kills:
        after = next((runs for moment, _, runs in own if moment > killed), False)
        if not after:
            added.append((killed, number, False))
    return sorted(own + added)


def free_ports(count: int) -> list[int]:
    """Ports that nobody has now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


async def soak(runs: int, seed: int, *, seconds: float = 1e9, verbose: bool = True) -> dict[str, Any]:
    """Run; the report."""
    by_step: collections.Counter[str] = collections.Counter()
    by_fault: collections.Counter[str] = collections.Counter()
    results: collections.Counter[str] = collections.Counter()
    violations: list[dict[str, Any]] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        publish(Path(directory) / "images", WORKLOAD)
        site = Site(Path(directory) / "site")
        environment = {"SERAI_IMAGES": str(Path(directory) / "images")}
        async with contextlib.AsyncExitStack() as stack:
            ports = free_ports(4)
            nodes = (
                Node(site, "alpha/a1", environment, (ports[0], ports[1]), stack),
                Node(site, "beta/b1", environment, (ports[2], ports[3]), stack),
            )
            for node in nodes:
                await node.open()
            machine = Soak(nodes)
            done = 0
            while done < runs and time.monotonic() - began < seconds:
                outcome = await machine.run(seed + done)
                by_step[outcome.step] += 1
                by_fault[outcome.fault] += 1
                results[outcome.result] += 1
                for violation in outcome.violations:
                    violations.append(
                        {"seed": seed + done, "mode": outcome.mode, "step": outcome.step}
                        | {"fault": outcome.fault, "what": violation}
                    )
                if verbose:
                    print(seed + done, outcome, f"{time.monotonic() - began:.0f}s", file=sys.stderr)
                done += 1
            for node in nodes:
                if node.process is not None:
                    await node.process.terminate()
                    await node.here.channel.close()
    return {
        "runs": done,
        "violations": len(violations),
        "by_step": dict(by_step),
        "by_fault": dict(by_fault),
        "results": dict(results),
        "seconds": time.monotonic() - began,
        "first_seed": seed,
        "details": violations,
    }


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long")
    parser.add_argument("--out", type=Path, default=Path("bench/out/soak-migration.json"))
    arguments = parser.parse_args()
    report = asyncio.run(soak(arguments.runs, arguments.seed, seconds=arguments.seconds))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps({name: report[name] for name in ("runs", "violations", "results", "by_fault")}))
    return 1 if report["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
