"""``serai vnet``: virtual networks from their XML description."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from serai.cli.app import CLUSTER, Cluster, Output, asynchronous, group
from serai.cli.commands.grants import register
from serai.cli.commands.vm import all_vnets
from serai.cli.context import Context
from serai.cli.operations import follow, progress_display
from serai.cli.output import Column, Format, age, as_data, done, show, show_data, stderr, stdout
from serai.errors import DescriptionError, InvalidInputError, NotFoundError
from serai.v1.operator_pb2 import (
    CreateVnetRequest,
    DeleteVnetRequest,
    DiffVnetRequest,
    GetVnetRequest,
    UpdateVnetRequest,
    Vnet,
    VnetChange,
)
from serai.v1.operator_pb2_grpc import OperatorServiceStub
from serai.vnet import Diagnostic, explain, parse
from serai.wire.rpc import Channel

app = group("Virtual networks.")
register(app)

File = Annotated[Path, typer.Option("--file", "-f", help="The description; - reads standard input.")]
Name = Annotated[str, typer.Argument(metavar="NAME")]
OtherName = Annotated[str, typer.Option("--name", help="Another name than the description's.")]

_COLUMNS = (
    Column[Vnet]("NAME", lambda vnet: vnet.name.removeprefix("vnets/")),
    Column[Vnet]("STATE", lambda vnet: Vnet.State.Name(vnet.state)),
    Column[Vnet]("NODES", lambda vnet: len(vnet.nodes), right=True),
    Column[Vnet]("READY", lambda vnet: sum(node.ready for node in vnet.nodes), right=True),
    Column[Vnet]("LINKS", lambda vnet: len(vnet.links), right=True),
    Column[Vnet]("PROVIDERS", lambda vnet: vnet.provider_count, right=True),
    Column[Vnet]("AGE", lambda vnet: age(vnet.create_time), right=True),
)

_CHANGES = (
    Column[VnetChange]("ACTION", lambda change: VnetChange.Action.Name(change.action).lower()),
    Column[VnetChange]("ELEMENT", lambda change: f"{change.kind}/{change.element}"),
    Column[VnetChange]("FIELD", lambda change: change.field),
    Column[VnetChange]("OLD", lambda change: change.old_value),
    Column[VnetChange]("NEW", lambda change: change.new_value),
    Column[VnetChange]("EFFECT", lambda change: VnetChange.Effect.Name(change.effect).lower()),
)


@app.command("validate")
def validate(file: File) -> None:
    """Check a description; all errors at once, each with line and path. Needs no cluster."""
    result = parse(read_document(file))
    for diagnostic in result.diagnostics:
        _print_diagnostic(file, diagnostic)
    if result.description is None:
        count = len(result.errors)
        raise DescriptionError(
            f"{file}: {count} error{'s' * (count != 1)}",
            hint="docs/vnet-description.md describes the language",
        )
    nodes, links = len(result.description.nodes), len(result.description.links)
    stdout.print(f"{file}: vnet {result.description.name}: {nodes} nodes, {links} links")


def _print_diagnostic(file: Path, diagnostic: Diagnostic) -> None:
    """``FILE:LINE: ...``, which editors jump to."""
    place = f"{file}:{diagnostic.line}: " if diagnostic.line else f"{file}: "
    hint = f" ({diagnostic.hint})" if diagnostic.hint else ""
    text = f"{place}{diagnostic.severity.value}: {diagnostic.path}: {diagnostic.message}{hint}"
    stderr.print(text, markup=False)


@app.command("explain")
def explain_element(
    path: Annotated[str, typer.Argument(metavar="[PATH]", help='As in "vnet.link.bandwidth".')] = "",
) -> None:
    """Say what an element or attribute of a description means."""
    stdout.print(explain(path), markup=False, end="")


@app.command("request")
@asynchronous
async def request(
    file: File,
    name: Annotated[str, typer.Option("--name", help="Another name than the description's.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Find room and reserve nothing.")] = False,
    cluster: Cluster = CLUSTER,
) -> None:
    """Request a VNet and follow its provisioning until every node runs."""
    document = read_document(file)
    async with Context.named(cluster).operator() as channel:
        create = CreateVnetRequest(vnet_id=name, document=document, validate_only=dry_run)
        started = await OperatorServiceStub(channel).CreateVnet(create)
        with progress_display() as listener:
            operation = await follow(channel, started, listener)
    done(operation.target.replace("vnets/", "vnet/"), "would fit (dry run)" if dry_run else "running")


@app.command("diff")
@asynchronous
async def diff(
    file: File, name: OtherName = "", output: Output = Format.TABLE, cluster: Cluster = CLUSTER
) -> None:
    """Show what `apply` would change, and what that does to the guests."""
    document = read_document(file)
    wanted = _described_name(document, name)
    async with Context.named(cluster).operator() as channel:
        changes = await _compare(channel, wanted, document)
    if output is not Format.TABLE:
        show_data([as_data(change) for change in changes], output)
    elif changes:
        show(changes, _CHANGES, output)
    else:
        stdout.print("no difference")


@app.command("apply")
@asynchronous
async def apply(
    file: File,
    name: OtherName = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Find room and change nothing.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Create guests anew where a change needs that.")
    ] = False,
    cluster: Cluster = CLUSTER,
) -> None:
    """Make a VNet what the file describes, with the least change; create it when there is none."""
    document = read_document(file)
    wanted = _described_name(document, name)
    async with Context.named(cluster).operator() as channel:
        stub = OperatorServiceStub(channel)
        try:
            changes = await _compare(channel, wanted, document)
        except NotFoundError:
            create = CreateVnetRequest(vnet_id=name, document=document, validate_only=dry_run)
            started = await stub.CreateVnet(create)
            verb = "would fit (dry run)" if dry_run else "created"
        else:
            if not changes:
                done(f"vnet/{wanted}", "unchanged")
                return
            show(changes, _CHANGES, Format.TABLE)
            started = await stub.UpdateVnet(
                UpdateVnetRequest(
                    name=_resource(wanted), document=document, validate_only=dry_run, allow_restart=restart
                )
            )
            verb = "would fit (dry run)" if dry_run else "changed"
        with progress_display() as listener:
            await follow(channel, started, listener)
    done(f"vnet/{wanted}", verb)


async def _compare(channel: Channel, name: str, document: bytes) -> list[VnetChange]:
    request = DiffVnetRequest(name=_resource(name), document=document)
    return list((await OperatorServiceStub(channel).DiffVnet(request)).changes)


def _described_name(document: bytes, name: str) -> str:
    """`name`, or the one that the description gives. DescriptionError with every error at once."""
    described = parse(document).require().name
    return name.removeprefix("vnet/") or described


@app.command("list")
@asynchronous
async def list_vnets(output: Output = Format.TABLE, cluster: Cluster = CLUSTER) -> None:
    """List the VNets."""
    async with Context.named(cluster).operator() as channel:
        show(await all_vnets(channel), _COLUMNS, output)


@app.command("show")
@asynchronous
async def show_vnet(name: Name, output: Output = Format.YAML, cluster: Cluster = CLUSTER) -> None:
    """Show one VNet: nodes, links, state."""
    async with Context.named(cluster).operator() as channel:
        vnet = await OperatorServiceStub(channel).GetVnet(GetVnetRequest(name=_resource(name)))
    if output is Format.TABLE:
        show([vnet], _COLUMNS, output)
    else:
        vnet.ClearField("document")
        show_data(as_data(vnet), output)


@app.command("delete")
@asynchronous
async def delete(
    name: Name,
    ignore_missing: Annotated[
        bool, typer.Option("--ignore-missing", help="No error when it is gone.")
    ] = False,
    cluster: Cluster = CLUSTER,
) -> None:
    """End a VNet: its guests, links and reservations."""
    async with Context.named(cluster).operator() as channel:
        stub = OperatorServiceStub(channel)
        started = await stub.DeleteVnet(DeleteVnetRequest(name=_resource(name), allow_missing=ignore_missing))
        with progress_display() as listener:
            await follow(channel, started, listener)
    done(_resource(name).replace("vnets/", "vnet/"), "deleted")


def read_document(file: Path) -> bytes:
    """The description's bytes. Raises NotFoundError or InvalidInputError naming the file."""
    if str(file) == "-":
        return sys.stdin.buffer.read()
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(
            f"there is no file {file}", hint="docs/examples/ has descriptions to start from"
        ) from None
    except OSError as error:
        raise InvalidInputError(f"{file} cannot be read: {error.strerror}") from error


def _resource(name: str) -> str:
    return f"vnets/{name.removeprefix('vnets/').removeprefix('vnet/')}"
