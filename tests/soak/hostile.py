"""Hostile guests: random programs, drivers and files against the whole machine.

``python -m tests.soak.hostile --count 10000000 [--first SEED]`` runs that many cases and prints the counts. A
*group* (one seed) is a machine put into a fresh state and some cases on it. A case is a random program with
random registers, translation and mode, a random driver, or a damaged file. RAM lies between pages that nobody
may touch, so an access outside it kills the child that runs the cases, as does a case that does not end; the
parent then names the seed.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import itertools
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from serai.machine import board, cpio, loader
from serai.machine.board import RAM_BASE, MachineConfig, Mode, NetworkInterface
from serai.machine.core_factory import make_hart
from serai.machine.errors import ConfigurationError, LoadError, SnapshotError
from serai.machine.hart import ClockSource, Execution
from serai.machine.isa import compressed  # noqa: F401 - completes the table
from serai.machine.isa.table import COMPRESSED, INSTRUCTIONS
from serai.machine.machine import Machine
from serai.machine.native.translator.store import load_stencils
from serai.machine.snapshot import Section, pack, unpack

CASES_PER_GROUP = 128
MEMORY = 1 << 17
GUARD = 1 << 20
STEPS = 200
ENTRIES = 12
"""Cases that share a program: each begins elsewhere, in another mode, with other registers."""
SECONDS = 20
M64 = (1 << 64) - 1
WORDS = [(i.mask, i.match) for i in INSTRUCTIONS.values()]
SHORT_WORDS = [(c.mask, c.match) for c in COMPRESSED.values()]
DEVICES = [board.PLIC_BASE, board.UART_BASE, board.ACLINT_BASE, board.POWER_BASE]
DEVICES += [board.slot_address(slot) for slot in range(4)]
PAGES = [RAM_BASE + page * 4096 for page in range(MEMORY // 4096)]
CSRS = (
    0x100,
    0x104,
    0x105,
    0x106,
    0x141,
    0x144,
    0x180,
    0x300,
    0x302,
    0x303,
    0x304,
    0x305,
    0x306,
    0x30A,
    0x341,
    0x344,
)
PROT_NONE = 0
FAST = Path("/dev/shm")


class GuardedRam:
    """RAM between two stretches of address space that may not be touched."""

    def __init__(self, size: int = MEMORY) -> None:
        self.mapping = mmap.mmap(-1, size + 2 * GUARD, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.mapping))
        libc = ctypes.CDLL(None, use_errno=True)
        for start in (base, base + GUARD + size):
            if libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(GUARD), PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
        self.view = memoryview(self.mapping)[GUARD : GUARD + size]


def interesting(choose: random.Random) -> int:  # noqa: PLR0911 - a table
    """A number that tends to hurt."""
    match choose.randrange(8):
        case 0:
            return choose.randrange(64)
        case 1:
            return (1 << choose.randrange(65)) - 1
        case 2:
            return RAM_BASE + choose.randrange(MEMORY)
        case 3:
            return RAM_BASE + MEMORY - choose.randrange(-16, 64)
        case 4:
            return choose.choice(DEVICES) + choose.randrange(0x120)
        case 5:
            return choose.choice(PAGES) + choose.choice((0, 0xFF8, 0xFFC, 0xFFE, 0xFFF))
        case 6:
            return -choose.randrange(1 << 13) & M64
        case _:
            return choose.getrandbits(64)


def program(choose: random.Random, length: int) -> bytes:
    """Instructions of the table with random operands, and some noise."""
    code = bytearray()
    while len(code) < length:
        kind = choose.randrange(16)
        if kind == 0:
            code += choose.randbytes(4)
        elif kind < 6:
            mask, match = choose.choice(SHORT_WORDS)
            code += (choose.getrandbits(16) & ~mask | match).to_bytes(2, "little")
        else:
            mask, match = choose.choice(WORDS)
            code += (choose.getrandbits(32) & ~mask | match).to_bytes(4, "little")
    return bytes(code)


def _echo(receive: Callable[[bytes], bool]) -> Callable[[bytes], None]:
    """A wire that brings every frame back."""

    def transmit(frame: bytes) -> None:
        receive(frame)

    return transmit


class Laboratory:
    """A machine of each mode and execution on guarded RAM, and the cases."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ram = GuardedRam()
        # Before the translator's code is there, a hart interprets.
        assert load_stencils().wait(300), "the translator's code does not come"
        self.machines = [self._machine(mode, execution) for mode in Mode for execution in Execution]
        self.fresh = [machine.save() for machine in self.machines]
        self.results: Counter[str] = Counter()
        self.kinds: list[Callable[[random.Random, Machine], str]] = [self.code] * 32
        self.kinds += [self.driver] * 6 + [self.snapshot, self.elf, self.linux, self.archive]

    def _machine(self, mode: Mode, execution: Execution) -> Machine:
        config = MachineConfig(
            memory_bytes=MEMORY,
            interfaces=(NetworkInterface("eth0", b"\2\0\0\0\0\1"),),
            clock=ClockSource.VIRTUAL,
            mode=mode,
            execution=execution,
        )
        made = Machine(config, self.ram.view, make_hart)
        for net in made.nets.values():
            net.transmit = _echo(net.receive)
        return made

    def group(self, seed: int, cases: int = CASES_PER_GROUP) -> None:
        """The cases of a seed, on a machine in its first state."""
        choose = random.Random(seed)
        number = seed % len(self.machines)
        machine = self.machines[number]
        machine.restore(self.fresh[number])
        machine.resumed(0)
        self.ram.view[:] = bytes(MEMORY)
        machine.hart.dma_wrote(RAM_BASE, MEMORY)
        for _ in range(cases):
            kind = choose.choice(self.kinds)
            self.results[f"{kind.__name__}: {kind(choose, machine)}"] += 1

    def code(self, choose: random.Random, machine: Machine) -> str:
        """A random program, anywhere, in any mode, under any translation."""
        hart = machine.hart
        place = choose.choice(PAGES) + choose.choice((0, 0x100, 0xFE0, 0xFEE))
        code = program(choose, choose.choice((16, 48)))
        start = place - RAM_BASE
        code = code[: MEMORY - start]
        self.ram.view[start : start + len(code)] = code
        hart.dma_wrote(place, len(code))
        for number in choose.sample(range(1, 32), 8):
            hart.x[number] = interesting(choose)
        for number in choose.sample(CSRS, 3):
            hart.set_csr(number, interesting(choose))
        if choose.randrange(3) == 0:
            self.page_tables(choose, machine)
        else:
            hart.set_csr(0x180, 0)
        for vector in (0x105, 0x305):  # a handler in the code: the guest goes on after a trap
            if choose.randrange(8):
                hart.set_csr(vector, place + choose.choice((0, 4, 8)) & ~3)
        modes = (0, 1, 1, 3) if machine.config.mode is Mode.FULL else (0, 1, 1)
        for _ in range(ENTRIES - 1):
            self.enter(choose, machine, place, choose.choice(modes))
            self.results["code: " + self.run(machine)] += 1
        self.enter(choose, machine, place, choose.choice(modes))
        return self.run(machine)

    def enter(self, choose: random.Random, machine: Machine, place: int, privilege: int) -> None:
        """Begin anywhere in the code, or anywhere at all, with two other registers."""
        hart = machine.hart
        bits = choose.getrandbits(16)
        hart.pc = place + 2 * (bits & 15) if bits & 0x70 else interesting(choose)
        hart.privilege = privilege
        hart.x[1 + (bits >> 8) % 31] = interesting(choose)
        hart.x[1 + (bits >> 10) % 31] = choose.choice(PAGES) + (bits & 0xFF8)

    def page_tables(self, choose: random.Random, machine: Machine) -> None:
        """A root anywhere, entries that may be leaves, loops or noise."""
        root = choose.choice(PAGES)
        flags = choose.choice((0xCF, 0xDF, 0x0F, 0x1F, 0x01, 0x07, 0x03, 0xFF, choose.getrandbits(10)))
        for index in (0, 2, 511, choose.randrange(512)):
            target = choose.choice((RAM_BASE, root, choose.choice(PAGES), interesting(choose)))
            entry = (target >> 12 << 10 | flags) & M64
            self.ram.view[root - RAM_BASE + 8 * index :][:8] = struct.pack("<Q", entry)
        machine.hart.dma_wrote(root, 4096)
        table = root if choose.randrange(8) else interesting(choose)
        machine.hart.set_csr(0x180, (8 << 60 | table >> 12) & M64)

    def run(self, machine: Machine) -> str:
        """At most STEPS steps; what ended it."""
        before = machine.hart.steps
        cause = machine.run(STEPS)
        used = machine.hart.steps - before
        if used > STEPS:
            raise AssertionError(f"{used} steps in a budget of {STEPS}")
        machine.firmware.request = None
        machine.uart.output.clear()
        machine.console.line_received = lambda line: None
        return cause.value

    def driver(self, choose: random.Random, machine: Machine) -> str:
        """Registers of devices in every width and alignment, rings of nonsense."""
        for _ in range(choose.randrange(4, 24)):
            if choose.randrange(3) == 0:
                self.ring(choose, machine)
                continue
            base = choose.choice(DEVICES)
            offset = choose.choice(
                (choose.randrange(0x120), choose.randrange(0, 0x110, 4), choose.randrange(0x10000))
            )
            found = machine.bus.find(base + offset)
            if found is None:
                continue
            width = choose.choice((1, 2, 4, 4, 8))
            if choose.randrange(3):
                value = choose.choice((interesting(choose), choose.randrange(16)))
                found[0].write(found[1], width, value & (1 << 8 * width) - 1)
            else:
                answer = found[0].read(found[1], width)
                if not 0 <= answer < 1 << 64:
                    raise AssertionError(f"{found[0].name} answers {answer:#x}")
        machine.firmware.request = None
        return "done"

    def ring(self, choose: random.Random, machine: Machine) -> None:
        """Something for the rings of a queue, and perhaps the registers that point at them."""
        place = choose.choice(PAGES)
        if choose.randrange(2):
            slot = board.slot_address(choose.randrange(3))
            for offset, value in (
                (0x70, 15),
                (0x30, choose.randrange(3)),
                (0x38, choose.choice((1, 2, 8, 256))),
                (0x80, place),
                (0x90, place + 0x400),
                (0xA0, place + 0x600),
                (0x44, 1),
                (0x50, choose.randrange(3)),
            ):
                found = machine.bus.find(slot + offset)
                assert found is not None
                found[0].write(found[1], 4, value & 0xFFFF_FFFF)
        for _ in range(4):
            entry = struct.pack(
                "<QIHH",
                interesting(choose) & M64,
                choose.choice((0, 1, 16, 4096, 1 << 31, 0xFFFF_FFFF)),
                choose.randrange(8),
                choose.randrange(10),
            )
            machine.memory.write(place + 16 * choose.randrange(8), entry)
        machine.memory.write(place + 0x400, struct.pack("<8H", *(choose.randrange(12) for _ in range(8))))

    def snapshot(self, choose: random.Random, machine: Machine) -> str:
        """A snapshot with a wrong byte, or a section that lies with a right checksum."""
        sections = list(unpack(machine.save()).values())
        if choose.randrange(3) == 0:
            data = bytearray(pack(sections))
            data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
        else:
            victim = choose.randrange(len(sections))
            sections[victim] = self.lie(choose, sections[victim])
            data = bytearray(pack(sections))
        try:
            machine.restore(bytes(data))
        except SnapshotError:
            machine.restore(self.fresh[self.machines.index(machine)])
            machine.resumed(0)
            return "refused"
        machine.resumed(0)
        return "taken, then " + self.run(machine)

    def lie(self, choose: random.Random, section: Section) -> Section:
        """The section with some digits, or any bytes, replaced."""
        body = bytearray(section.body)
        for _ in range(choose.randrange(1, 4)):
            digits = [place for place, byte in enumerate(body) if chr(byte).isdigit()]
            if digits and choose.randrange(4):
                body[choose.choice(digits)] = choose.choice(b"0123456789")
            elif body:
                place = choose.randrange(len(body))
                body[place : place + choose.randrange(3)] = choose.randbytes(choose.randrange(3))
        return replace(section, body=bytes(body))

    def elf(self, choose: random.Random, machine: Machine) -> str:
        """An ELF file whose headers lie."""
        fields = [2, 243, 1, RAM_BASE, 64, 0, 0, 64, 56, 2, 0, 0, 0]
        segments = [[1, 7, 176, 0, RAM_BASE + 4096 * n, 64, 4096, 4096] for n in range(2)]
        for _ in range(choose.randrange(4)):
            target = choose.choice((fields, *segments))
            target[choose.randrange(len(target))] = interesting(choose)
        sizes = "HHIQQQIHHHHHH"
        limits = {"H": 1 << 16, "I": 1 << 32, "Q": 1 << 64}
        head = struct.pack("<" + sizes, *(v % limits[k] for v, k in zip(fields, sizes, strict=True)))
        body = b"".join(
            struct.pack("<IIQQQQQQ", s[0] % (1 << 32), s[1] % (1 << 32), *(v % (1 << 64) for v in s[2:]))
            for s in segments
        )
        data = (b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + head + body + bytes(64))[
            : choose.choice((20, 100, 400, 400))
        ]
        return self.load(machine, data)

    def linux(self, choose: random.Random, machine: Machine) -> str:
        """A Linux Image whose header lies."""
        numbers = [interesting(choose) % (1 << 64) if choose.randrange(2) else 0 for _ in range(3)]
        data = bytes(8) + struct.pack("<QQQ", *numbers) + bytes(16) + b"RISCV\0\0\0RSC\x05" + bytes(400)
        return self.load(machine, data[: choose.choice((30, 60, 62, 64, 66, 80, 400))])

    def load(self, machine: Machine, data: bytes) -> str:
        """Load it as a kernel and start it."""
        path = self.folder / "kernel"
        path.write_bytes(data)
        try:
            kernel = loader.load_kernel(machine.memory, path)
        except LoadError:
            return "refused"
        machine.hart.pc = kernel.entry
        return "loaded, then " + self.run(machine)

    def archive(self, choose: random.Random, machine: Machine) -> str:
        """Files for the initramfs with names that lie."""
        name = choose.choice(
            ("/a", "a/../b", "", "/", "//x", "\0", "/a\nb", "é" * choose.randrange(5), "/" + "y" * 5000)
        )
        try:
            cpio.append(
                choose.randbytes(choose.randrange(40)), {name: (choose.getrandbits(12), choose.randbytes(9))}
            )
        except ConfigurationError:
            return "refused"
        return "appended"


def run_groups(first: int, count: int, progress: mmap.mmap | None = None) -> Counter[str]:
    """Groups from a seed on, until there were `count` cases; `progress` is told seed and cases."""
    with tempfile.TemporaryDirectory(dir=FAST if FAST.is_dir() else None) as folder:
        laboratory = Laboratory(Path(folder))
        for seed in itertools.count(first):
            done = laboratory.results.total()
            if progress is not None:
                progress[:16] = struct.pack("<QQ", seed, done)
                signal.setitimer(signal.ITIMER_REAL, SECONDS)
            if done >= count:
                break
            try:
                laboratory.group(seed)
            except Exception as error:
                error.add_note(f"seed {seed}")
                raise
        signal.setitimer(signal.ITIMER_REAL, 0)
        return laboratory.results


def in_child(first: int, count: int) -> tuple[str, int, int]:
    """Run cases in a process of its own: why it ended ("" if well), the seed it was at, the cases done."""
    progress = mmap.mmap(-1, 4096)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            faulthandler.enable()
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            results = run_groups(first, count, progress)
            for name, number in sorted(results.items()):
                print(f"  {number:9} {name}")
            sys.stdout.flush()
            status = 0
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    seed, cases = struct.unpack("<QQ", progress[:16])
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}", seed, cases
    return ("" if os.WEXITSTATUS(status) == 0 else "an exception"), seed, cases


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000_000, help="cases")
    parser.add_argument("--first", type=int, default=0, help="seed")
    arguments = parser.parse_args()
    began = time.monotonic()
    why, seed, cases = in_child(arguments.first, arguments.count)
    if why:
        print(f"hostile: {why} at seed {seed} (again: --first {seed} --count 1)")
        return 1
    print(f"hostile: {cases} cases in {time.monotonic() - began:.0f} s, no harm done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
