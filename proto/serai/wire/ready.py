"""How a daemon tells whoever started it that it serves, and where."""

from __future__ import annotations

import json
from pathlib import Path


def write_ready_file(path: Path, **facts: object) -> None:
    """Write `facts` as JSON, all at once: a parent that waits for the file never reads half of it."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(facts))
    temporary.replace(path)
