"""Building the image ``debian``: stock kernel and BusyBox from a Debian mirror, checked, without root."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from serai.errors import CapacityError, ImageError, SeraiError, UnavailableError

from .apt import APT_ROOT, DebianMirror, debian_mirrors, proxies
from .archive import Package, Release, dependency, parse_release, read_packages
from .deb import read_files
from .initramfs import build_initramfs, guest_files
from .modules import Module, load_order, module_name, parse_module
from .progress import Progress, silent
from .signature import verify_clearsigned
from .store import FileRecord, Image, ImageStore, Manifest, SourcePackage
from .transfer import Blob, MissingError, Transfer

IMAGE_NAME = "debian"
SUITE = "trixie"
ARCHITECTURE = "riscv64"
# Every word is a documented parameter of the stock kernel (Documentation/admin-guide/kernel-parameters.txt).
# With unsigned modules they take a boot from 1571 to 209 million instructions, counted from the kernel's
# first message to the end of start-up: crypto self-tests cost 536, jitterentropy's start-up test 178, the
# event tracer's tables 82, the certificates for module signatures 26, security modules 9, zeroing each
# allocation 11.
_SKIPPED_INITCALLS = ("jent_mod_init", "trace_eval_init", "load_system_certificate_list")
COMMAND_LINE = (
    "console=ttyS0 quiet init_on_alloc=0 cryptomgr.notests apparmor=0 lsm= audit=0 "
    f"initcall_blacklist={','.join(_SKIPPED_INITCALLS)}"
)
MODULES = ("virtio_mmio", "virtio_net", "virtio_blk", "virtio_balloon", "virtio_rng", "8021q", "bridge")
_KERNEL_META_PACKAGE = "linux-image-riscv64"
_BUSYBOX_PACKAGE = "busybox-static"
_INDEX = f"main/binary-{ARCHITECTURE}/Packages.xz"
_KERNEL_PREFIX = "boot/vmlinux-"
# What MODULES need today, so that one pass over the package is enough; more is found when it is needed.
_USUALLY_NEEDED = ("failover", "net_failover", "stp", "llc", "garp", "mrp")
_NEEDED_MEGABYTES = 250
_RELEASE_LIMIT_BYTES = 4 << 20
# Bump when this code makes another image of the same inputs.
_RECIPE_VERSION = 1


@dataclass(frozen=True, slots=True)
class _Sources:
    """Where the packages come from, and what vouches for them."""

    kernel: SourcePackage
    busybox: SourcePackage
    signers: tuple[str, ...]
    unverified_because: str


class _Unpacked(NamedTuple):
    image: bytes
    release: str
    modules: list[Module]


def build_debian(
    store: ImageStore | None = None,
    *,
    mirror: str | None = None,
    suite: str = SUITE,
    modules: Iterable[str] = MODULES,
    keyring: Path | None = None,
    refresh: bool = False,
    progress: Progress = silent,
    transfer: Transfer | None = None,
    apt_root: Path = APT_ROOT,
) -> Image:
    """Return the image ``debian``, building it unless the store has it.

    `mirror` is the address that holds ``dists/`` and ``pool/``; without it ``$SERAI_MIRROR``, else what apt's
    configuration names. `refresh` asks the mirror for newer packages even if the image is there. An image
    made by another version of Serai, for other modules or from another suite is built again, without the
    network if the packages are still in the store.

    Raises UnavailableError when no mirror answers, IntegrityError when a signature or a hash is wrong,
    CapacityError when the disk is full and ImageError for the rest; each names the next step. Whatever
    happens, Ctrl-C included, the store holds whole images only; a partial download stays, and is continued
    next time.
    """
    store = store or ImageStore()
    chosen = tuple(dict.fromkeys(module_name(name) for name in modules))
    transfer = transfer or Transfer(proxies=find_proxies(apt_root))
    builder = _Builder(store, transfer, suite, chosen, progress)
    if not refresh and (image := builder.current()):
        return image
    mirrors = find_mirrors(mirror, keyring, apt_root)
    with (
        disk_errors(store.root),
        store.building(lambda: progress("wait for another build", 0, 0)) as staging,
    ):
        if not refresh and (image := builder.current()):
            return image
        sources = builder.find_sources(mirrors)
        image = builder.current()
        if image and image.sources == (sources.kernel, sources.busybox):
            return image
        return builder.assemble(sources, staging)


class OpenedArchive(NamedTuple):
    """An archive's package list, and what vouches for it."""

    packages: Path
    signers: tuple[str, ...]
    unverified_because: str


class ArchiveReader:
    """Reads a mirror of the Debian archive: its signed release, package list and packages."""

    def __init__(self, store: ImageStore, transfer: Transfer, suite: str, progress: Progress) -> None:
        self._store, self._transfer, self._suite = store, transfer, suite
        self._progress = progress

    def open_archive(self, mirror: DebianMirror) -> OpenedArchive:
        """Fetch and check release and package list; raises what `build_debian` raises."""
        base = f"{mirror.url}/dists/{self._suite}"
        self._progress("read the archive's release", 0, 0)
        message = self._transfer.read(f"{base}/InRelease", limit=_RELEASE_LIMIT_BYTES)
        signed = verify_clearsigned(message, mirror.keyring)
        release = parse_release(signed.text)
        release.require(suite=self._suite, architecture=ARCHITECTURE)
        index = self._fetch_index(base, release)
        self._progress("read the package list", 0, 0)
        return OpenedArchive(index, signed.signers, signed.unverified_because)

    def _fetch_index(self, base: str, release: Release) -> Path:
        blob = release.files.get(_INDEX)
        if blob is None:
            raise ImageError(
                f"{base} has no {_INDEX}",
                hint="use another mirror with --mirror URL",
                reason="ARCHIVE_MALFORMED",
            )
        step = "fetch the package list"
        if release.fields.get("acquire-by-hash") == "yes":
            # The name by hash keeps index and Release together while a mirror is being updated.
            by_hash = f"{base}/{_INDEX.rpartition('/')[0]}/by-hash/SHA256/{blob.sha256}"
            with suppress(MissingError):
                return self._fetch(by_hash, blob, step)
        return self._fetch(f"{base}/{_INDEX}", blob, step)

    def _fetch(self, url: str, blob: Blob, step: str) -> Path:
        return self._transfer.fetch(url, blob, self._store.downloads, step=step, progress=self._progress)

    def fetch_package(self, source: SourcePackage, step: str) -> Path:
        """Fetch a package and check its hash."""
        return self._fetch(source.url, Blob(source.sha256, source.size), step)


class _Builder(ArchiveReader):
    """One build: its inputs, and the steps from mirrors to an image."""

    def __init__(
        self, store: ImageStore, transfer: Transfer, suite: str, modules: tuple[str, ...], progress: Progress
    ) -> None:
        super().__init__(store, transfer, suite, progress)
        self._modules = modules
        self._recipe = _recipe(suite, modules)

    def current(self) -> Image | None:
        """Return the image that is there, if this build would make it of the same packages."""
        image = self._existing()
        return image if image and image.manifest.recipe == self._recipe else None

    def _existing(self) -> Image | None:
        try:
            return self._store.get(IMAGE_NAME)
        except ImageError:
            return None

    def find_sources(self, mirrors: Iterable[DebianMirror]) -> _Sources:
        """Return the packages of the first mirror that serves; offline, those still in the store."""
        problems: list[SeraiError] = []
        for mirror in mirrors:
            try:
                return self._read_archive(mirror)
            except SeraiError as problem:
                problems.append(problem)
        offline = all(isinstance(problem, UnavailableError) for problem in problems)
        if offline and (kept := self._kept_sources()):
            return kept
        raise problems[0]

    def _kept_sources(self) -> _Sources | None:
        image = self._existing()
        if image is None or image.manifest.suite != self._suite or len(image.sources) != 2:
            return None
        if not all((self._store.downloads / source.sha256).exists() for source in image.sources):
            return None
        kernel, busybox = image.sources
        return _Sources(kernel, busybox, image.manifest.signers, image.manifest.unverified_because)

    def _read_archive(self, mirror: DebianMirror) -> _Sources:
        opened = self.open_archive(mirror)
        index = opened.packages
        found = read_packages(index, [_KERNEL_META_PACKAGE, _BUSYBOX_PACKAGE])
        kernel_name = dependency(_require(found, _KERNEL_META_PACKAGE), "linux-image-")
        kernel = _require(read_packages(index, [kernel_name]), kernel_name)
        busybox = _require(found, _BUSYBOX_PACKAGE)
        return _Sources(
            _source(kernel, mirror), _source(busybox, mirror), opened.signers, opened.unverified_because
        )

    def assemble(self, sources: _Sources, staging: Path) -> Image:
        """Fetch the packages, make the image of them and publish it."""
        busybox_file = self.fetch_package(sources.busybox, "fetch busybox")
        kernel_file = self.fetch_package(sources.kernel, "fetch the kernel")
        busybox = _unpack_busybox(busybox_file)
        kernel = _unpack_kernel(kernel_file, self._modules, self._progress)
        self._progress("assemble the image", 0, 0)
        initramfs = build_initramfs(busybox, kernel.modules, kernel.release)
        manifest = Manifest(
            name=IMAGE_NAME,
            kernel=_record(kernel.image),
            initramfs=_record(initramfs),
            command_line=COMMAND_LINE,
            kernel_release=kernel.release,
            architecture=ARCHITECTURE,
            suite=self._suite,
            created=datetime.now(UTC),
            sources=(sources.kernel, sources.busybox),
            signers=sources.signers,
            unverified_because=sources.unverified_because,
            recipe=self._recipe,
        )
        return self._store.publish(manifest, kernel.image, initramfs, staging)


def _recipe(suite: str, modules: tuple[str, ...]) -> str:
    """Return a hash of everything but the packages that decides what the image holds."""
    scripts = {name: hashlib.sha256(data).hexdigest() for name, data in guest_files().items()}
    inputs = [_RECIPE_VERSION, suite, modules, COMMAND_LINE, scripts]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def find_mirrors(mirror: str | None, keyring: Path | None, apt_root: Path) -> list[DebianMirror]:
    """Return the mirrors to try: the one that is named, else those of apt's configuration."""
    named = mirror or os.environ.get("SERAI_MIRROR")
    if named:
        if not named.startswith(("http://", "https://")):
            raise ImageError(
                f"{named!r} is not the address of a mirror",
                hint="it begins with http:// or https:// and holds the folders dists/ and pool/",
                reason="MIRROR_INVALID",
            )
        return [DebianMirror(named.rstrip("/"), keyring)]
    found = [DebianMirror(entry.url, keyring or entry.keyring) for entry in debian_mirrors(apt_root)]
    if not found:
        raise ImageError(
            f"{apt_root} names no Debian mirror",
            hint="name one with --mirror URL or SERAI_MIRROR: an address that holds dists/ and pool/",
            reason="NO_MIRROR",
        )
    return found


def find_proxies(apt_root: Path) -> dict[str, str] | None:
    """Return apt's proxies, or None for those of the environment."""
    return proxies(apt_root) or None


def _require(found: dict[str, Package], name: str) -> Package:
    if name not in found:
        raise ImageError(
            f"the archive has no package {name} for {ARCHITECTURE}",
            hint="use another Debian mirror with --mirror URL",
            reason="ARCHIVE_INCOMPLETE",
            package=name,
        )
    return found[name]


def package_of(found: dict[str, Package], name: str, mirror: DebianMirror) -> SourcePackage:
    """Return where a package is; ImageError when the archive has none of that name."""
    return _source(_require(found, name), mirror)


def _source(package: Package, mirror: DebianMirror) -> SourcePackage:
    url = f"{mirror.url}/{package.filename}"
    return SourcePackage(
        name=package.name,
        version=package.version,
        sha256=package.blob.sha256,
        size=package.blob.size,
        url=url,
    )


def _unpack_busybox(package: Path) -> bytes:
    for file in read_files(package, lambda name: name in ("bin/busybox", "usr/bin/busybox")):
        return file.data
    raise ImageError("the package busybox-static has no busybox", reason="PACKAGE_UNSUITABLE")


def _unpack_kernel(package: Path, wanted: tuple[str, ...], progress: Progress) -> _Unpacked:
    """Return the kernel, and the wanted modules with what they need, in load order."""
    names = set(wanted) | set(_USUALLY_NEEDED)
    while True:
        image, release, modules = _unpack_once(package, names, progress)
        missing = {need for module in modules.values() for need in module.depends} - names
        if not missing:
            break
        # Which modules are needed is known only once those that need them are read.
        names |= missing
    order = load_order(wanted, modules)
    for module in order:
        if module.release != release:
            raise _unsuitable(f"its module {module.name} is for the kernel {module.release}, not {release}")
    return _Unpacked(image, release, order)


def _unpack_once(package: Path, names: set[str], progress: Progress) -> tuple[bytes, str, dict[str, Module]]:
    def is_wanted(name: str) -> bool:
        return name.startswith(_KERNEL_PREFIX) or (".ko" in name and module_name(name) in names)

    image, release, modules = b"", "", {}
    for file in read_files(package, is_wanted, step="unpack the kernel", progress=progress):
        if file.name.startswith(_KERNEL_PREFIX):
            image, release = file.data, file.name.removeprefix(_KERNEL_PREFIX)
        else:
            module = parse_module(file.name, file.data)
            modules[module.name] = module
    if image[48:56] != b"RISCV\0\0\0" or image[56:60] != b"RSC\x05":
        raise _unsuitable("it has no boot/vmlinux-* that is a raw riscv64 Image")
    return image, release, modules


def _unsuitable(problem: str) -> ImageError:
    return ImageError(
        f"the kernel package cannot be used: {problem}",
        hint="use another mirror",
        reason="PACKAGE_UNSUITABLE",
    )


def _record(data: bytes) -> FileRecord:
    return FileRecord(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


@contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Turn what the file system refuses into one clear error."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CapacityError(
                f"the disk is full while the image is built in {root}",
                hint=f"free {_NEEDED_MEGABYTES} MB there or name another folder in SERAI_IMAGES, then run it "
                "again: what was fetched is kept",
                reason="DISK_FULL",
                path=root,
            ) from error
        raise ImageError(
            f"cannot write to {error.filename or root}: {error.strerror or error}",
            hint="name a folder that you may write to in SERAI_IMAGES",
            reason="STORE_NOT_WRITABLE",
        ) from error
