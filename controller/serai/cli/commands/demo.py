"""``serai demo``: the main job in a cluster of its own, proved and measured, and removed again."""

from __future__ import annotations

import asyncio
import os
import time
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from serai.cli.app import asynchronous
from serai.cli.context import Context
from serai.cli.demo.narration import Narration, print_summary
from serai.cli.demo.report import DemoReport
from serai.cli.demo.scenario import FILES, Scenario
from serai.cli.local import cluster as local
from serai.cli.local.config import ClusterConfig, load
from serai.errors import InvalidInputError, SeraiError
from serai.images import ImageStore

app = typer.Typer()


@app.command()
@asynchronous
async def demo(
    report: Annotated[
        Path | None, typer.Option("--report", help="Write the measurements there, as JSON.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the cluster's logs and state for a look.")
    ] = False,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Another cluster file.")] = None,
) -> None:
    """Two VNets across two providers, traffic, a live migration; exits 0 only if all of it held."""
    _check_writable(report)
    ImageStore().get("debian")
    with resources.as_file(FILES / "cluster.yaml") as own_file:
        config = load(file or own_file).model_copy(update={"name": f"demo-{os.getpid()}"})
    outcome = DemoReport()
    started = time.monotonic()
    try:
        await _run(config, outcome, keep=keep)
    except SeraiError as error:
        outcome.failures.append(str(error))
        raise
    finally:
        outcome.seconds = round(time.monotonic() - started, 1)
        outcome.judge()
        if report is not None:
            report.write_text(outcome.as_json())
    print_summary(outcome)
    if not outcome.ok:
        raise typer.Exit(1)


async def _run(config: ClusterConfig, outcome: DemoReport, *, keep: bool) -> None:
    context = Context.named(config.name)
    narration = Narration()
    try:
        with narration.step("A cluster of four nodes of two providers"):
            cluster = local.LocalCluster(context, config, lambda part: narration.now(f"starting {part}"))
            await _in_thread(cluster)
            narration.fact("agents and controller serve, over mutual TLS")
        async with context.operator() as channel:
            await Scenario(context, channel, narration, outcome).run()
    finally:
        if context.state_file.exists():
            local.down(context)
        if not keep:
            local.remove(context)


async def _in_thread(cluster: local.LocalCluster) -> None:
    """Start the cluster off the event loop; interrupted, it ends before the caller cleans up."""
    starting = asyncio.create_task(asyncio.to_thread(cluster.up))
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.gather(starting, return_exceptions=True)
        raise


def _check_writable(report: Path | None) -> None:
    """Refuse an impossible report path before a minute of work, not after it."""
    if report is not None and (not report.resolve().parent.is_dir() or report.is_dir()):
        raise InvalidInputError(
            f"the report cannot be written to {report}", hint="name a file in a folder that exists"
        )
