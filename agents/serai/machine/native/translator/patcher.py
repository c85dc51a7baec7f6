"""Copying stencils and filling their holes, instruction by instruction. Native code (restricted language)."""

# ruff: noqa: PLR0917 - the restricted language has no tables or tuples
from serai.machine.native.intrinsics import host_load, host_store, sext32
from serai.machine.native.language import native
from serai.machine.native.layout import (
    CODE_STRIDE,
    FIELDS,
    PAGE,
    PAGE_HEADER,
    SIDE,
    State,
)
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
    """Where the branch patched at ``site`` goes: the target's code or a stub that will link it."""
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
    """Copy a stencil that may deoptimise at a place; the stub is corrected at the block's end."""
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
    number = host_load(host_load(slot, 8) + s.decode_handler - 16, 4)
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
