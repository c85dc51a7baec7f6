"""``serai``: the entry point. Nouns are groups, verbs their commands."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import typer
from typer.core import TyperGroup

from serai.cli.app import EXIT_CODES
from serai.cli.output import print_error, stderr
from serai.errors import SeraiError

COMMANDS = ("cluster", "image", "node", "vnet", "attach", "vm", "migration", "event", "isa", "demo")


class _LazyGroup(TyperGroup):
    """Imports the module of a noun when it is the one: the others would be half of the time."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All nouns, in the order in which people need them."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The noun's commands; None for an unknown one."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"serai.cli.commands.{cmd_name}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        return command


app = typer.Typer(
    name="serai",
    cls=_LazyGroup,
    help="Virtual networks of real guests across providers, and guests that move while they run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if not wanted:
        return
    try:
        typer.echo(f"serai {version('serai')}")
    except PackageNotFoundError:
        typer.echo("serai, not installed")
    raise typer.Exit


@app.callback()
def _options(
    show_version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show it."
    ),
) -> None:
    """Options of every command."""


def main() -> None:
    """Run the command line; errors become one message on stderr and a documented exit code."""
    try:
        app()
    except SeraiError as error:
        print_error(error)
        sys.exit(EXIT_CODES.get(error.code, 1))
    except KeyboardInterrupt:
        stderr.print("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (`serai vm list | head -1`); stay quiet also at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


if __name__ == "__main__":
    main()
