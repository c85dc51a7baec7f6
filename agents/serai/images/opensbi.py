"""Building the image ``opensbi``: the M-mode firmware of guests in mode full, from its Debian package.

It is an image with a firmware (fw_dynamic.bin) in the kernel's place and an empty initramfs. It is kept apart
from the image ``debian``, which runs without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from serai.errors import ImageError, SeraiError, UnavailableError

from .apt import APT_ROOT, DebianMirror
from .archive import read_packages
from .deb import read_files
from .debian import ARCHITECTURE, SUITE, ArchiveReader, disk_errors, find_mirrors, find_proxies, package_of
from .progress import Progress, silent
from .store import FileRecord, Image, ImageStore, Manifest, SourcePackage
from .transfer import Transfer

FIRMWARE_NAME = "opensbi"
_FIRMWARE = "usr/lib/riscv64-linux-gnu/opensbi/generic/fw_dynamic.bin"
# The first instruction of fw_dynamic, `add s0, a0, zero` (OpenSBI, firmware/fw_base.S).
_FIRST_INSTRUCTIONS = (b"\x33\x04\x05\x00", b"\x2a\x84")
_RECIPE = hashlib.sha256(b"opensbi fw_dynamic 1").hexdigest()


def build_opensbi(
    store: ImageStore | None = None,
    *,
    mirror: str | None = None,
    suite: str = SUITE,
    keyring: Path | None = None,
    refresh: bool = False,
    progress: Progress = silent,
    transfer: Transfer | None = None,
    apt_root: Path = APT_ROOT,
) -> Image:
    """Return the image ``opensbi``, building it unless the store has it; arguments as for `build_debian`.

    Raises what `build_debian` raises.
    """
    store = store or ImageStore()
    if not refresh and (image := _existing(store)):
        return image
    reader = ArchiveReader(store, transfer or Transfer(proxies=find_proxies(apt_root)), suite, progress)
    mirrors = find_mirrors(mirror, keyring, apt_root)
    with (
        disk_errors(store.root),
        store.building(lambda: progress("wait for another build", 0, 0)) as staging,
    ):
        if not refresh and (image := _existing(store)):
            return image
        return _build(store, reader, mirrors, suite, staging)


def _existing(store: ImageStore) -> Image | None:
    try:
        image = store.get(FIRMWARE_NAME)
    except ImageError:
        return None
    return image if image.manifest.recipe == _RECIPE else None


def _build(
    store: ImageStore, reader: ArchiveReader, mirrors: Iterable[DebianMirror], suite: str, staging: Path
) -> Image:
    problems: list[SeraiError] = []
    for mirror in mirrors:
        try:
            opened = reader.open_archive(mirror)
            package = package_of(read_packages(opened.packages, [FIRMWARE_NAME]), FIRMWARE_NAME, mirror)
            break
        except SeraiError as problem:
            problems.append(problem)
    else:
        if all(isinstance(problem, UnavailableError) for problem in problems) and (kept := _existing(store)):
            return kept
        raise problems[0]
    firmware = _unpack(reader.fetch_package(package, "fetch the firmware"))
    return store.publish(
        _manifest(firmware, package, suite, opened.signers, opened.unverified_because), firmware, b"", staging
    )


def _manifest(
    firmware: bytes, package: SourcePackage, suite: str, signers: tuple[str, ...], unverified: str
) -> Manifest:
    return Manifest(
        name=FIRMWARE_NAME,
        kernel=FileRecord(sha256=hashlib.sha256(firmware).hexdigest(), size=len(firmware)),
        initramfs=FileRecord(sha256=hashlib.sha256(b"").hexdigest(), size=0),
        command_line="",
        kernel_release=f"OpenSBI {package.version.partition('-')[0]}",
        architecture=ARCHITECTURE,
        suite=suite,
        created=datetime.now(UTC),
        sources=(package,),
        signers=signers,
        unverified_because=unverified,
        recipe=_RECIPE,
    )


def _unpack(package: Path) -> bytes:
    for file in read_files(package, lambda name: name == _FIRMWARE):
        if file.data.startswith(_FIRST_INSTRUCTIONS):
            return file.data
    raise ImageError(
        f"the package {FIRMWARE_NAME} has no usable {_FIRMWARE}",
        hint="use another mirror",
        reason="PACKAGE_UNSUITABLE",
    )
