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
from serai.errors import SeraiError
from serai.images import Image, ImageStore, build_debian, build_opensbi
from serai.images import Progress as ProgressListener

app = group("Guest images.")


class Recipe(enum.StrEnum):
    """What can be built."""

    DEBIAN = "debian"
    OPENSBI = "opensbi"


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
    recipe: Annotated[
        Recipe,
        typer.Argument(metavar="IMAGE", help="debian, or opensbi: the firmware of guests in mode full"),
    ],
    mirror: Annotated[
        str | None,
        typer.Option(
            "--mirror", metavar="URL", envvar="SERAI_MIRROR", help="Instead of the one apt is configured for."
        ),
    ] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Ask the mirror for newer packages.")] = False,
) -> None:
    """Build an image from the packages of a Debian mirror; no root needed. Does nothing when it is there.

    With debian comes the firmware that guests in mode full need, where the mirror has it.
    """
    with _progress_display() as listener:
        if recipe is Recipe.DEBIAN:
            image = build_debian(mirror=mirror, refresh=refresh, progress=listener)
            firmware_problem = _try_firmware(mirror, refresh, listener)
        else:
            image = build_opensbi(mirror=mirror, refresh=refresh, progress=listener)
            firmware_problem = ""
    what = f"Linux {image.kernel_release}" if recipe is Recipe.DEBIAN else image.kernel_release
    done(f"image/{recipe.value}", f"ready: {what}, {binary_size(image.size)}")
    if firmware_problem:
        stderr.print(f"no firmware, so no guests in mode full: {firmware_problem}")
    if not image.signature_verified:
        stderr.print(f"checked by the archive's hashes only: {image.manifest.unverified_because}")


def _try_firmware(mirror: str | None, refresh: bool, listener: ProgressListener) -> str:
    """Build the firmware; returns why it cannot be had, which is no reason to fail."""
    try:
        build_opensbi(mirror=mirror, refresh=refresh, progress=listener)
    except SeraiError as problem:
        return problem.message
    return ""


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
