"""Guards of the layout: what one careless file would break for everybody."""

from __future__ import annotations

import importlib
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import serai

ROOT = Path(__file__).resolve().parent.parent
SOURCE_ROOTS = ("proto", "agents", "controller")
PORTIONS = sorted(
    path
    for root in SOURCE_ROOTS
    for path in (ROOT / root / "serai").iterdir()
    if path.is_dir() and path.name != "__pycache__"
)


def test_serai_is_a_namespace_that_nobody_owns() -> None:
    assert serai.__file__ is None
    assert not [root for root in SOURCE_ROOTS if (ROOT / root / "serai/__init__.py").exists()]


@pytest.mark.parametrize("portion", PORTIONS, ids=lambda path: path.name)
def test_every_portion_is_a_typed_documented_package(portion: Path) -> None:
    assert (portion / "py.typed").exists()
    module = importlib.import_module(f"serai.{portion.name}")
    assert module.__file__ == str(portion / "__init__.py")
    assert module.__doc__


def test_every_portion_is_under_the_import_rules() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert set(settings["root_packages"]) == {f"serai.{portion.name}" for portion in PORTIONS}


def test_generated_stubs_are_not_tracked() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert tracked
    assert not [name for name in tracked if re.search(r"_pb2(_grpc)?\.pyi?$", name)]


def test_contracts_live_in_the_folder_of_their_package() -> None:
    for contract in (ROOT / "proto").rglob("*.proto"):
        package = re.search(r"^package ([\w.]+);", contract.read_text(), re.MULTILINE)
        assert package is not None, contract
        assert contract.parent.relative_to(ROOT / "proto").as_posix() == package[1].replace(".", "/")
