"""Whole builds against a real HTTP server: what must come out, and what must stay when it goes wrong."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serai.errors import ImageError, IntegrityError, UnavailableError
from serai.images import MODULES, Image, ImageStore, build_debian, read_cpio
from serai.images.transfer import Transfer

pytestmark = pytest.mark.usefixtures("no_gpgv")
KERNEL = "linux-image-6.12.1-test"


@pytest.fixture
def build(store: ImageStore, mirror: Any, transfer: Transfer, tmp_path: Path) -> Callable[..., Image]:
    def run(**options: Any) -> Image:
        settings = {"mirror": mirror.url, "transfer": transfer, "apt_root": tmp_path / "no-apt", **options}
        return build_debian(store, **settings)

    return run


def files_of(image: Image) -> dict[str, bytes]:
    return {entry.name: entry.data for entry in read_cpio(image.initramfs.read_bytes())}


def assert_nothing_half_built(store: ImageStore) -> None:
    assert store.list() == []
    with pytest.raises(ImageError, match="there is no image 'debian'") as raised:
        store.get("debian")
    assert "serai image build debian" in raised.value.hint
    assert not (store.root / "staging").exists() and not (store.root / "sha256").exists()


def test_an_image_is_built_and_found_again(
    build: Callable[..., Image], store: ImageStore, archive: Any
) -> None:
    image = build()
    assert store.get("debian") == image and store.list() == [image]
    assert image.kernel.read_bytes() == archive.kernel and image.kernel_release == "6.12.1-test"
    assert "console=ttyS0" in image.command_line
    assert image.size == image.kernel.stat().st_size + image.initramfs.stat().st_size
    assert [source.name for source in image.sources] == [KERNEL, "busybox-static"]
    assert not image.signature_verified
    assert image.verification == "chain of hashes only, no signature: this machine has no gpgv"
    image.verify()


def test_the_initramfs_has_busybox_scripts_and_the_modules_that_are_needed(
    build: Callable[..., Image], archive: Any
) -> None:
    files = files_of(build())
    assert files["bin/busybox"] == archive.busybox
    assert files["init"].startswith(b"#!/bin/busybox sh\n") and "usr/lib/serai/host-channel" in files
    modules = {name.rpartition("/")[2] for name in files if name.endswith(".ko")}
    assert modules == {
        f"{name}.ko" for name in (*MODULES, "net_failover", "failover", "rng_help", "stp", "llc")
    }
    dependencies = files["lib/modules/6.12.1-test/modules.dep"].decode().splitlines()
    assert "virtio_net.ko: net_failover.ko failover.ko" in dependencies
    assert b"alias virtio:d00000001v* virtio_net\n" in files["lib/modules/6.12.1-test/modules.alias"]


def test_a_second_build_asks_nobody(build: Callable[..., Image], mirror: Any) -> None:
    first = build()
    asked = len(mirror.requests)
    assert build() == first and len(mirror.requests) == asked


def test_a_refresh_asks_for_the_release_and_keeps_what_is_current(
    build: Callable[..., Image], mirror: Any
) -> None:
    first = build()
    mirror.requests.clear()
    assert build(refresh=True) == first
    assert mirror.requests == [("dists/trixie/InRelease", None)]


def test_a_refresh_takes_a_new_package(build: Callable[..., Image], archive: Any, store: ImageStore) -> None:
    first = build()
    archive.busybox = b"newer"
    archive.build()
    second = build(refresh=True)
    assert files_of(second)["bin/busybox"] == b"newer" and second.digest != first.digest
    assert store.get("debian") == second
    first.verify()


def test_other_modules_make_another_image_even_offline(
    build: Callable[..., Image], mirror: Any, archive: Any
) -> None:
    first = build()
    archive.files.clear()
    mirror.faults["dists/trixie/InRelease"] = [503] * 10
    second = build(modules=["virtio_mmio", "unneeded"])
    assert {name for name in files_of(second) if name.endswith("unneeded.ko")}
    assert second.sources == first.sources and second.digest != first.digest


def test_the_same_inputs_give_the_same_digest(
    build: Callable[..., Image], mirror: Any, transfer: Transfer, tmp_path: Path
) -> None:
    other = build_debian(ImageStore(tmp_path / "other"), mirror=mirror.url + "/", transfer=transfer)
    assert other.digest == build().digest


def test_a_mirror_without_hash_names_serves(build: Callable[..., Image], archive: Any) -> None:
    archive.by_hash = False
    archive.build()
    assert archive.index_path.endswith("Packages.xz")
    build()


def test_a_missing_hash_name_falls_back_to_the_plain_one(build: Callable[..., Image], archive: Any) -> None:
    archive.files["dists/trixie/main/binary-riscv64/Packages.xz"] = archive.files.pop(archive.index_path)
    build()


def test_the_mirror_comes_from_apt_or_from_the_environment(
    build: Callable[..., Image], mirror: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ImageError, match="names no Debian mirror") as raised:
        build(mirror=None)
    assert "--mirror" in raised.value.hint and "SERAI_MIRROR" in raised.value.hint
    apt = tmp_path / "apt"
    apt.mkdir()
    (apt / "sources.list").write_text(f"deb {mirror.url} bookworm main\n")
    first = build(mirror=None, apt_root=apt)
    monkeypatch.setenv("SERAI_MIRROR", mirror.url)
    assert build(mirror=None, refresh=True) == first


def test_the_next_mirror_is_asked_when_one_does_not_serve(
    build: Callable[..., Image], mirror: Any, tmp_path: Path
) -> None:
    apt = tmp_path / "apt"
    apt.mkdir()
    dead = mirror.url.replace("/debian", "/none/debian")
    (apt / "sources.list").write_text(f"deb {dead} bookworm main\ndeb {mirror.url} bookworm main\n")
    build(mirror=None, apt_root=apt)
    assert any(path.startswith("/none/") or "none" in path for path, _ in mirror.requests)


@pytest.mark.parametrize("mirror_url", ["ftp://x/debian", "/srv/debian", "debian"])
def test_an_address_that_is_none_is_refused(build: Callable[..., Image], mirror_url: str) -> None:
    with pytest.raises(ImageError, match="not the address of a mirror"):
        build(mirror=mirror_url)


def test_being_offline_is_told_with_the_next_step(
    build: Callable[..., Image], store: ImageStore, mirror: Any
) -> None:
    mirror.faults["dists/trixie/InRelease"] = [503] * 10
    with pytest.raises(UnavailableError, match="cannot fetch") as raised:
        build()
    assert "--mirror" in raised.value.hint
    assert_nothing_half_built(store)


def test_an_address_that_is_no_mirror_is_told(
    build: Callable[..., Image], store: ImageStore, mirror: Any
) -> None:
    with pytest.raises(ImageError, match="does not exist on this mirror") as raised:
        build(mirror=mirror.url + "/wrong")
    assert "dists/" in raised.value.hint
    assert_nothing_half_built(store)


def test_a_page_in_place_of_the_archive_is_told(
    build: Callable[..., Image], store: ImageStore, archive: Any
) -> None:
    archive.files["dists/trixie/InRelease"] = b"<html>Welcome to the hotel's network</html>"
    with pytest.raises(ImageError, match="not a signed index"):
        build()
    assert_nothing_half_built(store)


@pytest.mark.parametrize("level", ["index", "busybox-static", KERNEL])
def test_a_hash_that_does_not_match_is_refused_at_every_level(
    build: Callable[..., Image], store: ImageStore, archive: Any, level: str
) -> None:
    path = archive.index_path if level == "index" else archive.pool(level)
    data = bytearray(archive.files[path])
    data[len(data) // 2] ^= 1
    archive.files[path] = bytes(data)
    with pytest.raises(IntegrityError, match="not what the archive's index promises"):
        build()
    assert_nothing_half_built(store)
    assert not any(file.name == hashlib.sha256(data).hexdigest() for file in store.downloads.iterdir())


@pytest.mark.parametrize("name", ["linux-image-riscv64", KERNEL, "busybox-static"])
def test_a_package_that_the_archive_lacks_is_named(
    build: Callable[..., Image], store: ImageStore, archive: Any, name: str
) -> None:
    archive.index = "\n\n".join(
        s for s in archive.index.split("\n\n") if not s.startswith(f"Package: {name}\n")
    )
    archive.publish_index()
    with pytest.raises(ImageError, match=f"no package {name}"):
        build()
    assert_nothing_half_built(store)


def test_a_package_file_that_is_gone_is_named(
    build: Callable[..., Image], store: ImageStore, archive: Any
) -> None:
    del archive.files[archive.pool(KERNEL)]
    with pytest.raises(ImageError, match=f"{KERNEL}.* does not exist"):
        build()
    assert_nothing_half_built(store)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [({"Codename": "sid", "Suite": "unstable"}, "'sid' where 'trixie'"), ({"Origin": "Vendor"}, "'Vendor'")],
)
def test_another_archive_is_refused(
    build: Callable[..., Image], store: ImageStore, archive: Any, fields: dict[str, str], problem: str
) -> None:
    archive.fields = fields
    archive.build()
    with pytest.raises(ImageError, match=problem):
        build()
    assert_nothing_half_built(store)


def test_a_kernel_that_is_no_riscv_image_is_refused(
    build: Callable[..., Image], store: ImageStore, archive: Any
) -> None:
    archive.kernel = b"\x1f\x8b" + bytes(1000)
    archive.build()
    with pytest.raises(ImageError, match="raw riscv64 Image"):
        build()
    assert_nothing_half_built(store)


def test_an_unknown_module_is_named(build: Callable[..., Image], store: ImageStore) -> None:
    with pytest.raises(ImageError, match="no module warp_drive"):
        build(modules=["virtio_mmio", "warp_drive"])
    assert_nothing_half_built(store)


@pytest.mark.parametrize("damage", ["shorter", "gone", "manifest", "name", "swapped"])
def test_a_damaged_image_is_told_and_built_anew(
    build: Callable[..., Image], store: ImageStore, damage: str
) -> None:
    image = build()
    if damage == "shorter":
        image.initramfs.write_bytes(b"short")
    elif damage == "gone":
        image.kernel.unlink()
    elif damage == "manifest":
        (image.folder / "manifest.json").write_text("{}")
    elif damage == "swapped":
        text = (image.folder / "manifest.json").read_text()
        (image.folder / "manifest.json").write_text(text.replace("console=ttyS0", "console=hvc0"))
    else:
        (store.root / "names" / "debian").write_text("../../../etc")
    with pytest.raises(ImageError, match="damaged"):
        store.get("debian")
    assert store.list() == []
    again = build()
    assert again.digest == image.digest
    again.verify()


def test_a_changed_byte_is_found_on_request(build: Callable[..., Image]) -> None:
    image = build()
    data = bytearray(image.initramfs.read_bytes())
    data[100] ^= 1
    image.initramfs.write_bytes(data)
    with pytest.raises(IntegrityError, match="initramfs is not what its manifest says"):
        image.verify()


def test_pruning_removes_replaced_images_and_their_packages_only(
    build: Callable[..., Image], store: ImageStore, archive: Any
) -> None:
    first = build()
    archive.busybox = b"newer"
    archive.build()
    second = build(refresh=True)
    freed = store.prune()
    assert freed >= first.size and not first.folder.exists()
    second.verify()
    assert {path.name for path in store.downloads.iterdir()} == {source.sha256 for source in second.sources}
    assert store.prune() == 0


@pytest.mark.parametrize("name", ["../debian", "", "De bian", "a/b"])
def test_a_name_that_is_none_is_refused(store: ImageStore, name: str) -> None:
    with pytest.raises(ImageError, match="not the name of an image"):
        store.get(name)


def test_an_unknown_name_lists_the_known_ones(build: Callable[..., Image], store: ImageStore) -> None:
    build()
    with pytest.raises(ImageError, match=r"no image 'fedora' .*there: debian"):
        store.get("fedora")


@pytest.fixture
def signer(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, make_signer: Any
) -> Any:
    monkeypatch.undo()  # gpgv is back
    # A key's home holds a socket, whose path must be short.
    return make_signer(tmp_path_factory.mktemp("g") / "a")


@pytest.mark.skipif(not (shutil.which("gpg") and shutil.which("gpgv")), reason="gpg and gpgv make the keys")
def test_a_signed_archive_is_verified_and_a_forged_one_refused(
    build: Callable[..., Image], store: ImageStore, archive: Any, signer: Any
) -> None:
    archive.sign = signer.sign
    archive.build()
    honest = archive.files["dists/trixie/InRelease"]
    archive.files["dists/trixie/InRelease"] = honest.replace(b"Suite: stable", b"Suite: stabel")
    with pytest.raises(IntegrityError, match="signature is not good"):
        build(keyring=signer.keyring)
    assert_nothing_half_built(store)
    archive.files["dists/trixie/InRelease"] = honest
    image = build(keyring=signer.keyring)
    assert image.signature_verified and image.verification == "signed by Debian"
