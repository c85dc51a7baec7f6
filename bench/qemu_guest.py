"""QEMU's side of the migration bench: an x86 boot sector that writes memory, and QMP.

The guest fills pages once and then writes one word in each of a number of pages a tick, in turn; source in
SOURCE. Two processes of qemu-system-x86_64 (TCG) on one host; STOP and RESUME are QMP's own time stamps.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

PROGRAM = "qemu-system-x86_64"
TICK_S = 0.01
_IDLE = 0x7FFFFFFF
_CODE = base64.b64decode(
    "+jHAjtjkkgwC5pJmDwEWuHwPIMAMAQ8iwGbqIXwAAAgAZrgQAI7YjsCO0LkRERERvyIiIiKFyXQLiQ+BxwAQAABJ6/Ex9jHtvwAAQA"
    "APMYnDuTMzMzOFyXQb/weBxwAQAABGgf5EREREcgcx9r8AAEAASevhRYP9ZHIJMe2wQma6+APugf5VVVVVdA8PMSnYPWZmZmZztvOQ"
    "6+n06/1mkAAAAAAAAAAA//8AAACazwD//wAAAJLPABcAoHw="
)
SOURCE = """
    protected mode; edi = 0x22222222; 0x11111111 times: store ecx at edi, edi += 4096
    tick:  rdtsc; 0x33333333 times: incl at the next page of the working set (0x400000 on, 0x44444444 pages)
           every 100 ticks a byte to COM1; halt for ever if the page index is 0x55555555 (idle: 0)
           wait until 0x66666666 cycles of the time stamp counter have passed since the tick began
"""


def boot_sector(working_set: int, rate: int, fill: int, *, paced: bool) -> bytes:
    """Writes `rate` bytes a second over `working_set` bytes; neither paced nor idle: as fast as it can."""
    pages = max(1, working_set >> 12)
    per_tick = round(rate * TICK_S) >> 12 if paced else 256
    cycles = int(TICK_S * _cycles_per_second()) if paced else 0
    values = {
        0x11111111: fill >> 12,
        0x22222222: 0x400000 + working_set,
        0x33333333: per_tick,
        0x44444444: pages,
        0x55555555: _IDLE if per_tick else 0,
        0x66666666: min(cycles, 0x7FFFFFFF),
    }
    code = _CODE
    for mark, value in values.items():
        assert code.count(struct.pack("<I", mark)) == 1
        code = code.replace(struct.pack("<I", mark), struct.pack("<I", value))
    return code.ljust(510, b"\0") + b"\x55\xaa"


def _cycles_per_second() -> float:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("cpu MHz"):
            return float(line.partition(":")[2]) * 1e6
    return 2e9


class Qemu:
    """One process and its monitor."""

    def __init__(self, process: asyncio.subprocess.Process, reader: Any, writer: Any) -> None:
        self.process = process
        self._reader = reader
        self._writer = writer
        self.events: dict[str, float] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def launch(
        cls, directory: Path, name: str, ram_mib: int, image: Path, incoming: str = ""
    ) -> AsyncIterator[Qemu]:
        monitor = directory / f"{name}.qmp"
        arguments = [
            "-machine",
            "pc",
            "-accel",
            "tcg",
            "-m",
            f"{ram_mib}M",
            "-display",
            "none",
            "-nodefaults",
        ]
        arguments += ["-name", f"{name},debug-threads=on", "-serial", "null"]
        arguments += ["-drive", f"file={image},format=raw,if=ide,readonly=off,snapshot=on,file.locking=off"]
        arguments += ["-qmp", f"unix:{monitor},server=on,wait=off"]
        process = await asyncio.create_subprocess_exec(
            PROGRAM,
            *arguments,
            *(("-incoming", incoming) if incoming else ()),
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(10):
                while not monitor.exists():  # noqa: ASYNC110 - QEMU has no other sign
                    await asyncio.sleep(0.02)
                reader, writer = await asyncio.open_unix_connection(monitor)
                await reader.readline()
            qemu = cls(process, reader, writer)
            await qemu.ask("qmp_capabilities")
            yield qemu
            writer.close()
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def ask(self, command: str, **arguments: Any) -> Any:
        """A QMP command."""
        self._writer.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        await self._writer.drain()
        while True:
            message = json.loads(await self._reader.readline())
            if "event" in message:
                stamp = message["timestamp"]
                self.events[message["event"]] = stamp["seconds"] + stamp["microseconds"] / 1e6
            elif "error" in message:
                raise RuntimeError(f"QEMU: {message['error']}")
            else:
                return message["return"]

    def cpu_seconds(self) -> float:
        """Of all threads but those of the guest's CPUs."""
        total = 0
        for thread in Path(f"/proc/{self.process.pid}/task").iterdir():
            if not (thread / "comm").read_text().startswith("CPU"):
                fields = (thread / "stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")


async def migrate(
    directory: Path, ram_mib: int, sector: bytes, *, post_copy: bool, patience_s: float = 30
) -> dict[str, Any]:
    """One move between two fresh processes."""
    image = directory / "boot.img"
    image.write_bytes(sector.ljust(1 << 20, b"\0"))
    port = directory / f"move{time.monotonic_ns()}"
    names = f"s{time.monotonic_ns()}", f"d{time.monotonic_ns()}"
    async with (
        Qemu.launch(directory, names[0], ram_mib, image) as source,
        Qemu.launch(directory, names[1], ram_mib, image, f"unix:{port}") as destination,
    ):
        await asyncio.sleep(3)
        if post_copy:
            capabilities = [{"capability": "postcopy-ram", "state": True}]
            for side in (destination, source):
                await side.ask("migrate-set-capabilities", capabilities=capabilities)
        await source.ask("migrate-set-parameters", **{"max-bandwidth": 100 << 30, "downtime-limit": 300})
        before = source.cpu_seconds() + destination.cpu_seconds()
        began = time.monotonic()
        await source.ask("migrate", uri=f"unix:{port}")
        state: dict[str, Any] = {}
        switched = not post_copy
        while time.monotonic() - began < patience_s:
            state = await source.ask("query-migrate")
            if state["status"] in ("completed", "failed"):
                break
            if not switched and time.monotonic() - began > 0.3:
                switched = True
                with contextlib.suppress(RuntimeError):
                    await source.ask("migrate-start-postcopy")
            await asyncio.sleep(0.01)
        cpu = source.cpu_seconds() + destination.cpu_seconds() - before
        await destination.ask("query-status")
        sent = state["ram"]["transferred"]
        stopped, resumed = source.events.get("STOP"), destination.events.get("RESUME")
        return {
            "total_ms": state.get("total-time"),
            "downtime_ms": state.get("downtime"),
            "stop_to_resume_ms": (resumed - stopped) * 1000 if stopped and resumed else None,
            "bytes": sent,
            "cpu_s_per_gb": cpu / (sent / 1e9) if sent else None,
            "converged": state["status"] == "completed",
        }
