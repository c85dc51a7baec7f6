"""``serai image``: guest images, built on this machine and cached by content."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from serai.cli.app import Output, group
from serai.cli.output import Column, Format, age, binary_size, done, print_table, show_data, stderr
from serai.images import Image, ImageStore, build_debian
from serai.images import Progress as ProgressListener

app = group("Guest images.")


class Recipe(enum.StrEnum):
    """What can be built."""

    DEBIAN = "debian"


_COLUMNS = (
    Column[Image]("NAME", lambda image: image.name),
    Column[Image]("KERNEL", lambda image: image.kernel_release),
    Column[Image]("SIZE", lambda image: binary_size(image.size).replace(" ", ""), right=True),
    Column[Image]("CHECKED BY", lambda image: "signature" if image.signature_verified else "hashes only"),
    Column[Image]("DIGEST", lambda image: image.digest[:19]),
    Column[Image]("AGE", lambda image: age(_timestamp(image.created)), right=True),
)


@app.command("build")
def build(
    recipe: Annotated[Recipe, typer.Argument(metavar="IMAGE", help="debian")],
    mirror: Annotated[
        str | None,
        typer.Option(
            "--mirror", metavar="URL", envvar="SERAI_MIRROR", help="Instead of the one apt is configured for."
        ),
    ] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Ask the mirror for newer packages.")] = False,
) -> None:
    """Build an image from the packages of a Debian mirror; no root needed. Does nothing when it is there."""
    with _progress_display() as listener:
        image = build_debian(mirror=mirror, refresh=refresh, progress=listener)
    done(f"image/{recipe.value}", f"ready: Linux {image.kernel_release}, {binary_size(image.size)}")
    if not image.signature_verified:
        stderr.print(f"checked by the archive's hashes only: {image.manifest.unverified_because}")


@app.command("list")
def list_images(output: Output = Format.TABLE) -> None:
    """List the images on this machine."""
    images = ImageStore().list()
    if output is Format.TABLE:
        print_table(images, _COLUMNS)
    else:
        show_data(
            [{**image.manifest.model_dump(mode="json"), "digest": image.digest} for image in images], output
        )


@contextmanager
def _progress_display() -> Iterator[ProgressListener]:
    if stderr.is_terminal:
        with _bars() as bars:
            yield _LiveProgress(bars)
    else:
        yield _PlainProgress()


def _bars() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    return Progress(*columns, console=stderr)


class _LiveProgress:
    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, step: str, done: int, total: int) -> None:
        if step not in self._tasks:
            self._tasks[step] = self._bars.add_task(step, total=None)
        self._bars.update(self._tasks[step], completed=done, total=total or None)


class _PlainProgress:
    """One line when a step begins: what a log wants."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, step: str, done: int, total: int) -> None:
        if step not in self._said:
            self._said.add(step)
            stderr.print(f"{step}" + (f" ({binary_size(total)})" if total else ""))


def _timestamp(time: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(time.astimezone(UTC).replace(tzinfo=None))
    return stamp
