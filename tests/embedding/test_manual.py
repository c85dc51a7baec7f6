"""The manual's Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

MANUAL = Path(__file__).parents[2] / "docs" / "embedding.md"
BLOCKS = re.findall(r"```python\n(.*?)```", MANUAL.read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_example_runs(block: str) -> None:
    exec(compile(block, str(MANUAL), "exec"), {})


def test_there_are_examples() -> None:
    assert len(BLOCKS) == 2
