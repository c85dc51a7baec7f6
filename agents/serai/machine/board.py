"""The board: what a machine is made of, where it is mapped, and the device tree that says so.

The memory map is that of QEMU's "virt" machine, which every RISC-V system knows.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path

from serai.machine import aclint, fdt, plic, power, uart
from serai.machine.errors import ConfigurationError
from serai.machine.fdt import Node, cells64
from serai.machine.hart import (
    MACHINE_EXTERNAL_INTERRUPT,
    MACHINE_SOFTWARE_INTERRUPT,
    MACHINE_TIMER_INTERRUPT,
    SUPERVISOR_EXTERNAL_INTERRUPT,
    TIMEBASE_HZ,
    ClockSource,
    Execution,
)
from serai.machine.memory import PAGE_SIZE
from serai.machine.virtio.transport import SLOT_SIZE

RAM_BASE = 0x8000_0000
POWER_BASE = 0x10_0000
ACLINT_BASE = 0x200_0000
PLIC_BASE = 0x0C00_0000
UART_BASE = 0x1000_0000
UART_IRQ = 10
VIRTIO_BASE = 0x1000_1000

MAXIMUM_SLOTS = 32
MAXIMUM_VCPUS = 8
DEFAULT_COMMAND_LINE = (
    "console=ttyS0 quiet init_on_alloc=0 cryptomgr.notests ima=off evm=off apparmor=0 lsm= audit=0"
)
"""Cuts a stock Debian kernel's boot to a third of the instructions."""

_ISA_EXTENSIONS = ["i", "m", "a", "f", "d", "c", "zicntr", "zicsr", "zifencei", "zihintpause"]


class Mode(enum.Enum):
    """How a guest is virtualized.

    PARAVIRTUAL: the VMM is the firmware, the kernel starts in S-mode and calls it (SBI). FULL: a bare board;
    firmware runs in the guest in M-mode, on ACLINT, PLIC and UART.
    """

    PARAVIRTUAL = "paravirtual"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class NetworkInterface:
    """A network device."""

    name: str
    mac: bytes


@dataclass(frozen=True, slots=True)
class Disk:
    """A block device backed by a file."""

    path: Path
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """A machine to build. `kernel` is a Linux Image or an ELF file; `extra_files` join the initramfs.

    The guest starts with `vcpus` harts and, once its balloon is inflated, `memory_bytes`; both can be changed
    while it runs, up to `maximum_vcpus` and `maximum_memory_bytes`.
    In mode FULL `firmware` (OpenSBI's fw_dynamic) starts first and then the kernel; without one the kernel
    itself starts in M-mode.
    """

    memory_bytes: int
    vcpus: int = 1
    kernel: Path | None = None
    initramfs: Path | None = None
    command_line: str = ""
    interfaces: tuple[NetworkInterface, ...] = ()
    disks: tuple[Disk, ...] = ()
    extra_files: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    clock: ClockSource = ClockSource.REAL
    mode: Mode = Mode.PARAVIRTUAL
    firmware: Path | None = None
    execution: Execution = Execution.TRANSLATE
    maximum_vcpus: int = 0
    maximum_memory_bytes: int = 0

    @property
    def possible_vcpus(self) -> int:
        """Harts on the board: those that may be started later included."""
        return max(self.vcpus, self.maximum_vcpus)

    @property
    def ram_bytes(self) -> int:
        """RAM on the board; of it, the balloon takes what is more than `memory_bytes`."""
        return max(self.memory_bytes, self.maximum_memory_bytes)

    def check(self) -> None:
        """Raise ConfigurationError for what can never be built."""
        for size in (self.memory_bytes, self.ram_bytes):
            if size <= 0 or size % PAGE_SIZE:
                raise ConfigurationError(f"{size} bytes of RAM are not whole pages of {PAGE_SIZE}")
        if self.vcpus < 1 or self.possible_vcpus > MAXIMUM_VCPUS:
            raise ConfigurationError(
                f"{self.possible_vcpus} vCPUs: the emulated machine has 1 to {MAXIMUM_VCPUS}"
            )
        slots = FIXED_SLOTS + 1 + len(self.interfaces) + len(self.disks)
        if slots > MAXIMUM_SLOTS:
            raise ConfigurationError(f"{slots} virtio devices, at most {MAXIMUM_SLOTS} fit on the board")


FIXED_SLOTS = 2
"""Slots of every machine: 0 the console (host channel), 1 the entropy source; networks, then disks follow,
and the balloon is last."""


def slot_address(slot: int) -> int:
    """Where a virtio slot is mapped."""
    return VIRTIO_BASE + slot * SLOT_SIZE


def slot_irq(slot: int) -> int:
    """The interrupt source of a virtio slot; the UART's is left out."""
    return slot + 1 if slot + 1 < UART_IRQ else slot + 2


def device_tree(
    config: MachineConfig,
    *,
    slots: int,
    initramfs: tuple[int, int] | None,
    random_seed: bytes,
    vcpus: int,
) -> bytes:
    """The blob for a machine with `slots` virtio devices and the initramfs at `initramfs` (start, end).

    All harts are in it; Linux is told to start no more than `vcpus` of them by itself.
    """
    command_line = config.command_line or DEFAULT_COMMAND_LINE
    if vcpus < config.possible_vcpus:
        command_line += f" maxcpus={vcpus}"
    chosen = Node(
        "chosen",
        {
            "bootargs": command_line,
            "stdout-path": f"/soc/serial@{UART_BASE:x}",
            "rng-seed": random_seed,
        },
    )
    if initramfs is not None:
        chosen.properties["linux,initrd-start"] = cells64(initramfs[0])
        chosen.properties["linux,initrd-end"] = cells64(initramfs[1])
    root = Node(
        "",
        {
            "#address-cells": 2,
            "#size-cells": 2,
            "compatible": "riscv-virtio",
            "model": "serai,virt",
        },
        [
            chosen,
            Node(
                f"memory@{RAM_BASE:x}",
                {"device_type": "memory", "reg": cells64(RAM_BASE, config.ram_bytes)},
            ),
            _processors(config.possible_vcpus),
            _soc(config.possible_vcpus, slots, config.mode),
            *(_power_nodes() if config.mode is Mode.FULL else []),
        ],
    )
    return fdt.write(root)


def _processors(count: int) -> Node:
    cpus = [
        Node(
            f"cpu@{hart}",
            {
                "device_type": "cpu",
                "reg": hart,
                "status": "okay",
                "compatible": "riscv",
                "riscv,isa": "rv64imafdc",
                "riscv,isa-base": "rv64i",
                "riscv,isa-extensions": _ISA_EXTENSIONS,
                "mmu-type": "riscv,sv39",
            },
            [
                Node(
                    "interrupt-controller",
                    {
                        "#interrupt-cells": 1,
                        "interrupt-controller": None,
                        "compatible": "riscv,cpu-intc",
                        "phandle": _hart_phandle(hart),
                    },
                )
            ],
        )
        for hart in range(count)
    ]
    properties: dict[str, fdt.Value] = {
        "#address-cells": 1,
        "#size-cells": 0,
        "timebase-frequency": TIMEBASE_HZ,
    }
    return Node("cpus", properties, cpus)


_PLIC_PHANDLE = 1
_POWER_PHANDLE = 0x100


def _hart_phandle(hart: int) -> int:
    return 2 + hart


def _power_nodes() -> list[Node]:
    """What Linux and OpenSBI end the machine with (bindings power/reset/syscon-poweroff, syscon-reboot)."""
    return [
        Node(
            name,
            {"compatible": compatible, "regmap": _POWER_PHANDLE, "offset": 0, "value": value},
        )
        for name, compatible, value in (
            ("poweroff", "syscon-poweroff", power.POWER_OFF),
            ("reboot", "syscon-reboot", power.REBOOT),
        )
    ]


def _bare_board(harts: int) -> list[Node]:
    """The devices that only a bare board has."""
    lines = [
        cell
        for hart in range(harts)
        for line in (MACHINE_SOFTWARE_INTERRUPT, MACHINE_TIMER_INTERRUPT)
        for cell in (_hart_phandle(hart), line)
    ]
    return [
        Node(
            f"test@{POWER_BASE:x}",
            {
                "compatible": ["sifive,test1", "sifive,test0", "syscon"],
                "reg": cells64(POWER_BASE, power.SIZE),
                "phandle": _POWER_PHANDLE,
            },
        ),
        Node(
            f"clint@{ACLINT_BASE:x}",
            {
                "compatible": ["sifive,clint0", "riscv,clint0"],
                "reg": cells64(ACLINT_BASE, aclint.SIZE),
                "interrupts-extended": lines,
            },
        ),
    ]


def _soc(harts: int, slots: int, mode: Mode) -> Node:
    contexts = [
        cell
        for hart in range(harts)
        for line in (MACHINE_EXTERNAL_INTERRUPT, SUPERVISOR_EXTERNAL_INTERRUPT)
        for cell in (_hart_phandle(hart), line)
    ]
    interrupt_controller = Node(
        f"interrupt-controller@{PLIC_BASE:x}",
        {
            "compatible": ["sifive,plic-1.0.0", "riscv,plic0"],
            "reg": cells64(PLIC_BASE, plic.SIZE),
            "interrupt-controller": None,
            "#interrupt-cells": 1,
            "#address-cells": 0,
            "interrupts-extended": contexts,
            "riscv,ndev": plic.SOURCES,
            "phandle": _PLIC_PHANDLE,
        },
    )
    serial = Node(
        f"serial@{UART_BASE:x}",
        {
            "compatible": "ns16550a",
            "reg": cells64(UART_BASE, 0x100),
            "clock-frequency": uart.CLOCK_HZ,
            "interrupt-parent": _PLIC_PHANDLE,
            "interrupts": UART_IRQ,
        },
    )
    virtio = [
        Node(
            f"virtio_mmio@{slot_address(slot):x}",
            {
                "compatible": "virtio,mmio",
                "reg": cells64(slot_address(slot), SLOT_SIZE),
                "interrupt-parent": _PLIC_PHANDLE,
                "interrupts": slot_irq(slot),
            },
        )
        for slot in range(slots)
    ]
    properties: dict[str, fdt.Value] = {
        "#address-cells": 2,
        "#size-cells": 2,
        "compatible": "simple-bus",
        "ranges": None,
    }
    bare = _bare_board(harts) if mode is Mode.FULL else []
    return Node("soc", properties, [*bare, interrupt_controller, serial, *virtio])
