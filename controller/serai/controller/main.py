"""``serai-controller``: the daemon's entry; `serai.daemon.entry` has the exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from serai.controller.daemon import Controller
from serai.controller.settings import SOURCE
from serai.daemon.entry import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until told to stop; returns the exit code."""
    return run(SOURCE, Controller, arguments)


if __name__ == "__main__":
    sys.exit(main())
