"""The guest's first file system: BusyBox, the kernel modules it needs, and Serai's start-up scripts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files

from .cpio import CpioEntry, character_device, directory, regular, symlink, write_cpio
from .modules import Module
from .reseed import program

_DIRECTORIES = ("dev", "etc/serai", "mnt", "proc", "sbin", "sys", "usr/bin", "usr/sbin", "var/log", "var/run")
_SCRIPTS = {
    "init": ("init", 0o755),
    "etc/inittab": ("inittab", 0o644),
    "etc/profile": ("profile", 0o644),
    "etc/udhcpc/default.script": ("udhcpc.script", 0o755),
    "usr/lib/serai/host-channel": ("host-channel", 0o755),
}
_PASSWD = b"root:x:0:0:root:/root:/bin/sh\n"
_GROUP = b"root:x:0:\n"


def guest_files() -> dict[str, bytes]:
    """Return Serai's own files of the guest by their name below ``guest/``."""
    folder = files(__package__) / "guest"
    return {source: (folder / source).read_bytes() for source, _ in _SCRIPTS.values()}


def build_initramfs(busybox: bytes, modules: Sequence[Module], release: str) -> bytes:
    """Return the uncompressed archive; `modules` stand in load order.

    Uncompressed because unpacking costs an emulated guest 38 instructions a byte of gzip, copying less than
    one.
    """
    sources = guest_files()
    entries = [
        *(directory(name) for name in _DIRECTORIES),
        directory("root", 0o700),
        directory("tmp", 0o1777),
        # The kernel opens /dev/console for /init before anything could mount devtmpfs.
        character_device("dev/console", 5, 1),
        character_device("dev/null", 1, 3, 0o666),
        regular("bin/busybox", busybox, 0o755),
        symlink("bin/sh", "busybox"),
        regular("etc/passwd", _PASSWD),
        regular("etc/group", _GROUP),
        regular("etc/serai/hostname", b"serai\n"),
        regular("usr/lib/serai/reseed", program(), 0o755),
        *(regular(name, sources[source], mode) for name, (source, mode) in _SCRIPTS.items()),
        *module_files(modules, release),
    ]
    return write_cpio(entries)


def module_files(modules: Sequence[Module], release: str) -> list[CpioEntry]:
    """Return the modules and the indexes modules.dep(5) and modules.alias that modprobe reads."""
    folder = f"lib/modules/{release}"
    order = {module.name: module for module in modules}
    dependencies = "".join(
        f"{name}.ko: {' '.join(f'{other}.ko' for other in _all_depends(name, order))}".rstrip() + "\n"
        for name in order
    )
    aliases = "".join(f"alias {alias} {module.name}\n" for module in modules for alias in module.aliases)
    return [
        *(regular(f"{folder}/{module.name}.ko", module.data) for module in modules),
        regular(f"{folder}/modules.dep", dependencies.encode()),
        regular(f"{folder}/modules.alias", aliases.encode()),
        regular(f"{folder}/modules.symbols", b""),
    ]


def overlay(
    *,
    hostname: str | None = None,
    startup: str | None = None,
    files: Mapping[str, bytes] | Iterable[CpioEntry] = (),
) -> bytes:
    """Return the archive with one VM's own files, to be appended to the image's initramfs.

    `startup` becomes ``/etc/serai/startup``, run by the guest's shell before it reports ready; `files` maps
    names relative to the guest's root to contents (mode 0644) or gives whole entries.
    """
    entries = (
        [regular(name, data) for name, data in files.items()] if isinstance(files, Mapping) else list(files)
    )
    if hostname is not None:
        entries.append(regular("etc/serai/hostname", hostname.encode() + b"\n"))
    if startup is not None:
        entries.append(regular("etc/serai/startup", startup.encode(), 0o755))
    return write_cpio(entries)


def _all_depends(name: str, modules: Mapping[str, Module]) -> list[str]:
    """Return all that a module needs, the nearest first: modprobe loads the line from its end."""
    found: list[str] = []
    pending = list(modules[name].depends)
    while pending:
        current = pending.pop(0)
        if current in found:
            found.remove(current)
        found.append(current)
        pending.extend(modules[current].depends)
    return found
