from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.roles.bench import Bench, running_bench

from serai.wire.tls import CertificateAuthority


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority.create(tmp_path_factory.mktemp("authority"))


@pytest.fixture
async def bench(tmp_path: Path, authority: CertificateAuthority) -> AsyncIterator[Bench]:
    async with running_bench(tmp_path, authority) as running:
        yield running
