from __future__ import annotations

import lzma
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path

import pytest

from serai.errors import ImageError
from serai.images.archive import Package, Release, dependency, parse_release, read_packages
from serai.images.transfer import Blob

DIGEST = "ab" * 32


def release(**fields: str) -> Release:
    base = {"origin": "Debian", "codename": "trixie", "suite": "stable", "architectures": "amd64 riscv64"}
    return Release({**base, **fields}, {})


def stanza(name: str, **fields: str) -> str:
    values = {
        "Package": name,
        "Version": "1",
        "Filename": f"pool/{name}.deb",
        "Size": "10",
        "SHA256": DIGEST,
        **fields,
    }
    return "".join(f"{key}: {value}\n" for key, value in values.items())


def index(folder: Path, text: str) -> Path:
    path = folder / "Packages.xz"
    path.write_bytes(lzma.compress(text.encode()))
    return path


def test_only_the_sha256_part_of_a_release_is_used() -> None:
    text = f"Origin: Debian\nMD5Sum:\n {'0' * 32} 5 main/x\nSHA256:\n {DIGEST} 7 main/x\n"
    text += f" {DIGEST.upper()} 8 main/y\n"
    assert parse_release(text).files == {"main/x": Blob(DIGEST, 7), "main/y": Blob(DIGEST, 8)}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no colon\n",
        "Origin: Debian\n",
        "SHA256:\n short 1 x\n",
        f"SHA256:\n {DIGEST} -1 x\n",
        f"SHA256:\n {DIGEST} 1\n",
    ],
)
def test_a_malformed_release_is_a_clear_error(text: str) -> None:
    with pytest.raises(ImageError, match="Release is malformed"):
        parse_release(text)


def test_a_release_is_accepted_by_code_name_and_by_suite() -> None:
    release().require(suite="trixie", architecture="riscv64")
    release().require(suite="stable", architecture="riscv64")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"origin": "Ubuntu"}, "calls itself 'Ubuntu'"),
        ({"codename": "bookworm"}, "'bookworm' where 'trixie'"),
        ({"architectures": "amd64"}, "no packages for riscv64"),
        ({"valid-until": "Sat, 01 Jan 2022 00:00:00 UTC"}, "out of date"),
        ({"valid-until": "soon"}, "no date"),
    ],
)
def test_an_archive_that_does_not_serve_is_refused(fields: dict[str, str], problem: str) -> None:
    with pytest.raises(ImageError, match=problem):
        release(**fields).require(
            suite="trixie", architecture="riscv64", now=datetime(2026, 1, 1, tzinfo=UTC)
        )


def test_wanted_packages_are_found_and_the_last_version_counts(tmp_path: Path) -> None:
    text = "\n".join(
        [stanza("a"), stanza("ab"), stanza("b", Version="1"), stanza("b", Version="2", Depends="c, d | e")]
    )
    found = read_packages(index(tmp_path, text), ["a", "b", "missing"])
    assert {name: package.version for name, package in found.items()} == {"a": "1", "b": "2"}
    assert found["b"].depends == "c, d | e" and found["a"].blob == Blob(DIGEST, 10)


def test_a_large_index_passes_through_little_memory(tmp_path: Path) -> None:
    path = index(
        tmp_path, "\n".join(stanza(f"p{number}", Description="x" * 1000) for number in range(20_000))
    )
    tracemalloc.start()
    try:
        found = read_packages(path, ["p19999"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # 22 MB of text; the decoder alone has a window of 8 MB.
    assert found and peak < 10 << 20


@pytest.mark.parametrize(
    "fields",
    [
        {"Filename": "../../../etc/passwd"},
        {"Filename": "/etc/passwd"},
        {"SHA256": "zz"},
        {"Size": "many"},
        {"Size": "-1"},
    ],
)
def test_a_hostile_entry_is_a_clear_error(tmp_path: Path, fields: dict[str, str]) -> None:
    with pytest.raises(ImageError, match="Packages is malformed"):
        read_packages(index(tmp_path, stanza("a", **fields)), ["a"])


def test_damaged_and_endless_indexes_are_clear_errors(tmp_path: Path) -> None:
    whole = index(tmp_path, stanza("a") * 50).read_bytes()
    path = tmp_path / "Packages.xz"
    for data in (whole[:-10], b"", b"no xz", whole[:40] + b"\xff" * 8 + whole[48:]):
        path.write_bytes(data)
        with pytest.raises(ImageError, match="malformed"):
            read_packages(path, ["a"])
    with pytest.raises(ImageError, match="larger than"):
        read_packages(index(tmp_path, "x" * (3 << 20)), ["a"])


def test_the_versioned_kernel_is_taken_from_the_dependency() -> None:
    package = Package(
        "linux-image-riscv64", "1", "f", Blob(DIGEST, 1), "x (>= 1), linux-image-6.12-riscv64 (= 6.12-1)"
    )
    assert dependency(package, "linux-image-") == "linux-image-6.12-riscv64"
    with pytest.raises(ImageError, match="depends on no package"):
        dependency(package, "busybox")
