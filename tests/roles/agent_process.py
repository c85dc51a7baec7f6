"""The real agent's entry with fake guests that any image can start."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.roles.images import AnyImage

from serai.agent.daemon import Agent
from serai.agent.main import main
from serai.agent.settings import AgentSettings
from serai.hypervisor.fake import FakeDriver


def make_agent(settings: AgentSettings) -> Agent:
    return Agent(settings, driver=FakeDriver(), images=AnyImage(Path(settings.state_dir)))


if __name__ == "__main__":
    sys.exit(main(make_agent=make_agent))
