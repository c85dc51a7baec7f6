"""Where images live: a folder addressed by content, with names that point into it.

::

    ROOT/names/debian            the digest that the name stands for
    ROOT/sha256/<hex>/           one image: manifest.json, kernel, initramfs; never changed once it is there
    ROOT/downloads/<hex>         packages by their hash; <hex>.part while they grow
    ROOT/staging/                an image being built; swept by the next builder
    ROOT/lock                    held by the builder

Everything appears by an atomic rename, so a reader needs no lock and never sees half an image.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serai.errors import ImageError, IntegrityError

BUILD_HINT = "build it with: serai image build debian"
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_KERNEL, _INITRAMFS, _MANIFEST = "kernel", "initramfs", "manifest.json"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(_Strict):
    """One file of an image: SHA-256 in hexadecimal, size in bytes."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class SourcePackage(_Strict):
    """A package that an image was made from; `sha256` is that of the .deb file."""

    name: str
    version: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)
    url: str


class Manifest(_Strict):
    """What ``manifest.json`` holds. `format` is the version of this very structure."""

    format: Literal[1] = 1
    name: str
    kernel: FileRecord
    initramfs: FileRecord
    command_line: str
    kernel_release: str
    architecture: str
    suite: str
    created: datetime
    sources: tuple[SourcePackage, ...]
    signers: tuple[str, ...] = ()
    unverified_because: str = ""
    recipe: str

    def digest(self) -> str:
        """Return the image's digest: of what a guest gets, not of where or when it was made."""
        content = {
            "kernel": self.kernel.sha256,
            "initramfs": self.initramfs.sha256,
            "command_line": self.command_line,
        }
        return "sha256:" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Image:
    """A built image: what a guest boots from. `folder` holds its files."""

    manifest: Manifest
    folder: Path
    digest: str

    @property
    def name(self) -> str:
        """The name it was built under."""
        return self.manifest.name

    @property
    def kernel(self) -> Path:
        """The kernel: a raw riscv64 ``Image``."""
        return self.folder / _KERNEL

    @property
    def initramfs(self) -> Path:
        """The initramfs: uncompressed newc cpio, to which `serai.images.overlay` archives may be appended."""
        return self.folder / _INITRAMFS

    @property
    def command_line(self) -> str:
        """The kernel command line that suits the image."""
        return self.manifest.command_line

    @property
    def resizable(self) -> bool:
        """Whether guests of it have Serai's host channel and a balloon: all that Serai makes of packages."""
        return bool(self.manifest.recipe) and self.manifest.initramfs.size > 0

    @property
    def kernel_release(self) -> str:
        """What ``uname -r`` says in the guest."""
        return self.manifest.kernel_release

    @property
    def size(self) -> int:
        """Bytes of kernel and initramfs together."""
        return self.manifest.kernel.size + self.manifest.initramfs.size

    @property
    def created(self) -> datetime:
        """When it was built (UTC)."""
        return self.manifest.created

    @property
    def sources(self) -> tuple[SourcePackage, ...]:
        """The packages it was made from."""
        return self.manifest.sources

    @property
    def signature_verified(self) -> bool:
        """Whether the archive's signature was verified, not only its chain of hashes."""
        return bool(self.manifest.signers)

    @property
    def verification(self) -> str:
        """How far the packages' origin was verified, for people."""
        if self.signature_verified:
            return "signed by Debian"
        return f"chain of hashes only, no signature: {self.manifest.unverified_because}"

    def verify(self) -> None:
        """Hash the files again. Raises IntegrityError when one is not what the manifest says."""
        for path, record in ((self.kernel, self.manifest.kernel), (self.initramfs, self.manifest.initramfs)):
            try:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise ImageError(f"cannot read {path}: {error.strerror}", hint=BUILD_HINT) from error
            if digest != record.sha256:
                raise IntegrityError(
                    f"{path} is not what its manifest says",
                    hint="build it again with: serai image build debian --refresh",
                    reason="IMAGE_DAMAGED",
                    image=self.name,
                )


def default_root() -> Path:
    """Return ``$SERAI_IMAGES``, else ``serai/images`` in the user's cache folder (XDG Base Directory)."""
    if chosen := os.environ.get("SERAI_IMAGES"):
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says to ignore relative paths.
    base = Path(cache) if cache.startswith("/") else Path.home() / ".cache"
    return base / "serai" / "images"


class ImageStore:
    """The images below `root` (default: `default_root`). Reading needs no lock and creates nothing."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_root()
        self.downloads = self.root / "downloads"
        self._names = self.root / "names"
        self._objects = self.root / "sha256"
        self._staging = self.root / "staging"

    def list(self) -> list[Image]:
        """Return the images that names point to, sorted by name; damaged ones are left out."""
        found = []
        for path in sorted(self._names.glob("*")) if self._names.is_dir() else []:
            try:
                found.append(self.get(path.name))
            except ImageError:
                continue
        return found

    def get(self, name: str) -> Image:
        """Return the image of a name.

        Raises ImageError, with the command that builds it, when it is not there.
        """
        if not _NAME.fullmatch(name):
            raise ImageError(f"{name!r} is not the name of an image", hint="serai image list shows the names")
        try:
            digest = (self._names / name).read_text("ascii").strip()
        except (OSError, UnicodeError) as error:
            known = ", ".join(path.name for path in self._names.glob("*")) or "none"
            raise ImageError(
                f"there is no image {name!r} in {self.root} (there: {known})", hint=BUILD_HINT, image=name
            ) from error
        return self._load(name, digest)

    def _load(self, name: str, digest: str) -> Image:
        match = _DIGEST.fullmatch(digest)
        folder = self._objects / (match[1] if match else "-")
        try:
            manifest = Manifest.model_validate_json((folder / _MANIFEST).read_bytes())
            sizes = [(folder / file).stat().st_size for file in (_KERNEL, _INITRAMFS)]
        except (OSError, ValidationError) as error:
            raise self._damaged(name, "its files are missing or its manifest cannot be read") from error
        if sizes != [manifest.kernel.size, manifest.initramfs.size]:
            raise self._damaged(name, "a file has the wrong size")
        if manifest.digest() != digest:
            raise self._damaged(name, "its manifest does not match its digest")
        return Image(manifest, folder, digest)

    def _damaged(self, name: str, problem: str) -> ImageError:
        return ImageError(
            f"the image {name!r} in {self.root} is damaged: {problem}",
            hint=BUILD_HINT,
            reason="IMAGE_DAMAGED",
            image=name,
        )

    @contextmanager
    def building(self, on_wait: Callable[[], None] = lambda: None) -> Iterator[Path]:
        """Hold the builder's lock and yield an empty folder for the work, which is gone afterwards.

        Calls `on_wait` once when another builder is at work, then waits for it. The kernel releases the lock
        when its holder dies, so a killed builder blocks nobody, and the next one sweeps what it left.
        """
        self.downloads.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(lock, fcntl.LOCK_EX)
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging.mkdir()
            try:
                yield self._staging
            finally:
                shutil.rmtree(self._staging, ignore_errors=True)

    def prune(self) -> int:
        """Remove what nothing names any more: replaced images, and packages that no image here was made from.

        Returns the bytes freed. Guests that run are not disturbed; one that was created from a removed image
        cannot be started again. Waits for a builder to finish.
        """
        freed = 0
        with self.building():
            images = self.list()
            kept = {image.folder for image in images} | {
                self.downloads / source.sha256 for image in images for source in image.sources
            }
            found = [*self.downloads.iterdir(), *(self._objects.iterdir() if self._objects.is_dir() else ())]
            for path in found:
                if path not in kept:
                    freed += _remove(path)
        return freed

    def publish(self, manifest: Manifest, kernel: bytes, initramfs: bytes, staging: Path) -> Image:
        """Make an image of these bytes and point its name to it. Only inside `building`, with its folder."""
        digest = manifest.digest()
        folder = self._objects / digest.removeprefix("sha256:")
        fresh = staging / "image"
        fresh.mkdir()
        _write(fresh / _KERNEL, kernel)
        _write(fresh / _INITRAMFS, initramfs)
        _write(fresh / _MANIFEST, manifest.model_dump_json(indent=2).encode() + b"\n")
        self._objects.mkdir(exist_ok=True)
        self._names.mkdir(exist_ok=True)
        if _is_whole(folder, manifest):
            # Readers may be at it: only how it was made is new.
            (fresh / _MANIFEST).replace(folder / _MANIFEST)
            return self._point(manifest.name, digest, staging)
        if folder.exists():
            folder.rename(staging / "damaged")
        fresh.rename(folder)
        return self._point(manifest.name, digest, staging)

    def _point(self, name: str, digest: str, staging: Path) -> Image:
        _write(staging / "name", digest.encode() + b"\n")
        (staging / "name").replace(self._names / name)
        return self.get(name)


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    try:
        Image(manifest, folder, manifest.digest()).verify()
    except (ImageError, IntegrityError):
        return False
    return True


def _remove(path: Path) -> int:
    """Remove a file or a folder of files; return the bytes that were in it."""
    files = list(path.iterdir()) if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    return size


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        # A rename may reach the disk before the data do.
        os.fsync(file.fileno())
