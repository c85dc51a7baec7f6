"""Kernel modules: what a .ko says about itself, and which others it needs.

A package has no modules.dep (depmod makes it when the package is installed), so the dependencies come from
the ``.modinfo`` section of each module, as depmod itself does it.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from serai.errors import ImageError

_SIGNATURE_MARK = b"~Module signature appended~\n"
_UNPACKED_LIMIT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Module:
    """One loadable module: its name with underscores, its ELF bytes, and what `.modinfo` says."""

    name: str
    data: bytes
    depends: tuple[str, ...]
    aliases: tuple[str, ...]
    release: str


def module_name(path: str) -> str:
    """Return the kernel's name of the module file at `path`: ``virtio-rng.ko.xz`` is virtio_rng."""
    return path.rpartition("/")[2].partition(".")[0].replace("-", "_")


def parse_module(path: str, packed: bytes) -> Module:
    """Read a module file, compressed by xz or plain.

    Raises ImageError, naming it, when it is not a sound module.
    """
    data = without_signature(_unpack(path, packed))
    information = _modinfo(path, data)
    depends = information.get("depends", [""])[0]
    return Module(
        name=module_name(path),
        data=data,
        depends=tuple(name.replace("-", "_") for name in depends.split(",") if name),
        aliases=tuple(information.get("alias", [])),
        release=information.get("vermagic", [""])[0].partition(" ")[0],
    )


def without_signature(data: bytes) -> bytes:
    """Return a module without its appended signature (Documentation/admin-guide/module-signing.rst).

    Checking the signatures of the virtio modules costs the guest 335 million instructions, two fifths of its
    boot, and protects nothing here: the package they come from was verified, and who can change the initramfs
    can change the kernel beside it. Debian's kernel loads unsigned modules and notes it as taint E.
    """
    if not data.endswith(_SIGNATURE_MARK):
        return data
    end = len(data) - len(_SIGNATURE_MARK)
    # struct module_signature: eight bytes about the algorithm and padding, then the signature's length.
    (length,) = struct.unpack_from(">I", data, end - 4) if end >= 12 else (0,)
    return data[: max(end - 12 - length, 0)]


def load_order(wanted: Iterable[str], available: Mapping[str, Module]) -> list[Module]:
    """Return the wanted modules and all that they need, each after its dependencies.

    Raises ImageError for a name that is not available and for modules that need each other.
    """
    order: list[Module] = []
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in done:
            return
        if name in path:
            raise ImageError(
                f"kernel modules need each other: {' -> '.join((*path, name))}", reason="MODULE_INVALID"
            )
        module = available.get(name)
        if module is None:
            needed = f", needed by {path[-1]}" if path else ""
            raise ImageError(
                f"the kernel package has no module {name}{needed}", reason="MODULE_MISSING", module=name
            )
        for dependency in module.depends:
            visit(dependency, (*path, name))
        done.add(name)
        order.append(module)

    for name in wanted:
        visit(name, ())
    return order


def _unpack(path: str, packed: bytes) -> bytes:
    if path.endswith(".ko"):
        return packed
    if not path.endswith(".ko.xz"):
        raise _unsound(path, "its compression is not known")
    try:
        decompressor = lzma.LZMADecompressor(memlimit=256 << 20)
        data = decompressor.decompress(packed, _UNPACKED_LIMIT_BYTES)
    except lzma.LZMAError as error:
        raise _unsound(path, str(error)) from error
    if not decompressor.eof:
        raise _unsound(path, f"it is cut short or larger than {_UNPACKED_LIMIT_BYTES} bytes")
    return data


def _modinfo(path: str, data: bytes) -> dict[str, list[str]]:
    """Return the ``key=value`` strings of the section .modinfo of an ELF-64 file."""
    try:
        section = _section(data, b".modinfo")
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        raise _unsound(path, "its ELF headers are broken") from error
    if section is None:
        raise _unsound(path, "it has no section .modinfo")
    found: dict[str, list[str]] = {}
    for text in section.split(b"\0"):
        key, separator, value = text.partition(b"=")
        if separator:
            found.setdefault(key.decode(errors="replace"), []).append(value.decode(errors="replace"))
    return found


def _section(data: bytes, name: bytes) -> bytes | None:
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not ELF64 little-endian")
    (table,) = struct.unpack_from("<Q", data, 40)
    entry_size, count, names_index = struct.unpack_from("<HHH", data, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, table + index * entry_size) for index in range(count)]
    names_offset, names_size = headers[names_index][4:6]
    names = data[names_offset : names_offset + names_size]
    for name_offset, _, _, _, offset, size, *_ in headers:
        if names[name_offset : names.index(b"\0", name_offset)] == name:
            return data[offset : offset + size]
    return None


def _unsound(path: str, problem: str) -> ImageError:
    return ImageError(f"kernel module {path} cannot be read: {problem}", reason="MODULE_INVALID", module=path)
