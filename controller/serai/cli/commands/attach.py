"""``serai attach``: an Ethernet port into a VNet, for an end user with a credential."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from serai.cli.app import CLUSTER, Cluster, asynchronous
from serai.cli.attach.forward import Forward, Forwarder
from serai.cli.attach.port import Recorder, attach
from serai.cli.context import Context
from serai.cli.output import stderr
from serai.errors import InvalidInputError, NotFoundError, StateError
from serai.wire.identity import Role
from serai.wire.rpc import Channel, connect
from serai.wire.tls import Credentials

app = typer.Typer()


@app.command()
@asynchronous
async def attach_to_vnet(  # noqa: PLR0917 - options of a command
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="From `serai vnet grant`; - reads it.")],
    forward: Annotated[
        list[str],
        typer.Option("--forward", metavar="[HOST:]PORT:ADDRESS:PORT", help="A local port that leads there."),
    ] = [],  # noqa: B006 - typer copies it
    pcap: Annotated[
        str, typer.Option("--pcap", metavar="FILE", help="Record both directions; - is standard output.")
    ] = "",
    provider: Annotated[str, typer.Option("--provider", help="Where to attach; any will do.")] = "",
    address: Annotated[
        str, typer.Option("--address", metavar="HOST:PORT", help="A provider of no cluster known here.")
    ] = "",
    credentials: Annotated[
        Path | None, typer.Option("--credentials", metavar="DIRECTORY", help="With --address: certificate.")
    ] = None,
    cluster: Cluster = CLUSTER,
) -> None:
    """Attach to a VNet until interrupted: forward TCP ports, record frames, or both. Needs no root."""
    forwards = [Forward.parse(item) for item in forward]
    if not forwards and not pcap:
        raise InvalidInputError("say what the port is for", hint="give --forward, --pcap, or both")
    secret = sys.stdin.readline().strip() if token == "-" else token
    with ExitStack() as files:
        recorder = Recorder(_open(pcap, files)) if pcap else None
        async with (
            _channel(cluster, provider, address, credentials) as channel,
            attach(channel, secret, recorder) as port,
        ):
            given = port.attachment
            stderr.print(f"attached as {given.mac.hex(':')} {given.address}".rstrip())
            forwarder = Forwarder(port) if forwards else None
            try:
                for item in forwards if forwarder else []:
                    listening = await forwarder.listen(item)  # type: ignore[union-attr]
                    stderr.print(f"{listening} leads to {item.target}:{item.target_port}")
                await port.run()
            finally:
                if forwarder is not None:
                    await forwarder.close()
    raise StateError("the attachment has ended", hint="the VNet or its node may be gone")


def _open(pcap: str, files: ExitStack) -> BinaryIO:
    if pcap == "-":
        return sys.stdout.buffer
    try:
        return files.enter_context(Path(pcap).open("wb"))
    except OSError as error:
        raise InvalidInputError(f"{pcap} cannot be written: {error.strerror}") from error


@asynccontextmanager
async def _channel(
    cluster: str, provider: str, address: str, credentials: Path | None
) -> AsyncIterator[Channel]:
    if address:
        if credentials is None:
            raise InvalidInputError(
                "--address needs --credentials", hint="a directory with ca.pem, cert.pem, key.pem"
            )
        async with connect(address, Credentials.load(credentials), Role.PIP) as channel:
            yield channel
        return
    context = Context.named(cluster)
    known = context.state().providers
    name = provider or sorted(known)[0]
    if name not in known:
        raise NotFoundError(f"there is no provider {name!r}", hint=f"there are: {', '.join(sorted(known))}")
    async with context.provider(name) as channel:
        yield channel
