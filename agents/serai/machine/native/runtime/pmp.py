"""Physical memory protection: 16 entries with a grain of 4 KiB (Privileged ISA 3.7). Native code.

The grain makes every page uniform, so the check happens where the TLB is filled. Where the VMM emulates
the firmware there is no M-mode software that could have set the entries up, and none are consulted.
"""

from serai.machine.native.language import native
from serai.machine.native.layout import State

GRAIN_ONES = 0x1FF  # G = 10: bits G-2..0 of an address read as ones in NAPOT mode
GRAIN = 0x3FF  # bits G-1..0 read as zeros otherwise
ENTRIES = 16
ADDRESS_MASK = (1 << 54) - 1
LOCKED = 0x80
TOR = 1
NAPOT = 3
PMPCFG0 = 0x3A0
PMPADDR0 = 0x3B0


@native
def pmp_config(s: State, index: int) -> int:
    """The configuration byte of an entry."""
    return s.pmpcfg[index >> 3] >> ((index & 7) << 3) & 0xFF


@native
def pmp_permits(s: State, physical: int, access: int, privilege: int) -> int:
    """Whether the first matching entry permits the access (0 read, 1 write, 2 fetch)."""
    if s.firmware_emulated:
        return 1
    index = 0
    below = 0
    while index < ENTRIES:
        config = pmp_config(s, index)
        mode = config >> 3 & 3
        address: int = s.pmpaddr[index]
        matches: int = 0
        if mode == TOR:
            matches = (below & ~GRAIN) << 2 <= physical < (address & ~GRAIN) << 2
        elif mode == NAPOT:
            full = address | GRAIN_ONES
            matches = (physical >> 2 ^ full) & ~(full ^ (full + 1)) == 0
        if matches:
            if privilege == 3 and not config & LOCKED:
                return 1
            return config >> access & 1
        below = address
        index += 1
    return privilege == 3


@native
def read_pmp(s: State, number: int) -> int:
    """The value of pmpcfg0..15 or pmpaddr0..63; entries past the implemented ones are zero."""
    if number < PMPADDR0:
        return s.pmpcfg[number - PMPCFG0 >> 1] if number < PMPCFG0 + 4 else 0
    index = number - PMPADDR0
    if index >= ENTRIES:
        return 0
    if pmp_config(s, index) & 0x10:
        return s.pmpaddr[index] | GRAIN_ONES
    return s.pmpaddr[index] & ~GRAIN


@native
def legal_config(old: int, new: int) -> int:
    """A configuration byte as it may be written (WARL): not locked, no W without R, no NA4 at this grain."""
    if old & LOCKED:
        return old
    new = new & 0x9F
    if new & 3 == 2:
        new = new & ~2
    if new & 0x18 == 0x10:
        new = new & ~0x18
    return new


@native
def write_pmp(s: State, number: int, value: int) -> int:
    """Write pmpcfg or pmpaddr; the caller flushes the TLB."""
    if number < PMPADDR0:
        if number >= PMPCFG0 + 4:
            return 0
        old: int = s.pmpcfg[number - PMPCFG0 >> 1]
        new = 0
        shift = 0
        while shift < 64:
            new |= legal_config(old >> shift & 0xFF, value >> shift & 0xFF) << shift
            shift += 8
        s.pmpcfg[number - PMPCFG0 >> 1] = new
        return 0
    index = number - PMPADDR0
    if index >= ENTRIES or pmp_config(s, index) & LOCKED:
        return 0
    if index + 1 < ENTRIES and pmp_config(s, index + 1) & 0x98 == LOCKED | TOR << 3:
        return 0
    s.pmpaddr[index] = value & ADDRESS_MASK
    return 0
