"""The real agent's entry with fake guests that obey what is typed into their consoles, a line each.

``busy N``: write N pages a second, ``crash REASON``, ``off``, ``sum``: print the digest of RAM, ``steps``.
The environment lays in faults: ``FAULTS="restore=hang pause=error:no hand_over=die"``; to die at a record is
to die just after it is on the disk.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from serai.agent.daemon import Agent
from serai.agent.departures import Departures
from serai.agent.main import main
from serai.agent.records import Records
from serai.agent.settings import AgentSettings
from serai.errors import HypervisorError
from serai.hypervisor.driver import GuestConfig
from serai.hypervisor.fake import FakeDriver, FakeGuest


class TypedGuest(FakeGuest):
    _driver: TypedDriver

    def write_console(self, data: bytes) -> None:
        super().write_console(data)
        for line in data.decode().splitlines():
            self._obey(*line.split(maxsplit=1))

    def _obey(self, command: str = "", argument: str = "") -> None:
        if command == "busy":
            self.keep_busy(float(argument))
        elif command == "crash":
            self.crash(argument)
        elif command == "off":
            self.power_off()
        elif command == "sum":
            self.print(hashlib.sha256(self.ram).hexdigest().encode() + b"\r\n")
        elif command == "steps":
            self.print(b"%d steps\r\n" % self.steps)

    async def pause(self) -> None:
        await self._driver.check_async("pause")
        await super().pause()

    async def resume(self, *, elapsed_ns: int = 0) -> None:
        await self._driver.check_async("resume")
        await super().resume(elapsed_ns=elapsed_ns)

    async def save_state(self) -> bytes:
        await self._driver.check_async("save_state")
        return await super().save_state()

    async def restore(self, state: bytes, *, scrollback: bytes = b"", absent: bool = False) -> None:
        await self._driver.check_async("restore")
        await super().restore(state, scrollback=scrollback, absent=absent)


class TypedDriver(FakeDriver):
    def __init__(self) -> None:
        super().__init__()
        self._faults = dict(fault.split("=", 1) for fault in os.environ.get("FAULTS", "").split())

    async def check_async(self, operation: str) -> None:
        fault = self._faults.pop(operation, "")
        if fault == "die":
            die()
        if fault == "hang":
            await asyncio.Event().wait()
        if fault.startswith("error:"):
            raise HypervisorError(fault.removeprefix("error:"))

    async def create_incoming(self, config: GuestConfig) -> FakeGuest:
        await self.check_async("create_incoming")
        return await super().create_incoming(config)

    def _add(self, config: GuestConfig, *, incoming: bool) -> FakeGuest:
        super()._add(config, incoming=incoming)
        self.guests[config.uid] = TypedGuest(self, config, incoming=incoming)
        return self.guests[config.uid]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def lay_in_record_faults() -> None:
    for fault in os.environ.get("FAULTS", "").split():
        operation, _, what = fault.partition("=")
        if hasattr(Records, operation):
            original = getattr(Records, operation)
            setattr(Records, operation, dying(original) if what == "die" else hanging(original))
        if fault == "settle=never":
            Departures.settle = lambda self: None  # type: ignore[method-assign]


def dying(record: Callable[..., None]) -> Callable[..., None]:
    def record_and_die(*arguments: Any, **options: Any) -> None:
        record(*arguments, **options)
        die()

    return record_and_die


def hanging(record: Callable[..., None]) -> Callable[..., None]:
    def hang_for_arrivals(*arguments: Any, **options: Any) -> None:
        if options.get("origin"):
            time.sleep(3600)
        record(*arguments, **options)

    return hang_for_arrivals


def make_agent(settings: AgentSettings) -> Agent:
    return Agent(settings, driver=TypedDriver())


if __name__ == "__main__":
    lay_in_record_faults()
    sys.exit(main(make_agent=make_agent))
