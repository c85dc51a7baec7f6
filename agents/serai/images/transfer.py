"""Downloads over HTTP that resume, retry and know in advance what they must get."""

from __future__ import annotations

import hashlib
import http.client
import io
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serai.errors import ImageError, IntegrityError, UnavailableError

from .progress import Progress, silent

_CHUNK_BYTES = 1 << 18
_USER_AGENT = "serai-image"
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that are known before they are fetched: their SHA-256 in hexadecimal and their size in bytes."""

    sha256: str
    size: int


class MissingError(ImageError):
    """The server has no such file (404 or 410)."""

    default_reason = "MIRROR_FILE_MISSING"


class Transfer:
    """An HTTP client: proxies, timeouts in seconds, and the pauses in seconds before each further try.

    Pauses count anew whenever bytes arrived, so a long download survives any number of cuts. `proxies` maps
    http and https to a proxy's address; None takes what the environment says (http_proxy, https_proxy,
    no_proxy).
    """

    def __init__(
        self,
        *,
        proxies: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        pauses: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0),
    ) -> None:
        self._timeout, self._pauses = timeout, pauses
        handler = urllib.request.ProxyHandler(None if proxies is None else dict(proxies))
        self._opener = urllib.request.build_opener(handler)
        self._opener.addheaders = [("User-Agent", _USER_AGENT)]

    def read(self, url: str, *, limit: int) -> bytes:
        """Return a small file of unknown content.

        Raises as `fetch` does, and ImageError beyond `limit` bytes.
        """
        for pause in (*self._pauses, None):
            try:
                with self._open(url, 0) as response:
                    data: bytes = response.read(limit + 1)
                break
            except _Transient as problem:
                _pause_or_give_up(url, problem, pause)
        if len(data) > limit:
            raise ImageError(f"{url} is larger than {limit} bytes", reason="MIRROR_UNSUITABLE", url=url)
        return data

    def fetch(self, url: str, blob: Blob, folder: Path, *, step: str, progress: Progress = silent) -> Path:
        """Return the path of `blob` in `folder`, fetched from `url` unless it is there already.

        A file's name is its hash. While it grows it is called ``<hash>.part``; what a stopped download left
        there is continued, and verified like the rest. Raises UnavailableError when the server cannot be
        reached, MissingError when it has no such file, IntegrityError when what it has is not `blob`.
        """
        final = folder / blob.sha256
        if final.exists():
            if _matches(final, blob):
                return final
            final.unlink()
        partial = folder / f"{blob.sha256}.part"
        resumed = partial.exists() and partial.stat().st_size > 0
        try:
            self._complete(url, blob, partial, step, progress)
        except IntegrityError:
            # What an earlier download left may be what is wrong; what this one fetched alone is the server's
            # word.
            if not resumed:
                raise
            self._complete(url, blob, partial, step, progress)
        partial.replace(final)
        return final

    def _complete(self, url: str, blob: Blob, partial: Path, step: str, progress: Progress) -> None:
        failures = 0
        with partial.open("ab", buffering=0) as target:
            while True:
                size = target.tell()
                if size >= blob.size:
                    break
                progress(step, size, blob.size)
                try:
                    self._append(url, blob, target, step, progress)
                except _Transient as problem:
                    failures = 0 if target.tell() > size else failures
                    _pause_or_give_up(
                        url, problem, self._pauses[failures] if failures < len(self._pauses) else None
                    )
                    failures += 1
        if not _matches(partial, blob):
            partial.unlink()
            raise IntegrityError(
                f"{url} is not what the archive's index promises (SHA-256 {blob.sha256}, {blob.size} bytes)",
                hint="try again; if it happens again, use another mirror with --mirror URL",
                reason="ARCHIVE_HASH_MISMATCH",
                url=url,
            )
        progress(step, blob.size, blob.size)

    def _append(self, url: str, blob: Blob, target: io.FileIO, step: str, progress: Progress) -> None:
        with self._open(url, target.tell()) as response:
            if target.tell() and not _continues(response, target.tell()):
                target.truncate(0)
                target.seek(0)
            while target.tell() < blob.size:
                try:
                    chunk = response.read1(min(_CHUNK_BYTES, blob.size - target.tell()))
                except (OSError, http.client.HTTPException) as error:
                    raise _Transient(_describe(error)) from error
                if not chunk:
                    raise _Transient("the connection ended early")
                _write_all(target, chunk)
                progress(step, target.tell(), blob.size)

    def _open(self, url: str, offset: int) -> http.client.HTTPResponse:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        try:
            response: http.client.HTTPResponse = self._opener.open(
                urllib.request.Request(url, headers=headers), timeout=self._timeout
            )
        except urllib.error.HTTPError as error:
            with error:
                raise _status_error(url, error.code, error.reason) from error
        except urllib.error.URLError as error:
            raise _Transient(_describe(error.reason)) from error
        except (OSError, http.client.HTTPException) as error:
            raise _Transient(_describe(error)) from error
        return response


class _Transient(Exception):  # noqa: N818  never leaves this module
    """A try failed in a way that another try may mend."""


def _write_all(target: io.FileIO, data: bytes) -> None:
    # Unbuffered, so that what arrived is on file whenever the download ends; such a write may be short.
    left = memoryview(data)
    while left:
        left = left[target.write(left) :]


def _status_error(url: str, status: int, reason: str) -> Exception:
    if status in _TRANSIENT_STATUS or status == 416:
        return _Transient(f"the server answers {status} {reason}")
    if status in (404, 410):
        return MissingError(
            f"{url} does not exist on this mirror ({status})",
            hint="name the folder that holds dists/ and pool/, usually ending in /debian, with --mirror URL",
            url=url,
        )
    return ImageError(
        f"{url}: the server answers {status} {reason}",
        hint="use another mirror with --mirror URL",
        reason="MIRROR_UNSUITABLE",
        url=url,
    )


def _continues(response: http.client.HTTPResponse, offset: int) -> bool:
    """Tell whether the answer holds the rest of the file from `offset` (RFC 9110, 14.4)."""
    return response.status == 206 and (response.headers.get("Content-Range") or "").startswith(
        f"bytes {offset}-"
    )


def _pause_or_give_up(url: str, problem: _Transient, pause: float | None) -> None:
    if pause is not None:
        time.sleep(pause)
        return
    host = urllib.parse.urlsplit(url).netloc
    raise UnavailableError(
        f"cannot fetch {url}: {problem}",
        hint=f"check the way to {host} (proxy settings?), or use another mirror with --mirror URL",
        reason="MIRROR_UNREACHABLE",
        url=url,
    ) from problem


def _describe(problem: object) -> str:
    if isinstance(problem, TimeoutError):
        return "no answer in time"
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    return str(problem) or type(problem).__name__


def _matches(path: Path, blob: Blob) -> bool:
    if path.stat().st_size != blob.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == blob.sha256
