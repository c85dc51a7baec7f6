"""``serai image``: guest images, built on this machine and cached by content."""

from __future__ import annotations

from typing import Annotated

import typer

from serai.cli.app import Output, group
from serai.cli.output import Column, Format

app = group("Guest images.")
