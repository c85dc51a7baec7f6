"""``serai-agent``: the daemon's entry.

Exit codes: 0 stopped by SIGTERM or SIGINT, 1 could not start or go on, 2 wrong settings.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Sequence

from serai.agent.daemon import Agent
from serai.agent.logs import configure_logging
from serai.agent.settings import AgentSettings, load_settings, parse_arguments
from serai.errors import InvalidInputError, SeraiError

log = logging.getLogger("serai.agent")

EXIT_FAILED, EXIT_USAGE = 1, 2


def main(arguments: Sequence[str] | None = None, make_agent: Callable[[AgentSettings], Agent] = Agent) -> int:
    """Run until told to stop; returns the exit code. `make_agent` lets tests bring a driver of theirs."""
    flags = vars(parse_arguments(arguments))
    try:
        settings = load_settings(flags, flags.pop("config"))
    except SeraiError as error:
        print(f"serai-agent: {error}", file=sys.stderr)  # noqa: T201 - there is no log yet
        return EXIT_USAGE
    configure_logging(settings.node, settings.log_level, settings.log_format)
    try:
        asyncio.run(_serve(settings, make_agent))
    except InvalidInputError as error:
        log.error("%s", error)
        return EXIT_USAGE
    except SeraiError as error:
        log.error("%s", error, extra={"reason": error.reason})
        return EXIT_FAILED
    return 0


async def _serve(settings: AgentSettings, make_agent: Callable[[AgentSettings], Agent]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # Before anything starts: a signal during the start still ends with everything stopped.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    agent = make_agent(settings)
    await agent.start()
    print(agent.announcement(), flush=True)  # noqa: T201 - the parent reads it
    try:
        await stop.wait()
        log.info("stopping")
    finally:
        await agent.close()


if __name__ == "__main__":
    sys.exit(main())
