"""A hart whose program is a Python generator, so that a test can be the guest's software.

The program yields what it does next and is sent the result::

    def program(hart):
        value = yield Load(0x1000_0000, 1)
        yield Store(0x1000_0000, 1, 65)
        error, value = yield Call(0x10, 0)
        yield Wait()                        # until an enabled interrupt is pending
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from serai.machine.board import RAM_BASE
from serai.machine.hart import CSR_MIE, CSR_MIP, ClockSource, Counters, ExitReason
from serai.machine.memory import PAGE_SIZE


@dataclass(frozen=True)
class Load:
    address: int
    width: int = 4


@dataclass(frozen=True)
class Store:
    address: int
    width: int
    value: int


@dataclass(frozen=True)
class Call:
    extension: int
    function: int
    arguments: tuple[int, ...] = ()


@dataclass(frozen=True)
class Wait:
    pass


@dataclass(frozen=True)
class Write:
    """The guest stores to RAM."""

    address: int
    data: bytes


@dataclass(frozen=True)
class Fault:
    text: str


Step = Load | Store | Call | Wait | Write | Fault
Program = Generator[Step, Any, None]


@dataclass
class ScriptedHart:
    ram: memoryview
    program: Callable[[ScriptedHart], Program]
    x: list[int] = field(default_factory=lambda: [0] * 32)
    exit_address: int = 0
    exit_width: int = 0
    exit_value: int = 0
    pc: int = 0
    privilege: int = 1
    fault: str = ""
    pending: int = 0
    instructions: int = 0
    time: int = 0
    deadline: int | None = None
    dirty: set[int] | None = None
    requested: bool = False
    yields: bool = False
    fences: list[tuple[int, int]] = field(default_factory=list)
    csrs: dict[int, int] = field(default_factory=dict)
    _generator: Program | None = None
    _result: Any = None
    _waiting: bool = False

    def run(self, budget: int) -> ExitReason:
        if self._generator is None:
            self._generator = self.program(self)
        for _ in range(budget):
            if self.requested:
                self.requested = False
                return ExitReason.REQUESTED
            if self._waiting and not self.pending:
                return ExitReason.WAIT
            self._waiting = False
            reason = self._step()
            if reason is not None:
                return reason
        return ExitReason.BUDGET

    def _step(self) -> ExitReason | None:
        assert self._generator is not None
        if isinstance(self._result, tuple) and self._result == ("call",):
            self._result = (self.x[10], self.x[11])
        try:
            step = self._generator.send(self._result)
        except StopIteration:
            self.fault = "the program ended"
            return ExitReason.FAULT
        self._result = None
        self.instructions += 1
        match step:
            case Load(address, width):
                self.exit_address, self.exit_width = address, width
                return ExitReason.MMIO_LOAD
            case Store(address, width, value):
                self.exit_address, self.exit_width, self.exit_value = address, width, value
                return ExitReason.MMIO_STORE
            case Call(extension, function, arguments):
                self.x[17], self.x[16] = extension, function
                self.x[10:16] = [*arguments, *[0] * (6 - len(arguments))]
                self._result = ("call",)
                return ExitReason.ENVIRONMENT_CALL
            case Write(address, data):
                start = address - RAM_BASE
                self.ram[start : start + len(data)] = data
                self.dma_wrote(address, len(data))
            case Fault(text):
                self.fault = text
                return ExitReason.FAULT
            case Wait():
                self._waiting = True
        return None

    @property
    def counters(self) -> Counters:
        return Counters()

    @property
    def interrupt_count(self) -> int:
        return 0

    def fetch(self, address: int) -> int:
        return 0

    def host_cycles(self) -> int:
        return 0

    @property
    def steps(self) -> int:
        return self.instructions

    @property
    def interrupt_pending(self) -> bool:
        return bool(self.pending)

    @property
    def timer_deadline(self) -> int | None:
        return self.deadline

    def join(self, first: ScriptedHart) -> None:
        raise NotImplementedError

    def take_over(self, previous: ScriptedHart) -> None:
        raise NotImplementedError

    def set_time(self, ticks: int, other_steps: int) -> None:
        raise NotImplementedError

    def fence(self, start: int, size: int) -> None:
        self.fences.append((start, size))

    def complete_load(self, value: int) -> None:
        self._result = value

    def csr(self, number: int) -> int:
        return {CSR_MIP: self.pending, CSR_MIE: -1}.get(number, self.csrs.get(number, 0))

    def set_csr(self, number: int, value: int) -> None:
        self.csrs[number] = value

    def set_interrupt(self, bit: int, level: bool) -> None:
        self.pending = self.pending & ~(1 << bit) | level << bit

    def set_timer(self, deadline_ticks: int) -> None:
        self.deadline = deadline_ticks

    def set_machine_timer(self, deadline_ticks: int) -> None:
        self.deadline = deadline_ticks

    def interpret(self) -> None:
        pass

    def become_bare(self) -> None:
        self.privilege = 3

    def wait_deadline_ns(self) -> int | None:
        return None

    def skip_to_deadline(self) -> None:
        pass

    def advance_time(self, ns: int) -> None:
        self.time += ns // 100

    def request_exit(self) -> None:
        self.requested = True

    def set_absent(self, absent: memoryview | None) -> None:
        self.absent = absent

    def dma_wrote(self, address: int, length: int) -> None:
        if self.dirty is not None and length:
            first = (address - RAM_BASE) // PAGE_SIZE
            self.dirty.update(range(first, (address - RAM_BASE + length - 1) // PAGE_SIZE + 1))

    def start_dirty_log(self) -> None:
        self.dirty = set()

    def take_dirty_log(self) -> bytes:
        assert self.dirty is not None
        bitmap = bytearray((len(self.ram) // PAGE_SIZE + 7) // 8)
        for page in self.dirty:
            bitmap[page // 8] |= 1 << page % 8
        self.dirty = set()
        return bytes(bitmap)

    def stop_dirty_log(self) -> None:
        self.dirty = None

    def save(self) -> bytes:
        return json.dumps([self.instructions, self.time, self.pending]).encode()

    def restore(self, state: bytes) -> None:
        self.instructions, self.time, self.pending = json.loads(state)


def factory(
    program: Callable[[ScriptedHart], Program],
) -> Callable[[memoryview, int, ClockSource], ScriptedHart]:
    return lambda ram, hart, clock: ScriptedHart(ram, program)
