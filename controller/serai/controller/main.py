"""``serai-controller``: the daemon's entry.

Exit codes: 0 stopped by SIGTERM or SIGINT, 1 could not start or go on, 2 wrong settings.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence

from serai.controller.daemon import Controller
from serai.controller.logs import configure_logging
from serai.controller.settings import ControllerSettings, load_settings, parse_arguments
from serai.errors import InvalidInputError, SeraiError

log = logging.getLogger("serai.controller")

EXIT_FAILED, EXIT_USAGE = 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until told to stop; returns the exit code."""
    flags = vars(parse_arguments(arguments))
    try:
        settings = load_settings(flags, flags.pop("config"))
    except SeraiError as error:
        print(f"serai-controller: {error}", file=sys.stderr)  # noqa: T201 - there is no log yet
        return EXIT_USAGE
    configure_logging(settings.log_level, settings.log_format)
    try:
        asyncio.run(_serve(settings))
    except InvalidInputError as error:
        log.error("%s", error)
        return EXIT_USAGE
    except SeraiError as error:
        log.error("%s", error)
        return EXIT_FAILED
    return 0


async def _serve(settings: ControllerSettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # Before anything starts: a signal during the start still ends with everything stopped.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    controller = Controller(settings)
    await controller.start()
    print(controller.announcement(), flush=True)  # noqa: T201 - the parent reads it
    try:
        await stop.wait()
        log.info("stopping")
    finally:
        await controller.close()


if __name__ == "__main__":
    sys.exit(main())
