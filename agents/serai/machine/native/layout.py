"""The state block of a hart: every field, its offset, and the constants that native code and Python share.

All fields are 64 bits wide. The block is private memory of one hart; several harts have a block each and
share RAM, page flags and the code cache of the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Place:
    """Where a field lives: byte offset in the block and number of 64-bit elements."""

    offset: int
    count: int


class Word(int):
    """A field of the state block, as the restricted language sees it: a number or an array of numbers."""

    def __getitem__(self, index: int) -> int:
        """Element of an array field."""
        raise NotImplementedError

    def __setitem__(self, index: int, value: int) -> None:
        """Element of an array field."""
        raise NotImplementedError


class State:
    """The state block as a parameter of native functions; only ever compiled, never instantiated."""

    def __getattr__(self, name: str) -> Word:
        """A field of FIELDS."""
        raise NotImplementedError

    def __setattr__(self, name: str, value: int) -> None:
        """A field of FIELDS."""
        raise NotImplementedError


# Software TLB: for each data mode an array of read entries, then one of write entries, {tag, addend} each.
TLB_BITS: Final = 9
TLB_SIZE: Final = 1 << TLB_BITS
TLB_MASK: Final = TLB_SIZE - 1
TLB_WRITE: Final = TLB_SIZE * 16  # byte offset of the write entries within a mode's set
TLB_SET: Final = 2 * TLB_WRITE
DATA_MODES: Final = 4  # U, S, S with SUM, M
# Exec TLB: for each privilege {tag, ip of the page's first slot}.
EXEC_BITS: Final = 9
EXEC_SIZE: Final = 1 << EXEC_BITS
EXEC_MASK: Final = EXEC_SIZE - 1
EXEC_SET: Final = EXEC_SIZE * 16

TLB_BYTES: Final = DATA_MODES * TLB_SET + 4 * EXEC_SET  # both lie behind each other
FILL_LOG: Final = 1024  # entries noted for the next flush; beyond that everything is cleared

PAGE: Final = 4096
PAGE_BITS: Final = 12
# A decoded page: header {host address of the page, page number}, 2048 slots, two sentinels that cross over.
SLOT: Final = 16
PAGE_HEADER: Final = 64
PAGE_SLOTS: Final = 2048
# Behind the slots, for each one that begins a translated block: offset of the code u32, and of the original
# handler from that which decodes i32.
SIDE: Final = (PAGE_SLOTS + 2) * SLOT  # from the first slot
CODE_STRIDE: Final = PAGE_HEADER + SIDE + PAGE_SLOTS * 8 + 32  # 64-byte multiple
# Jump cache of translated code: for each privilege {pc, code}.
JUMP_BITS: Final = 10
JUMP_SIZE: Final = 1 << JUMP_BITS
JUMP_MASK: Final = JUMP_SIZE - 1
JUMP_SET: Final = JUMP_SIZE * 16
JUMP_LOG: Final = 512  # entries noted for the next flush; beyond that everything is cleared
PENDING: Final = 16  # targets of backward branches that one translation follows
BLOCK_LIMIT: Final = 63  # instructions of a translated basic block
# Flags of a RAM page (one byte each).
FLAG_CODE: Final = 1  # has decoded slots: stores must invalidate them
FLAG_CLEAN: Final = 2  # dirty logging: not written since the log was last taken

SLICE: Final = 1 << 15  # instructions between two looks at clock, timer and requests
NEVER: Final = (1 << 64) - 1
NO_TRAP: Final = 1 << 62  # in trap_cause: a fetch met an absent page, there is nothing to deliver
NO_RESERVATION: Final = (1 << 64) - 1

# Status of a runtime function.
OK: Final = 0
TRAPPED: Final = 1  # an exception: s.trap_cause, s.trap_value
LEAVE_BEFORE: Final = 2  # leave native code, the instruction has not retired
LEAVE_AFTER: Final = 3  # leave native code, the instruction retires
REDIRECT: Final = 4  # the instruction retires and execution goes on at s.pc
REFRESH: Final = 5  # it retires; translation or interrupts may have changed for the next instruction

# Exit reasons: the values of serai.machine.hart.ExitReason (a test compares them).
EXIT_BUDGET: Final = 0
EXIT_WAIT: Final = 1
EXIT_MMIO_LOAD: Final = 2
EXIT_MMIO_STORE: Final = 3
EXIT_ENVIRONMENT_CALL: Final = 4
EXIT_REQUESTED: Final = 5
EXIT_FAULT: Final = 6
EXIT_PAUSE: Final = 7
EXIT_ABSENT: Final = 8

_SCALARS = [
    "pc",
    "privilege",
    "fflags",
    "frm",
    "mstatus",
    "mie",
    "mip",
    "medeleg",
    "mideleg",
    "mtvec",
    "mepc",
    "mcause",
    "mtval",
    "mscratch",
    "mcounteren",
    "menvcfg",
    "mcountinhibit",
    "stvec",
    "sepc",
    "scause",
    "stval",
    "sscratch",
    "scounteren",
    "senvcfg",
    "satp",
    "stimecmp",
    "machine_timer",
    "mtimecmp",
    "lines",
    "firmware_emulated",
    "hart_id",
    "minstret_offset",
    "mcycle_offset",
    "steps",
    "step_limit",
    "run_limit",
    "traps",
    "slice_budget",
    "last_clock_steps",
    "decode_handler",
    "cross_handler",
    "straddle_handler",
    "quiet",
    "reservation",
    "reservation_value",
    "request",
    "virtual_clock",
    "clock_base",
    "next_hart",
    "clock_gettime",
    "madvise",
    "ram_base",
    "ram_size",
    "ram_host",
    "ram_delta",
    "page_flags",
    "absent_map",
    "code_map",
    "code_pool",
    "code_pool_end",
    "flat_low",
    "flat_high",
    "fills",
    "trap_cause",
    "trap_value",
    "exit_reason",
    "exit_address",
    "exit_width",
    "exit_value",
    "mmio_ready",
    "mmio_value",
    "result",
    "ip",
    "delta",
    "tlb",
    "exec_set",
    "recheck",
    "fault_pc",
    "fault_steps",
    # Counters for people: no part of the architectural state.
    "page_walks",
    "walks_timed",
    "walk_cycles",
    "data_fills",
    "fetch_fills",
    # the translator
    "stencils",
    "page_pc",
    "jump_set",
    "jumps",
    "code_write",
    "code_execute",
    "code_end",
    "cold_start",
    "hot_start",
    "stub_count",
    "pending_count",
    "patched",
    "enter_handler",
    "slice_end_handler",
    "resume_handler",
    "link_function",
    "miss_function",
    "translated_instructions",
    "translated_blocks",
    "invalidations",
    "code_flushes",
]

# What the harts of a machine have in common and change while they run: one hart runs at a time, and takes
# these words over from the one before it (Core.take_over).
_SHARED = ["time_offset", "last_time", "code_pool_next", "yields", "hot_next", "cold_next"]


def _layout() -> tuple[dict[str, Place], int]:
    fields: dict[str, Place] = {}
    offset = 0

    def add(name: str, count: int) -> None:
        nonlocal offset
        fields[name] = Place(offset, count)
        offset += 8 * count

    add("x", 34)  # x[32] swallows writes to x0, so that no handler tests for it
    add("f", 32)
    for name in (*_SCALARS, *_SHARED):
        add(name, 1)
    add("pmpcfg", 2)
    add("pmpaddr", 16)
    add("timespec", 2)
    add("exceptions", 16)  # taken, by cause
    add("interrupts", 16)
    offset = (offset + 63) & ~63
    add("straddle", 2 * 8)  # slots of an instruction that crosses a page, and the sentinel behind it
    add("fill_log", FILL_LOG)
    offset = (offset + 4095) & ~4095
    add("data_tlb", DATA_MODES * TLB_SET // 8)
    add("exec_tlb", 4 * EXEC_SET // 8)
    add("jump_cache", 4 * JUMP_SET // 8)
    add("jump_log", JUMP_LOG)
    add("stub_log", 4 * BLOCK_LIMIT)
    add("holes", 32)
    add("pending", PENDING)
    return fields, (offset + 4095) & ~4095


FIELDS, STATE_SIZE = _layout()
SHARED_FIRST: Final = FIELDS[_SHARED[0]].offset // 8
SHARED_END: Final = SHARED_FIRST + len(_SHARED)
NEXT_HART: Final = FIELDS["next_hart"].offset
