"""The machine: harts, devices and memory composed, and the loop that runs them.

`Machine` does no I/O of its own: `run` executes and comes back, the host side of every device is a queue or a
callback, so that a test can be the host. `serai.machine.process` connects it to sockets.
"""

from __future__ import annotations

import enum
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from serai.machine import aclint, board, loader, plic, power
from serai.machine.aclint import Aclint, AclintState
from serai.machine.board import MachineConfig, Mode
from serai.machine.bus import Bus
from serai.machine.errors import ConfigurationError, DirtyLogError, LoadError, SnapshotError
from serai.machine.exits import Cost, CycleScale, ExitCosts, name_events
from serai.machine.hart import (
    MACHINE_EXTERNAL_INTERRUPT,
    NANOSECONDS_PER_TICK,
    SUPERVISOR_EXTERNAL_INTERRUPT,
    ClockSource,
    Execution,
    ExitReason,
    Hart,
)
from serai.machine.harts import Harts, HartsState
from serai.machine.memory import PAGE_SIZE, GuestMemory
from serai.machine.plic import Plic, PlicState
from serai.machine.power import PowerSwitch
from serai.machine.sbi import Firmware, SystemRequest
from serai.machine.snapshot import Section, load_section, pack, save_section, unpack
from serai.machine.uart import Uart, UartState
from serai.machine.virtio.balloon import Balloon
from serai.machine.virtio.block import Block
from serai.machine.virtio.console import Console
from serai.machine.virtio.entropy import Entropy
from serai.machine.virtio.net import Net
from serai.machine.virtio.transport import SLOT_SIZE, VirtioDevice, VirtioMmio

_SEED_BYTES = 64
_HART_VERSION = 1


class MachineExit(enum.Enum):
    """Why `Machine.run` came back."""

    BUDGET = "budget"
    WAIT = "wait"
    POWERED_OFF = "powered off"
    REBOOT = "reboot"
    FAULT = "fault"
    ABSENT = "absent"
    """It needs page `Machine.missing`, which has not arrived yet; nothing else can be done until it has."""


@dataclass
class MachineState:
    """What belongs to no device: the shape a snapshot fits, and counters that travel with the guest."""

    VERSION: ClassVar[int] = 2

    memory_bytes: int
    vcpus: int
    clock: str
    instructions_before: int
    exits: dict[str, int]
    ready_seconds: float | None
    kernel_release: str


HartFactory = Callable[[memoryview, int, ClockSource], Hart]
"""Makes hart number n on the given RAM; the default is `serai.machine.core.Core`."""


class Machine:
    """One virtual machine on `ram`. Not thread-safe, except for `Hart.request_exit`."""

    def __init__(self, config: MachineConfig, ram: memoryview, make_hart: HartFactory) -> None:
        config.check()
        if len(ram) != config.ram_bytes:
            raise ConfigurationError(f"{len(ram)} bytes of RAM for a machine of {config.ram_bytes}")
        self.config = config
        self.exits: dict[str, int] = {}
        self._costs = ExitCosts()
        self._events_before: dict[str, int] = {}
        self.fault = ""
        self.ready_seconds: float | None = None
        self.kernel_release = ""
        self._dirty_log = False
        self._instructions_before = 0
        self._restored_at_ticks: int | None = None
        self.memory = GuestMemory(ram, board.RAM_BASE, self._wrote)
        self.missing = 0
        self._absent: memoryview | None = None
        self._make_hart = make_hart
        self.harts = Harts(self._new_hart, config.possible_vcpus, config.clock, config.vcpus, bare=self._bare)
        self._cycle_scale = CycleScale(self.hart.host_cycles())
        self.plic = Plic(
            [
                self._interrupt_output(number, bit)
                for number in range(len(self.harts))
                for bit in (MACHINE_EXTERNAL_INTERRUPT, SUPERVISOR_EXTERNAL_INTERRUPT)
            ]
        )
        self.uart = Uart(self.plic.line(board.UART_IRQ))
        self.aclint = self._build_aclint() if self._bare else None
        self.firmware = Firmware(self.harts, self.memory, self.uart)
        self._build_virtio()
        self._build_bus()

    @property
    def _bare(self) -> bool:
        return self.config.mode is Mode.FULL

    @property
    def hart(self) -> Hart:
        """The hart that runs or ran last."""
        return self.harts.hart

    def _build_aclint(self) -> Aclint:
        harts = self.harts
        return Aclint(lambda: harts.all, harts.interrupt, lambda: harts.hart.time, len(harts))

    def _new_hart(self, number: int) -> Hart:
        hart = self._make_hart(self.memory.ram, number, self.config.clock)
        if self.config.execution is Execution.INTERPRET:
            hart.interpret()
        if self._bare:
            hart.become_bare()
        if self._absent is not None:
            hart.set_absent(self._absent)
        return hart

    def _interrupt_output(self, hart: int, bit: int) -> Callable[[bool], None]:
        return lambda level: self.harts.interrupt(hart, bit, level)

    def _build_virtio(self) -> None:
        seed = None
        if self.config.clock is ClockSource.VIRTUAL:
            seed = hashlib.sha256(b"serai entropy device").digest()
        self.console = Console("console0")
        self.nets = {
            interface.name: Net(f"net{number}", interface.mac)
            for number, interface in enumerate(self.config.interfaces)
        }
        self.blocks = [
            Block(f"block{number}", disk.path, read_only=disk.read_only)
            for number, disk in enumerate(self.config.disks)
        ]
        devices: list[VirtioDevice] = [self.console, Entropy("entropy0", seed=seed)]
        self.balloon = Balloon("balloon0", (self.config.ram_bytes - self.config.memory_bytes) // PAGE_SIZE)
        devices += [*self.nets.values(), *self.blocks, self.balloon]
        self.virtio = [
            VirtioMmio(device, self.memory, self.plic.line(board.slot_irq(slot)))
            for slot, device in enumerate(devices)
        ]

    def _build_bus(self) -> None:
        self.bus = Bus()
        self.bus.map(self.plic, board.PLIC_BASE, plic.SIZE)
        self.bus.map(self.uart, board.UART_BASE, PAGE_SIZE)
        if self.aclint is not None:
            self.bus.map(self.aclint, board.ACLINT_BASE, aclint.SIZE)
            self.bus.map(PowerSwitch(self._requested), board.POWER_BASE, power.SIZE)
        for slot, transport in enumerate(self.virtio):
            self.bus.map(transport, board.slot_address(slot), SLOT_SIZE)

    def _requested(self, request: SystemRequest) -> None:
        self.firmware.request = request

    def close(self) -> None:
        """Close the disks' files."""
        for block in self.blocks:
            block.close()

    def _wrote(self, address: int, length: int) -> None:
        self.hart.dma_wrote(address, length)

    # Boot and reset.

    def boot(self) -> None:
        """Load what the configuration names and set the boot hart up.

        Raises LoadError or ConfigurationError. The hart enters S-mode with its number in a0 and the device
        tree's address in a1, paging off (Linux: Documentation/arch/riscv/boot.rst). On a bare board it
        begins in M-mode, with the parameters of OpenSBI's fw_dynamic at the address in a2.
        """
        config = self.config
        if config.kernel is None:
            raise LoadError("the machine has no kernel to boot")
        seed = bytes(_SEED_BYTES)
        if config.clock is ClockSource.REAL:
            seed = os.urandom(_SEED_BYTES)
        boot = loader.load(
            self.memory,
            kernel=config.kernel,
            initramfs=config.initramfs,
            extra_files=config.extra_files,
            firmware=config.firmware if config.mode is Mode.FULL else None,
            tree=lambda place: board.device_tree(
                config,
                slots=len(self.virtio),
                initramfs=place,
                random_seed=seed,
                vcpus=self.harts.allowed,
            ),
        )
        for transport in self.virtio:
            transport.frozen = False
        self.harts.boot(boot.entry, boot.tree, boot.information)

    def reboot(self) -> None:
        """Power-cycle: fresh harts and devices, then `boot`, and raises what that raises."""
        self._instructions_before += self.harts.instructions
        self._events_before = self.events()
        self.harts.reset()
        if self._dirty_log:
            self.hart.start_dirty_log()
        self.plic.reset()
        if self.aclint is not None:
            self.aclint.reset()
        self.uart.reset()
        for transport in self.virtio:
            transport.reset()
        self.firmware.request = None
        self.fault = ""
        self.boot()

    # Execution.

    def run(self, budget: int) -> MachineExit:
        """Execute about `budget` instructions, or until the guest waits, ends or faults.

        A device exit is served and execution goes on; `Hart.request_exit` ends the call early as BUDGET.
        """
        harts = self.harts
        while budget > 0:
            hart = harts.next()
            if hart is None:
                return MachineExit.WAIT
            end = hart.steps + budget
            reason = harts.run(min(budget, harts.left))
            executed = hart.steps
            ended = self._serve(hart, reason)
            if hart.steps != executed:  # a load was completed
                harts.used(hart.steps - executed)
            budget = end - hart.steps
            if ended is not None:
                return ended
        return MachineExit.BUDGET

    def _serve(self, hart: Hart, reason: ExitReason) -> MachineExit | None:
        """Do what the hart left for; None to go on."""
        match reason:
            case ExitReason.MMIO_LOAD:
                self._load(hart)
            case ExitReason.MMIO_STORE:
                self._store(hart)
                if self.firmware.request is not None:
                    return self._system_request(self.firmware.request)
            case ExitReason.ENVIRONMENT_CALL:
                began = time.perf_counter_ns()
                self._served("sbi:" + self.firmware.call(self.harts.current), began)
                if self.firmware.request is not None:
                    return self._system_request(self.firmware.request)
            case ExitReason.WAIT:
                self._count("wait")
                self.harts.wait()
            case ExitReason.PAUSE:
                self._count("pause")
                self.harts.give_way()
            case ExitReason.ABSENT:
                self.missing = (hart.exit_address - board.RAM_BASE) // PAGE_SIZE
                return MachineExit.ABSENT
            case ExitReason.FAULT:
                self.fault = hart.fault
                return MachineExit.FAULT
            case ExitReason.REQUESTED:
                return MachineExit.BUDGET
            case ExitReason.BUDGET:
                pass
        return None

    def _load(self, hart: Hart) -> None:
        began = time.perf_counter_ns()
        found = self.bus.find(hart.exit_address)
        if found is None:
            hart.complete_load(0)
            self._served("mmio:unmapped", began)
            return
        device, offset = found
        hart.complete_load(device.read(offset, hart.exit_width))
        self._served("mmio:" + device.name, began)

    def _store(self, hart: Hart) -> None:
        began = time.perf_counter_ns()
        found = self.bus.find(hart.exit_address)
        if found is None:
            self._served("mmio:unmapped", began)
            return
        device, offset = found
        device.write(offset, hart.exit_width, hart.exit_value)
        self._served("mmio:" + device.name, began)

    def _count(self, cause: str) -> None:
        self.exits[cause] = self.exits.get(cause, 0) + 1

    def _served(self, cause: str, began: int) -> None:
        """Count an exit that was taken at `began` (perf_counter_ns) and is done with now."""
        self.exits[cause] = self.exits.get(cause, 0) + 1
        self._costs.add(cause, time.perf_counter_ns() - began)

    def events(self) -> dict[str, int]:
        """What native code served without an exit, by cause, since this process took the guest."""
        events = dict(self._events_before)
        for name, count in name_events(self.harts.counters).items():
            events[name] = events.get(name, 0) + count
        return events

    def costs(self) -> dict[str, Cost]:
        """Time by cause since this process took the guest; of page walks an extrapolated sample."""
        counters = self.harts.counters
        costs = dict(self._costs.costs)
        if counters.walks_timed:
            spent = self._cycle_scale.nanoseconds(counters.walk_cycles, self.hart.host_cycles())
            costs["page-walk"] = Cost(counters.walks_timed, spent)
        return costs

    def _system_request(self, request: SystemRequest) -> MachineExit:
        return MachineExit.POWERED_OFF if request is SystemRequest.POWER_OFF else MachineExit.REBOOT

    @property
    def instructions(self) -> int:
        """Instructions retired since the guest was created, across reboots and migrations."""
        return self._instructions_before + self.harts.instructions

    # Size.

    @property
    def memory_bytes(self) -> int:
        """What the guest may use now: RAM less the balloon."""
        return self.config.ram_bytes - self.balloon.actual * PAGE_SIZE

    def aim_at_memory(self, memory_bytes: int) -> None:
        """Have the guest's driver bring `memory_bytes` about; the balloon tells when it has."""
        if not 0 < memory_bytes <= self.config.ram_bytes or memory_bytes % PAGE_SIZE:
            raise ConfigurationError(
                f"{memory_bytes} bytes of memory: this machine can have up to {self.config.ram_bytes}"
            )
        self.balloon.aim((self.config.ram_bytes - memory_bytes) // PAGE_SIZE)

    def allow_vcpus(self, count: int) -> None:
        """Let the guest start that many harts; those that run already go on."""
        if not 0 < count <= len(self.harts):
            raise ConfigurationError(f"{count} vCPUs: this machine can have up to {len(self.harts)}")
        self.harts.allowed = count

    # Pause and time.

    def paused(self) -> None:
        """Keep devices from touching RAM until `resumed`; input from the host is held meanwhile."""
        for transport in self.virtio:
            transport.frozen = True

    def resumed(self, elapsed_ns: int) -> None:
        """Let devices work again. `elapsed_ns` counts from the freeze at a migration's source to now.

        A restored machine's clock has been running since `restore`; that part is not counted twice. Guest
        time never goes back. Requests that waited for the host are looked at again.
        """
        if self._restored_at_ticks is not None:
            passed = (self.hart.time - self._restored_at_ticks) * NANOSECONDS_PER_TICK
            elapsed_ns = max(0, elapsed_ns - passed)
            self._restored_at_ticks = None
        if elapsed_ns > 0:
            self.hart.advance_time(elapsed_ns)
        for transport in self.virtio:
            transport.frozen = False
        if self._absent is None:
            self.serve_devices()

    def serve_devices(self) -> None:
        """Look again at requests that waited for the host; with absent pages, the caller's duty.

        It may have to wait for such pages, which do not come before `resumed` has returned.
        """
        for transport in self.virtio:
            for index in range(len(transport.queues)):
                transport.serve(index)

    # Pages on their way.

    def set_absent(self, absent: memoryview | None) -> None:
        """A byte a page, not 0 while it is still on its way (post-copy); None: all pages are here."""
        self._absent = absent
        self.memory.absent = absent
        for hart in self.harts.all:
            hart.set_absent(absent)

    # The dirty log.

    def start_dirty_log(self) -> None:
        """Remember every page that the guest or a device writes from now on."""
        self._dirty_log = True
        self.hart.start_dirty_log()

    def take_dirty_log(self) -> bytes:
        """The pages written since the last call, as a bitmap; it starts afresh. Raises DirtyLogError."""
        if not self._dirty_log:
            raise DirtyLogError("the dirty log is not on")
        return self.hart.take_dirty_log()

    def stop_dirty_log(self) -> None:
        """Stop remembering."""
        self._dirty_log = False
        self.hart.stop_dirty_log()

    # Snapshots.

    def save(self) -> bytes:
        """Everything but RAM, in the format of `serai.machine.snapshot`."""
        config = self.config
        state = MachineState(
            memory_bytes=config.ram_bytes,
            vcpus=config.possible_vcpus,
            clock=config.clock.value,
            instructions_before=self._instructions_before,
            exits=dict(self.exits),
            ready_seconds=self.ready_seconds,
            kernel_release=self.kernel_release,
        )
        sections = [
            save_section("machine", state),
            save_section("harts", self.harts.save()),
            *(
                Section(f"hart{number}", _HART_VERSION, hart.save())
                for number, hart in enumerate(self.harts.all)
            ),
            save_section(self.plic.name, self.plic.save()),
            save_section(self.uart.name, self.uart.save()),
        ]
        if self.aclint is not None:
            sections.append(save_section(self.aclint.name, self.aclint.save()))
        for transport in self.virtio:
            sections += transport.save()
        return pack(sections)

    def restore(self, snapshot: bytes) -> None:
        """Take over a saved state; RAM has been filled before. Raises SnapshotError naming the section."""
        sections = unpack(snapshot)
        state = load_section(sections, "machine", MachineState)
        config = self.config
        here = (config.ram_bytes, config.possible_vcpus, config.clock.value)
        saved = (state.memory_bytes, state.vcpus, state.clock)
        if saved != here:
            raise SnapshotError("machine", f"is of a machine of {saved}, this one is {here}")
        if (Aclint.name in sections) != (self.aclint is not None):
            raise SnapshotError("machine", f"is not of a machine of mode {config.mode.value}")
        for number, hart in enumerate(self.harts.all):
            _restore_hart(sections, f"hart{number}", hart)
        self.harts.restore(load_section(sections, "harts", HartsState))
        if self.aclint is not None:
            self.aclint.restore(load_section(sections, self.aclint.name, AclintState))
        self.plic.restore(load_section(sections, self.plic.name, PlicState))
        self.uart.restore(load_section(sections, self.uart.name, UartState))
        for transport in self.virtio:
            transport.restore(sections)
        self.exits = dict(state.exits)
        self.ready_seconds = state.ready_seconds
        self.kernel_release = state.kernel_release
        self._instructions_before = state.instructions_before
        self._restored_at_ticks = self.hart.time


def _restore_hart(sections: dict[str, Section], name: str, hart: Hart) -> None:
    section = sections.get(name)
    if section is None:
        raise SnapshotError(name, "is missing")
    if section.version != _HART_VERSION:
        raise SnapshotError(name, f"version {section.version} is unknown here (known: {_HART_VERSION})")
    try:
        hart.restore(section.body)
    except Exception as error:
        raise SnapshotError(name, f"cannot be read: {error}") from None
