"""Building blocks of the commands: options they share, and the boundary where errors become exit codes."""

from __future__ import annotations

import asyncio
import functools
import signal
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, ParamSpec

import typer

from serai.cli.context import DEFAULT_CLUSTER
from serai.cli.output import Format

Parameters = ParamSpec("Parameters")

Output = Annotated[Format, typer.Option("--output", "-o", help="How to print.")]
Cluster = Annotated[
    str,
    typer.Option(
        "--cluster", envvar="SERAI_CLUSTER", help="Which cluster.", metavar="NAME", show_default=True
    ),
]
CLUSTER = DEFAULT_CLUSTER

EXIT_CODES: dict[str, int] = {
    "INVALID_ARGUMENT": 2,
    "NOT_FOUND": 3,
    "UNAVAILABLE": 4,
    "ALREADY_EXISTS": 5,
    "FAILED_PRECONDITION": 5,
    "RESOURCE_EXHAUSTED": 6,
    "PERMISSION_DENIED": 7,
    "UNAUTHENTICATED": 7,
    "CANCELLED": 130,
}
"""Exit code of each error code; every other failure is 1. Documented in docs/cli.md."""


def group(text: str) -> typer.Typer:
    """A noun: a group of commands that shows its help when called without one."""
    noun = typer.Typer(no_args_is_help=True)
    # With a callback it stays a group even while it has a single command.
    noun.callback(help=text)(lambda: None)
    return noun


def asynchronous(
    command: Callable[Parameters, Coroutine[Any, Any, None]],
) -> Callable[Parameters, None]:
    """Run a coroutine command; SIGTERM ends it as Ctrl-C does, so that both clean up."""

    @functools.wraps(command)
    def run(*arguments: Parameters.args, **options: Parameters.kwargs) -> None:
        previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            asyncio.run(command(*arguments, **options))
        finally:
            signal.signal(signal.SIGTERM, previous)

    return run
