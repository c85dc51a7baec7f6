"""The memory-mapped bus: which device answers at which address.

Everything mapped starts on a page boundary and covers whole pages, so that finding a device is one look
into a dictionary. An access to nothing reads as zero and is counted; stock systems do not make any.
"""

from __future__ import annotations

from typing import Protocol

from serai.machine.errors import ConfigurationError
from serai.machine.memory import PAGE_SIZE

_PAGE_SHIFT = PAGE_SIZE.bit_length() - 1


class MappedDevice(Protocol):
    """A device with registers. `name` keys counters and snapshot sections."""

    name: str

    def read(self, offset: int, width: int) -> int:
        """The register at `offset`; `width` is 1, 2, 4 or 8 bytes."""

    def write(self, offset: int, width: int, value: int) -> None:
        """Store into the register at `offset`."""


class Bus:
    """Devices by address."""

    def __init__(self) -> None:
        self._pages: dict[int, tuple[MappedDevice, int]] = {}

    def map(self, device: MappedDevice, base: int, size: int) -> None:
        """Make `device` answer from `base` on. Raises ConfigurationError on overlap or misalignment."""
        if base % PAGE_SIZE or size % PAGE_SIZE or size <= 0:
            raise ConfigurationError(f"{device.name}: {size:#x} bytes at {base:#x} are not whole pages")
        for page in range(base >> _PAGE_SHIFT, (base + size) >> _PAGE_SHIFT):
            if page in self._pages:
                raise ConfigurationError(
                    f"{device.name} and {self._pages[page][0].name} overlap at {base:#x}"
                )
            self._pages[page] = (device, base)

    def find(self, address: int) -> tuple[MappedDevice, int] | None:
        """The device at `address` and the offset in it."""
        found = self._pages.get(address >> _PAGE_SHIFT)
        return None if found is None else (found[0], address - found[1])
