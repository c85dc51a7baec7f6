"""What the guest can observe holds in every tier: these tests run interpreted and translated."""

from __future__ import annotations

import pytest

from serai.machine.core import Core
from serai.machine.hart import Execution
from serai.machine.native.translator.store import load_stencils

IN_EVERY_TIER = {"test_core", "test_memory", "test_float", "test_translation"}
STENCILS_SECONDS = 300  # the first time ever, on a busy machine


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__.rpartition(".")[2] in IN_EVERY_TIER and "tier" in metafunc.fixturenames:
        metafunc.parametrize("tier", list(Execution), ids=[tier.value for tier in Execution], indirect=True)


@pytest.fixture(autouse=True)
def tier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Execution:
    """Harts that a test makes without saying how they execute execute so."""
    execution: Execution = getattr(request, "param", Execution.TRANSLATE)
    if execution is Execution.TRANSLATE:
        assert load_stencils().wait(STENCILS_SECONDS)
    defaults = Core.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "execution", execution)
    return execution
