"""The generated code: portable, loadable, cached; the restricted language refuses what it lacks."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from serai.machine.errors import CodeError
from serai.machine.hart import ExitReason
from serai.machine.native import build, layout
from serai.machine.native.language import LanguageError, compile_function
from serai.machine.native.loader import load_object

CHILD = "import sys; from serai.machine.native.build import load_machine; load_machine(); "
CHILD += "print('llvmlite' in sys.modules)"


@pytest.fixture(scope="module")
def baseline_object() -> bytes:
    return build.compile_machine(baseline=True)


def test_code_for_any_x86_64_needs_nothing_from_outside(baseline_object: bytes) -> None:
    symbols = load_object(baseline_object).symbols
    assert {"serai_run", *build.EXPORTED} <= set(symbols)


def test_exit_reasons_are_those_of_the_hart_protocol() -> None:
    codes = {name[5:]: value for name, value in vars(layout).items() if name.startswith("EXIT_")}
    assert codes == {reason.name: reason.value for reason in ExitReason}


def start(cache: Path) -> str:
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_warm_start_does_not_import_llvm_and_a_damaged_cache_is_replaced(tmp_path: Path) -> None:
    assert start(tmp_path) == "True"
    assert start(tmp_path) == "False"
    (cached,) = (tmp_path / "serai" / "machine").iterdir()
    whole = cached.read_bytes()
    cached.write_bytes(whole[:-100])
    assert start(tmp_path) == "True"
    assert cached.stat().st_size == len(whole)


def test_a_cache_that_cannot_be_written_is_a_warning(
    tmp_path: Path, baseline_object: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "serai").write_text("not a directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "compile_machine", lambda: baseline_object)
    with caplog.at_level(logging.WARNING):
        assert build.load_machine.__wrapped__().symbols["serai_run"]
    assert "cannot keep" in caplog.text


def test_a_foreign_object_is_refused() -> None:
    with pytest.raises(CodeError, match="not an x86-64 ELF"):
        load_object(b"MZ" + bytes(100))


def uses_a_list(a: int) -> list[int]:
    return [a]


def calls_a_method(a: str) -> str:
    return a.upper()


@pytest.mark.parametrize("function", [uses_a_list, calls_a_method])
def test_the_language_names_what_it_does_not_have(function: Callable[..., object]) -> None:
    with pytest.raises(LanguageError, match=rf"{function.__name__}, line 2"):
        compile_function(function, name="f", constants={})
