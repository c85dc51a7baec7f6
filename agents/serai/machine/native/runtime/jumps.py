"""The jump cache of translated code: pc to code, per privilege. Native code (restricted language).

It holds nothing that the exec TLB does not hold, so every function that drops entries of the exec TLB, or the
code of a page, drops what is here.
"""

from serai.machine.native.intrinsics import host_load, host_store, state_at
from serai.machine.native.language import native
from serai.machine.native.layout import (
    JUMP_LOG,
    JUMP_MASK,
    JUMP_SET,
    JUMP_SIZE,
    NEVER,
    NEXT_HART,
    PAGE,
    State,
)

JUMP_BYTES = 4 * JUMP_SET
JUMP_ENTRIES = 4 * JUMP_SIZE


@native
def enter_jump(s: State, target: int, code: int) -> int:
    """Enter a target of the current privilege; noted so that a flush costs what was entered."""
    entry = s.jump_set + (((target >> 1 ^ target >> 9) & JUMP_MASK) << 4)
    host_store(entry, target, 8)
    host_store(entry + 8, code, 8)
    if s.jumps < JUMP_LOG:
        s.jump_log[s.jumps] = entry
    s.jumps = s.jumps + 1
    return 0


@native
def forget_jumps(s: State) -> int:
    """Empty the jump cache."""
    if s.jumps <= JUMP_LOG:
        index = 0
        while index < s.jumps:
            host_store(s.jump_log[index], NEVER, 8)
            index += 1
    else:
        entry: int = s.jump_cache
        while entry < s.jump_cache + JUMP_BYTES:
            host_store(entry, NEVER, 8)
            entry += 16
    s.jumps = 0
    return 0


@native
def forget_jumps_to(s: State, page: int) -> int:
    """Drop the entries of one virtual page."""
    if s.jumps > JUMP_LOG:
        return forget_jumps(s)
    index = 0
    while index < s.jumps:
        entry = s.jump_log[index]
        if host_load(entry, 8) & ~(PAGE - 1) == page:
            host_store(entry, NEVER, 8)
        index += 1
    return 0


@native
def forget_jumps_of_all(s: State) -> int:
    """Empty the jump cache of every hart of the machine: code is gone."""
    forget_jumps(s)
    other: int = s.next_hart
    while other != s.x:
        forget_jumps(state_at(other))
        other = host_load(other + NEXT_HART, 8)
    return 0
