"""``serai-agent``: the daemon's entry; `serai.daemon.entry` has the exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from serai.agent.daemon import Agent
from serai.agent.settings import SOURCE, AgentSettings
from serai.daemon.entry import run


def main(arguments: Sequence[str] | None = None, make_agent: Callable[[AgentSettings], Agent] = Agent) -> int:
    """Run until told to stop; returns the exit code. `make_agent` lets tests bring a driver of theirs."""
    return run(SOURCE, make_agent, arguments, node=lambda settings: settings.node)


if __name__ == "__main__":
    sys.exit(main())
