"""The entry of a daemon: read settings, start, announce, serve until told to stop.

Exit codes: 0 stopped by SIGTERM or SIGINT, 1 could not start or go on, 2 wrong settings.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from serai.daemon.logs import configure_logging
from serai.daemon.ready import write_ready_file
from serai.daemon.settings import Model, SettingsSource
from serai.errors import InvalidInputError, SeraiError

EXIT_FAILED, EXIT_USAGE = 1, 2


class Daemon(Protocol):
    """What is run."""

    async def start(self) -> None:
        """Return when it serves. Raises SeraiError; nothing is then left running."""

    def announcement(self) -> str:
        """Where it serves, as JSON, for whoever started it."""

    async def close(self) -> None:
        """Stop everything cleanly."""


def run(
    source: SettingsSource[Model],
    make: Callable[[Model], Daemon],
    arguments: Sequence[str] | None = None,
    *,
    node: Callable[[Model], str] = lambda settings: "",
) -> int:
    """Run until told to stop; returns the exit code. `node` names this instance in its log lines."""
    flags = source.parse_arguments(arguments)
    try:
        settings = source.load(flags, flags.pop("config"))
    except SeraiError as error:
        print(f"{source.program}: {error}", file=sys.stderr)  # noqa: T201 - there is no log yet
        return EXIT_USAGE
    configure_logging(settings.log_level, settings.log_format, node(settings))
    log = logging.getLogger(source.program)
    try:
        asyncio.run(_serve(settings, make, log))
    except InvalidInputError as error:
        log.error("%s", error)
        return EXIT_USAGE
    except SeraiError as error:
        log.error("%s", error, extra={"reason": error.reason})
        return EXIT_FAILED
    return 0


async def _serve(settings: Model, make: Callable[[Model], Daemon], log: logging.Logger) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # Before anything starts: a signal during the start still ends with everything stopped.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    daemon = make(settings)
    await daemon.start()
    try:
        _announce(settings, daemon.announcement())
        await stop.wait()
        log.info("stopping")
    finally:
        if settings.ready_file is not None:
            settings.ready_file.unlink(missing_ok=True)
        await daemon.close()


def _announce(settings: Model, announcement: str) -> None:
    if settings.ready_file is not None:
        write_ready_file(settings.ready_file, announcement)
    print(announcement, flush=True)  # noqa: T201 - the parent reads it
