"""A build that is stopped, killed, raced or out of space leaves whole images only; the next one succeeds."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import serai.images.store as store_module
from serai.errors import CapacityError, ImageError
from serai.images import ImageStore, build_debian
from serai.images.transfer import Transfer

pytestmark = pytest.mark.usefixtures("no_gpgv")
KERNEL = "linux-image-6.12.1-test"
STEPS = [
    "read the archive's release",
    "fetch the package list",
    "read the package list",
    "fetch busybox",
    "fetch the kernel",
    "unpack the kernel",
    "assemble the image",
]
# What a person's shell runs, reduced to the library call.
PROGRAM = """
import sys
from pathlib import Path
from serai.images import ImageStore, build_debian
from serai.images.transfer import Transfer
image = build_debian(ImageStore(Path(sys.argv[1])), mirror=sys.argv[2], transfer=Transfer(proxies={}))
print(image.digest)
"""


def start(store: ImageStore, mirror: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(store.root), mirror.url],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.005)


def assert_clean(store: ImageStore) -> None:
    assert store.list() == []
    assert sorted(path.name for path in store.root.iterdir() if path.name not in ("downloads", "lock")) == []
    for path in store.downloads.iterdir():
        assert path.suffix in ("", ".part")


@pytest.mark.parametrize("step", STEPS)
def test_ctrl_c_at_any_step_leaves_nothing_half_built(
    store: ImageStore, mirror: Any, transfer: Transfer, step: str
) -> None:
    def interrupt(name: str, done: int, total: int) -> None:
        if name == step and done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_debian(store, mirror=mirror.url, transfer=transfer, progress=interrupt)
    assert_clean(store)
    build_debian(store, mirror=mirror.url, transfer=transfer).verify()


def test_ctrl_c_while_the_image_is_written_leaves_nothing_half_built(
    store: ImageStore, mirror: Any, transfer: Transfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = store_module._write, []

    def interrupt(path: Path, data: bytes) -> None:
        written.append(path.name)
        if path.name == "manifest.json":
            raise KeyboardInterrupt
        real(path, data)

    monkeypatch.setattr(store_module, "_write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_debian(store, mirror=mirror.url, transfer=transfer)
    assert written == ["kernel", "initramfs", "manifest.json"]
    assert_clean(store)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["SIGINT", "SIGKILL"])
def test_a_builder_stopped_in_the_middle_of_a_download_is_continued(
    store: ImageStore, mirror: Any, transfer: Transfer, archive: Any, number: signal.Signals
) -> None:
    path, sent = archive.pool(KERNEL), 1500
    mirror.faults[path] = [("stall", sent)]
    builder = start(store, mirror)
    try:
        assert mirror.stalled.wait(20)
        wait_for(lambda: any(part.stat().st_size == sent for part in store.downloads.glob("*.part")))
        builder.send_signal(number)
        builder.communicate(timeout=20)
    finally:
        builder.kill()
        builder.wait()
    assert builder.returncode != 0 and store.list() == []
    if number == signal.SIGINT:
        assert_clean(store)
    build_debian(store, mirror=mirror.url, transfer=transfer).verify()
    assert not (store.root / "staging").exists()
    assert mirror.asked(path) == [None, f"bytes={sent}-"]


def test_builders_at_the_same_time_fetch_once_and_agree(store: ImageStore, mirror: Any, archive: Any) -> None:
    builders = [start(store, mirror) for _ in range(3)]
    results = [builder.communicate(timeout=60) for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0, 0], results
    assert len({output for output, _ in results}) == 1
    assert len(mirror.asked(archive.pool(KERNEL))) == 1
    store.get("debian").verify()


def test_a_builder_that_must_wait_says_so(
    store: ImageStore, mirror: Any, transfer: Transfer, archive: Any
) -> None:
    mirror.faults[archive.pool(KERNEL)] = [("stall", 10)]
    first = start(store, mirror)
    steps: list[str] = []

    def kill_the_other(name: str, done: int, total: int) -> None:
        steps.append(name)
        if name == "wait for another build":
            first.kill()

    try:
        assert mirror.stalled.wait(20)
        build_debian(store, mirror=mirror.url, transfer=transfer, progress=kill_the_other).verify()
    finally:
        first.kill()
        first.communicate()
    assert steps[0] == "wait for another build"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("file", ["kernel", "initramfs", "manifest.json", "name"])
def test_a_full_disk_while_writing_is_one_clear_message(
    store: ImageStore, mirror: Any, transfer: Transfer, file: str, number: int
) -> None:
    real = store_module._write

    def write(path: Path, data: bytes) -> None:
        if path.name == file:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(number, os.strerror(number))
        real(path, data)

    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(CapacityError, match="the disk is full") as raised,
    ):
        patch.setattr(store_module, "_write", write)
        build_debian(store, mirror=mirror.url, transfer=transfer)
    assert str(store.root) in raised.value.message and "SERAI_IMAGES" in raised.value.hint
    assert raised.value.reason == "DISK_FULL" and store.list() == [] and not (store.root / "staging").exists()
    build_debian(store, mirror=mirror.url, transfer=transfer).verify()


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of the size given in bytes; only root can make one."""
    folder = tmp_path / "small"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={request.param}".encode()
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options) != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    assert libc.umount2(os.fsencode(folder), 0) == 0


@pytest.mark.parametrize("small_disk", [8 << 10, 64 << 10], indirect=True, ids=["downloading", "writing"])
def test_a_disk_that_is_really_full_is_one_clear_message(
    small_disk: Path, mirror: Any, transfer: Transfer
) -> None:
    store = ImageStore(small_disk / "store")
    with pytest.raises(CapacityError, match="the disk is full"):
        build_debian(store, mirror=mirror.url, transfer=transfer)
    assert_clean(store)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path, mirror: Any, transfer: Transfer) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ImageError, match="cannot write to") as raised:
            build_debian(ImageStore(tmp_path / "store"), mirror=mirror.url, transfer=transfer)
    finally:
        tmp_path.chmod(0o700)
    assert "SERAI_IMAGES" in raised.value.hint


def test_a_store_that_is_a_file_is_told(tmp_path: Path, mirror: Any, transfer: Transfer) -> None:
    (tmp_path / "store").write_text("not a folder")
    with pytest.raises(ImageError, match="cannot write to") as raised:
        build_debian(ImageStore(tmp_path / "store"), mirror=mirror.url, transfer=transfer)
    assert "SERAI_IMAGES" in raised.value.hint
