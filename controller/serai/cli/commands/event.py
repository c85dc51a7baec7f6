"""``serai event``: what happens, as it happens."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.text import Text

from serai.cli.app import CLUSTER, Cluster, Output, asynchronous, group
from serai.cli.context import Context
from serai.cli.output import Format, stderr, stdout
from serai.errors import StateError
from serai.wire.bus import EVERYTHING
from serai.wire.events import Event
from serai.wire.mqtt import MqttBus

app = group("Events of agents and roles, from the MQTT broker.")


@app.command("watch")
@asynchronous
async def watch(
    topic: Annotated[
        str, typer.Option("--topic", help="MQTT topic filter: + is one level, # the rest.", metavar="FILTER")
    ] = EVERYTHING,
    count: Annotated[int, typer.Option("--count", min=0, help="End after so many events; 0: never.")] = 0,
    output: Output = Format.TABLE,
    cluster: Cluster = CLUSTER,
) -> None:
    """Print events as they come; -o json gives one object per line. Ctrl-C ends it."""
    context = Context.named(cluster)
    url = context.state().events_url
    if not url:
        raise StateError("this cluster has no event broker", hint="set broker: embedded in its cluster file")
    async with MqttBus(context.admin().identity, url) as bus, bus.subscribe(topic) as events:
        stderr.print(f"listening to {topic}")
        seen = 0
        async for event in events:
            _print(event, output)
            seen += 1
            if seen == count:
                return


def _print(event: Event, output: Format) -> None:
    if output is Format.TABLE:
        stdout.print(_line(event))
    else:
        sys.stdout.write(event.to_json().decode() + "\n")
        sys.stdout.flush()


def _line(event: Event) -> Text:
    details = event.data.model_dump(exclude_defaults=True)
    pairs = "  ".join(f"{name}={value}" for name, value in details.items())
    return Text.assemble(
        (f"{event.time.astimezone():%H:%M:%S.%f}"[:-3], "dim"),
        "  ",
        (f"{event.type:18}", "bold cyan"),
        f"  {event.subject}  ",
        (pairs, "dim"),
    )
