"""The official riscv-tests, from a local checkout: `pytest tests/conformance --riscv-tests=DIR`."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SUITES = ("rv64ui", "rv64um", "rv64ua", "rv64uf", "rv64ud", "rv64uc", "rv64si", "rv64mi")
COMPILERS = ("riscv64-unknown-elf-gcc", "riscv64-linux-gnu-gcc")
# Without --build-id=none a note section lies at the reset address.
FLAGS = [
    *("-march=rv64g", "-mabi=lp64", "-static", "-mcmodel=medany", "-fvisibility=hidden", "-nostdlib"),
    *("-nostartfiles", "-fno-pic", "-no-pie", "-w", "-Wl,--build-id=none", "-Imacros/scalar"),
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--riscv-tests", default="", help="a checkout of riscv-tests with its env submodule")


def listed_tests(checkout: Path) -> list[str]:
    """The names of the tests for what Serai advertises, from the suites' own lists."""
    names = []
    for suite in SUITES:
        text = (checkout / "isa" / suite / "Makefrag").read_text().replace("\\\n", " ")
        found = re.search(rf"{suite}_sc_tests\s*=\s*([^\n]*)", text)
        assert found, f"{suite}/Makefrag has no list of tests"
        for environment in ("p", "v"):
            if f"{suite}_{environment}_tests" in text:
                names += [f"{suite}-{environment}-{test}" for test in found[1].split()]
    return names


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "riscv_test" not in metafunc.fixturenames:
        return
    directory = metafunc.config.getoption("--riscv-tests", default="")
    if not directory:
        reason = "no checkout of riscv-tests given (--riscv-tests=DIR)"
        metafunc.parametrize("riscv_test", [pytest.param("", marks=pytest.mark.skip(reason=reason))])
        return
    checkout = Path(directory).resolve()
    if not (checkout / "isa" / "rv64ui").is_dir() or not (checkout / "env" / "p").is_dir():
        raise pytest.UsageError(f"{checkout} is no checkout of riscv-tests with its env submodule")
    metafunc.parametrize("riscv_test", listed_tests(checkout))


def build_directory(checkout: Path) -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    cache = Path(root) if root else Path.home() / ".cache"
    return cache / "serai" / "riscv-tests" / hashlib.sha256(str(checkout).encode()).hexdigest()[:16]


def build(checkout: Path, name: str, target: Path) -> None:
    """Compile one test; skips when no compiler is installed."""
    compiler = next((path for path in map(shutil.which, COMPILERS) if path), None)
    if compiler is None:
        pytest.skip(
            f"{name} is not built in {checkout / 'isa'} and none of {', '.join(COMPILERS)} is installed"
        )
    suite, environment, test = name.split("-", 2)
    source = f"{suite}/{test}.S"
    arguments = [f"-I../env/{environment}", f"-T../env/{environment}/link.ld"]
    if environment == "v":
        # A Linux tool chain without lp64 headers wants this file to exist; nothing of libc is used.
        stubs = target.parent / "include" / "gnu"
        stubs.mkdir(parents=True, exist_ok=True)
        (stubs / "stubs-lp64.h").touch()
        arguments += ["-std=gnu99", "-O2", "-DENTROPY=0x1234567", f"-I{stubs.parent}"]
        arguments += [f"../env/v/{file}" for file in ("entry.S", "string.c", "vm.c")]
    temporary = target.with_suffix(f".{os.getpid()}")
    command = [compiler, *FLAGS, *arguments, source, "-o", str(temporary)]
    subprocess.run(command, cwd=checkout / "isa", check=True)
    temporary.replace(target)


@pytest.fixture
def riscv_elf(riscv_test: str, request: pytest.FixtureRequest) -> Path:
    """The ELF file of a test: prebuilt in the checkout, or built into the cache."""
    checkout = Path(request.config.getoption("--riscv-tests")).resolve()
    prebuilt = checkout / "isa" / riscv_test
    if prebuilt.is_file():
        return prebuilt
    target = build_directory(checkout) / riscv_test
    target.parent.mkdir(parents=True, exist_ok=True)
    suite, _, test = riscv_test.split("-", 2)
    source = checkout / "isa" / suite / f"{test}.S"
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        build(checkout, riscv_test, target)
    return target
