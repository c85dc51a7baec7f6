"""Address translation, software TLB, guest memory off the fast path. Native code (restricted language).

Accessed and dirty bits are set by the machine (the Svadu behaviour, Privileged ISA 12.3.1), atomically.
Misaligned loads and stores work, also across pages; misaligned LR/SC and AMOs raise the misaligned exception.
Physical addresses below RAM are devices (an exit to Python), those above RAM raise access faults.
"""

# ruff: noqa: PLR0911, PLR0912, PLR1730 - the restricted language has no tables, tuples or built-ins
from serai.machine.native.intrinsics import compare_exchange, cycle_counter, host_load, host_store
from serai.machine.native.language import native
from serai.machine.native.layout import (
    EXIT_ABSENT,
    EXIT_MMIO_LOAD,
    EXIT_MMIO_STORE,
    LEAVE_AFTER,
    LEAVE_BEFORE,
    NO_TRAP,
    OK,
    PAGE,
    PAGE_BITS,
    TLB_MASK,
    TLB_SET,
    TLB_WRITE,
    TRAPPED,
    State,
)
from serai.machine.native.runtime.pages import enter, page_written
from serai.machine.native.runtime.pmp import pmp_permits

READ = 0
WRITE = 1
FETCH = 2

MSTATUS_MPRV = 1 << 17
MSTATUS_SUM = 1 << 18
MSTATUS_MXR = 1 << 19
PPN_MASK = (1 << 44) - 1
PTE_V = 1
PTE_R = 2
PTE_W = 4
PTE_X = 8
PTE_U = 16
PTE_A = 64
PTE_D = 128
PAGE_OFFSET = PAGE - 1
TIMED_WALKS = 63  # every 64th page walk is timed


@native
def page_fault(s: State, address: int, access: int) -> int:
    """Record a page fault (Privileged ISA, table of mcause values: 12, 13, 15)."""
    s.trap_value = address
    s.trap_cause = 12 + access + (access & 1) * 2
    if access == FETCH:
        s.trap_cause = 12
    elif access == READ:
        s.trap_cause = 13
    return TRAPPED


@native
def access_fault(s: State, address: int, access: int) -> int:
    """Record an access fault (causes 1, 5, 7)."""
    s.trap_value = address
    s.trap_cause = 7
    if access == FETCH:
        s.trap_cause = 1
    elif access == READ:
        s.trap_cause = 5
    return TRAPPED


@native
def data_privilege(s: State) -> int:
    """The privilege that loads and stores act with (MPRV, Privileged ISA 3.1.6.3)."""
    if s.privilege == 3 and s.mstatus & MSTATUS_MPRV:
        return s.mstatus >> 11 & 3
    return s.privilege


@native
def data_mode(s: State) -> int:
    """The set of the data TLB in use: 0 U, 1 S, 2 S with SUM, 3 M."""
    privilege = data_privilege(s)
    if privilege == 1 and s.mstatus & MSTATUS_SUM:
        return 2
    return privilege


@native
def is_ram(s: State, physical: int) -> int:
    """Whether a physical address lies in RAM."""
    return physical - s.ram_base < s.ram_size


@native
def is_absent(s: State, physical: int) -> int:
    """Whether a page of RAM has not arrived yet (post-copy); s.exit_address then names it.

    No TLB entry leads to an absent page and no code was decoded from one, so only slow paths ask.
    """
    if s.absent_map == 0:
        return 0
    if host_load(s.absent_map + (physical - s.ram_base >> PAGE_BITS), 1) == 0:
        return 0
    s.exit_reason = EXIT_ABSENT
    s.exit_address = physical & ~PAGE_OFFSET
    s.trap_cause = NO_TRAP
    return 1


@native
def leaf_permits(s: State, pte: int, access: int, privilege: int) -> int:
    """Whether a valid leaf PTE permits the access (Privileged ISA 12.3.2, steps 5 to 7)."""
    if pte & PTE_U:
        if privilege == 1:
            if access == FETCH:
                return 0
            if not s.mstatus & MSTATUS_SUM:
                return 0
    elif privilege == 0:
        return 0
    if access == FETCH:
        return pte & PTE_X
    if access == WRITE:
        return pte & PTE_W
    if pte & PTE_R:
        return 1
    return pte & PTE_X and s.mstatus & MSTATUS_MXR


@native
def translate(s: State, address: int, access: int, privilege: int) -> int:
    """Translate a virtual address by Sv39 (Privileged ISA 12.3.2); the physical one is left in s.result."""
    if privilege == 3 or s.satp >> 60 == 0:
        s.result = address
        if address >> 56 or not pmp_permits(s, address, access, privilege):
            return access_fault(s, address, access)
        return OK
    s.page_walks = s.page_walks + 1
    if s.page_walks & TIMED_WALKS:
        return walk(s, address, access, privilege)
    began = cycle_counter()
    status = walk(s, address, access, privilege)
    s.walk_cycles = s.walk_cycles + cycle_counter() - began
    s.walks_timed = s.walks_timed + 1
    return status


@native
def host_cycles(s: State) -> int:
    """The host's cycle counter, in which page walks are timed."""
    return cycle_counter()


@native
def walk(s: State, address: int, access: int, privilege: int) -> int:
    """Walk the page tables (Privileged ISA 12.3.2); the physical address is left in s.result."""
    upper = address >> 38
    if upper != 0 and upper != (1 << 26) - 1:
        return page_fault(s, address, access)
    while True:
        table = (s.satp & PPN_MASK) << PAGE_BITS
        shift = 30
        host = 0
        pte = 0
        while True:
            pte_address = table + ((address >> shift & 511) << 3)
            if not is_ram(s, pte_address) or not pmp_permits(s, pte_address, READ, 1):
                return access_fault(s, address, access)
            if is_absent(s, pte_address):
                return LEAVE_BEFORE
            host = pte_address + s.ram_delta
            pte = host_load(host, 8)
            if not pte & PTE_V or pte & (PTE_R | PTE_W) == PTE_W or pte >> 54:
                return page_fault(s, address, access)
            if pte & (PTE_R | PTE_X):
                break
            if shift == PAGE_BITS or pte & (PTE_U | PTE_A | PTE_D):
                return page_fault(s, address, access)
            shift -= 9
            table = (pte >> 10 & PPN_MASK) << PAGE_BITS
        base = (pte >> 10 & PPN_MASK) << PAGE_BITS
        below = (1 << shift) - 1
        if not leaf_permits(s, pte, access, privilege) or base & below:
            return page_fault(s, address, access)
        s.result = base | address & below
        if not pmp_permits(s, s.result, access, privilege):
            return access_fault(s, address, access)
        needed = PTE_A
        if access == WRITE:
            needed = PTE_A | PTE_D
        if pte & needed != needed:
            if not compare_exchange(host, pte, pte | needed, 8):
                continue
            page_written(s, host - s.ram_delta)
        if shift != PAGE_BITS:
            note_large_page(s, address & ~below, below)
        return OK


@native
def note_large_page(s: State, start: int, below: int) -> int:
    """Widen the range in which a single-page fence must flush everything, as the TLB splits large pages."""
    if s.flat_low > start:
        s.flat_low = start
    if s.flat_high < start + below:
        s.flat_high = start + below
    return 0


@native
def fill(s: State, address: int, physical: int, kind: int) -> int:
    """Enter a translation in the data TLB; ``kind`` is 0 (read) or TLB_WRITE."""
    s.data_fills = s.data_fills + 1
    mode = data_mode(s)
    entry = s.data_tlb + mode * TLB_SET + kind + ((address >> PAGE_BITS & TLB_MASK) << 4)
    page = address & ~PAGE_OFFSET
    return enter(s, entry, page, (physical & ~PAGE_OFFSET) + s.ram_delta - page)


@native
def load_sized(host: int, size: int) -> int:
    """Read ``size`` bytes of host memory, zero-extended."""
    if size == 8:
        return host_load(host, 8)
    if size == 4:
        return host_load(host, 4)
    if size == 2:
        return host_load(host, 2)
    return host_load(host, 1)


@native
def store_sized(host: int, value: int, size: int) -> int:
    """Write the low ``size`` bytes of ``value`` to host memory."""
    if size == 8:
        host_store(host, value, 8)
    elif size == 4:
        host_store(host, value, 4)
    elif size == 2:
        host_store(host, value, 2)
    else:
        host_store(host, value, 1)
    return 0


@native
def device_load(s: State, address: int, physical: int, size: int) -> int:
    """Leave for a device, or deliver what the device answered when the instruction is executed again."""
    if physical >= s.ram_base or physical & (size - 1):
        return access_fault(s, address, READ)
    if s.mmio_ready:
        s.mmio_ready = 0
        s.result = s.mmio_value
        return OK
    s.exit_reason = EXIT_MMIO_LOAD
    s.exit_address = physical
    s.exit_width = size
    return LEAVE_BEFORE


@native
def load_slow(s: State, address: int, size: int) -> int:
    """Load past the TLB: fill, page crossing, device. The value is left in s.result."""
    if (address & PAGE_OFFSET) + size > PAGE:
        return load_crossing(s, address, size)
    status = translate(s, address, READ, data_privilege(s))
    if status:
        return status
    physical = s.result
    if not is_ram(s, physical):
        return device_load(s, address, physical, size)
    if is_absent(s, physical):
        return LEAVE_BEFORE
    fill(s, address, physical, 0)
    s.result = load_sized(physical + s.ram_delta, size)
    return OK


@native
def load_crossing(s: State, address: int, size: int) -> int:
    """Load across a page boundary, byte by byte."""
    first_size = PAGE - (address & PAGE_OFFSET)
    status = translate(s, address, READ, data_privilege(s))
    if status:
        return status
    first = s.result
    status = translate(s, address + first_size, READ, data_privilege(s))
    if status:
        return status
    second = s.result
    if not is_ram(s, first):
        return access_fault(s, address, READ)
    if not is_ram(s, second):
        return access_fault(s, address + first_size, READ)
    if is_absent(s, first) or is_absent(s, second):
        return LEAVE_BEFORE
    value = 0
    position = 0
    while position < size:
        physical = first + position if position < first_size else second + position - first_size
        value |= host_load(physical + s.ram_delta, 1) << (position << 3)
        position += 1
    s.result = value
    return OK


@native
def store_slow(s: State, address: int, value: int, size: int) -> int:
    """Store past the TLB: fill, dirty log, decoded code, page crossing, device."""
    if (address & PAGE_OFFSET) + size > PAGE:
        return store_crossing(s, address, value, size)
    status = translate(s, address, WRITE, data_privilege(s))
    if status:
        return status
    physical = s.result
    if not is_ram(s, physical):
        if physical >= s.ram_base or physical & (size - 1):
            return access_fault(s, address, WRITE)
        s.exit_reason = EXIT_MMIO_STORE
        s.exit_address = physical
        s.exit_width = size
        s.exit_value = value
        if size < 8:
            s.exit_value = value & ((1 << (size << 3)) - 1)
        return LEAVE_AFTER
    if is_absent(s, physical):
        return LEAVE_BEFORE
    page_written(s, physical)
    fill(s, address, physical, TLB_WRITE)
    store_sized(physical + s.ram_delta, value, size)
    return OK


@native
def store_crossing(s: State, address: int, value: int, size: int) -> int:
    """Store across a page boundary: both pages are checked before a byte is written."""
    first_size = PAGE - (address & PAGE_OFFSET)
    status = translate(s, address, WRITE, data_privilege(s))
    if status:
        return status
    first = s.result
    status = translate(s, address + first_size, WRITE, data_privilege(s))
    if status:
        return status
    second = s.result
    if not is_ram(s, first):
        return access_fault(s, address, WRITE)
    if not is_ram(s, second):
        return access_fault(s, address + first_size, WRITE)
    if is_absent(s, first) or is_absent(s, second):
        return LEAVE_BEFORE
    page_written(s, first)
    page_written(s, second)
    position = 0
    while position < size:
        physical = first + position if position < first_size else second + position - first_size
        host_store(physical + s.ram_delta, value >> (position << 3), 1)
        position += 1
    return OK


@native
def pointer_slow(s: State, address: int, size: int, access: int) -> int:
    """The host address of an aligned atomic access, left in s.result (LR, SC, AMO; RAM only)."""
    if address & (size - 1):
        s.trap_value = address
        s.trap_cause = 4 if access == READ else 6
        return TRAPPED
    status = translate(s, address, access, data_privilege(s))
    if status:
        return status
    physical = s.result
    if not is_ram(s, physical):
        return access_fault(s, address, access)
    if is_absent(s, physical):
        return LEAVE_BEFORE
    if access == WRITE:
        page_written(s, physical)
        fill(s, address, physical, TLB_WRITE)
    else:
        fill(s, address, physical, 0)
    s.result = physical + s.ram_delta
    return OK
