"""``serai``: the entry point. Nouns are groups, verbs their commands."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version

import typer

from serai.cli.app import EXIT_CODES
from serai.cli.commands import cluster, demo, event, image, node, vm, vnet
from serai.cli.output import print_error, stderr
from serai.errors import SeraiError

app = typer.Typer(
    name="serai",
    help="Virtual networks of real guests across providers, and guests that move while they run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(cluster.app, name="cluster")
app.add_typer(image.app, name="image")
app.add_typer(node.app, name="node")
app.add_typer(vnet.app, name="vnet")
app.add_typer(vm.app, name="vm")
app.add_typer(event.app, name="event")
app.command("demo")(demo.demo)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"serai {version('serai')}")
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
