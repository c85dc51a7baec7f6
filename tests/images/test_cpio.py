from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.errors import ImageError
from serai.images import CpioEntry, overlay, read_cpio, write_cpio
from serai.images.cpio import character_device, directory, regular, symlink

part = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12
).filter(lambda text: text not in (".", "..") and text != "TRAILER!!!")
files = st.dictionaries(part, st.tuples(st.binary(max_size=40), st.integers(0, 0o7777)), max_size=8)


@given(files)
def test_what_is_written_is_read_back(content: dict[str, tuple[bytes, int]]) -> None:
    entries = [regular(name, data, mode) for name, (data, mode) in content.items()]
    assert list(read_cpio(write_cpio(entries))) == sorted(entries, key=lambda entry: entry.name)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_archive_or_a_clear_error(data: bytes) -> None:
    try:
        list(read_cpio(data))
    except ImageError as error:
        assert "byte" in error.message


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_damaged_archive_is_an_archive_or_a_clear_error(position: int, value: int) -> None:
    archive = bytearray(write_cpio([regular("a/b", b"content"), symlink("l", "a/b")]))
    archive[position % len(archive)] = value
    try:
        list(read_cpio(bytes(archive)))
    except ImageError as error:
        assert "byte" in error.message


def test_every_kind_of_entry_survives() -> None:
    entries = [character_device("dev/console", 5, 1), directory("dev"), symlink("sh", "busybox")]
    assert {entry.name: entry for entry in read_cpio(write_cpio(entries))} == {
        entry.name: entry for entry in entries
    }


def test_the_same_entries_in_another_order_give_the_same_bytes() -> None:
    entries = [regular("b", b"2"), regular("a/x", b"1"), directory("a")]
    assert write_cpio(entries) == write_cpio(entries[::-1])


def test_missing_directories_are_added_before_what_they_hold() -> None:
    names = [entry.name for entry in read_cpio(write_cpio([regular("etc/serai/x", b"")]))]
    assert names == ["etc", "etc/serai", "etc/serai/x"]


def test_header_and_data_are_aligned_as_the_kernel_wants_them() -> None:
    archive = write_cpio([regular("abc", b"12345")])
    assert archive.startswith(b"070701") and len(archive) % 4 == 0
    assert archive.index(b"12345") % 4 == 0
    assert archive[54:62] == b"00000005" and archive[46:54] == b"00000000"


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../up", "a//b", "a/./b", "a/..", "nul\0"])
def test_names_that_are_not_plain_are_refused(name: str) -> None:
    with pytest.raises(ImageError, match="cannot be named"):
        write_cpio([CpioEntry(name, stat.S_IFREG)])


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(ImageError, match="two initramfs entries"):
        write_cpio([regular("a", b""), regular("a", b"")])


def test_overlays_follow_an_archive_and_come_later() -> None:
    base = write_cpio([regular("etc/serai/hostname", b"serai\n")])
    both = list(read_cpio(base + overlay(hostname="r1", startup="true\n", files={"etc/motd": b"hi"})))
    assert [entry.data for entry in both if entry.name == "etc/serai/hostname"] == [b"serai\n", b"r1\n"]
    assert {"etc/serai/startup", "etc/motd"} <= {entry.name for entry in both}
