"""A Debian archive in miniature, made by the test, and a real HTTP server for it that can misbehave."""

from __future__ import annotations

import hashlib
import io
import lzma
import struct
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from serai.images import ImageStore
from serai.images.transfer import Transfer

RELEASE = "6.12.1-test"
KERNEL_PACKAGE = f"linux-image-{RELEASE}"
MODULES = {
    "virtio_mmio": ("drivers/virtio/virtio_mmio.ko.xz", "", ["of:N*T*Cvirtio,mmio"]),
    "virtio_net": ("drivers/net/virtio_net.ko.xz", "net_failover", ["virtio:d00000001v*"]),
    "net_failover": ("drivers/net/net_failover.ko.xz", "failover", []),
    "failover": ("net/core/failover.ko.xz", "", []),
    "virtio_blk": ("drivers/block/virtio_blk.ko.xz", "", ["virtio:d00000002v*"]),
    "virtio_balloon": ("drivers/virtio/virtio_balloon.ko.xz", "", []),
    "virtio_rng": ("drivers/char/hw_random/virtio-rng.ko.xz", "rng_help", []),
    "rng_help": ("drivers/char/hw_random/rng-help.ko.xz", "", []),
    "8021q": ("net/8021q/8021q.ko.xz", "", ["rtnl-link-vlan"]),
    "bridge": ("net/bridge/bridge.ko.xz", "stp,llc", ["rtnl-link-bridge"]),
    "stp": ("net/802/stp.ko.xz", "llc", []),
    "llc": ("net/llc/llc.ko.xz", "", []),
    "unneeded": ("drivers/unneeded.ko.xz", "", []),
}


def make_module(
    name: str, depends: str = "", aliases: list[str] | None = None, release: str = RELEASE
) -> bytes:
    """An ELF64 file with nothing but a .modinfo section."""
    strings = [
        f"name={name}",
        f"depends={depends}",
        f"vermagic={release} SMP",
        *(f"alias={a}" for a in aliases or []),
    ]
    information = b"".join(text.encode() + b"\0" for text in strings)
    names = b"\0.modinfo\0.shstrtab\0"
    table = 64 + len(information) + len(names)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 1, 243, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)

    def section(name_offset: int, offset: int, size: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", name_offset, 1, 0, 0, offset, size, 0, 0, 1, 0)

    sections = (
        section(0, 0, 0) + section(1, 64, len(information)) + section(10, 64 + len(information), len(names))
    )
    return header + information + names + sections


def make_kernel(size: int = 300_000) -> bytes:
    """Bytes with the header of a riscv64 Image (Documentation/arch/riscv/boot-image-header.rst)."""
    return bytes(48) + b"RISCV\0\0\0RSC\x05" + bytes(size - 60)


def make_tar(files: dict[str, bytes], extra: list[tarfile.TarInfo] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for member in extra or []:
            archive.addfile(member)
    return buffer.getvalue()


def make_ar(members: list[tuple[str, bytes]]) -> bytes:
    blocks = [b"!<arch>\n"]
    for name, data in members:
        blocks.append(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data)
        blocks.append(b"\n" * (len(data) % 2))
    return b"".join(blocks)


def make_deb(
    files: dict[str, bytes],
    *,
    extra: list[tarfile.TarInfo] | None = None,
    pack: Callable[[bytes], bytes] = lzma.compress,
    suffix: str = ".xz",
) -> bytes:
    return make_ar(
        [
            ("debian-binary", b"2.0\n"),
            ("control.tar.xz", lzma.compress(make_tar({"control": b"Package: x\n"}))),
            (f"data.tar{suffix}", pack(make_tar(files, extra))),
        ]
    )


def kernel_files(kernel: bytes) -> dict[str, bytes]:
    files = {f"boot/vmlinux-{RELEASE}": kernel, "boot/config": b"CONFIG_X=y\n"}
    for name, (path, depends, aliases) in MODULES.items():
        files[f"usr/lib/modules/{RELEASE}/kernel/{path}"] = lzma.compress(make_module(name, depends, aliases))
    return files


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Archive:
    """The files of a mirror by their path, and how they are made."""

    kernel: bytes = field(default_factory=make_kernel)
    busybox: bytes = b"\x7fELF busybox of the test"
    by_hash: bool = True
    fields: dict[str, str] = field(default_factory=dict)
    sign: Callable[[str], bytes] | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    packages: dict[str, bytes] = field(default_factory=dict)
    index: str = ""
    index_path: str = ""

    def build(self) -> Archive:
        """Make packages, index and Release, each with the right hashes of what is below it."""
        self.packages = {
            "linux-image-riscv64": make_deb({}),
            KERNEL_PACKAGE: make_deb(kernel_files(self.kernel)),
            "busybox-static": make_deb({"usr/bin/busybox": self.busybox}),
        }
        depends = {"linux-image-riscv64": f"Depends: {KERNEL_PACKAGE} (= 6.12.1-1)\n"}
        self.index = "\n".join(
            f"Package: {name}\nVersion: 6.12.1-1\n{depends.get(name, '')}"
            f"Description: a package\n with a second line\n"
            f"Filename: {self.pool(name)}\nSize: {len(data)}\nSHA256: {sha256(data)}\n"
            for name, data in self.packages.items()
        )
        self.files = {self.pool(name): data for name, data in self.packages.items()}
        return self.publish_index()

    def pool(self, name: str) -> str:
        return f"pool/main/{name}_6.12.1-1_riscv64.deb"

    def publish_index(self) -> Archive:
        """Make Packages.xz of `index`, and Release."""
        packed = lzma.compress(self.index.encode())
        folder = "dists/trixie/main/binary-riscv64"
        self.index_path = (
            f"{folder}/by-hash/SHA256/{sha256(packed)}" if self.by_hash else f"{folder}/Packages.xz"
        )
        self.files[self.index_path] = packed
        fields = {
            "Origin": "Debian", "Suite": "stable", "Codename": "trixie", "Architectures": "amd64 riscv64",
            "Acquire-By-Hash": "yes" if self.by_hash else "no", **self.fields,
        }  # fmt: skip
        text = "".join(f"{name}: {value}\n" for name, value in fields.items())
        text += f"MD5Sum:\n {'0' * 32} 1 main/binary-riscv64/Packages.xz\n"
        text += f"SHA256:\n {sha256(packed)} {len(packed)} main/binary-riscv64/Packages.xz\n"
        self.files["dists/trixie/InRelease"] = (self.sign or clear_text)(text)
        return self


def clear_text(text: str) -> bytes:
    """The form of a clear-signed message with a signature that is none."""
    return (
        f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n{text}-----BEGIN PGP SIGNATURE-----\n\n"
        "AAAA\n-----END PGP SIGNATURE-----\n"
    ).encode()


class Mirror:
    """A server of an archive. `faults` maps a path to what goes wrong there, once for each entry of the list.

    A fault is a status to answer, or ("cut", N): close after N bytes; ("whole",): ignore the range that was
    asked for; ("stall", N): send N bytes, then wait until the mirror closes.
    """

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.faults: dict[str, list[int | tuple[object, ...]]] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.stalled = threading.Event()
        self._closing = threading.Event()
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/debian"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()

    def asked(self, path: str) -> list[str | None]:
        """The Range headers of the requests for a path."""
        return [ranges for asked, ranges in self.requests if asked == path]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.removeprefix("/debian/")
        asked = request.headers.get("Range")
        self.requests.append((path, asked))
        waiting = self.faults.get(path)
        fault = waiting.pop(0) if waiting else None
        data = self.archive.files.get(path)
        if isinstance(fault, int) or data is None:
            request.send_error(fault if isinstance(fault, int) else 404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and fault != ("whole",) else 0
        body = data[start:]
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        self._send(request, body, fault)

    def _send(self, request: BaseHTTPRequestHandler, body: bytes, fault: tuple[object, ...] | None) -> None:
        if fault and fault[0] in ("cut", "stall"):
            amount = fault[1]
            assert isinstance(amount, int)
            request.wfile.write(body[:amount])
            request.wfile.flush()
            if fault[0] == "stall":
                self.stalled.set()
                self._closing.wait(30)
            request.close_connection = True
        else:
            request.wfile.write(body)


@pytest.fixture
def archive() -> Archive:
    return Archive().build()


@pytest.fixture
def mirror(archive: Archive) -> Iterator[Mirror]:
    server = Mirror(archive)
    yield server
    server.close()


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


@pytest.fixture
def transfer() -> Transfer:
    """A client that does not wait long for anything, and uses no proxy."""
    return Transfer(proxies={}, timeout=5.0, pauses=(0.01, 0.01))


@pytest.fixture
def no_gpgv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without gpgv: only the chain of hashes is left."""
    empty = tmp_path / "no-programs"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))


@dataclass
class Signer:
    """A throw-away OpenPGP key: its keyring for gpgv, and clear-signing with it."""

    home: Path
    keyring: Path

    def sign(self, text: str) -> bytes:
        result = subprocess.run(
            ["gpg", "--homedir", str(self.home), "--batch", "--clearsign"],
            input=text.encode(), capture_output=True, check=True,
        )  # fmt: skip
        return result.stdout


def make_signer(home: Path) -> Signer:
    home.mkdir(mode=0o700)
    base = ["gpg", "--homedir", str(home), "--batch", "--passphrase", ""]
    subprocess.run(
        [*base, "--quick-gen-key", "t@example.org", "ed25519", "sign"], check=True, capture_output=True
    )
    exported = subprocess.run([*base, "--export"], check=True, capture_output=True).stdout
    keyring = home / "keyring.gpg"
    keyring.write_bytes(exported)
    return Signer(home, keyring)


@pytest.fixture(name="make_module")
def make_module_fixture() -> Callable[..., bytes]:
    return make_module


@pytest.fixture(name="make_deb")
def make_deb_fixture() -> Callable[..., bytes]:
    return make_deb


@pytest.fixture(name="make_ar")
def make_ar_fixture() -> Callable[..., bytes]:
    return make_ar


@pytest.fixture(name="make_signer")
def make_signer_fixture() -> Callable[[Path], Signer]:
    return make_signer
