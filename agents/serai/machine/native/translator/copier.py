"""The copier: translates basic blocks by copying stencils and patching them. Native code.

A run of basic blocks is translated from a slot on, to the end of the page or to something that ends it. Code
goes to the hot part of the code buffer, stubs to the cold part. Edges inside the page are patched directly;
everything else goes through the jump cache, which only ever holds what the exec TLB holds, so that translated
and interpreted runs walk the guest's page tables at the same instructions.

Deoptimisation needs the slot and how much of the block's budget to give back. Both are in a PLACE:
page << 19 | offset << 7 | instructions that have not retired.
"""

# ruff: noqa: PLR0912, PLR0915 - the restricted language has no tables or tuples
from serai.machine.native.intrinsics import host_load, host_store, sext32
from serai.machine.native.language import native
from serai.machine.native.layout import (
    BLOCK_LIMIT,
    CODE_STRIDE,
    EXEC_MASK,
    PAGE,
    PAGE_BITS,
    PAGE_HEADER,
    PENDING,
    State,
)
from serai.machine.native.runtime.fetch import decode_at
from serai.machine.native.runtime.jumps import enter_jump, forget_jumps_of_all
from serai.machine.native.runtime.pages import reset_slots
from serai.machine.native.translator.forms import (
    MEMORY,
    USES_RD,
)
from serai.machine.native.translator.patcher import (
    COMMON_EXIT,
    COMMON_LINK,
    COMMON_MISS,
    FLOAT_READS,
    GOTO,
    HEAD,
    HOLE_COUNT,
    HOLE_EXIT,
    HOLE_LINK,
    HOLE_MISS,
    HOLE_TAKEN,
    HOLE_TARGET,
    JUMP,
    KIND_BRANCH,
    KIND_INDIRECT,
    KIND_JUMP,
    KIND_NONE,
    NO_REGISTER,
    PAGE_OFFSET,
    RESERVE,
    RUN_LIMIT,
    code_of,
    copy_stencil,
    edge_target,
    exit_stub,
    find_record,
    form_index,
    is_head,
    location,
    operation_of,
    patch_branch,
    place_of,
    put,
    put_cold,
    put_instruction,
    put_special,
    set_holes,
    side_of,
    site_of,
    special,
)


@native
def begin_block(s: State, slot: int, base: int) -> int:
    """Make a slot a head; returns where its count belongs."""
    side = side_of(slot, base)
    host_store(side, s.hot_next - s.code_write, 4)
    host_store(side + 4, host_load(slot, 8), 4)
    host_store(slot, s.enter_handler, 8)
    s.stub_count = 0
    s.holes[HOLE_COUNT] = 0
    start: int = s.hot_next
    put_cold(s, special(s, HEAD), place_of(s, slot, base))
    s.translated_blocks = s.translated_blocks + 1
    return start


@native
def end_block(s: State, start: int, count: int) -> int:
    """Fill in the length of a block where it was not known yet."""
    host_store(site_of(special(s, HEAD), start, HOLE_COUNT), count, 4)
    index = 0
    while index < s.stub_count:
        stub = s.stub_log[index]
        host_store(stub, host_load(stub, 4) + count, 4)
        index += 1
    s.stub_count = 0
    s.translated_instructions = s.translated_instructions + count
    return 0


@native
def put_edge(s: State, slot: int, base: int) -> int:
    """Copy a jump to a slot of the page."""
    s.holes[HOLE_TAKEN] = 0
    put_special(s, JUMP)
    return patch_branch(s.patched, edge_target(s, slot, base, s.patched))


@native
def put_goto(s: State, target: int) -> int:
    """Copy a jump out of the page to the cold part; returns its address."""
    code: int = s.cold_next
    s.holes[HOLE_TARGET] = target
    s.cold_next = code + copy_stencil(s, special(s, GOTO), code)
    return code


@native
def put_far(s: State, target: int) -> int:
    """Copy a jump out of the page behind the last stencil."""
    s.holes[HOLE_TARGET] = target
    return put_special(s, GOTO)


@native
def put_branch(s: State, slot: int, base: int, operation: int, offset: int) -> int:
    """Copy a conditional branch and direct its edge."""
    uses = host_load(operation + 1, 1)
    rs1 = location(host_load(slot + 13, 1))
    rs2 = location(host_load(slot + 14, 1))
    record = find_record(s, operation, form_index(uses, MEMORY, rs1, rs2))
    start: int = s.hot_next
    s.holes[HOLE_TAKEN] = 0
    put(s, record)
    site = site_of(record, start, HOLE_TAKEN)
    target = offset + sext32(host_load(slot + 8, 4))
    if target >= PAGE:
        return patch_branch(site, put_goto(s, target))
    if target <= offset and s.pending_count < PENDING:
        s.pending[s.pending_count] = base + (target << 3)
        s.pending_count = s.pending_count + 1
    return patch_branch(site, edge_target(s, base + (target << 3), base, site))


@native
def put_jump(s: State, slot: int, base: int, operation: int, offset: int) -> int:
    """Copy a direct jump."""
    number = host_load(slot + 12, 1)
    if number != NO_REGISTER:
        put(s, find_record(s, operation, form_index(USES_RD, location(number), 0, 0)))
    target = offset + sext32(host_load(slot + 8, 4))
    if target < PAGE:
        return put_edge(s, base + (target << 3), base)
    return put_far(s, target)


@native
def put_float_check(s: State, operation: int, checked: int, place: int) -> int:
    """Check mstatus.FS before a block's first instruction that needs it; returns what is known to hold."""
    check = host_load(operation + 2, 1)
    if check <= checked:
        return checked
    put_cold(s, special(s, FLOAT_READS + check - 1), place)
    return check


@native
def flush_code(s: State) -> int:
    """Forget all translated code, not the decoded slots' pages: nothing that the guest could notice."""
    index = 0
    count = s.ram_size >> PAGE_BITS
    while index < count:
        base = host_load(s.code_map + (index << 3), 8)
        if base:
            reset_slots(s, base)
        index += 1
    forget_jumps_of_all(s)
    s.code_flushes = s.code_flushes + 1
    s.hot_next = s.hot_start
    s.cold_next = s.cold_start
    return 0


@native
def start_code(s: State) -> int:
    """Put the common routines at the start of the code buffer."""
    s.hot_next = s.code_write
    s.cold_next = s.cold_start
    s.holes[HOLE_EXIT] = s.hot_next
    put_special(s, COMMON_EXIT)
    s.holes[HOLE_LINK] = s.hot_next
    put_special(s, COMMON_LINK)
    s.holes[HOLE_MISS] = s.hot_next
    put_special(s, COMMON_MISS)
    s.hot_start = s.hot_next
    return 0


@native
def has_room(s: State) -> int:
    """Whether a run fits into both parts of the code buffer."""
    return s.hot_next + RESERVE < s.cold_start and s.cold_next + RESERVE < s.code_end


@native
def translate_run(s: State, first: int, base: int) -> int:
    """Translate from a slot on; 1 if the slot is a head afterwards."""
    if is_head(s, first):
        return 1
    slot = first
    start = 0
    count = 0
    checked = 0
    total = 0
    while True:
        offset = slot - base >> 3
        if offset >= PAGE:
            if count:
                end_block(s, start, count)
            put_far(s, offset)
            break
        if is_head(s, slot) or total >= RUN_LIMIT:
            if count:
                end_block(s, start, count)
            put_edge(s, slot, base)
            break
        if host_load(slot, 8) == 0:
            decode_at(s, slot, offset)
        operation = operation_of(s, slot)
        kind = host_load(operation, 1)
        length = host_load(host_load(slot, 8) + s.decode_handler - 12, 4)
        if kind == KIND_NONE:
            if slot == first:
                return 0
            put_exit(s, slot, base, start, count)
            break
        if count == 0:
            start = begin_block(s, slot, base)
            checked = 0
        place = place_of(s, slot, base) - count
        set_holes(s, slot, host_load(operation + 4, 1), offset, length)
        if kind == KIND_BRANCH:
            put_branch(s, slot, base, operation, offset)
            end_block(s, start, count + 1)
            total += count + 1
            count = 0
        elif kind == KIND_JUMP:
            put_jump(s, slot, base, operation, offset)
            end_block(s, start, count + 1)
            break
        elif kind == KIND_INDIRECT:
            put_instruction(s, slot, operation, place)
            end_block(s, start, count + 1)
            break
        else:
            checked = put_float_check(s, operation, checked, place)
            if not put_instruction(s, slot, operation, place):
                put_exit(s, slot, base, start, count)
                break
            count += 1
            if count == BLOCK_LIMIT:
                end_block(s, start, count)
                total += count
                count = 0
        slot += length << 3
    return is_head(s, first)


@native
def put_exit(s: State, slot: int, base: int, start: int, count: int) -> int:
    """End a run with an instruction that the interpreter must execute."""
    if count:
        end_block(s, start, count)
    s.holes[HOLE_TAKEN] = 0
    put_special(s, JUMP)
    site: int = s.patched
    return patch_branch(site, exit_stub(s, place_of(s, slot, base)))


@native
def translate_from(s: State, slot: int, base: int) -> int:
    """Translate from a slot on, and what the code found loops back to; 1 if the slot is a head afterwards.

    An interpreted branch does not translate its target, so a loop that deoptimises in its first round would
    stay interpreted.
    """
    s.pending_count = 0
    result = translate_run(s, slot, base)
    while s.pending_count:
        s.pending_count = s.pending_count - 1
        if has_room(s):
            translate_run(s, s.pending[s.pending_count], base)
    return result


@native
def translate_slot(s: State, slot: int, pc: int) -> int:
    """What the interpreter does at a slot that was not decoded yet."""
    base = slot - ((pc & PAGE_OFFSET) << 3)
    decode_at(s, slot, pc)
    if s.stencils:
        if not has_room(s):
            flush_code(s)
            decode_at(s, slot, pc)
        translate_from(s, slot, base)
    return 0


@native
def code_for(s: State, slot: int, base: int) -> int:
    """The code of a slot, translated if need be; a stub that deoptimises where there is no stencil."""
    if translate_from(s, slot, base):
        return code_of(s, slot, base)
    return exit_stub(s, place_of(s, slot, base))


@native
def link_edge(s: State, edge: int) -> int:
    """Translate an edge's target and patch the edge; returns where to go on (executable mapping)."""
    place = edge & 0x7FFFFFFF
    base = s.code_pool + (place >> 19) * CODE_STRIDE + PAGE_HEADER
    slot = base + ((place >> 8 & 0x7FF) << 4)
    if not has_room(s):
        flush_code(s)
        return code_for(s, slot, base) - s.code_write + s.code_execute
    code = code_for(s, slot, base)
    patch_branch(s.code_write + (edge >> 32), code)
    return code - s.code_write + s.code_execute


@native
def find_code(s: State, target: int) -> int:
    """The code of a jump's target, entered in the jump cache; 0 if the exec TLB does not know the page."""
    entry = s.exec_set + ((target >> PAGE_BITS & EXEC_MASK) << 4)
    if host_load(entry, 8) != target & ~PAGE_OFFSET:
        return 0
    base = host_load(entry + 8, 8)
    if not has_room(s):
        flush_code(s)
    code = code_for(s, base + ((target & PAGE_OFFSET) << 3), base) - s.code_write + s.code_execute
    if host_load(entry, 8) == target & ~PAGE_OFFSET:  # still: decoding may have flushed the TLB
        enter_jump(s, target, code)
    s.page_pc = target & ~PAGE_OFFSET
    return code
