"""The driver contract: what a hypervisor back end offers to the agent.

The agent, the switch and the migration protocol know guests only through the two classes here. Real
back ends (``serai.hypervisor.emulated``) and the fake that ships for tests (``serai.hypervisor.fake``)
implement them.

Life of a guest::

    Driver.create -> DEFINED -start-> RUNNING <-pause/resume-> PAUSED -stop-> STOPPED
    Driver.create_incoming -> DEFINED -restore-> PAUSED -resume-> RUNNING
    any state -> FAILED when its process dies; the reason is in `Guest.failure`
"""

from __future__ import annotations

import abc
import asyncio
import enum
import errno
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from serai.errors import HypervisorError

PAGE_SIZE = 4096
"""Bytes in a page, the unit of dirty logging and of migration."""


class GuestState(enum.Enum):
    """Where a guest is in its life."""

    DEFINED = "defined"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    FAILED = "failed"


class Clock(enum.Enum):
    """What drives guest time: the wall, or retired instructions (reproducible)."""

    REAL = "real"
    VIRTUAL = "virtual"


class Execution(enum.Enum):
    """How instructions are executed; the guest sees no difference."""

    INTERPRET = "interpret"
    TRANSLATE = "translate"


class Mode(enum.Enum):
    """Para-virtual: the hypervisor is the firmware. Full: a bare board with firmware in the guest."""

    PARAVIRTUAL = "paravirtual"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class InterfaceConfig:
    """A virtio network interface. Guests number them eth0, eth1 ... in the order of the configuration."""

    name: str
    mac: bytes


@dataclass(frozen=True, slots=True)
class DiskConfig:
    """A virtio block device backed by a file on the node."""

    path: Path
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class GuestConfig:
    """All that is needed to build a guest; paths name files on this node.

    The guest runs with `vcpus` and `memory_bytes` and can be resized up to the maxima (0: not at all).
    `extra_files` (guest path -> (mode, content)) reach the guest as a cpio appended to the initramfs.
    """

    uid: str
    memory_bytes: int
    vcpus: int = 1
    kernel: Path | None = None
    initramfs: Path | None = None
    command_line: str = ""
    interfaces: tuple[InterfaceConfig, ...] = ()
    disks: tuple[DiskConfig, ...] = ()
    extra_files: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    clock: Clock = Clock.REAL
    maximum_vcpus: int = 0
    maximum_memory_bytes: int = 0

    @property
    def ram_bytes(self) -> int:
        """RAM of the machine, of which a balloon takes what is more than `memory_bytes`."""
        return max(self.memory_bytes, self.maximum_memory_bytes)

    mode: Mode = Mode.PARAVIRTUAL
    firmware: Path | None = None
    execution: Execution = Execution.TRANSLATE


@dataclass(frozen=True, slots=True)
class GuestStatistics:
    """Counters since the guest was created; they travel with it when it migrates.

    `cpu_seconds` is of the guest's process here; `ready_seconds` is start to the ready line on the host
    channel, None before it came; `exits` counts by cause. `events` counts what was served without an exit
    (traps, interrupts, TLB fills); `costs` has by cause how many were timed and the nanoseconds they took.
    These two begin anew on each node.
    """

    instructions: int
    cpu_seconds: float
    ready_seconds: float | None
    exits: dict[str, int]
    kernel_release: str = ""
    events: dict[str, int] = field(default_factory=dict)
    costs: dict[str, tuple[int, int]] = field(default_factory=dict)
    vcpus: int = 0
    memory_bytes: int = 0
    balloon: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GuestView:
    """A guest's size as the guest itself reports it: processors online, total and free memory in bytes."""

    vcpus: int
    memory_total: int
    memory_free: int


@dataclass(frozen=True, slots=True)
class TracedInstruction:
    """One instruction of a trace.

    `trapped`: it raised an exception instead of retiring. `interrupt`: the first of an interrupt's handler.
    """

    step: int
    hart: int
    privilege: int
    address: int
    word: int
    text: str
    trapped: bool
    interrupt: bool


@dataclass(frozen=True, slots=True)
class TracePiece:
    """What was traced since the last piece; `steps` were executed in all."""

    instructions: tuple[TracedInstruction, ...]
    steps: int
    finished: bool


class FramePort(abc.ABC):
    """A guest's network interface as the switch sees it. Frames carry no virtio header here."""

    @abc.abstractmethod
    def deliver(self, frame: bytes | memoryview) -> bool:
        """Hand a frame to the guest without blocking; False when its queue is full and the frame is lost."""

    @abc.abstractmethod
    def set_receiver(self, receiver: Callable[[Sequence[bytes]], None] | None) -> None:
        """Call `receiver` in the event loop with batches of frames that the guest sent."""


class Guest(abc.ABC):
    """One guest of a driver. All methods run in the agent's event loop and none blocks it."""

    uid: str
    config: GuestConfig
    state: GuestState
    failure: str
    """Why the state is FAILED or STOPPED, for people: the signal, the fault, "powered off" ..."""

    @property
    @abc.abstractmethod
    def ram(self) -> memoryview:
        """The guest's RAM, shared with its process (writable, `ram_bytes` of the configuration long)."""

    def used_pages(self) -> Sequence[tuple[int, int]]:
        """Ranges of pages (end not included) that may hold something; the rest reads as zero.

        A driver that knows better than "all" spares a migration the look at what a balloon has given back.
        """
        return [(0, len(self.ram) // PAGE_SIZE)]

    @property
    @abc.abstractmethod
    def ports(self) -> dict[str, FramePort]:
        """The network interfaces by name."""

    @abc.abstractmethod
    async def start(self) -> None:
        """Load kernel and initramfs and run. Raises HypervisorError when they cannot be loaded."""

    @abc.abstractmethod
    async def pause(self) -> None:
        """Stop executing at an instruction boundary; returns when no vCPU runs any more."""

    @abc.abstractmethod
    async def resume(self, *, elapsed_ns: int = 0) -> None:
        """Run on. `elapsed_ns` of wall time passed elsewhere is added to the guest's clock (migration)."""

    @abc.abstractmethod
    async def stop(self, *, grace_seconds: float = 0.0) -> None:
        """Power off: ask the guest over the host channel, and after `grace_seconds` end its process."""

    @abc.abstractmethod
    async def statistics(self) -> GuestStatistics:
        """Current counters."""

    def trace(self, *, count: int, low: int, high: int, steps: int) -> AsyncGenerator[TracePiece, None]:
        """Execute in single steps and yield what is executed at `low` <= address < `high`.

        Ends after `count` records, after `steps` steps, or when the guest ends; the guest then runs on at
        full speed, as it does when the iterator is closed. Raises HypervisorError where a back end cannot.
        """
        raise HypervisorError(f"guest {self.uid}: this back end cannot trace instructions")

    @abc.abstractmethod
    async def resize(self, *, vcpus: int, memory_bytes: int, timeout_seconds: float) -> GuestView:
        """Change a RUNNING guest's size; returns when the guest has confirmed it.

        Raises HypervisorError for what the machine cannot have, and TimeoutError when the guest has not done
        it in time: it has then been asked to go back to the size before, and may be anywhere in between.
        """

    @abc.abstractmethod
    def subscribe(self, listener: Callable[[Guest], None]) -> Callable[[], None]:
        """Call `listener` after each change of state or readiness; returns the unsubscriber."""

    # Console: the 16550's byte stream. Output is kept in a bounded scrollback for late attachers.

    @abc.abstractmethod
    def write_console(self, data: bytes) -> None:
        """Type into the console; beyond the input buffer's bound the oldest waits in the agent."""

    @abc.abstractmethod
    def read_scrollback(self) -> bytes:
        """The latest output, at most 64 KiB."""

    @abc.abstractmethod
    def subscribe_console(self, listener: Callable[[bytes], None]) -> Callable[[], None]:
        """Call `listener` with each piece of console output; returns the unsubscriber."""

    # Migration and snapshots, source side.

    async def identify(self, words: str) -> None:  # noqa: B027 - not every driver has a channel
        """Tell a copied guest over the host channel who it is; it says when it is ready again."""

    @abc.abstractmethod
    async def start_dirty_log(self) -> None:
        """From now on remember every page the guest or its devices write."""

    @abc.abstractmethod
    async def take_dirty_pages(self) -> bytes:
        """Bitmap (bit n of byte n//8 = page n, least significant first) of pages written since the last call.

        Taking and clearing is one atomic step against the guest's execution.
        """

    @abc.abstractmethod
    async def stop_dirty_log(self) -> None:
        """Stop remembering; costs the guest nothing from here on."""

    @abc.abstractmethod
    async def save_state(self) -> bytes:
        """Registers, CSRs and devices of a PAUSED guest, in the versioned snapshot format, without RAM."""

    # Migration, destination side.

    @abc.abstractmethod
    async def restore(self, state: bytes, *, scrollback: bytes = b"", absent: bool = False) -> None:
        """Load what `save_state` gave, after RAM has been filled; the guest is then PAUSED.

        With `absent`, the pages marked in `absent` are still on their way and the guest may run all the same.

        Raises HypervisorError naming the section that is damaged or of an unknown version.
        """

    # Pages on their way (post-copy).

    @property
    @abc.abstractmethod
    def absent(self) -> memoryview:
        """A byte a page, not 0 while its content is still on its way; to be set before `restore` only.

        Whoever writes a page into `ram` clears its byte afterwards, from any thread.
        """

    @abc.abstractmethod
    def on_absent(self, listener: Callable[[list[int]], None] | None) -> None:
        """Call `listener` with the pages that the guest needs now; it stands still until `pages_arrived`."""

    @abc.abstractmethod
    async def pages_arrived(self, *, everything: bool = False) -> None:
        """Bytes of `absent` were cleared: let a guest that waits look again; `everything`: all of them."""

    @abc.abstractmethod
    async def close(self) -> None:
        """End the guest's process if it lives and free everything. Never raises; safe to repeat."""


def _fill(ram: memoryview, ram_file: int) -> None:
    position = 0
    while position < len(ram):
        count = os.preadv(ram_file, [ram[position : position + (1 << 20)]], position)
        if count == 0:
            raise OSError(errno.EIO, "the file is shorter than the guest's RAM")
        position += count


class Driver(abc.ABC):
    """Creates guests. One instance per agent."""

    snapshot_version: int = 1
    """Of what `Guest.save_state` gives; a migration to a node of another is refused before it begins."""

    @abc.abstractmethod
    async def open(self) -> None:
        """Make ready (the emulated driver starts its zygote)."""

    @abc.abstractmethod
    async def create(self, config: GuestConfig) -> Guest:
        """A DEFINED guest with its process and RAM. Raises HypervisorError when it cannot be had."""

    @abc.abstractmethod
    async def create_incoming(self, config: GuestConfig) -> Guest:
        """As `create`, for a guest whose RAM and state will arrive; kernel and initramfs are not read."""

    async def create_copy(self, config: GuestConfig, ram_file: int) -> Guest:
        """As `create_incoming`, with RAM as in the open file, which stays the caller's and must not change.

        A driver that can shares the memory with other copies until it is written.
        """
        guest = await self.create_incoming(config)
        try:
            await asyncio.to_thread(_fill, guest.ram, ram_file)
        except OSError as error:
            await guest.close()
            raise HypervisorError(f"guest {config.uid}: its RAM cannot be read: {error.strerror}") from None
        return guest

    def survivors(self) -> list[str]:
        """Uids of guests whose processes may have outlived the agent's last run."""
        return []

    async def adopt(self, config: GuestConfig) -> Guest | None:
        """Take over a survivor, DEFINED, RUNNING or PAUSED; None when its process has ended.

        Raises HypervisorError when its process cannot be spoken to.
        """
        return None

    def discard(self, uid: str) -> None:  # noqa: B027 - drivers without survivors need nothing
        """End a survivor that is not this node's any more. Never raises."""

    @abc.abstractmethod
    async def close(self) -> None:
        """End every guest and everything `open` started."""
