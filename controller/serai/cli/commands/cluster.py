"""``serai cluster``: agents, controller and broker as processes of this machine; no root, no containers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serai.cli.app import CLUSTER, Cluster, Output, group
from serai.cli.context import ClusterState, Context
from serai.cli.local import cluster as local
from serai.cli.local.config import DEFAULT, load
from serai.cli.local.processes import Daemon
from serai.cli.output import Column, Format, done, print_table, show_data, stderr

app = group("A cluster on this machine: one process per node, and the controller.")

_COLUMNS = (
    Column[Daemon]("PROCESS", lambda daemon: daemon.name),
    Column[Daemon]("STATE", lambda daemon: "running" if daemon.alive() else "gone"),
    Column[Daemon]("PID", lambda daemon: daemon.pid, right=True),
    Column[Daemon]("LOG", lambda daemon: daemon.log_file),
)


@app.command("up")
def up(
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="A cluster file; see docs/cluster.md.")
    ] = None,
) -> None:
    """Start a cluster; without a file, two providers with two nodes each."""
    config = load(file) if file else DEFAULT
    context = Context.named(config.name)
    with stderr.status("starting") as status:
        cluster = local.LocalCluster(context, config, lambda part: status.update(f"starting {part}"))
        state = cluster.up()
    done(f"cluster/{state.name}", f"up: {len(state.agents)} nodes of {len(state.providers)} providers")
    stderr.print("next: serai image build debian; serai vnet request -f docs/examples/two-providers.xml")


@app.command("status")
def status(output: Output = Format.TABLE, cluster: Cluster = CLUSTER) -> None:
    """Show the processes of a cluster; exits 1 if one of them is gone."""
    state = Context.named(cluster).state()
    if output is Format.TABLE:
        print_table(state.daemons, _COLUMNS)
    else:
        show_data(_as_data(state), output)
    if not all(daemon.alive() for daemon in state.daemons):
        raise typer.Exit(1)


@app.command("repair")
def repair(cluster: Cluster = CLUSTER) -> None:
    """Start the processes that are gone again; guests of a killed agent go on meanwhile and are adopted."""
    with stderr.status("starting") as status:
        names = local.repair(Context.named(cluster), lambda part: status.update(f"starting {part}"))
    for name in names:
        done(f"process/{name}", "started again")
    done(f"cluster/{cluster}", "complete")


@app.command("down")
def down(
    cluster: Cluster = CLUSTER,
    keep_logs: Annotated[bool, typer.Option("--keep-logs", help="Keep logs and state for a look.")] = False,
) -> None:
    """Stop a cluster: its guests are powered off, nothing of it stays."""
    context = Context.named(cluster)
    with stderr.status("stopping"):
        killed = local.down(context)
    if not keep_logs:
        local.remove(context)
    for name in killed:
        stderr.print(f"{name} did not end when asked and was killed")
    done(f"cluster/{cluster}", "down")


@app.command("credentials")
def credentials(
    directory: Annotated[Path, typer.Option("--directory", "-d", help="A folder of their own.")],
    file: Annotated[Path | None, typer.Option("--file", "-f", help="A cluster file.")] = None,
) -> None:
    """Issue certificates for a cluster that something else starts: containers, several hosts."""
    local.issue_credentials(load(file) if file else DEFAULT, directory)
    done(f"credentials/{directory}", "issued")


def _as_data(state: ClusterState) -> dict[str, object]:
    data = state.model_dump(mode="json")
    for daemon, entry in zip(state.daemons, data["daemons"], strict=True):
        entry["running"] = daemon.alive()
    return data
