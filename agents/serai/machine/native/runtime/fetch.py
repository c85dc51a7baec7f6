"""From a program counter to a decoded slot. Native code (restricted language)."""

from serai.machine.native.intrinsics import host_load, host_store
from serai.machine.native.language import native
from serai.machine.native.layout import (
    CODE_STRIDE,
    EXEC_MASK,
    EXEC_SET,
    JUMP_SET,
    LEAVE_BEFORE,
    NEVER,
    OK,
    PAGE,
    PAGE_BITS,
    PAGE_HEADER,
    PAGE_SLOTS,
    SLOT,
    TLB_SET,
    State,
)
from serai.machine.native.runtime.jumps import forget_jumps_to
from serai.machine.native.runtime.memory import FETCH, access_fault, data_mode, is_absent, is_ram, translate
from serai.machine.native.runtime.pages import enter, forget_code, mark_code, reset_slots

PAGE_OFFSET = PAGE - 1
FAR_AWAY = 1 << 40  # no jump distance leads from here into a page: every jump is decoded as a far one


def decode_word(word: int, slot: int, offset: int) -> int:
    """The decoder, generated from the table (serai.machine.native.decoder)."""
    raise NotImplementedError


@native
def code_page(s: State, physical: int) -> int:
    """The first slot of the decoded page for a physical address; made when there is none."""
    index = physical - s.ram_base >> PAGE_BITS
    base = host_load(s.code_map + (index << 3), 8)
    if base:
        return base
    if s.code_pool_next + CODE_STRIDE > s.code_pool_end:
        forget_code(s)
    base = s.code_pool_next + PAGE_HEADER
    s.code_pool_next = s.code_pool_next + CODE_STRIDE
    host_store(base - 16, s.ram_host + (index << PAGE_BITS), 8)
    host_store(base - 8, index, 8)
    reset_slots(s, base)
    host_store(base + PAGE_SLOTS * SLOT, s.cross_handler, 8)
    host_store(base + PAGE_SLOTS * SLOT + SLOT, s.cross_handler, 8)
    host_store(s.code_map + (index << 3), base, 8)
    return base


@native
def locate(s: State) -> int:
    """Find the slot of s.pc: s.ip, s.delta, s.tlb; a status if the fetch faults."""
    pc = s.pc
    s.exec_set = s.exec_tlb + s.privilege * EXEC_SET
    s.jump_set = s.jump_cache + s.privilege * JUMP_SET
    entry = s.exec_set + ((pc >> PAGE_BITS & EXEC_MASK) << 4)
    if host_load(entry, 8) != pc & ~PAGE_OFFSET:
        status = translate(s, pc, FETCH, s.privilege)
        if status:
            return status
        physical = s.result
        if not is_ram(s, physical):
            return access_fault(s, pc, FETCH)
        if is_absent(s, physical):
            return LEAVE_BEFORE
        base = code_page(s, physical)
        s.fetch_fills = s.fetch_fills + 1
        if host_load(entry, 8) != NEVER:
            forget_jumps_to(s, host_load(entry, 8))
        enter(s, entry, pc & ~PAGE_OFFSET, base)
    s.ip = host_load(entry + 8, 8) + ((pc & PAGE_OFFSET) << 3)
    s.delta = pc - (s.ip >> 3)
    s.tlb = s.data_tlb + data_mode(s) * TLB_SET
    return OK


@native
def decode_at(s: State, slot: int, pc: int) -> int:
    """Decode the instruction of a slot, in place."""
    offset = pc & PAGE_OFFSET
    base = slot - (offset << 3)
    mark_code(s, host_load(base - 8, 8))
    host = host_load(base - 16, 8) + offset
    word = host_load(host, 2)
    if word & 3 == 3:
        if offset == PAGE - 2:
            host_store(slot, s.straddle_handler, 8)
            return 0
        word |= host_load(host + 2, 2) << 16
    return decode_word(word, slot, offset)


@native
def decode_straddling(s: State, slot: int, pc: int) -> int:
    """Decode an instruction whose second half lies in the next page, which may be mapped anywhere."""
    base = slot - ((pc & PAGE_OFFSET) << 3)
    low = host_load(host_load(base - 16, 8) + PAGE - 2, 2)
    status = translate(s, pc + 2, FETCH, s.privilege)
    if status:
        return status
    if not is_ram(s, s.result):
        return access_fault(s, pc + 2, FETCH)
    if is_absent(s, s.result):
        return LEAVE_BEFORE
    word = low | host_load(s.result + s.ram_delta, 2) << 16
    decode_word(word, s.straddle, FAR_AWAY)
    host_store(s.straddle + 2 * SLOT, s.cross_handler, 8)
    return OK
