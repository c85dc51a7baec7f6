from __future__ import annotations

import gzip
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serai.errors import ImageError
from serai.images import deb
from serai.images.deb import read_files

FILES = {"usr/bin/busybox": b"program", "boot/vmlinux-1": b"k" * 3_000_000, "etc/empty": b""}


def everything(_: str) -> bool:
    return True


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [(".xz", lzma.compress), (".gz", gzip.compress), ("", lambda data: data)],
    ids=["xz", "gz", "none"],
)
def test_files_are_read_whatever_the_compression(
    tmp_path: Path, make_deb: Callable[..., bytes], suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    package = tmp_path / "a.deb"
    package.write_bytes(make_deb(FILES, suffix=suffix, pack=pack))
    assert {file.name: file.data for file in read_files(package, everything)} == FILES


def test_only_wanted_files_are_yielded_and_progress_reaches_the_end(
    tmp_path: Path, make_deb: Callable[..., bytes]
) -> None:
    package = tmp_path / "a.deb"
    package.write_bytes(make_deb(FILES))
    reports: list[tuple[str, int, int]] = []
    found = list(
        read_files(
            package, lambda name: name.startswith("boot/"), step="s", progress=lambda *a: reports.append(a)
        )
    )
    assert [file.name for file in found] == ["boot/vmlinux-1"]
    assert reports[-1][0] == "s" and reports[-1][1] == reports[-1][2] > 0


def test_several_xz_streams_one_after_the_other_are_one_file(
    tmp_path: Path, make_deb: Callable[..., bytes]
) -> None:
    def pack(data: bytes) -> bytes:
        return lzma.compress(data[:1000]) + lzma.compress(data[1000:])

    package = tmp_path / "a.deb"
    package.write_bytes(make_deb(FILES, pack=pack))
    assert {file.name: file.data for file in read_files(package, everything)} == FILES


def test_zstd_is_read_or_refused_with_the_reason(tmp_path: Path, make_deb: Callable[..., bytes]) -> None:
    package = tmp_path / "a.deb"
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415
    except ImportError:
        package.write_bytes(make_deb(FILES, suffix=".zst", pack=lambda data: data))
        with pytest.raises(ImageError, match="zstd") as raised:
            list(read_files(package, everything))
        assert "3.14" in raised.value.hint
    else:
        package.write_bytes(make_deb(FILES, suffix=".zst", pack=zstd.compress))
        assert {file.name: file.data for file in read_files(package, everything)} == FILES


@pytest.mark.parametrize(
    "evil",
    [
        member("../../../../tmp/serai-escape", size=0),
        member("/etc/serai-absolute", size=0),
        member("usr/link", tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("usr/hard", tarfile.LNKTYPE, linkname="/etc/passwd"),
        member("dev/sda", tarfile.BLKTYPE, devmajor=8, devminor=0),
        member("dev/pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda info: str(info.name),
)
def test_hostile_members_touch_nothing_and_are_never_taken_for_files(
    tmp_path: Path, make_deb: Callable[..., bytes], evil: tarfile.TarInfo
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    package = folder / "a.deb"
    package.write_bytes(make_deb({"usr/bin/busybox": b"program"}, extra=[evil]))
    found = list(read_files(package, lambda name: name == "usr/bin/busybox"))
    assert [file.data for file in found] == [b"program"]
    assert [path.name for path in folder.iterdir()] == ["a.deb"]
    assert not Path("/tmp/serai-escape").exists() and not Path("/etc/serai-absolute").exists()


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_a_wanted_name_that_is_no_regular_file_is_refused(
    tmp_path: Path, make_deb: Callable[..., bytes], kind: bytes
) -> None:
    package = tmp_path / "a.deb"
    package.write_bytes(make_deb({}, extra=[member("usr/bin/busybox", kind, linkname="/bin/sh")]))
    with pytest.raises(ImageError, match="not a regular file"):
        list(read_files(package, everything))


def test_a_file_of_a_huge_size_is_refused_before_it_is_read(
    tmp_path: Path, make_ar: Callable[..., bytes]
) -> None:
    header = member("usr/bin/busybox", size=1 << 40).tobuf()
    package = tmp_path / "a.deb"
    package.write_bytes(make_ar([("data.tar.xz", lzma.compress(header + bytes(4096)))]))
    with pytest.raises(ImageError, match="more than"):
        list(read_files(package, everything))


def test_a_decompression_bomb_is_stopped(
    tmp_path: Path, make_deb: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deb, "_UNPACKED_LIMIT_BYTES", 1 << 20)
    package = tmp_path / "a.deb"
    package.write_bytes(make_deb({"unwanted": bytes(4 << 20)}))
    with pytest.raises(ImageError, match="unpacks to more than"):
        list(read_files(package, lambda name: name == "usr/bin/busybox"))


def test_xz_that_wants_more_memory_than_any_package_is_refused(
    tmp_path: Path, make_deb: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deb, "_XZ_MEMORY_BYTES", 1 << 20)
    package = tmp_path / "a.deb"
    package.write_bytes(make_deb(FILES))
    with pytest.raises(ImageError, match="damaged"):
        list(read_files(package, everything))


def test_every_truncation_is_a_clear_error(tmp_path: Path, make_deb: Callable[..., bytes]) -> None:
    whole = make_deb({"usr/bin/busybox": b"program" * 50})
    package = tmp_path / "a.deb"
    for length in range(0, len(whole) - 2, 7):
        package.write_bytes(whole[:length])
        with pytest.raises(ImageError, match=r"a\.deb is damaged"):
            list(read_files(package, everything))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=8))
def test_damage_anywhere_is_read_or_a_clear_error(
    tmp_path: Path, make_deb: Callable[..., bytes], position: int, replacement: bytes
) -> None:
    data = bytearray(make_deb({"usr/bin/busybox": b"program" * 50}, suffix="", pack=bytes))
    position %= len(data)
    data[position : position + len(replacement)] = replacement
    package = tmp_path / "a.deb"
    package.write_bytes(data)
    try:
        list(read_files(package, everything))
    except ImageError as error:
        assert "a.deb" in error.message


def test_unknown_compression_is_named(tmp_path: Path, make_deb: Callable[..., bytes]) -> None:
    package = tmp_path / "a.deb"
    package.write_bytes(make_deb(FILES, suffix=".br", pack=bytes))
    with pytest.raises(ImageError, match=r"\.br"):
        list(read_files(package, everything))
