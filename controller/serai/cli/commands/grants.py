"""``serai vnet grant``, ``grants`` and ``revoke``: credentials for attaching to a VNet."""

from __future__ import annotations

import re
from datetime import UTC
from typing import Annotated

import typer

from serai.cli.app import CLUSTER, Cluster, Output, asynchronous
from serai.cli.context import Context
from serai.cli.output import Column, Format, as_data, done, show, show_data, stderr, stdout
from serai.cli.paging import collect
from serai.errors import InvalidInputError
from serai.v1.operator_pb2 import (
    AttachmentGrant,
    GrantAttachmentRequest,
    ListAttachmentGrantsRequest,
    RevokeAttachmentGrantRequest,
)
from serai.v1.operator_pb2_grpc import OperatorServiceStub

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _local_time(grant: AttachmentGrant) -> str:
    return grant.expire_time.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


_COLUMNS = (
    Column[AttachmentGrant]("NAME", lambda grant: grant.name.removeprefix("grants/")),
    Column[AttachmentGrant]("NODE", lambda grant: grant.node.removeprefix("vnets/").replace("/nodes/", "/")),
    Column[AttachmentGrant]("INTERFACE", lambda grant: grant.interface),
    Column[AttachmentGrant]("ADDRESS", lambda grant: grant.address),
    Column[AttachmentGrant]("EXPIRES", _local_time),
)


def register(app: typer.Typer) -> None:
    """Add the commands to the noun `vnet`."""
    app.command("grant")(grant)
    app.command("grants")(list_grants)
    app.command("revoke")(revoke)


@asynchronous
async def grant(  # noqa: PLR0917 - options of a command
    name: Annotated[str, typer.Argument(metavar="NAME", help="The VNet.")],
    node: Annotated[str, typer.Option("--node", help="The node beside which the user attaches.")],
    interface: Annotated[str, typer.Option("--interface", help="Its interface; the first if left out.")] = "",
    valid: Annotated[
        str, typer.Option("--valid", metavar="TIME", help="For how long: 90s, 15m, 8h, 7d.")
    ] = "1d",
    output: Output = Format.TABLE,
    cluster: Cluster = CLUSTER,
) -> None:
    """Grant somebody to attach to a VNet; prints the token, which is shown only now."""
    request = GrantAttachmentRequest(
        node=f"vnets/{name.removeprefix('vnet/')}/nodes/{node}",
        interface=interface,
        lifetime_s=read_duration(valid),
    )
    async with Context.named(cluster).operator() as channel:
        granted = await OperatorServiceStub(channel).GrantAttachment(request)
    if output is not Format.TABLE:
        show_data(as_data(granted), output)
        return
    address = f"as {granted.address} " if granted.address else ""
    stderr.print(
        f"{granted.name}: {address}on the wire of {node} {granted.interface}, until {_local_time(granted)}"
    )
    stdout.print(granted.token, markup=False)


@asynchronous
async def list_grants(output: Output = Format.TABLE, cluster: Cluster = CLUSTER) -> None:
    """List the credentials that hold, without their tokens."""
    async with Context.named(cluster).operator() as channel:
        stub = OperatorServiceStub(channel)
        grants = await collect(
            lambda token: stub.ListAttachmentGrants(ListAttachmentGrantsRequest(page_token=token)),
            lambda page: page.grants,
        )
    show(grants, _COLUMNS, output)


@asynchronous
async def revoke(name: Annotated[str, typer.Argument(metavar="GRANT")], cluster: Cluster = CLUSTER) -> None:
    """Revoke a credential; whoever is attached with it is detached."""
    identifier = name.removeprefix("grants/")
    async with Context.named(cluster).operator() as channel:
        await OperatorServiceStub(channel).RevokeAttachmentGrant(
            RevokeAttachmentGrantRequest(name=f"grants/{identifier}")
        )
    done(f"grant/{identifier}", "revoked")


def read_duration(text: str) -> float:
    """Seconds; InvalidInputError for anything but a number with its unit."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)([smhd])", text)
    if match is None or float(match[1]) == 0:
        raise InvalidInputError(f"{text!r} is no time", hint="write a number with its unit: 90s, 15m, 8h, 7d")
    return float(match[1]) * _SECONDS[match[2]]
