"""The hart: RV64GC with M, S and U, Sv39, precise traps. ``run(budget)`` is the only way to execute.

Everything hot is native code generated from the instruction table (serai.machine.native); this class gives it
memory, reads and writes architectural state, and reports why it stopped.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import struct
import weakref
import zlib
from typing import Any, Final

from serai.machine.errors import SnapshotError
from serai.machine.hart import ClockSource, Counters, Execution, ExitReason
from serai.machine.native import layout
from serai.machine.native.build import load_machine
from serai.machine.native.layout import FIELDS, PAGE, STATE_SIZE
from serai.machine.native.translator.buffer import CodeBuffer
from serai.machine.native.translator.store import load_stencils

__all__ = ["ClockSource", "Core", "ExitReason"]

M64: Final = (1 << 64) - 1
NANOSECONDS_PER_TICK: Final = 100
CODE_POOL_PAGES: Final = 1024  # 50 MB at most; a booted Debian touches about 25 MB
CODE_BUFFER_SIZE: Final = 16 << 20
PRIVILEGE_S, PRIVILEGE_M = 1, 3
STIP: Final = 1 << 5
MTIP: Final = 1 << 7


# Architectural state in a saved core. The order is not part of the format, the names are.
SAVED: Final = (
    *("pc", "privilege", "fflags", "frm", "mstatus", "mie", "mip", "medeleg", "mideleg", "mtvec", "mepc"),
    *("mcause", "mtval", "mscratch", "mcounteren", "menvcfg", "stvec", "sepc", "scause", "stval", "sscratch"),
    *("scounteren", "senvcfg", "satp", "stimecmp", "lines", "firmware_emulated", "hart_id"),
    *("minstret_offset", "mcycle_offset", "steps", "traps", "reservation", "reservation_value"),
)
SAVED_ARRAYS: Final = {"x": 32, "f": 32, "pmpcfg": 2, "pmpaddr": 16}
_COUNTERS: Final = ("data_fills", "fetch_fills", "page_walks", "walks_timed", "walk_cycles")
_CLOCK_BASE, _STEPS, _RESERVATION, _YIELDS, _MIP, _LINES, _MIE, _STIMECMP, _MTIMECMP = (
    FIELDS[name].offset // 8
    for name in (
        *("clock_base", "steps", "reservation", "yields", "mip", "lines", "mie", "stimecmp", "mtimecmp"),
    )
)
_CLEAN_ONLY: Final = bytes(flag & layout.FLAG_CLEAN for flag in range(256))
STATE_MAGIC: Final = b"SERAIcor"
STATE_VERSION: Final = 1


_translating: weakref.WeakSet[Core] = weakref.WeakSet()


def _after_fork() -> None:
    for core in _translating:
        core._after_fork()


os.register_at_fork(after_in_child=_after_fork)


class _Registers:
    """A register file: ``core.x[10]``. x0 is always zero."""

    def __init__(self, words: memoryview, name: str) -> None:
        self._words = words
        self._base = FIELDS[name].offset // 8
        self._hardwired = name == "x"

    def __len__(self) -> int:
        return 32

    def __getitem__(self, number: int) -> int:
        if not 0 <= number < 32:
            raise IndexError(f"no register {number}")
        return int(self._words[self._base + number])

    def __setitem__(self, number: int, value: int) -> None:
        if not 0 <= number < 32:
            raise IndexError(f"no register {number}")
        if number or not self._hardwired:
            self._words[self._base + number] = value & M64


def _anonymous(size: int) -> tuple[mmap.mmap, int]:
    """Private zeroed memory and its address; after a fork each process has its own."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return memory, ctypes.addressof(ctypes.c_char.from_buffer(memory))


class Core:
    """One hart over RAM that it shares with its devices.

    ``ram`` is writable memory, a multiple of 4096 bytes. With ``firmware_emulated`` the hart starts in S-mode
    at ``ram_base`` with traps delegated, and an S-mode ECALL leaves to the caller (the VMM is the SBI);
    without, it is a bare board that starts in M-mode.

    Physical addresses below ``ram_base`` are devices; those behind RAM raise access faults.
    """

    def __init__(
        self,
        ram: memoryview | mmap.mmap,
        *,
        ram_base: int = 0x8000_0000,
        hart_id: int = 0,
        clock: ClockSource = ClockSource.REAL,
        firmware_emulated: bool = True,
        execution: Execution = Execution.TRANSLATE,
    ) -> None:
        self._ram = memoryview(ram)
        size = self._ram.nbytes
        if size == 0 or size % PAGE or self._ram.readonly or ram_base % PAGE:
            raise ValueError(f"RAM must be writable and a multiple of {PAGE} bytes, not {size}")
        self._object = load_machine()
        self._call = {
            name: ctypes.CFUNCTYPE(ctypes.c_uint64, *[ctypes.c_uint64] * arity)(self._object.symbols[name])
            for name, arity in (
                *(("serai_run", 2), ("flush_all", 1), ("guest_time", 1), ("update_timer", 1)),
                ("host_cycles", 1),
                ("fetch_half", 2),
                *(("csr_read", 2), ("csr_write", 3), ("collect_dirty", 2), ("stop_dirty", 1)),
                *(("written_by_device", 3), ("flush_range", 3), ("start_code", 1), ("flush_code", 1)),
            )
        }
        self._state, self._address = _anonymous(STATE_SIZE)
        self._words = memoryview(self._state).cast("Q")
        self._flags, flags_address = _anonymous(size // PAGE)
        self._map, map_address = _anonymous(size // PAGE * 8)
        self._pool, pool_address = _anonymous(CODE_POOL_PAGES * layout.CODE_STRIDE)
        self._absent: memoryview | None = None
        self.x = _Registers(self._words, "x")
        self.f = _Registers(self._words, "f")
        self.clock = clock
        self._reason = ExitReason.BUDGET
        self._dirty_bitmap = bytearray((size // PAGE + 7) // 8)
        ram_host = ctypes.addressof(ctypes.c_char.from_buffer(self._ram))
        libc = ctypes.CDLL(None)
        self._set_all(
            ram_base=ram_base,
            ram_size=size,
            ram_host=ram_host,
            ram_delta=ram_host - ram_base,
            page_flags=flags_address,
            code_map=map_address,
            code_pool=pool_address,
            code_pool_next=pool_address,
            code_pool_end=pool_address + len(self._pool),
            clock_gettime=ctypes.cast(libc.clock_gettime, ctypes.c_void_p).value or 0,
            madvise=ctypes.cast(libc.madvise, ctypes.c_void_p).value or 0,
            virtual_clock=int(clock is ClockSource.VIRTUAL),
            firmware_emulated=int(firmware_emulated),
            hart_id=hart_id,
            next_hart=self._address,
            stimecmp=M64,
            mtimecmp=M64,
            reservation=layout.NO_RESERVATION,
            fault_steps=M64,
            pc=ram_base,
            privilege=PRIVILEGE_M,
        )
        if firmware_emulated:
            self._set_all(privilege=PRIVILEGE_S, medeleg=0xFFFF, mideleg=0x222, mcounteren=7)
        self._forget_translations()
        self._set("time_offset", -self._get_clock())
        self._native("serai_run", 0)  # nothing but the addresses of the handlers
        self._machine = [self]
        self._code: CodeBuffer | None = None
        self._awaits_stencils = execution is Execution.TRANSLATE
        if self._awaits_stencils:
            self._stencils = load_stencils()

    def _start_translator(self) -> None:
        """Give the harts of the machine stencils and memory for code; decoded slots start afresh."""
        self._code = CodeBuffer(CODE_BUFFER_SIZE)
        for hart in self._machine:
            hart._awaits_stencils = False
            hart._set_all(
                code_write=self._code.write,
                code_execute=self._code.execute,
                code_end=self._code.write + CODE_BUFFER_SIZE,
                cold_start=self._code.write + CODE_BUFFER_SIZE // 3 * 2,
                stencils=self._stencils.address,
            )
            hart._native("start_code")
        self._native("flush_code")
        _translating.add(self)

    def _after_fork(self) -> None:
        """In the child: code memory of its own, empty."""
        if self._code is not None:
            self._code.renew()
            self._native("start_code")
            self._native("flush_code")

    def interpret(self) -> None:
        """Leave the translator off. Before the hart has run."""
        self._awaits_stencils = False

    @property
    def translation(self) -> dict[str, int]:
        """What the translator did: instructions and blocks translated, bytes of code, pages invalidated."""
        used = (
            self._get("hot_next") - self._get("code_write") + self._get("cold_next") - self._get("cold_start")
        )
        return {
            "instructions": self._get("translated_instructions"),
            "blocks": self._get("translated_blocks"),
            "bytes": used,
            "invalidations": self._get("invalidations"),
            "flushes": self._get("code_flushes"),
        }

    # -- the state block -------------------------------------------------------------------------------

    def _get(self, name: str) -> int:
        return int(self._words[FIELDS[name].offset // 8])

    def _set(self, name: str, value: int) -> None:
        self._words[FIELDS[name].offset // 8] = value & M64

    def _set_all(self, **values: int) -> None:
        for name, value in values.items():
            self._set(name, value)

    def _native(self, name: str, *arguments: int) -> int:
        return int(self._call[name](self._address, *arguments))

    def _forget_translations(self) -> None:
        self._set_all(fills=M64, jumps=M64)
        self._native("flush_all")

    def _get_clock(self) -> int:
        """Ticks of the clock behind the guest's time, without its offset."""
        self._set_all(time_offset=0, last_time=0)
        ticks = self._native("guest_time")
        self._set("last_time", 0)
        return ticks

    # -- several harts ---------------------------------------------------------------------------------

    def join(self, first: Core) -> None:
        """Become a further hart of the machine that ``first`` belongs to; before either has run.

        The harts share RAM, its page flags and the decoded code. One of them runs at a time, in one thread.
        """
        if first._ram.nbytes != self._ram.nbytes or first.clock is not self.clock:
            raise ValueError("harts of one machine have the same RAM and the same clock")
        self._flags, self._map, self._pool = first._flags, first._map, first._pool
        for name in ("ram_host", "ram_delta", "page_flags", "code_map", "code_pool", "code_pool_end"):
            self._set(name, first._get(name))
        self._machine = first._machine
        self._machine.append(self)
        self._awaits_stencils = first._awaits_stencils
        shared = slice(layout.SHARED_FIRST, layout.SHARED_END)
        self._words[shared] = first._words[shared]
        self._set("next_hart", first._get("next_hart"))
        first._set("next_hart", self._address)

    def take_over(self, previous: Core) -> None:
        """Run next, after ``previous``: time goes on, and a reservation does not outlive the change.

        What the other harts store between an LR and its SC must make the SC fail, even if they put the old
        value back (Unprivileged ISA 14.2).
        """
        words, shared = self._words, slice(layout.SHARED_FIRST, layout.SHARED_END)
        words[shared] = previous._words[shared]
        words[_CLOCK_BASE] = (previous._words[_CLOCK_BASE] + previous._words[_STEPS] - words[_STEPS]) & M64
        words[_RESERVATION] = layout.NO_RESERVATION

    def set_time(self, ticks: int, other_steps: int) -> None:
        """Let the guest's time go on from ``ticks``; the other harts have executed ``other_steps``."""
        self._set("clock_base", other_steps)
        self._set("time_offset", ticks - self._get_clock())

    @property
    def steps(self) -> int:
        """Instructions and traps since power-on: what ``run`` counts."""
        return int(self._words[_STEPS])

    @property
    def yields(self) -> bool:
        """Whether PAUSE leaves with that reason."""
        return bool(self._words[_YIELDS])

    @yields.setter
    def yields(self, value: bool) -> None:
        self._words[_YIELDS] = value

    @property
    def interrupt_pending(self) -> bool:
        """Whether an interrupt is pending and enabled one by one, which ends a WFI."""
        words = self._words
        return bool((words[_MIP] | words[_LINES]) & words[_MIE])

    def fence(self, start: int, size: int) -> None:
        """SFENCE.VMA of a range of virtual addresses, carried out by another hart. Only between runs."""
        self._native("flush_range", start, size)

    # -- running ---------------------------------------------------------------------------------------

    def run(self, budget: int) -> ExitReason:
        """Execute at most ``budget`` instructions; a trap counts as one. Releases the GIL."""
        if budget <= 0:
            return ExitReason.BUDGET
        if self._awaits_stencils and self._stencils.ready:
            self._start_translator()
        self._reason = ExitReason(self._native("serai_run", budget))
        return self._reason

    def request_exit(self) -> None:
        """Make ``run`` return REQUESTED within a slice; may be called from any thread."""
        self._set("request", 1)

    @property
    def exit_address(self) -> int:
        """Physical address of the MMIO access."""
        return self._get("exit_address")

    @property
    def exit_width(self) -> int:
        """Width of the MMIO access in bytes."""
        return self._get("exit_width")

    @property
    def exit_value(self) -> int:
        """The value of the MMIO store, zero-extended."""
        return self._get("exit_value")

    def complete_load(self, value: int) -> None:
        """Finish the load that left with MMIO_LOAD: the instruction is executed again with the answer.

        Raises RuntimeError if no load waits. Interrupts and requests to exit wait until it has retired.
        """
        if self._reason is not ExitReason.MMIO_LOAD:
            raise RuntimeError("complete_load() without a load that waits for it")
        self._reason = ExitReason.BUDGET
        self._set_all(mmio_value=value & ((1 << 8 * self.exit_width) - 1), mmio_ready=1)
        self._native("serai_run", 1)
        self._set("mmio_ready", 0)

    @property
    def fault(self) -> str:
        """Why no progress is possible, after FAULT."""
        cause, value, pc = self._get("trap_cause"), self._get("trap_value"), self._get("pc")
        return (
            f"the trap handler at {pc:#x} itself raises exception {cause} "
            f"(value {value:#x}) at its first instruction"
        )

    # -- architectural state ---------------------------------------------------------------------------

    @property
    def pc(self) -> int:
        """The address of the next instruction."""
        return self._get("pc")

    @pc.setter
    def pc(self, value: int) -> None:
        self._set("pc", value & ~1)

    @property
    def privilege(self) -> int:
        """0 U, 1 S, 3 M."""
        return self._get("privilege")

    @privilege.setter
    def privilege(self, value: int) -> None:
        if value not in (0, PRIVILEGE_S, PRIVILEGE_M):
            raise ValueError(f"no privilege level {value}")
        self._set("privilege", value)

    def csr(self, number: int) -> int:
        """Read a CSR with the rights of M-mode.

        Raises ValueError if there is none of that number.
        """
        return self._as_machine("csr_read", number) and self._get("result")

    def set_csr(self, number: int, value: int) -> None:
        """Write a CSR with the rights of M-mode; WARL rules apply.

        Raises ValueError if there is none of that number or it is read-only.
        """
        self.csr(number)
        if number >> 10 == 3:
            raise ValueError(f"CSR {number:#x} is read-only")
        self._as_machine("csr_write", number, value & M64)

    def _as_machine(self, function: str, *arguments: int) -> bool:
        privilege = self._get("privilege")
        self._set("privilege", PRIVILEGE_M)
        status = self._native(function, *arguments)
        self._set("privilege", privilege)
        if status == layout.TRAPPED:
            raise ValueError(f"no CSR {arguments[0]:#x}")
        return True

    @property
    def instructions(self) -> int:
        """Instructions retired since power-on."""
        return self._get("steps") - self._get("traps")

    @property
    def counters(self) -> Counters:
        """Events served in native code since this core was made."""
        return Counters(
            exceptions=self._array("exceptions"),
            interrupts=self._array("interrupts"),
            **{name: self._get(name) for name in _COUNTERS},
        )

    def _array(self, name: str) -> tuple[int, ...]:
        place = FIELDS[name]
        base = place.offset // 8
        return tuple(self._words[base : base + place.count])

    @property
    def interrupt_count(self) -> int:
        """Interrupts taken since this core was made."""
        return sum(self._array("interrupts"))

    def fetch(self, address: int) -> int:
        """The instruction word at a virtual address in the present mode; 0 where there is none."""
        low = self._native("fetch_half", address & M64)
        return low | self._native("fetch_half", (address + 2) & M64) << 16 if low & 3 == 3 else low

    def host_cycles(self) -> int:
        """The host's cycle counter."""
        return self._native("host_cycles")

    # -- interrupts and time ---------------------------------------------------------------------------

    def set_interrupt(self, bit: int, level: bool) -> None:
        """Drive an interrupt-pending bit of mip: 1 SSIP, 3 MSIP, 5 STIP, 7 MTIP, 9 SEIP, 11 MEIP.

        SSIP is a latch that the guest clears; the others are levels. Only between runs.
        """
        if bit not in (1, 3, 5, 7, 9, 11):
            raise ValueError(f"no interrupt line {bit}")
        name = "mip" if bit == 1 else "lines"
        old = self._get(name)
        self._set(name, old | 1 << bit if level else old & ~(1 << bit))

    def set_timer(self, deadline: int) -> None:
        """Set the supervisor timer: STIP is pending while time >= deadline (ticks); 2**64 - 1 is never."""
        self._set("stimecmp", deadline)
        self._native("update_timer")

    def set_machine_timer(self, deadline: int) -> None:
        """Set the machine timer of a bare board: MTIP is pending while time >= deadline (ticks)."""
        self._set("mtimecmp", deadline)
        self._native("update_timer")

    def become_bare(self) -> None:
        """Be a hart of a bare board, fresh from reset: M-mode, nothing delegated, MTIP driven by mtimecmp."""
        self._set_all(firmware_emulated=0, machine_timer=1, privilege=PRIVILEGE_M)
        self._set_all(medeleg=0, mideleg=0, mcounteren=0)

    @property
    def timer_deadline(self) -> int | None:
        """The guest time at which a timer that is set and enabled wakes the hart; None if none does."""
        words = self._words
        enabled = words[_MIE]
        deadline = min(
            words[_STIMECMP] if enabled & STIP else M64, words[_MTIMECMP] if enabled & MTIP else M64
        )
        return None if deadline == M64 else int(deadline)

    @property
    def time(self) -> int:
        """The guest's time register in ticks of 10 MHz."""
        return self._native("guest_time")

    def wait_deadline_ns(self) -> int | None:
        """Nanoseconds until a timer wakes the hart; None if none does (or is masked)."""
        deadline = self.timer_deadline
        if deadline is None:
            return None
        return max(0, deadline - self.time) * NANOSECONDS_PER_TICK

    def skip_to_deadline(self) -> None:
        """Let the guest's time jump to the timer's deadline (idle time on the virtual clock)."""
        deadline = self.timer_deadline
        if deadline is not None:
            self._skip(max(0, deadline - self.time))
            self._native("update_timer")

    def advance_time(self, nanoseconds: int) -> None:
        """Let the guest's time jump forward, for example by the downtime of a migration."""
        if nanoseconds < 0:
            raise ValueError("guest time does not run back")
        self._skip(nanoseconds // NANOSECONDS_PER_TICK)

    def _skip(self, ticks: int) -> None:
        self._set("time_offset", self._get("time_offset") + ticks)

    # -- RAM written by others, dirty log --------------------------------------------------------------

    def set_absent(self, absent: memoryview | None) -> None:
        """Pages of RAM that are still on their way (post-copy): a writable byte each, 0 when it is there.

        Executing an instruction that touches one leaves with ABSENT. Bytes may be cleared at any time, after
        the page's content is in place; none may be set while the core has run since this call.
        """
        self._absent = absent
        address = 0 if absent is None else ctypes.addressof(ctypes.c_char.from_buffer(absent))
        self._set("absent_map", address)
        self._forget_translations()

    def dma_wrote(self, address: int, length: int) -> None:
        """A device wrote RAM: note the pages as dirty and drop code decoded from them."""
        base, size = self._get("ram_base"), self._get("ram_size")
        if length <= 0:
            return
        if not base <= address <= address + length <= base + size:
            raise ValueError(f"{length} bytes at {address:#x} are not RAM")
        self._native("written_by_device", address, length)

    def start_dirty_log(self) -> None:
        """Begin to log the pages written; costs nothing while off."""
        self.take_dirty_log()

    def take_dirty_log(self) -> bytes:
        """Return the pages written since the log was last taken and arm it again.

        Bit ``n % 8`` of byte ``n // 8`` is page ``n`` of RAM.
        """
        bitmap = bytearray(len(self._dirty_bitmap))
        anchor = ctypes.c_char.from_buffer(bitmap)
        self._native("collect_dirty", ctypes.addressof(anchor))
        del anchor
        return bytes(bitmap)

    def stop_dirty_log(self) -> None:
        """Stop logging."""
        self._native("stop_dirty")

    # -- save and restore ------------------------------------------------------------------------------

    def save(self) -> bytes:
        """Return the complete architectural state (without RAM) in a versioned form."""
        fields: dict[str, object] = {name: self._get(name) for name in SAVED}
        for name, count in SAVED_ARRAYS.items():
            base = FIELDS[name].offset // 8
            fields[name] = list(self._words[base : base + count])
        fields["time"] = self.time
        fields["clock"] = self.clock.value
        body = json.dumps(fields, sort_keys=True).encode()
        return STATE_MAGIC + struct.pack("<III", STATE_VERSION, len(body), zlib.crc32(body)) + body

    def restore(self, data: bytes) -> None:
        """Take over a saved state; time goes on from the saved value.

        Raises SnapshotError if the data is damaged or of another version; the core is then unchanged.
        """
        fields = _parse_state(data)
        if fields["clock"] != self.clock.value:
            raise SnapshotError(
                "core", f"the saved core runs on the {fields['clock']} clock, this one on {self.clock.value}"
            )
        for name in SAVED:
            self._set(name, fields[name])
        for name, count in SAVED_ARRAYS.items():
            base = FIELDS[name].offset // 8
            for position in range(count):
                self._words[base + position] = fields[name][position]
        self._set_all(mmio_ready=0, request=0, fault_steps=M64)
        self._set("time_offset", fields["time"] - self._get_clock())
        self._forget_translations()
        if self._machine[0] is self:  # the harts of a machine share their decoded code
            self._drop_decoded_code()

    def _drop_decoded_code(self) -> None:
        """RAM may have been replaced together with the state."""
        log = self._flags[:].translate(_CLEAN_ONLY)
        self._native("written_by_device", self._get("ram_base"), self._get("ram_size"))
        self._flags[:] = log


def _parse_state(data: bytes) -> dict[str, Any]:
    """Check a saved state completely before any of it is used: it may come from another machine."""
    if data[:8] != STATE_MAGIC or len(data) < 20:
        raise SnapshotError("core", "this is not the saved state of a core")
    version, length, checksum = struct.unpack_from("<III", data, 8)
    if version != STATE_VERSION:
        raise SnapshotError("core", f"version {version}, this program reads version {STATE_VERSION}")
    body = data[20:]
    if len(body) != length or zlib.crc32(body) != checksum:
        raise SnapshotError("core", "damaged: length or checksum does not match")
    try:
        fields = json.loads(body)
    except ValueError as error:
        raise SnapshotError("core", f"not readable: {error}") from error
    if not isinstance(fields, dict) or set(fields) != {*SAVED, *SAVED_ARRAYS, "time", "clock"}:
        raise SnapshotError("core", "fields are missing or unknown")
    words = {name: [fields[name]] for name in (*SAVED, "time")} | {
        name: fields[name] for name in SAVED_ARRAYS
    }
    for name, values in words.items():
        if not isinstance(values, list) or len(values) != SAVED_ARRAYS.get(name, 1):
            raise SnapshotError("core", f"{name} has the wrong number of elements")
        if not all(type(value) is int and 0 <= value <= M64 for value in values):
            raise SnapshotError("core", f"{name} is not made of 64-bit numbers")
    legal = (
        fields["privilege"] in (0, PRIVILEGE_S, PRIVILEGE_M)
        and fields["mstatus"] >> 11 & 3 != 2
        and fields["pc"] % 2 == 0
        and fields["satp"] >> 60 in (0, 8)
        and fields["frm"] < 8
        and fields["fflags"] < 32
        and fields["firmware_emulated"] < 2
        and fields["x"][0] == 0
    )
    if not legal:
        raise SnapshotError("core", "a register has a value that no hart can have")
    return fields
