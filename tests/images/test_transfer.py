from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from serai.errors import ImageError, IntegrityError, UnavailableError
from serai.images.transfer import Blob, MissingError, Transfer

if TYPE_CHECKING:
    Mirror = Any

DATA = bytes(range(256)) * 4000
FILE = "pool/file"


@pytest.fixture
def blob(mirror: Mirror) -> Blob:
    import hashlib  # noqa: PLC0415

    mirror.archive.files[FILE] = DATA
    return Blob(hashlib.sha256(DATA).hexdigest(), len(DATA))


def fetch(transfer: Transfer, mirror: Mirror, blob: Blob, folder: Path) -> Path:
    return transfer.fetch(f"{mirror.url}/{FILE}", blob, folder, step="fetch")


def test_a_file_is_fetched_once_and_reports_progress(
    transfer: Transfer, mirror: Mirror, blob: Blob, tmp_path: Path
) -> None:
    reports: list[tuple[str, int, int]] = []
    for _ in range(2):
        path = transfer.fetch(
            f"{mirror.url}/{FILE}", blob, tmp_path, step="fetch", progress=lambda *a: reports.append(a)
        )
        assert path.read_bytes() == DATA and path.name == blob.sha256
    assert len(mirror.asked(FILE)) == 1
    assert reports[0] == ("fetch", 0, len(DATA)) and reports[-1] == ("fetch", len(DATA), len(DATA))


def test_cut_connections_are_continued_where_they_ended(
    transfer: Transfer, mirror: Mirror, blob: Blob, tmp_path: Path
) -> None:
    # More cuts than there are retries without progress: each gained bytes, so none of them counts.
    mirror.faults[FILE] = [("cut", 100_000)] * 5
    assert fetch(transfer, mirror, blob, tmp_path).read_bytes() == DATA
    assert mirror.asked(FILE) == [None, *(f"bytes={n * 100_000}-" for n in range(1, 6))]


def test_an_earlier_download_is_continued(
    transfer: Transfer, mirror: Mirror, blob: Blob, tmp_path: Path
) -> None:
    (tmp_path / f"{blob.sha256}.part").write_bytes(DATA[:1234])
    assert fetch(transfer, mirror, blob, tmp_path).read_bytes() == DATA
    assert mirror.asked(FILE) == ["bytes=1234-"]


def test_a_server_without_ranges_starts_again(
    transfer: Transfer, mirror: Mirror, blob: Blob, tmp_path: Path
) -> None:
    (tmp_path / f"{blob.sha256}.part").write_bytes(DATA[:1234])
    mirror.faults[FILE] = [("whole",)]
    assert fetch(transfer, mirror, blob, tmp_path).read_bytes() == DATA


@pytest.mark.parametrize(
    "left", [b"wrong" * 100, b"w" * len(DATA), b"w" * (len(DATA) + 1)], ids=["short", "full", "long"]
)
def test_a_damaged_earlier_download_is_fetched_anew(
    transfer: Transfer, mirror: Mirror, blob: Blob, tmp_path: Path, left: bytes
) -> None:
    (tmp_path / f"{blob.sha256}.part").write_bytes(left)
    assert fetch(transfer, mirror, blob, tmp_path).read_bytes() == DATA


def test_a_damaged_finished_download_is_fetched_anew(
    transfer: Transfer, mirror: Mirror, blob: Blob, tmp_path: Path
) -> None:
    (tmp_path / blob.sha256).write_bytes(b"w" * len(DATA))
    assert fetch(transfer, mirror, blob, tmp_path).read_bytes() == DATA


@pytest.mark.parametrize(
    "served", [b"x" * len(DATA), DATA + b"more", DATA[:-1] + b"?"], ids=["other", "longer", "one byte"]
)
def test_what_does_not_match_is_refused_and_not_kept(
    transfer: Transfer, mirror: Mirror, blob: Blob, tmp_path: Path, served: bytes
) -> None:
    mirror.archive.files[FILE] = served
    if served.startswith(DATA):
        # Only as much as was promised is taken, and that much is right.
        assert fetch(transfer, mirror, blob, tmp_path).read_bytes() == DATA
        return
    with pytest.raises(IntegrityError, match="not what the archive's index promises") as raised:
        fetch(transfer, mirror, blob, tmp_path)
    assert "--mirror" in raised.value.hint and raised.value.reason == "ARCHIVE_HASH_MISMATCH"
    assert list(tmp_path.iterdir()) == []


def test_a_file_shorter_than_promised_ends(
    transfer: Transfer, mirror: Mirror, blob: Blob, tmp_path: Path
) -> None:
    mirror.archive.files[FILE] = DATA[:1000]
    with pytest.raises((UnavailableError, IntegrityError)):
        fetch(transfer, mirror, blob, tmp_path)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_in_trouble_is_asked_again(
    transfer: Transfer, mirror: Mirror, blob: Blob, tmp_path: Path, status: int
) -> None:
    mirror.faults[FILE] = [status, status]
    assert fetch(transfer, mirror, blob, tmp_path).read_bytes() == DATA


def test_a_server_in_lasting_trouble_is_given_up(
    transfer: Transfer, mirror: Mirror, blob: Blob, tmp_path: Path
) -> None:
    mirror.faults[FILE] = [503] * 10
    with pytest.raises(UnavailableError, match="503"):
        fetch(transfer, mirror, blob, tmp_path)
    assert len(mirror.asked(FILE)) == 3


def test_a_missing_file_is_told_at_once(
    transfer: Transfer, mirror: Mirror, blob: Blob, tmp_path: Path
) -> None:
    with pytest.raises(MissingError, match=r"pool/none does not exist .*404"):
        transfer.fetch(f"{mirror.url}/pool/none", blob, tmp_path, step="fetch")
    assert len(mirror.asked("pool/none")) == 1


def test_a_refusal_is_told_at_once(transfer: Transfer, mirror: Mirror, blob: Blob, tmp_path: Path) -> None:
    mirror.faults[FILE] = [403]
    with pytest.raises(ImageError, match="403"):
        fetch(transfer, mirror, blob, tmp_path)


def test_nobody_listening_is_a_clear_error(transfer: Transfer, blob: Blob, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/debian/x"
        with pytest.raises(UnavailableError, match="Connection refused") as raised:
            transfer.fetch(url, blob, tmp_path, step="fetch")
    assert raised.value.reason == "MIRROR_UNREACHABLE" and "--mirror" in raised.value.hint


def test_a_host_that_does_not_exist_is_a_clear_error(transfer: Transfer) -> None:
    with pytest.raises(UnavailableError, match=r"no-such-host\.invalid"):
        transfer.read("http://no-such-host.invalid/debian/x", limit=10)


def test_silence_is_a_clear_error(mirror: Mirror, blob: Blob, tmp_path: Path) -> None:
    mirror.faults[FILE] = [("stall", 0)] * 2
    with pytest.raises(UnavailableError, match="no answer in time"):
        fetch(Transfer(proxies={}, timeout=0.1, pauses=(0.01,)), mirror, blob, tmp_path)


def test_a_small_file_has_a_limit(transfer: Transfer, mirror: Mirror, blob: Blob) -> None:
    assert transfer.read(f"{mirror.url}/{FILE}", limit=len(DATA)) == DATA
    with pytest.raises(ImageError, match="larger than"):
        transfer.read(f"{mirror.url}/{FILE}", limit=len(DATA) - 1)


def test_a_proxy_is_used_when_it_is_named(mirror: Mirror) -> None:
    mirror.archive.files["http://far.example/debian/x"] = b"by proxy"
    client = Transfer(proxies={"http": mirror.url.removesuffix("/debian")}, timeout=5.0, pauses=())
    assert client.read("http://far.example/debian/x", limit=100) == b"by proxy"


def test_the_environments_proxy_is_used_when_none_is_named(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.archive.files["http://far.example/debian/x"] = b"by proxy"
    monkeypatch.setenv("http_proxy", mirror.url.removesuffix("/debian"))
    monkeypatch.delenv("no_proxy", raising=False)
    assert Transfer(timeout=5.0, pauses=()).read("http://far.example/debian/x", limit=100) == b"by proxy"
