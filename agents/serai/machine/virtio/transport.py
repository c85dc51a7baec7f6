"""The virtio-mmio transport, register layout version 2 (VIRTIO 1.2, section 4.2), and its devices' base.

A driver that breaks the rules gets its device into DEVICE_NEEDS_RESET (2.1.2); nothing it writes raises here.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from serai.machine.errors import GuestAccessError, SnapshotError, VirtqueueError
from serai.machine.memory import GuestMemory
from serai.machine.snapshot import Section, State, load_section, save_section
from serai.machine.virtio.queue import QueueState, Virtqueue

FEATURE_RING_INDIRECT = 1 << 28
FEATURE_RING_EVENT_INDEX = 1 << 29
FEATURE_VERSION_1 = 1 << 32

TRANSPORT_FEATURES = FEATURE_RING_INDIRECT | FEATURE_RING_EVENT_INDEX | FEATURE_VERSION_1

STATUS_DRIVER_OK = 4
STATUS_FEATURES_OK = 8
STATUS_NEEDS_RESET = 64

INTERRUPT_USED_BUFFER = 1
INTERRUPT_CONFIGURATION = 2

SLOT_SIZE = 0x1000

_MAGIC = 0x74726976
_VERSION = 2
_VENDOR = 0x49415253  # "SRAI"
_CONFIGURATION = 0x100
_LOW = 0xFFFF_FFFF

_QUEUE_ADDRESSES = {
    0x080: ("descriptors", 0),
    0x084: ("descriptors", 32),
    0x090: ("available", 0),
    0x094: ("available", 32),
    0x0A0: ("used", 0),
    0x0A4: ("used", 32),
}


class VirtioDevice(abc.ABC):
    """A device type. Its transport calls it; it uses `transport` to reach queues and memory."""

    device_id: ClassVar[int]
    queue_sizes: ClassVar[tuple[int, ...]]

    transport: VirtioMmio

    def __init__(self, name: str, *, features: int = 0, configuration: bytes = b"") -> None:
        self.name = name
        self.features = features
        self.configuration = configuration

    @abc.abstractmethod
    def serve(self, index: int) -> None:
        """Work off queue `index` as far as possible. Raises VirtqueueError or GuestAccessError."""

    def wants_notification(self, index: int) -> bool:
        """Whether the driver has to tell of the next request in queue `index`."""
        return True

    def configure(self, offset: int, width: int, value: int) -> None:  # noqa: B027 (mostly read-only)
        """The driver writes to the configuration space."""

    def reset(self) -> None:  # noqa: B027 (most devices keep nothing of their driver)
        """The driver resets the device: forget what belongs to the old driver."""

    @abc.abstractmethod
    def save(self) -> State:
        """The device's own state, beside that of the transport."""

    @abc.abstractmethod
    def restore(self, sections: dict[str, Section], name: str) -> None:
        """Take over the device's own state from section `name`. Raises SnapshotError."""


@dataclass
class TransportState:
    """Registers of the transport and its queues."""

    VERSION: ClassVar[int] = 1

    device_id: int
    status: int
    driver_features: int
    device_features_select: int
    driver_features_select: int
    queue_select: int
    interrupt_status: int
    generation: int
    queues: list[QueueState]


class VirtioMmio:
    """One slot with one device in it; `interrupt` is its line. While `frozen`, RAM is left alone."""

    def __init__(self, device: VirtioDevice, memory: GuestMemory, interrupt: Callable[[bool], None]) -> None:
        self.device = device
        self.name = device.name
        self.memory = memory
        self.queues = [Virtqueue(memory, size) for size in device.queue_sizes]
        self.failure = ""
        self.frozen = True
        self._interrupt = interrupt
        self._features = device.features | TRANSPORT_FEATURES
        self._generation = 0
        device.transport = self
        self._reset_registers()

    def _reset_registers(self) -> None:
        self._status = 0
        self._driver_features = 0
        self._device_features_select = self._driver_features_select = 0
        self._queue_select = 0
        self._interrupt_status = 0

    def reset(self) -> None:
        """As after power-on or a write of zero to Status."""
        self._reset_registers()
        self.failure = ""
        for queue in self.queues:
            queue.reset()
        self.device.reset()
        self._interrupt(False)

    @property
    def live(self) -> bool:
        """The driver has set the device up and it works."""
        return self._status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET) == STATUS_DRIVER_OK

    def negotiated(self, feature: int) -> bool:
        """Whether the driver accepted `feature`."""
        return bool(self._driver_features & feature)

    def serve(self, index: int) -> None:
        """Let the device work off a queue: on the driver's notification and on input from the host."""
        if self.frozen or not self.live or index >= len(self.queues):
            return
        queue = self.queues[index]
        if not queue.ready:
            return
        try:
            self.device.serve(index)
            if self.device.wants_notification(index):
                queue.request_notification()
            if queue.should_interrupt():
                self._raise(INTERRUPT_USED_BUFFER)
        except (VirtqueueError, GuestAccessError) as error:
            self._fail(str(error))

    def configuration_changed(self) -> None:
        """Tell the driver to read the configuration space again (4.2.2: a new generation)."""
        self._generation = self._generation + 1 & _LOW
        if self.live:
            self._raise(INTERRUPT_CONFIGURATION)

    def _raise(self, bits: int) -> None:
        self._interrupt_status |= bits
        self._interrupt(True)

    def _fail(self, reason: str) -> None:
        self.failure = reason
        self._status |= STATUS_NEEDS_RESET
        if self._status & STATUS_DRIVER_OK:
            self._raise(INTERRUPT_CONFIGURATION)

    def read(self, offset: int, width: int) -> int:
        """See `MappedDevice.read`."""
        if offset >= _CONFIGURATION:
            start = offset - _CONFIGURATION
            return int.from_bytes(self.device.configuration[start : start + width], "little")
        if width != 4:
            return 0
        return self._read_register(offset) & _LOW

    def _read_register(self, offset: int) -> int:  # noqa: PLR0911 (one line per register)
        match offset:
            case 0x000:
                return _MAGIC
            case 0x004:
                return _VERSION
            case 0x008:
                return self.device.device_id
            case 0x00C:
                return _VENDOR
            case 0x010:
                return (
                    self._features >> 32 * self._device_features_select
                    if self._device_features_select < 2
                    else 0
                )
            case 0x034:
                queue = self._queue
                return queue.maximum_size if queue else 0
            case 0x044:
                queue = self._queue
                return int(queue.ready) if queue else 0
            case 0x060:
                return self._interrupt_status
            case 0x070:
                return self._status
            case 0x0B0 | 0x0B4 | 0x0B8 | 0x0BC:
                return _LOW  # no shared memory region: length -1 (4.2.2.1)
            case 0x0FC:
                return self._generation
        return 0

    def write(self, offset: int, width: int, value: int) -> None:
        """See `MappedDevice.write`."""
        if offset >= _CONFIGURATION:
            self.device.configure(offset - _CONFIGURATION, width, value)
            return
        if width != 4:
            return
        match offset:
            case 0x050:
                self.serve(value)
            case 0x064:
                self._interrupt_status &= ~value
                self._interrupt(self._interrupt_status != 0)
            case 0x070:
                self._write_status(value & 0xFF)
            case 0x014:
                self._device_features_select = value
            case 0x024:
                self._driver_features_select = value
            case 0x020:
                self._write_driver_features(value)
            case 0x030:
                self._queue_select = value
            case _:
                self._write_queue(offset, value)

    @property
    def _queue(self) -> Virtqueue | None:
        return self.queues[self._queue_select] if self._queue_select < len(self.queues) else None

    def _write_driver_features(self, value: int) -> None:
        if self._driver_features_select < 2 and not self._status & STATUS_FEATURES_OK:
            shift = 32 * self._driver_features_select
            self._driver_features = self._driver_features & ~(_LOW << shift) | value << shift

    def _write_status(self, value: int) -> None:
        if value == 0:
            self.reset()
            return
        if value & STATUS_FEATURES_OK and not self._status & STATUS_FEATURES_OK:
            # 2.2.2: refuse what was not offered, and drivers older than version 1.
            acceptable = not self._driver_features & ~self._features and self.negotiated(FEATURE_VERSION_1)
            if not acceptable:
                value &= ~STATUS_FEATURES_OK
            for queue in self.queues:
                queue.event_index = self.negotiated(FEATURE_RING_EVENT_INDEX)
        became_live = value & STATUS_DRIVER_OK and not self._status & STATUS_DRIVER_OK
        self._status = value | self._status & STATUS_NEEDS_RESET
        if became_live:
            for index in range(len(self.queues)):
                self.serve(index)

    def _write_queue(self, offset: int, value: int) -> None:
        queue = self._queue
        if queue is None:
            return
        if offset == 0x044:
            self._write_queue_ready(queue, value)
        elif queue.ready:
            return  # 4.2.2.2: the driver must not touch a queue in use
        elif offset == 0x038:
            queue.size = value
        elif offset in _QUEUE_ADDRESSES:
            ring, shift = _QUEUE_ADDRESSES[offset]
            address = getattr(queue, ring) & ~(_LOW << shift) | value << shift
            setattr(queue, ring, address)

    def _write_queue_ready(self, queue: Virtqueue, value: int) -> None:
        if not value & 1:
            queue.ready = False
        elif not queue.ready:
            try:
                queue.enable()
            except (VirtqueueError, GuestAccessError) as error:
                self._fail(str(error))

    def save(self) -> list[Section]:
        """Two sections: the transport's and, with the suffix ".device", the device's."""
        state = TransportState(
            device_id=self.device.device_id,
            status=self._status,
            driver_features=self._driver_features,
            device_features_select=self._device_features_select,
            driver_features_select=self._driver_features_select,
            queue_select=self._queue_select,
            interrupt_status=self._interrupt_status,
            generation=self._generation,
            queues=[queue.save() for queue in self.queues],
        )
        return [save_section(self.name, state), save_section(f"{self.name}.device", self.device.save())]

    def restore(self, sections: dict[str, Section]) -> None:
        """Take over both sections."""
        state = load_section(sections, self.name, TransportState)
        if state.device_id != self.device.device_id or len(state.queues) != len(self.queues):
            raise SnapshotError(self.name, "is of another kind of device")
        if state.driver_features & ~self._features:
            raise SnapshotError(self.name, "its driver uses features that this device does not have")
        self._status = state.status & 0xFF
        self._driver_features = state.driver_features
        self._device_features_select = state.device_features_select & _LOW
        self._driver_features_select = state.driver_features_select & _LOW
        self._queue_select = state.queue_select & _LOW
        self._interrupt_status = state.interrupt_status & 3
        self._generation = state.generation & _LOW
        for queue, saved in zip(self.queues, state.queues, strict=True):
            queue.event_index = self.negotiated(FEATURE_RING_EVENT_INDEX)
            try:
                queue.restore(saved)
            except (VirtqueueError, GuestAccessError) as error:
                raise SnapshotError(self.name, str(error)) from None
        self.device.restore(sections, f"{self.name}.device")
        self._interrupt(self._interrupt_status != 0)
