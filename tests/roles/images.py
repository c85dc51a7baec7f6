"""An image store for agents whose driver boots nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Image:
    kernel: Path
    initramfs: Path
    name: str = "debian"
    command_line: str = ""
    resizable: bool = True


class AnyImage:
    """One image, called debian, whose files exist."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._image = Image(directory / "kernel", directory / "initramfs")
        for path in (self._image.kernel, self._image.initramfs):
            path.write_bytes(b"x")

    def get(self, name: str) -> Image:
        return self._image

    def list(self) -> list[Image]:
        return [self._image]
