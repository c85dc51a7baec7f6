from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.agent.harness import Site
from tests.migration.move import Side, side


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
async def source(site: Site) -> AsyncIterator[Side]:
    async with side(site, "alpha/a1") as it:
        yield it


@pytest.fixture
async def destination(site: Site) -> AsyncIterator[Side]:
    async with side(site, "beta/b1") as it:
        yield it
