"""How a daemon tells whoever started it that it serves, and where."""

from __future__ import annotations

import os
from pathlib import Path


def write_ready_file(path: Path, announcement: str) -> None:
    """Write `announcement` (JSON) all at once: a parent that waits for the file never reads half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(announcement + "\n")
    temporary.replace(path)
