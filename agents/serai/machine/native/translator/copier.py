"""The copier: translates basic blocks by copying stencils and patching them. Native code (restricted language).

A run of basic blocks is translated from a slot on, to the end of the page or to something that ends it. Code
goes to the hot part of the code buffer, stubs to the cold part. Edges inside the page are patched directly;
everything else goes through the jump cache, which only ever holds what the exec TLB holds, so that translated
and interpreted runs walk the guest's page tables at the same instructions.

Deoptimisation needs the slot and how much of the block's budget to give back. Both are in a PLACE:
page << 19 | offset << 7 | instructions that have not retired.
"""

# ruff: noqa: PLR0911, PLR0912, PLR0915, PLR0917 - the restricted language has no tables or tuples
from serai.machine.native.intrinsics import host_load, host_store, sext32
from serai.machine.native.language import native
from serai.machine.native.layout import (
    BLOCK_LIMIT,
    CODE_STRIDE,
    EXEC_MASK,
    FIELDS,
    PAGE,
    PAGE_BITS,
    PAGE_HEADER,
    PENDING,
    SIDE,
    SLOT,
    State,
)
from serai.machine.native.runtime.fetch import decode_at
from serai.machine.native.runtime.jumps import enter_jump, forget_jumps_of_all
from serai.machine.native.runtime.pages import reset_slots
from serai.machine.native.translator.forms import (
    ABSOLUTE64,
    BASE,
    FLOAT_RD,
    FLOAT_RS1,
    FLOAT_RS2,
    MEMORY,
    OPERATION_SIZE,
    PINS,
    RECORD_HEADER,
    RELATIVE32,
    RELOCATION_SIZE,
    ROUNDS,
    SPECIAL,
    TWO_ADDRESS,
    USES_RD,
    USES_RS1,
    USES_RS2,
    ZERO,
    Hole,
    Kind,
)

PAGE_OFFSET = PAGE - 1
NO_REGISTER = 32
RESERVE = 1 << 16  # free space that the translation of one run may need in each part
RUN_LIMIT = 512  # instructions of one run
X_OFFSET = FIELDS["x"].offset
F_OFFSET = FIELDS["f"].offset
PIN_COUNT = len(PINS)
# The location of each register, four bits each: x0 to x15 and x16 to x31.
LOCATIONS = sum((PINS.index(n) if n in PINS else MEMORY if n else ZERO) << 4 * n for n in range(16))
ADD_OPERATION = 0  # replaced when the machine is compiled

HOLE_CONTINUE = int(Hole.CONTINUE)
HOLE_TAKEN = int(Hole.TAKEN)
HOLE_COLD = int(Hole.COLD)
HOLE_IMMEDIATE = int(Hole.IMMEDIATE)
HOLE_RD = int(Hole.RD)
HOLE_RS1 = int(Hole.RS1)
HOLE_RS2 = int(Hole.RS2)
HOLE_RS3 = int(Hole.RS3)
HOLE_COUNT = int(Hole.COUNT)
HOLE_OFFSET = int(Hole.OFFSET)
HOLE_NEXT = int(Hole.NEXT)
HOLE_TARGET = int(Hole.TARGET)
HOLE_PLACE = int(Hole.PLACE)
HOLE_EDGE = int(Hole.EDGE)
HOLE_EXIT = int(Hole.EXIT)
HOLE_LINK = int(Hole.LINK)
HOLE_MISS = int(Hole.MISS)
HOLE_AMOUNT = int(Hole.AMOUNT)
KIND_NONE = int(Kind.NONE)
KIND_BRANCH = int(Kind.BRANCH)
KIND_JUMP = int(Kind.JUMP)
KIND_INDIRECT = int(Kind.INDIRECT)
HEAD = SPECIAL.index("head")
JUMP = SPECIAL.index("jump")
EXIT = SPECIAL.index("exit")
LINK = SPECIAL.index("link")
GOTO = SPECIAL.index("goto")
FLOAT_READS = SPECIAL.index("float_reads")
COMMON_EXIT = SPECIAL.index("common_exit")
COMMON_LINK = SPECIAL.index("common_link")
COMMON_MISS = SPECIAL.index("common_miss")
SPILL = SPECIAL.index("spill0")
RELOAD = SPECIAL.index("reload0")


@native
def special(s: State, number: int) -> int:
    """The record of a stencil that belongs to no instruction."""
    return s.stencils + host_load(host_load(s.stencils + 32, 8) + s.stencils + (number << 2), 4)


@native
def copy_stencil(s: State, record: int, destination: int) -> int:
    """Copy a stencil and patch it from s.holes; returns its length. s.patched is the last place patched."""
    length = host_load(record, 2)
    count = host_load(record + 2, 2)
    relocation = record + RECORD_HEADER
    code = relocation + count * RELOCATION_SIZE
    position = 0
    while position < length:
        host_store(destination + position, host_load(code + position, 8), 8)
        position += 8
    s.holes[HOLE_CONTINUE] = destination + length
    while relocation < code:
        word = host_load(relocation, 8)
        place = destination + (word & 0xFFFF)
        value = s.holes[word >> 16 & 0xFF] + (sext32(word >> 32))
        if word >> 24 & 0xFF == RELATIVE32:
            host_store(place, value - place - 4, 4)
        elif word >> 24 & 0xFF == ABSOLUTE64:
            host_store(place, value, 8)
        else:
            host_store(place, value, 4)
        s.patched = place
        relocation += RELOCATION_SIZE
    return length


@native
def place_of(s: State, slot: int, base: int) -> int:
    """A slot as a PLACE with nothing to give back."""
    page = (base - PAGE_HEADER - s.code_pool) // CODE_STRIDE
    return page << 19 | (slot - base >> 4) << 8


@native
def exit_stub(s: State, place: int) -> int:
    """A stub that deoptimises at a place; returns its address."""
    stub: int = s.cold_next
    s.holes[HOLE_PLACE] = place
    s.cold_next = stub + copy_stencil(s, special(s, EXIT), stub)
    return stub


@native
def is_head(s: State, slot: int) -> int:
    """Whether a translated basic block begins at a slot."""
    return host_load(slot, 8) == s.enter_handler


@native
def side_of(slot: int, base: int) -> int:
    """What is kept of a slot that is a head."""
    return base + SIDE + (slot - base >> 1)


@native
def code_of(s: State, slot: int, base: int) -> int:
    """The code of a head, in the writable mapping."""
    return s.code_write + host_load(side_of(slot, base), 4)


@native
def edge_target(s: State, slot: int, base: int, site: int) -> int:
    """Where the branch whose displacement is at ``site`` goes: the target's code or a stub that will link it."""
    if is_head(s, slot):
        return code_of(s, slot, base)
    stub: int = s.cold_next
    s.holes[HOLE_EDGE] = site - s.code_write << 32 | place_of(s, slot, base)
    s.cold_next = stub + copy_stencil(s, special(s, LINK), stub)
    return stub


@native
def patch_branch(site: int, target: int) -> int:
    """Write the displacement of a branch."""
    host_store(site, target - site - 4, 4)
    return 0


@native
def put(s: State, record: int) -> int:
    """Copy a stencil behind the last one."""
    s.hot_next = s.hot_next + copy_stencil(s, record, s.hot_next)
    return 0


@native
def put_special(s: State, number: int) -> int:
    """Copy a special stencil behind the last one."""
    return put(s, special(s, number))


@native
def site_of(record: int, destination: int, hole: int) -> int:
    """Where a copied stencil has a hole."""
    relocation = record + RECORD_HEADER
    while host_load(relocation + 2, 1) != hole:
        relocation += RELOCATION_SIZE
    return destination + host_load(relocation, 2)


@native
def put_cold(s: State, record: int, place: int) -> int:
    """Copy a stencil that may deoptimise at a place; the stub is corrected when the block's length is known."""
    if host_load(record + 4, 4):
        stub = exit_stub(s, place)
        s.holes[HOLE_COLD] = stub
        s.stub_log[s.stub_count] = site_of(special(s, EXIT), stub, HOLE_PLACE)
        s.stub_count = s.stub_count + 1
    return put(s, record)


@native
def location(number: int) -> int:
    """Where a register is: a pin, the state block or nowhere (x0)."""
    if number < 16:
        return LOCATIONS >> (number << 2) & 15
    return MEMORY


@native
def form_index(uses: int, rd: int, rs1: int, rs2: int) -> int:
    """Where a form is in its operation's table."""
    index = 0
    if uses & USES_RD:
        index = rd
    if uses & USES_RS1:
        index = index * BASE + rs1
    if uses & USES_RS2:
        index = index * BASE + rs2
    return index


@native
def find_record(s: State, operation: int, index: int) -> int:
    """The record of a form, 0 if it has no stencil."""
    first = host_load(operation + 8, 4)
    offset = host_load(s.stencils + host_load(s.stencils + 24, 8) + (first + index << 2), 4)
    if offset:
        return s.stencils + offset
    return 0


@native
def operation_of(s: State, slot: int) -> int:
    """The operation of a decoded slot, by the number in front of its handler."""
    number = host_load(host_load(slot, 8) - 16, 4)
    return s.stencils + host_load(s.stencils + 16, 8) + number * OPERATION_SIZE


@native
def register_place(number: int, is_float: int) -> int:
    """The offset of a register in the state block."""
    if is_float:
        return F_OFFSET + (number << 3)
    return X_OFFSET + (number << 3)


@native
def set_holes(s: State, slot: int, banks: int, offset: int, length: int) -> int:
    """The holes that an instruction's operands fill."""
    immediate = sext32(host_load(slot + 8, 4))
    s.holes[HOLE_IMMEDIATE] = immediate
    s.holes[HOLE_AMOUNT] = immediate
    s.holes[HOLE_RD] = register_place(host_load(slot + 12, 1), banks & FLOAT_RD)
    s.holes[HOLE_RS1] = register_place(host_load(slot + 13, 1), banks & FLOAT_RS1)
    s.holes[HOLE_RS2] = register_place(host_load(slot + 14, 1), banks & FLOAT_RS2)
    s.holes[HOLE_RS3] = F_OFFSET + (host_load(slot + 15, 1) << 3)
    s.holes[HOLE_OFFSET] = offset
    s.holes[HOLE_NEXT] = offset + length
    s.holes[HOLE_TARGET] = offset + immediate
    return 0


@native
def put_move(s: State, rd: int, rs1: int) -> int:
    """Copy ``rd = rs1`` as the form of add whose first source is zero."""
    operation = s.stencils + host_load(s.stencils + 16, 8) + ADD_OPERATION * OPERATION_SIZE
    index = form_index(USES_RD | USES_RS1 | USES_RS2, rd, ZERO, rs1)
    kept = s.holes[HOLE_RS2]
    s.holes[HOLE_RS2] = s.holes[HOLE_RS1]
    put(s, find_record(s, operation, index))
    s.holes[HOLE_RS2] = kept
    return 0


@native
def put_instruction(s: State, slot: int, operation: int, place: int) -> int:
    """Copy the stencil of an instruction, in the form of its operands; 0 if there is none."""
    uses = host_load(operation + 1, 1)
    flags = host_load(operation + 3, 1)
    rd = location(host_load(slot + 12, 1))
    rs1 = location(host_load(slot + 13, 1))
    rs2 = location(host_load(slot + 14, 1))
    if flags & ROUNDS:
        return put_rounding(s, slot, operation, place)
    record = find_record(s, operation, form_index(uses, rd, rs1, rs2))
    if record:
        put_cold(s, record, place)
        return 1
    if rs1 == ZERO:
        rs1 = MEMORY
        record = find_record(s, operation, form_index(uses, rd, rs1, rs2))
    if rs2 == ZERO and not record:
        rs2 = MEMORY
        record = find_record(s, operation, form_index(uses, rd, rs1, rs2))
    if record:
        put_cold(s, record, place)
        return 1
    if flags & TWO_ADDRESS and rd < MEMORY:
        put_move(s, rd, rs1)
        put_cold(s, find_record(s, operation, form_index(uses, rd, rd, rs2)), place)
        return 1
    return put_in_memory(s, operation, place, rd, rs1, rs2, 0)


@native
def put_rounding(s: State, slot: int, operation: int, place: int) -> int:
    """Copy the stencil of an instruction that rounds, by its rounding mode."""
    mode = host_load(slot + 8, 4)
    which = 0
    if mode == 0:
        which = 1
    elif mode == 1:
        which = 2
    elif mode != 7:
        return 0
    uses = host_load(operation + 1, 1)
    rd = location(host_load(slot + 12, 1))
    rs1 = location(host_load(slot + 13, 1))
    if not uses & USES_RD:
        rd = MEMORY
    if not uses & USES_RS1:
        rs1 = MEMORY
    record = find_record(s, operation, form_index(uses, rd, rs1, MEMORY) * 3 + which)
    if record:
        put_cold(s, record, place)
        return 1
    return put_in_memory(s, operation, place, rd, rs1, MEMORY, 3 + which)


@native
def put_in_memory(s: State, operation: int, place: int, rd: int, rs1: int, rs2: int, rounding: int) -> int:
    """Copy the form that has its operands in the state block, between moves from and to the pins."""
    uses = host_load(operation + 1, 1)
    index = form_index(uses, MEMORY, MEMORY, MEMORY)
    if rounding:
        index = index * 3 + rounding - 3
    record = find_record(s, operation, index)
    if not record:
        return 0
    if uses & USES_RS1 and rs1 < MEMORY:
        put_special(s, SPILL + rs1)
    if uses & USES_RS2 and rs2 < MEMORY:
        put_special(s, SPILL + rs2)
    put_cold(s, record, place)
    if uses & USES_RD and rd < MEMORY:
        put_special(s, RELOAD + rd)
    return 1


@native
def begin_block(s: State, slot: int, base: int) -> int:
    """Make a slot a head; returns where its count belongs."""
    side = side_of(slot, base)
    host_store(side, s.hot_next - s.code_write, 4)
    host_store(side + 4, host_load(slot, 8) - s.decode_handler, 4)
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
        if host_load(slot, 8) == s.decode_handler:
            decode_at(s, slot, offset)
        operation = operation_of(s, slot)
        kind = host_load(operation, 1)
        length = host_load(host_load(slot, 8) - 12, 4)
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
