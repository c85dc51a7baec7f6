"""A small loader of relocatable x86-64 ELF objects into private executable memory.

System V ABI, AMD64 supplement: only what LLVM emits for the machine's own object, which has no undefined
symbols. The mapping is private, so that a forked guest process shares the pages and cannot disturb others.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from dataclasses import dataclass

from serai.machine.errors import CodeError

__all__ = ["SHT_RELA", "SHT_SYMTAB", "LoadedObject", "load_object", "read_sections"]

SHT_SYMTAB, SHT_RELA, SHT_NOBITS = 2, 4, 8
SHF_ALLOC = 2
R_64, R_PC32, R_PLT32, R_32S, R_PC64 = 1, 2, 4, 11, 24
EM_X86_64 = 62


@dataclass
class LoadedObject:
    """Code in memory: the mapping (kept alive) and the addresses of the exported symbols."""

    memory: mmap.mmap
    symbols: dict[str, int]


@dataclass(frozen=True, slots=True)
class Section:
    """A section header of an ELF file."""

    name_offset: int
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    align: int


def read_sections(data: bytes) -> list[Section]:
    """Return the sections of an object; raises CodeError if it is none of x86-64."""
    if data[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", data, 18)[0] != EM_X86_64:
        raise CodeError("the cached object is not an x86-64 ELF file; delete the cache directory")
    start = struct.unpack_from("<Q", data, 40)[0]
    size, count = struct.unpack_from("<HH", data, 58)
    found = []
    for index in range(count):
        name, kind, flags, _, offset, length, link, info, align, _ = struct.unpack_from(
            "<IIQQQQIIQQ", data, start + index * size
        )
        found.append(Section(name, kind, flags, offset, length, link, info, align))
    return found


def _symbols(data: bytes, sections: list[Section], base: dict[int, int]) -> list[tuple[str, int | None, int]]:
    """Return (name, address or None if undefined, binding) of each symbol."""
    table = next(section for section in sections if section.kind == SHT_SYMTAB)
    names = sections[table.link].offset
    result: list[tuple[str, int | None, int]] = []
    for offset in range(table.offset, table.offset + table.size, 24):
        name, info, _, index, value, _ = struct.unpack_from("<IBBHQQ", data, offset)
        end = data.index(0, names + name)
        text = data[names + name : end].decode()
        result.append((text, base[index] + value if index in base else None, info >> 4))
    return result


def _relocate(image: memoryview, place: int, address: int, kind: int, target: int) -> None:
    """Apply one relocation at ``image[place]``, whose run-time address is ``address``."""
    if kind == R_64:
        struct.pack_into("<Q", image, place, target & (1 << 64) - 1)
    elif kind in (R_PC32, R_PLT32):
        struct.pack_into("<i", image, place, target - address)
    elif kind == R_PC64:
        struct.pack_into("<q", image, place, target - address)
    else:
        raise CodeError(f"relocation type {kind} in the machine's object is not supported")


def load_object(data: bytes) -> LoadedObject:
    """Load a relocatable object.

    Raises CodeError if the object is damaged or needs something from outside.
    """
    sections = read_sections(data)
    places: dict[int, int] = {}
    size = 0
    for index, section in enumerate(sections):
        if section.flags & SHF_ALLOC:
            align = max(section.align, 1)
            size = (size + align - 1) // align * align
            places[index] = size
            size += section.size
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    anchor = (ctypes.c_char * len(memory)).from_buffer(memory)
    start = ctypes.addressof(anchor)
    image = memoryview(memory)
    for index, place in places.items():
        if sections[index].kind != SHT_NOBITS:
            image[place : place + sections[index].size] = data[
                sections[index].offset : sections[index].offset + sections[index].size
            ]
    symbols = _symbols(data, sections, {index: start + place for index, place in places.items()})
    for section in sections:
        if section.kind != SHT_RELA or section.info not in places:
            continue
        for offset in range(section.offset, section.offset + section.size, 24):
            where, info, addend = struct.unpack_from("<QQq", data, offset)
            name, value, _ = symbols[info >> 32]
            if value is None:
                raise CodeError(f"the machine's object needs {name or 'an unnamed symbol'} from outside")
            place = places[section.info] + where
            _relocate(image, place, start + place, info & 0xFFFFFFFF, value + addend)
    _make_executable(start, len(memory))
    return LoadedObject(memory, {name: value for name, value, bind in symbols if bind == 1 and value})


def _make_executable(start: int, size: int) -> None:
    """Turn written memory into readable and executable memory (never writable and executable at once)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if libc.mprotect(start, size, mmap.PROT_READ | mmap.PROT_EXEC):
        raise CodeError(
            f"mprotect of {size} bytes of code failed with errno {ctypes.get_errno()}: "
            "the system forbids executable memory to this process; check SELinux or seccomp rules",
        )
