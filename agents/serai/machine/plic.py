"""Platform-level interrupt controller, compatible "sifive,plic-1.0.0" (RISC-V PLIC specification 1.0.0).

Level-triggered sources with a gateway each: a source that was claimed does not become pending again until
it is completed. Contexts are numbered as on QEMU's virt board: 2 * hart for M-mode, 2 * hart + 1 for S-mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from serai.machine.errors import SnapshotError

SOURCES = 63
"""Interrupt sources, numbered from 1 (`riscv,ndev`)."""

SIZE = 0x600000
MAXIMUM_PRIORITY = 7

_PENDING = 0x1000
_ENABLE = 0x2000
_ENABLE_STRIDE = 0x80
_CONTEXT = 0x200000
_CONTEXT_STRIDE = 0x1000
_VALID = ((1 << SOURCES) - 1) << 1


@dataclass
class PlicContextState:
    """One context: bit masks by source number."""

    enabled: int
    threshold: int


@dataclass
class PlicState:
    """Everything of the controller that a snapshot keeps; masks are by source number."""

    VERSION: ClassVar[int] = 1

    priorities: list[int]
    levels: int
    pending: int
    claimed: int
    contexts: list[PlicContextState]


class Plic:
    """The controller. `outputs[context]` is called with the level of that context's line when it changes."""

    name = "plic"

    def __init__(self, outputs: list[Callable[[bool], None]]) -> None:
        self._outputs = outputs
        self._asserted = [False] * len(outputs)
        self._priorities = [0] * (SOURCES + 1)
        self._levels = 0
        self._pending = 0
        self._claimed = 0
        self._enabled = [0] * len(outputs)
        self._thresholds = [0] * len(outputs)

    def reset(self) -> None:
        """As after power-on; levels are the devices' and stay."""
        self._priorities = [0] * (SOURCES + 1)
        self._claimed = 0
        self._pending = self._levels
        self._enabled = [0] * len(self._outputs)
        self._thresholds = [0] * len(self._outputs)
        self._update()

    def set_level(self, source: int, level: bool) -> None:
        """A device raises or lowers its line."""
        bit = 1 << source
        if level == bool(self._levels & bit):
            return
        if level:
            self._levels |= bit
            self._pending |= bit & ~self._claimed
        else:
            self._levels &= ~bit
            # The gateway of a level-triggered source withdraws a request that nobody has claimed yet.
            self._pending &= ~bit
        self._update()

    def line(self, source: int) -> Callable[[bool], None]:
        """The input of `source`, for a device to call."""
        return lambda level: self.set_level(source, level)

    def read(self, offset: int, width: int) -> int:
        """See `MappedDevice.read`. Registers are 32 bits wide; other widths read zero."""
        if width != 4:
            return 0
        if offset >= _CONTEXT:
            return self._read_context(offset - _CONTEXT)
        if offset >= _ENABLE:
            context, word = divmod(offset - _ENABLE, _ENABLE_STRIDE)
            return _word(self._enabled[context], word) if context < len(self._outputs) else 0
        if offset >= _PENDING:
            return _word(self._pending, offset - _PENDING)
        source = offset // 4
        return self._priorities[source] if source <= SOURCES else 0

    def write(self, offset: int, width: int, value: int) -> None:
        """See `MappedDevice.write`."""
        if width != 4:
            return
        if offset >= _CONTEXT:
            self._write_context(offset - _CONTEXT, value)
        elif offset >= _ENABLE:
            context, word = divmod(offset - _ENABLE, _ENABLE_STRIDE)
            if context < len(self._outputs) and word < 8:
                shift = word * 8
                mask = self._enabled[context] & ~(0xFFFF_FFFF << shift)
                self._enabled[context] = (mask | value << shift) & _VALID
        elif 0 < offset // 4 <= SOURCES:
            self._priorities[offset // 4] = value & MAXIMUM_PRIORITY
        self._update()

    def _read_context(self, offset: int) -> int:
        context, register = divmod(offset, _CONTEXT_STRIDE)
        if context >= len(self._outputs):
            return 0
        if register == 0:
            return self._thresholds[context]
        if register == 4:
            return self._claim(context)
        return 0

    def _write_context(self, offset: int, value: int) -> None:
        context, register = divmod(offset, _CONTEXT_STRIDE)
        if context >= len(self._outputs):
            return
        if register == 0:
            self._thresholds[context] = value & MAXIMUM_PRIORITY
        elif register == 4:
            self._complete(context, value)

    def _best(self, context: int) -> int:
        """The pending source of the highest priority, the lowest number among equals; 0 for none."""
        candidates = self._pending & self._enabled[context]
        best, best_priority = 0, self._thresholds[context]
        while candidates:
            bit = candidates & -candidates
            source = bit.bit_length() - 1
            if self._priorities[source] > best_priority:
                best, best_priority = source, self._priorities[source]
            candidates ^= bit
        return best

    def _claim(self, context: int) -> int:
        source = self._best(context)
        if source:
            self._pending &= ~(1 << source)
            self._claimed |= 1 << source
            self._update()
        return source

    def _complete(self, context: int, source: int) -> None:
        bit = 1 << source if 0 < source <= SOURCES else 0
        # Section 9: a completion for a source that is not enabled for the target is ignored.
        if not bit & self._claimed & self._enabled[context]:
            return
        self._claimed &= ~bit
        self._pending |= bit & self._levels

    def _update(self) -> None:
        for context, output in enumerate(self._outputs):
            asserted = bool(self._pending & self._enabled[context]) and self._best(context) != 0
            if asserted != self._asserted[context]:
                self._asserted[context] = asserted
                output(asserted)

    def save(self) -> PlicState:
        """The state for a snapshot."""
        contexts = [PlicContextState(e, t) for e, t in zip(self._enabled, self._thresholds, strict=True)]
        return PlicState(list(self._priorities), self._levels, self._pending, self._claimed, contexts)

    def restore(self, state: PlicState) -> None:
        """Take over a saved state; the outputs are driven to what follows from it."""
        if len(state.contexts) != len(self._outputs) or len(state.priorities) != SOURCES + 1:
            raise SnapshotError(self.name, "is of another number of harts or sources")
        self._priorities = [priority & MAXIMUM_PRIORITY for priority in state.priorities]
        self._levels = state.levels & _VALID
        self._pending = state.pending & _VALID
        self._claimed = state.claimed & _VALID
        self._enabled = [context.enabled & _VALID for context in state.contexts]
        self._thresholds = [context.threshold & MAXIMUM_PRIORITY for context in state.contexts]
        self._asserted = [False] * len(self._outputs)
        for output in self._outputs:
            output(False)
        self._update()


def _word(mask: int, byte_offset: int) -> int:
    return mask >> byte_offset * 8 & 0xFFFF_FFFF
