"""Flags of RAM pages, TLB invalidation and the life of decoded pages. Native code (restricted language).

A page of RAM that holds decoded slots carries FLAG_CODE and never has a write tag in the data TLB, so every
store to it comes to ``page_written``, which resets its slots. Decoded code is therefore always current and
FENCE.I has nothing left to do. The dirty log works the same way with FLAG_CLEAN, and costs nothing when off.
"""

from serai.machine.native.intrinsics import call_pointer, host_load, host_store, state_at
from serai.machine.native.language import native
from serai.machine.native.layout import (
    DATA_MODES,
    EXEC_MASK,
    EXEC_SET,
    FILL_LOG,
    FLAG_CLEAN,
    FLAG_CODE,
    NEVER,
    NEXT_HART,
    PAGE,
    PAGE_BITS,
    PAGE_SLOTS,
    SLOT,
    TLB_BYTES,
    TLB_MASK,
    TLB_SET,
    TLB_WRITE,
    State,
)
from serai.machine.native.runtime.jumps import forget_jumps, forget_jumps_of_all, forget_jumps_to

PAGE_OFFSET = PAGE - 1
MADV_DONTNEED = 4  # gives memory back to the host; it reads as zero afterwards
FLUSH_PAGES = 64  # a range of more pages costs less to forget as a whole


@native
def reset_slots(s: State, base: int) -> int:
    """Make every slot of a decoded page decode anew."""
    slot = base
    end = base + PAGE_SLOTS * SLOT
    while slot < end:
        if host_load(slot, 8):  # memory that was never written stays untouched
            host_store(slot, 0, 8)
        slot += SLOT
    return 0


@native
def page_written(s: State, physical: int) -> int:
    """Note that a page of RAM is about to be written: dirty log, decoded code."""
    index = physical - s.ram_base >> PAGE_BITS
    flags = host_load(s.page_flags + index, 1)
    if flags:
        host_store(s.page_flags + index, 0, 1)
        if flags & FLAG_CODE:
            reset_slots(s, host_load(s.code_map + (index << 3), 8))
            s.invalidations = s.invalidations + 1
            forget_jumps_of_all(s)
    return 0


@native
def enter(s: State, entry: int, tag: int, value: int) -> int:
    """Fill a TLB entry and note it, so that a flush costs what was filled since the last one."""
    host_store(entry, tag, 8)
    host_store(entry + 8, value, 8)
    if s.fills < FILL_LOG:
        s.fill_log[s.fills] = entry
    s.fills = s.fills + 1
    return 0


@native
def flush_all(s: State) -> int:
    """Empty data and exec TLB."""
    if s.fills <= FILL_LOG:
        index = 0
        while index < s.fills:
            host_store(s.fill_log[index], NEVER, 8)
            index += 1
    else:
        entry: int = s.data_tlb
        while entry < s.data_tlb + TLB_BYTES:
            host_store(entry, NEVER, 8)
            entry += 16
    s.fills = 0
    forget_jumps(s)
    s.flat_low = NEVER
    s.flat_high = 0
    return 0


@native
def flush_harts(s: State) -> int:
    """Empty the TLBs of every hart of the machine."""
    flush_all(s)
    other: int = s.next_hart
    while other != s.x:
        flush_all(state_at(other))
        other = host_load(other + NEXT_HART, 8)
    return 0


@native
def flush_exec_page(s: State, address: int) -> int:
    """Forget where one page's slots are, in every privilege."""
    forget_jumps_to(s, address & ~PAGE_OFFSET)
    privilege = 0
    while privilege < 4:
        host_store(s.exec_tlb + privilege * EXEC_SET + ((address >> PAGE_BITS & EXEC_MASK) << 4), NEVER, 8)
        privilege += 1
    return 0


@native
def flush_range(s: State, address: int, size: int) -> int:
    """Forget a range of virtual addresses; everything when it is large or wraps around."""
    if size > FLUSH_PAGES * PAGE or address + size < address:
        return flush_all(s)
    page = address & ~PAGE_OFFSET
    while page < address + size:
        flush_page(s, page)
        page += PAGE
    return 0


@native
def flush_page(s: State, address: int) -> int:
    """Forget one page in every mode; everything if a large page may cover it."""
    if s.flat_low <= address <= s.flat_high:
        return flush_all(s)
    mode = 0
    index = (address >> PAGE_BITS & TLB_MASK) << 4
    while mode < DATA_MODES:
        host_store(s.data_tlb + mode * TLB_SET + index, NEVER, 8)
        host_store(s.data_tlb + mode * TLB_SET + TLB_WRITE + index, NEVER, 8)
        mode += 1
    return flush_exec_page(s, address)


@native
def drop_writes_to(s: State, host_page: int) -> int:
    """Drop the write tags of one host page in every hart of the machine."""
    drop_writes_of(s, host_page)
    other: int = s.next_hart
    while other != s.x:
        drop_writes_of(state_at(other), host_page)
        other = host_load(other + NEXT_HART, 8)
    return 0


@native
def drop_writes_of(s: State, host_page: int) -> int:
    """Drop one hart's write tags of a host page (and any other tag of data there, which does no harm)."""
    if s.fills > FILL_LOG:
        return flush_all(s)
    index = 0
    while index < s.fills:
        entry = s.fill_log[index]
        if host_load(entry, 8) + host_load(entry + 8, 8) == host_page:
            host_store(entry, NEVER, 8)
        index += 1
    return 0


@native
def mark_code(s: State, index: int) -> int:
    """Protect a page of RAM that is about to have decoded slots."""
    flags = host_load(s.page_flags + index, 1)
    if not flags & FLAG_CODE:
        host_store(s.page_flags + index, flags | FLAG_CODE, 1)
        drop_writes_to(s, s.ram_host + (index << PAGE_BITS))
    return 0


@native
def forget_code(s: State) -> int:
    """Drop every decoded page; only while no slot is being executed."""
    index = 0
    count = s.ram_size >> PAGE_BITS
    while index < count:
        if host_load(s.code_map + (index << 3), 8):
            host_store(s.code_map + (index << 3), 0, 8)
            flags = host_load(s.page_flags + index, 1)
            host_store(s.page_flags + index, flags & FLAG_CLEAN, 1)
        index += 1
    call_pointer(s.madvise, s.code_pool, s.code_pool_end - s.code_pool, MADV_DONTNEED)
    s.code_pool_next = s.code_pool
    return flush_harts(s)


@native
def collect_dirty(s: State, bitmap: int) -> int:
    """Write the dirty bitmap (bit n % 8 of byte n // 8 is page n) and arm the log again."""
    index = 0
    count = s.ram_size >> PAGE_BITS
    while index < count:
        flags = host_load(s.page_flags + index, 1)
        if not flags & FLAG_CLEAN:
            byte = host_load(bitmap + (index >> 3), 1)
            host_store(bitmap + (index >> 3), byte | 1 << (index & 7), 1)
            host_store(s.page_flags + index, flags | FLAG_CLEAN, 1)
        index += 1
    return flush_harts(s)


@native
def stop_dirty(s: State) -> int:
    """Disarm the dirty log."""
    index = 0
    count = s.ram_size >> PAGE_BITS
    while index < count:
        flags = host_load(s.page_flags + index, 1)
        host_store(s.page_flags + index, flags & FLAG_CODE, 1)
        index += 1
    return 0


@native
def written_by_device(s: State, physical: int, length: int) -> int:
    """A device wrote RAM."""
    page = physical & ~PAGE_OFFSET
    while page < physical + length:
        page_written(s, page)
        page += PAGE
    return 0
