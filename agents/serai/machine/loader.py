"""Puts kernel, initramfs and device tree into RAM.

A Linux Image (Documentation/arch/riscv/boot-image-header.rst) goes to the start of RAM plus its text offset,
an ELF file where its program headers say; the initramfs and the device tree go to the end of RAM.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serai.machine import cpio
from serai.machine.errors import GuestAccessError, LoadError
from serai.machine.memory import PAGE_SIZE, GuestMemory

_IMAGE_HEADER = struct.Struct("<8xQQQ24x4s4x")
_IMAGE_MAGIC = b"RSC\x05"
_IMAGE_MAGIC_OFFSET = 0x38
_HEADER_BYTES = 64
_ELF_HEADER = struct.Struct("<16xHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_ELF_MAGIC = b"\x7fELF\x02\x01\x01"
_MACHINE_RISCV = 243
_SEGMENT_LOAD = 1
_KERNEL_ALIGNMENT = 2 << 20
_TREE_ROOM = 64 << 10
_TREE_LIMIT = _TREE_ROOM - 2 * PAGE_SIZE  # the rest is for what firmware adds, and for its parameters
_FIRMWARE_HEAP = 256 << 10
# struct fw_dynamic_info (OpenSBI, include/sbi/fw_dynamic.h): magic, version, next address, next mode (1: S),
# options, boot hart.
_DYNAMIC_INFORMATION = struct.Struct("<6Q")
_DYNAMIC_MAGIC = 0x4942534F
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel in RAM: where to start it, and the range it takes, its uninitialised data included."""

    entry: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Boot:
    """What the boot hart needs to know; `information` is for OpenSBI's fw_dynamic, 0 without firmware."""

    entry: int
    tree: int
    information: int = 0


def load(
    memory: GuestMemory,
    *,
    kernel: Path,
    initramfs: Path | None,
    extra_files: dict[str, tuple[int, bytes]],
    tree: Callable[[tuple[int, int] | None], bytes],
    firmware: Path | None = None,
) -> Boot:
    """Fill RAM; `tree` makes the device tree once the place of the initramfs is known.

    Raises LoadError naming the file and the reason, ConfigurationError for a bad path among `extra_files`.
    """
    loaded = load_kernel(memory, kernel)
    if firmware is not None:
        _load_firmware(memory, firmware, loaded)
    tree_address = memory.base + memory.size - _TREE_ROOM & -PAGE_SIZE
    archive = cpio.append(_read(initramfs) if initramfs else b"", extra_files)
    place = None
    limit = tree_address
    if archive:
        start = tree_address - len(archive) & -PAGE_SIZE
        place = (start, start + len(archive))
        limit = start
    if limit < loaded.end:
        needed = loaded.end - memory.base + len(archive) + _TREE_ROOM + PAGE_SIZE
        raise _too_little(memory, needed, "kernel and initramfs")
    if place is not None:
        memory.write(place[0], archive)
    blob = tree(place)
    if len(blob) > _TREE_LIMIT:
        raise LoadError(f"a device tree of {len(blob)} bytes (is the command line that long?)")
    memory.write(tree_address, blob)
    if firmware is None:
        return Boot(loaded.entry, tree_address)
    information = tree_address + _TREE_ROOM - PAGE_SIZE
    memory.write(information, _DYNAMIC_INFORMATION.pack(_DYNAMIC_MAGIC, 2, loaded.entry, 1, 0, 0))
    return Boot(memory.base, tree_address, information)


def _load_firmware(memory: GuestMemory, path: Path, kernel: Kernel) -> None:
    """Put a raw firmware image at the start of RAM, where the bare board begins to execute."""
    data = _read(path)
    if not data or data.startswith(b"\x7fELF"):
        raise LoadError(f"{path} is not a raw firmware image (OpenSBI's is fw_dynamic.bin)")
    if memory.base + len(data) + _FIRMWARE_HEAP > kernel.start:
        raise LoadError(
            f"{path} ({len(data)} bytes at {memory.base:#x}) overlaps the kernel at {kernel.start:#x}"
        )
    memory.write(memory.base, data)


def load_kernel(memory: GuestMemory, path: Path) -> Kernel:
    """Load a Linux Image or an ELF file."""
    data = _read(path)
    if data.startswith(_ELF_MAGIC):
        return _load_elf(memory, path, data)
    if data[_IMAGE_MAGIC_OFFSET : _IMAGE_MAGIC_OFFSET + 4] == _IMAGE_MAGIC:
        return _load_image(memory, path, data)
    if data[:2] == b"\x1f\x8b":
        raise LoadError(f"{path} is gzip-compressed: unpack it first, the machine loads plain Images")
    raise LoadError(f"{path} is neither a RISC-V Linux Image nor a RISC-V ELF file")


def _too_little(memory: GuestMemory, needed: int, what: str) -> LoadError:
    return LoadError(
        f"{memory.size // _MIB} MiB of RAM are too few: {what} alone take {-(-needed // _MIB)} MiB"
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LoadError(f"{path} cannot be loaded: {error.strerror}") from None


def _load_image(memory: GuestMemory, path: Path, data: bytes) -> Kernel:
    if len(data) < _HEADER_BYTES:
        raise LoadError(f"{path} is cut off within its header")
    text_offset, image_size, flags, _ = _IMAGE_HEADER.unpack_from(data)
    if flags & 1:
        raise LoadError(f"{path} is a big-endian kernel")
    address = memory.base + text_offset
    end = address + max(image_size, len(data))
    if address % _KERNEL_ALIGNMENT:
        raise LoadError(f"{path} wants to be at {address:#x}, which is not a multiple of 2 MiB")
    if end > memory.base + memory.size:
        raise _too_little(memory, end - memory.base, str(path))
    memory.write(address, data)
    return Kernel(address, address, end)


def _load_elf(memory: GuestMemory, path: Path, data: bytes) -> Kernel:
    try:
        header = _ELF_HEADER.unpack_from(data)
        machine, entry, table, size, count = header[1], header[3], header[4], header[8], header[9]
        if machine != _MACHINE_RISCV:
            raise LoadError(f"{path} is an ELF file for another architecture ({machine})")
        start, end = memory.base + memory.size, memory.base
        for number in range(count):
            kind, _, offset, _, address, in_file, in_memory, _ = _PROGRAM_HEADER.unpack_from(
                data, table + number * size
            )
            if kind != _SEGMENT_LOAD or in_memory == 0:
                continue
            content = data[offset : offset + in_file]
            if len(content) != in_file or in_file > in_memory:
                raise LoadError(f"{path} is damaged: segment {number} is not whole")
            memory.write(address, content)
            rest = memory.view(address + in_file, in_memory - in_file)  # checked before so much is allocated
            rest[:] = bytes(len(rest))
            memory.wrote(address, in_memory)
            start, end = min(start, address), max(end, address + in_memory)
    except (struct.error, OverflowError):
        raise LoadError(f"{path} is damaged: its headers are not whole") from None
    except GuestAccessError as error:
        raise LoadError(f"{path} does not fit into RAM: {error}") from None
    return Kernel(entry, start, end)
