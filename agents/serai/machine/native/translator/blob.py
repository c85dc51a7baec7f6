"""From the object that LLVM makes of the stencils to the blob that the copier reads, and the blob's cache."""

from __future__ import annotations

import struct
from collections import defaultdict
from dataclasses import dataclass

from serai.machine.errors import CodeError
from serai.machine.isa.table import INSTRUCTIONS
from serai.machine.native.loader import SHT_RELA, SHT_SYMTAB, read_sections
from serai.machine.native.translator.forms import (
    ABSOLUTE32,
    ABSOLUTE64,
    HEADER_SIZE,
    MAGIC,
    OPERATION_SIZE,
    RELATIVE32,
    SPECIAL,
    Hole,
)
from serai.machine.native.translator.routines import common_routines
from serai.machine.native.translator.stencils import forms_of, operation_forms, stencil_module

__all__ = ["build_blob", "compile_stencils"]

R_64, R_PC32, R_PLT32, R_32, R_32S = 1, 2, 4, 10, 11
TYPES = {R_64: ABSOLUTE64, R_PC32: RELATIVE32, R_PLT32: RELATIVE32, R_32: ABSOLUTE32, R_32S: ABSOLUTE32}


@dataclass(frozen=True, slots=True)
class _Relocation:
    offset: int
    hole: Hole
    type: int
    addend: int


def compile_stencils(constants: dict[str, int]) -> bytes:
    """Compile the stencils for this CPU; return the ELF object. Takes some seconds."""
    from llvmlite import binding as llvm  # noqa: PLC0415 - only where stencils are made

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=2,
        reloc="static",
        codemodel="small",
    )
    module = llvm.parse_assembly(stencil_module(constants, common_routines()))
    module.triple = llvm.get_default_triple()
    module.data_layout = str(target.target_data)
    module.verify()
    builder = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=1))
    passes = llvm.create_new_module_pass_manager()  # one per function costs 1 ms a function
    passes.add_sroa_pass()
    passes.add_simplify_cfg_pass()
    passes.add_instruction_combine_pass()
    passes.run(module, builder)
    code: bytes = target.emit_object(module)
    return code


def _functions(data: bytes) -> dict[str, tuple[bytes, list[_Relocation]]]:
    """The code and the relocations of every function of the object."""
    sections = read_sections(data)
    table = next(section for section in sections if section.kind == SHT_SYMTAB)
    names = sections[table.link].offset
    symbols: list[tuple[str, int, int, int]] = []
    for place in range(table.offset, table.offset + table.size, 24):
        name, _, _, index, value, size = struct.unpack_from("<IBBHQQ", data, place)
        text = data[names + name : data.index(0, names + name)].decode()
        symbols.append((text, index, value, size))
    relocations: defaultdict[int, list[tuple[int, int, str, int]]] = defaultdict(list)
    for section in sections:
        if section.kind == SHT_RELA:
            for place in range(section.offset, section.offset + section.size, 24):
                where, info, addend = struct.unpack_from("<QQq", data, place)
                symbol = symbols[info >> 32][0]
                relocations[section.info].append((where, info & 0xFFFFFFFF, symbol, addend))
    found = {}
    position: defaultdict[int, int] = defaultdict(int)
    for entries in relocations.values():
        entries.sort()
    for name, index, value, size in sorted(symbols, key=lambda symbol: symbol[1:3]):
        if not name.startswith("st."):
            continue
        start = sections[index].offset + value
        inside = []
        entries, at = relocations[index], position[index]
        while at < len(entries) and entries[at][0] < value + size:
            where, kind, symbol, addend = entries[at]
            if where >= value:
                inside.append(_relocation(name, where - value, kind, symbol, addend))
            at += 1
        position[index] = at
        found[name] = (data[start : start + size], inside)
    return found


def _relocation(name: str, offset: int, kind: int, symbol: str, addend: int) -> _Relocation:
    if not symbol.startswith("H.") or kind not in TYPES:
        raise CodeError(f"stencil {name} needs relocation {kind} against {symbol!r}")
    if TYPES[kind] == RELATIVE32:
        if addend != -4:
            raise CodeError(f"stencil {name}: a branch with addend {addend}")
        addend = 0
    return _Relocation(offset, Hole[symbol[2:]], TYPES[kind], addend)


def _record(code: bytes, relocations: list[_Relocation]) -> bytes:
    """A stencil as the copier reads it; a final jump to what follows is dropped."""
    last = relocations[-1] if relocations else None
    if last and last.hole is Hole.CONTINUE and last.offset == len(code) - 4 and code[-5] == 0xE9:
        code, relocations = code[:-5], relocations[:-1]
    fields = [struct.pack("<HBBi", r.offset, r.hole, r.type, r.addend) for r in relocations]
    cold = any(r.hole is Hole.COLD for r in relocations)
    padded = code + bytes(-len(code) % 8)
    return b"".join([struct.pack("<HHI", len(code), len(fields), cold), *fields, padded])


def build_blob(constants: dict[str, int]) -> bytes:
    """Compile the stencils and arrange them for the copier."""
    functions = _functions(compile_stencils(constants))
    operations, records = bytearray(OPERATION_SIZE), bytearray()
    forms: list[int] = []
    places: dict[bytes, int] = {}
    table_size = sum(operation_forms(name).size for name in INSTRUCTIONS)
    forms_start = HEADER_SIZE + (len(INSTRUCTIONS) + 1) * OPERATION_SIZE
    special_start = forms_start + 4 * table_size
    records_start = (special_start + 4 * len(SPECIAL) + 7) & ~7

    def place(name: str) -> int:
        record = _record(*functions[name])
        if record not in places:
            places[record] = records_start + len(records)
            records.extend(record)
        return places[record]

    for name, instruction in sorted(INSTRUCTIONS.items()):
        operation = operation_forms(name)
        operations += struct.pack(
            "<BBBBBxxxII",
            *(operation.kind, operation.uses, operation.float_check, operation.flags, operation.banks),
            *(len(forms), 0),
        )
        entries = [0] * operation.size
        for form in forms_of(instruction):
            index = operation.index(form.rd, form.rs1, form.rs2, form.rounding)
            entries[index] = place(form.symbol)
        forms += entries
    special = struct.pack(f"<{len(SPECIAL)}I", *(place(f"st.{name}") for name in SPECIAL))
    total = records_start + len(records)
    header = struct.pack("<QQQQQ", MAGIC, total, HEADER_SIZE, forms_start, special_start)
    body = bytes(operations) + struct.pack(f"<{len(forms)}I", *forms) + special
    blob = header.ljust(HEADER_SIZE, b"\0") + body
    return blob.ljust(records_start, b"\0") + bytes(records)
