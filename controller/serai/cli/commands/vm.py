"""``serai vm``: the guests of all VNets, by ``VNET/NODE``."""

from __future__ import annotations

import enum
import itertools
from pathlib import Path
from typing import Annotated

import typer

from serai.cli.app import CLUSTER, Cluster, Output, asynchronous, group
from serai.cli.context import Context
from serai.cli.exits import show_exits
from serai.cli.operations import follow, progress_display
from serai.cli.output import (
    Column,
    Format,
    age,
    as_data,
    binary_size,
    done,
    print_table,
    show,
    show_data,
    stdout,
)
from serai.cli.paging import collect
from serai.cli.terminal import attach
from serai.cli.trace import show_trace, trace_request
from serai.errors import InvalidInputError, NotFoundError
from serai.v1.guest_pb2 import (
    Guest,
    GuestSize,
    GuestSpec,
    ListNodeSnapshotsRequest,
    NodeSnapshotRequest,
    Snapshot,
)
from serai.v1.migration_pb2 import MigrationOptions
from serai.v1.operation_pb2 import MigrationReport
from serai.v1.operator_pb2 import (
    ListVnetsRequest,
    MigrateVnetNodeRequest,
    ResizeVnetNodeRequest,
    StopVnetNodeRequest,
    Vnet,
    VnetNode,
    VnetNodeRequest,
)
from serai.v1.operator_pb2_grpc import OperatorServiceStub
from serai.vnet.units import MEMORY, ValueProblem
from serai.wire.rpc import Channel

app = group("Guests, named VNET/NODE (NODE alone where it is unique).")

Name = Annotated[str, typer.Argument(metavar="NAME", help="VNET/NODE, or NODE where it is unique.")]


class MigrationMode(enum.StrEnum):
    """How to move a guest, as people say it."""

    AUTO = "auto"
    PRE_COPY = "pre-copy"
    POST_COPY = "post-copy"
    HYBRID = "hybrid"
    OFFLINE = "offline"


_MODES = {
    MigrationMode.AUTO: MigrationOptions.AUTO,
    MigrationMode.PRE_COPY: MigrationOptions.PRE_COPY,
    MigrationMode.POST_COPY: MigrationOptions.POST_COPY,
    MigrationMode.HYBRID: MigrationOptions.HYBRID,
    MigrationMode.OFFLINE: MigrationOptions.OFFLINE,
}


def short_name(node: VnetNode) -> str:
    """``vnets/demo/nodes/web`` as people type it: ``demo/web``."""
    _, vnet, _, name = node.name.split("/")
    return f"{vnet}/{name}"


def guest_state(node: VnetNode) -> str:
    """The state for people: a running guest that has not finished start-up is BOOTING."""
    booting = node.state == Guest.RUNNING and not node.ready
    return "BOOTING" if booting else Guest.State.Name(node.state)


def place(node: VnetNode) -> str:
    """Where it runs, as ``vm migrate --to`` takes it, as far as the provider discloses that."""
    return "/".join(part for part in (node.provider, node.placement) if part) or "undisclosed"


_COLUMNS = (
    Column[VnetNode]("NAME", short_name),
    Column[VnetNode]("STATE", guest_state),
    Column[VnetNode]("PLACEMENT", place),
    Column[VnetNode]("IMAGE", lambda node: node.image),
    Column[VnetNode]("MODE", lambda node: GuestSpec.Mode.Name(node.mode).lower()),
    Column[VnetNode]("VCPUS", lambda node: node.vcpus, right=True),
    Column[VnetNode]("MEMORY", lambda node: binary_size(node.memory_bytes).replace(" ", ""), right=True),
    Column[VnetNode](
        "ADDRESSES", lambda node: ",".join(node.addresses[name] for name in sorted(node.addresses))
    ),
    Column[VnetNode]("AGE", lambda node: age(node.start_time), right=True),
)


@app.command("list")
@asynchronous
async def list_vms(output: Output = Format.TABLE, cluster: Cluster = CLUSTER) -> None:
    """List the guests of all VNets."""
    async with Context.named(cluster).operator() as channel:
        show(await all_nodes(channel), _COLUMNS, output)


@app.command("show")
@asynchronous
async def show_vm(name: Name, output: Output = Format.YAML, cluster: Cluster = CLUSTER) -> None:
    """Show all about one guest: state, place, addresses, counters."""
    async with Context.named(cluster).operator() as channel:
        stub = OperatorServiceStub(channel)
        node = await find(channel, name)
        statistics = await stub.GetVnetNodeStatistics(VnetNodeRequest(name=node.name))
    if output is Format.TABLE:
        print_table([node], _COLUMNS)
    else:
        show_data({**as_data(node), "statistics": as_data(statistics)}, output)


@app.command("exits")
@asynchronous
async def exits(
    name: Name,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat, with rates, until interrupted.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    output: Output = Format.TABLE,
    cluster: Cluster = CLUSTER,
) -> None:
    """Show why the guest left its instructions: exits to the hypervisor by cause, and what they cost."""
    async with Context.named(cluster).operator() as channel:
        node = await find(channel, name)
        stub = OperatorServiceStub(channel)
        request = VnetNodeRequest(name=node.name)
        await show_exits(lambda: stub.GetVnetNodeStatistics(request), output, watch=watch, interval=interval)


@app.command("trace")
@asynchronous
async def trace(  # noqa: PLR0917 - the options of a command
    name: Name,
    count: Annotated[int, typer.Option(min=1, max=100_000, help="Instructions to show.")] = 100,
    steps: Annotated[int, typer.Option(min=1, help="Instructions to execute at most.")] = 10_000_000,
    low: Annotated[str, typer.Option("--from", metavar="ADDRESS", help="Show from this address on.")] = "",
    high: Annotated[str, typer.Option("--to", metavar="ADDRESS", help="Show below this address.")] = "",
    function: Annotated[str, typer.Option(help="Show this function (needs --symbols).")] = "",
    symbols: Annotated[Path | None, typer.Option(help="System.map or a copy of /proc/kallsyms.")] = None,
    output: Output = Format.TABLE,
    cluster: Cluster = CLUSTER,
) -> None:
    """Show what the guest executes: hart, mode, address, word (! trapped, * interrupt), instruction.

    The guest runs in single steps meanwhile, about a thousand times slower.
    """
    async with Context.named(cluster).operator() as channel:
        node = await find(channel, name)
        request = trace_request(
            node.name, count=count, steps=steps, low=low, high=high, function=function, symbols=symbols
        )
        await show_trace(OperatorServiceStub(channel).TraceVnetNode(request), output)


@app.command("console")
@asynchronous
async def console(name: Name, cluster: Cluster = CLUSTER) -> None:
    """Attach to a guest's serial console; Ctrl-] detaches. Works while the VNet's own network is down."""
    async with Context.named(cluster).operator() as channel:
        node = await find(channel, name)
        await attach(channel, node.name, short_name(node))


@app.command("migrate")
@asynchronous
async def migrate(
    name: Name,
    *,
    to: Annotated[str, typer.Option("--to", metavar="DESTINATION", help="PROVIDER or PROVIDER/NODE.")] = "",
    mode: Annotated[
        MigrationMode, typer.Option(help="How; auto is pre-copy, and post-copy when that does not converge.")
    ] = MigrationMode.AUTO,
    max_downtime: Annotated[
        float, typer.Option(min=0.0, help="Milliseconds that the guest may stand still; 0: 100.")
    ] = 0.0,
    bandwidth: Annotated[
        float, typer.Option(min=0.0, help="Megabits a second that it may take; 0: all there is.")
    ] = 0.0,
    deadline: Annotated[
        float, typer.Option(min=0.0, help="Seconds until pre-copy has to have converged; 0: the provider's.")
    ] = 0.0,
    output: Output = Format.TABLE,
    cluster: Cluster = CLUSTER,
) -> None:
    """Move a running guest to another node or provider; without --to the provider chooses."""
    async with Context.named(cluster).operator() as channel:
        stub = OperatorServiceStub(channel)
        node = await find(channel, name)
        options = MigrationOptions(
            mode=_MODES[mode],
            max_downtime_ms=max_downtime,
            bandwidth_bps=round(bandwidth * 1e6),
            deadline_s=deadline,
        )
        started = await stub.MigrateVnetNode(
            MigrateVnetNodeRequest(name=node.name, destination=to, options=options)
        )
        with progress_display() as listener:
            operation = await follow(channel, started, listener)
    if output is Format.TABLE:
        stdout.print(describe_migration(short_name(node), operation.migration))
    else:
        show_data(as_data(operation.migration), output)


def describe_migration(name: str, report: MigrationReport) -> str:
    """One sentence on a finished migration."""
    return (
        f"vm/{name} migrated from {report.source_node} to {report.destination_node} in "
        f"{report.total_ms:.0f} ms: {report.mode}, {report.rounds} rounds, {report.bytes_sent / 1e6:.1f} MB, "
        f"down {report.downtime_ms:.1f} ms"
    )


@app.command("resize")
@asynchronous
async def resize(
    name: Name,
    vcpus: Annotated[int | None, typer.Option("--vcpus", min=1, help="How many vCPUs.")] = None,
    memory: Annotated[
        str, typer.Option("--memory", metavar="SIZE", help="How much memory: 256MiB, 1GiB.")
    ] = "",
    output: Output = Format.TABLE,
    cluster: Cluster = CLUSTER,
) -> None:
    """Change a guest's vCPUs and memory, up or down, while it runs; returns when the guest confirms it."""
    memory_bytes = parse_memory(memory) if memory else 0
    if not vcpus and not memory_bytes:
        raise InvalidInputError("nothing to change", hint="give --vcpus N, --memory SIZE, or both")
    async with Context.named(cluster).operator() as channel:
        node = await find(channel, name)
        request = ResizeVnetNodeRequest(name=node.name, vcpus=vcpus or 0, memory_bytes=memory_bytes)
        size = await OperatorServiceStub(channel).ResizeVnetNode(request, timeout=75.0)
    if output is Format.TABLE:
        stdout.print(describe_size(short_name(node), size))
    else:
        show_data(as_data(size), output)


def parse_memory(text: str) -> int:
    """Bytes of a quantity as descriptions have them; InvalidInputError."""
    try:
        return MEMORY.parse(text)
    except ValueProblem as problem:
        raise InvalidInputError(f"--memory: {problem}", hint="write it like 256MiB or 1GiB") from None


def count(number: int, what: str) -> str:
    """``1 vCPU``, ``2 vCPUs``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def describe_size(name: str, size: GuestSize) -> str:
    """One sentence on a change of size, with what the guest says itself."""
    text = f"vm/{name} resized to {count(size.vcpus, 'vCPU')} and {binary_size(size.memory_bytes)}"
    if not size.guest_vcpus:
        return f"{text}; it starts with that"
    processors, memory = count(size.guest_vcpus, "processor"), binary_size(size.guest_memory_bytes)
    free = binary_size(size.guest_free_bytes)
    return f"{text}; the guest sees {processors} and {memory}, of which {free} are free"


@app.command("start")
@asynchronous
async def start(name: Name, cluster: Cluster = CLUSTER) -> None:
    """Start a stopped guest."""
    async with Context.named(cluster).operator() as channel:
        node = await find(channel, name)
        await OperatorServiceStub(channel).StartVnetNode(VnetNodeRequest(name=node.name))
        done(f"vm/{short_name(node)}", "started")


@app.command("stop")
@asynchronous
async def stop(
    name: Name,
    grace: Annotated[
        float, typer.Option(min=0.0, help="Seconds to power off by itself before it is ended.")
    ] = 10.0,
    cluster: Cluster = CLUSTER,
) -> None:
    """Power a guest off; it stays in its VNet and can be started again."""
    async with Context.named(cluster).operator() as channel:
        node = await find(channel, name)
        request = StopVnetNodeRequest(name=node.name, grace_seconds=grace)
        await OperatorServiceStub(channel).StopVnetNode(request, timeout=grace + 30.0)
        done(f"vm/{short_name(node)}", "stopped")


_SNAPSHOTS = (
    Column[Snapshot]("NAME", lambda snapshot: snapshot.name),
    Column[Snapshot]("AGE", lambda snapshot: age(snapshot.create_time), right=True),
    Column[Snapshot](
        "SIZE", lambda snapshot: binary_size(snapshot.stored_bytes).replace(" ", ""), right=True
    ),
    Column[Snapshot]("PAUSE", lambda snapshot: f"{snapshot.pause_ms:.1f}ms", right=True),
    Column[Snapshot]("ROUNDS", lambda snapshot: snapshot.rounds, right=True),
)
_SNAPSHOT_SECONDS = 180.0
SnapshotName = Annotated[str, typer.Argument(metavar="SNAPSHOT", help="See serai vm snapshots NAME.")]


@app.command("snapshot")
@asynchronous
async def take_snapshot(
    name: Name,
    snapshot_name: Annotated[
        str,
        typer.Option("--name", metavar="SNAPSHOT", help="Letters, digits and hyphens; else a number."),
    ] = "",
    cluster: Cluster = CLUSTER,
) -> None:
    """Keep memory and devices of a running guest; it pauses for a moment."""
    async with Context.named(cluster).operator() as channel:
        node = await find(channel, name)
        stub = OperatorServiceStub(channel)
        found = await stub.ListVnetNodeSnapshots(ListNodeSnapshotsRequest(node=node.name))
        chosen = snapshot_name or unused_name({item.name for item in found.snapshots})
        request = NodeSnapshotRequest(node=node.name, snapshot=chosen)
        taken = await stub.SnapshotVnetNode(request, timeout=_SNAPSHOT_SECONDS)
        size = binary_size(taken.stored_bytes)
        done(
            f"vm/{short_name(node)}",
            f"snapshot {taken.name}: {size}, paused {taken.pause_ms:.1f} ms of {taken.total_ms:.0f} ms",
        )


@app.command("snapshots")
@asynchronous
async def list_snapshots(name: Name, output: Output = Format.TABLE, cluster: Cluster = CLUSTER) -> None:
    """List a guest's snapshots."""
    async with Context.named(cluster).operator() as channel:
        node = await find(channel, name)
        request = ListNodeSnapshotsRequest(node=node.name)
        found = await OperatorServiceStub(channel).ListVnetNodeSnapshots(request)
        show(list(found.snapshots), _SNAPSHOTS, output)


@app.command("restore")
@asynchronous
async def restore(name: Name, snapshot_name: SnapshotName, cluster: Cluster = CLUSTER) -> None:
    """Let a guest go on from a snapshot of it, whatever has become of it since."""
    async with Context.named(cluster).operator() as channel:
        node = await find(channel, name)
        request = NodeSnapshotRequest(node=node.name, snapshot=snapshot_name)
        await OperatorServiceStub(channel).RestoreVnetNode(request, timeout=_SNAPSHOT_SECONDS)
        done(f"vm/{short_name(node)}", f"goes on from snapshot {snapshot_name}")


@app.command("delete-snapshot")
@asynchronous
async def delete_snapshot(name: Name, snapshot_name: SnapshotName, cluster: Cluster = CLUSTER) -> None:
    """Delete a snapshot; the guest is not touched."""
    async with Context.named(cluster).operator() as channel:
        node = await find(channel, name)
        request = NodeSnapshotRequest(node=node.name, snapshot=snapshot_name)
        await OperatorServiceStub(channel).DeleteVnetNodeSnapshot(request)
        done(f"vm/{short_name(node)}", f"snapshot {snapshot_name} deleted")


def unused_name(taken: set[str]) -> str:
    """The first number that no snapshot has: "1", "2" ..."""
    return next(str(number) for number in itertools.count(1) if str(number) not in taken)


@app.command("delete")
@asynchronous
async def delete(name: Name, cluster: Cluster = CLUSTER) -> None:
    """Remove a guest and its links from its VNet."""
    async with Context.named(cluster).operator() as channel:
        node = await find(channel, name)
        started = await OperatorServiceStub(channel).DeleteVnetNode(VnetNodeRequest(name=node.name))
        with progress_display() as listener:
            await follow(channel, started, listener)
        done(f"vm/{short_name(node)}", "deleted")


async def all_vnets(channel: Channel) -> list[Vnet]:
    """Every VNet of the operator."""
    stub = OperatorServiceStub(channel)
    return await collect(
        lambda token: stub.ListVnets(ListVnetsRequest(page_token=token)), lambda page: page.vnets
    )


async def all_nodes(channel: Channel) -> list[VnetNode]:
    """The nodes of every VNet."""
    return [node for vnet in await all_vnets(channel) for node in vnet.nodes]


async def find(channel: Channel, name: str) -> VnetNode:
    """The node that a person means by `name`.

    Raises NotFoundError with what there is, InvalidInputError when the name fits several.
    """
    nodes = await all_nodes(channel)
    wanted = name.removeprefix("vm/").removeprefix("vnets/").replace("/nodes/", "/")
    matches = [node for node in nodes if wanted in (short_name(node), short_name(node).partition("/")[2])]
    names = ", ".join(sorted(short_name(node) for node in nodes)) or "none"
    if not matches:
        raise NotFoundError(f"there is no guest {name!r}", hint=f"there are: {names}", guest=name)
    if len(matches) > 1:
        raise InvalidInputError(
            f"{name!r} is in several VNets",
            hint="say one of " + ", ".join(short_name(node) for node in matches),
        )
    return matches[0]
