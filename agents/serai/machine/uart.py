"""NS16550A serial port (National Semiconductor PC16550D data sheet), as Linux's 8250 driver uses it.

Sending takes no time, so the transmitter is always empty; a received byte is available at once. The receive
FIFO is backed by a bounded input queue instead of losing bytes to an overrun.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from serai.machine.errors import SnapshotError

INPUT_LIMIT = 4096
"""Bytes of input kept for a guest that does not read."""

CLOCK_HZ = 3_686_400

_RBR_THR, _IER, _IIR_FCR, _LCR, _MCR, _LSR, _MSR, _SCR = range(8)

_IER_RECEIVE, _IER_TRANSMIT = 0x01, 0x02
_IIR_NONE, _IIR_TRANSMIT, _IIR_RECEIVE, _IIR_TIMEOUT, _IIR_FIFO = 0x01, 0x02, 0x04, 0x0C, 0xC0
_FCR_ENABLE, _FCR_CLEAR_RECEIVE = 0x01, 0x02
_LCR_DIVISOR_LATCH = 0x80
_LSR_READY, _LSR_TRANSMITTER_EMPTY = 0x01, 0x60
_MCR_LOOPBACK, _MCR_OUT2 = 0x10, 0x08
_MSR_CONNECTED = 0xB0
_TRIGGER_LEVELS = (1, 4, 8, 14)


@dataclass
class UartState:
    """Registers and pending input."""

    VERSION: ClassVar[int] = 1

    interrupt_enable: int
    fifo_control: int
    line_control: int
    modem_control: int
    scratch: int
    divisor: int
    transmit_interrupt: bool
    received: bytes


class Uart:
    """The port. `interrupt` is its line; `output` collects what the guest sent and is emptied by the host."""

    name = "uart"

    def __init__(self, interrupt: Callable[[bool], None]) -> None:
        self._interrupt = interrupt
        self.output = bytearray()
        self._received = bytearray()
        self._ier = self._fcr = self._lcr = self._mcr = self._scr = 0
        self._divisor = 1
        self._transmit_interrupt = False

    def reset(self) -> None:
        """As after power-on; input that was typed ahead is lost."""
        self._received.clear()
        self._ier = self._fcr = self._lcr = self._mcr = self._scr = 0
        self._divisor = 1
        self._transmit_interrupt = False
        self._update()

    @property
    def room(self) -> int:
        """How many bytes `receive` will take."""
        return INPUT_LIMIT - len(self._received)

    def receive(self, data: bytes) -> int:
        """Input from the line; returns how many bytes were taken."""
        taken = data[: max(self.room, 0)]
        self._received += taken
        self._update()
        return len(taken)

    def take_input(self, limit: int) -> bytes:
        """Remove input for the SBI debug console, which shares this line."""
        data = bytes(self._received[:limit])
        del self._received[:limit]
        self._update()
        return data

    def read(self, offset: int, width: int) -> int:  # noqa: PLR0911 (one line per register)
        """See `MappedDevice.read`."""
        latch = self._lcr & _LCR_DIVISOR_LATCH
        match offset:
            case 0:
                return self._divisor & 0xFF if latch else self._read_byte()
            case 1:
                return self._divisor >> 8 if latch else self._ier
            case 2:
                return self._identify()
            case 3:
                return self._lcr
            case 4:
                return self._mcr
            case 5:
                return _LSR_TRANSMITTER_EMPTY | (_LSR_READY if self._received else 0)
            case 6:
                return self._modem_status()
            case 7:
                return self._scr
        return 0

    def write(self, offset: int, width: int, value: int) -> None:
        """See `MappedDevice.write`."""
        value &= 0xFF
        latch = self._lcr & _LCR_DIVISOR_LATCH
        match offset:
            case 0 if latch:
                self._divisor = self._divisor & 0xFF00 | value
            case 0:
                self._send(value)
            case 1 if latch:
                self._divisor = self._divisor & 0xFF | value << 8
            case 1:
                # Enabling the interrupt of an empty transmitter raises it: drivers start sending that way.
                if value & ~self._ier & _IER_TRANSMIT:
                    self._transmit_interrupt = True
                self._ier = value & 0x0F
            case 2:
                self._fcr = value & 0xC9
                if value & _FCR_CLEAR_RECEIVE:
                    self._received.clear()
            case 3:
                self._lcr = value
            case 4:
                self._mcr = value & 0x1F
            case 7:
                self._scr = value
        self._update()

    def _send(self, value: int) -> None:
        if self._mcr & _MCR_LOOPBACK:
            if self.room > 0:
                self._received.append(value)
        else:
            self.output.append(value)
        self._transmit_interrupt = True

    def _read_byte(self) -> int:
        if not self._received:
            return 0
        value = self._received.pop(0)
        self._update()
        return value

    def _cause(self) -> int:
        """The pending interrupt of the highest priority, as IIR shows it."""
        if self._ier & _IER_RECEIVE and self._received:
            trigger = _TRIGGER_LEVELS[self._fcr >> 6] if self._fcr & _FCR_ENABLE else 1
            return _IIR_RECEIVE if len(self._received) >= trigger else _IIR_TIMEOUT
        if self._ier & _IER_TRANSMIT and self._transmit_interrupt:
            return _IIR_TRANSMIT
        return _IIR_NONE

    def _identify(self) -> int:
        cause = self._cause()
        if cause == _IIR_TRANSMIT:
            self._transmit_interrupt = False
            self._update()
        return cause | (_IIR_FIFO if self._fcr & _FCR_ENABLE else 0)

    def _modem_status(self) -> int:
        if not self._mcr & _MCR_LOOPBACK:
            return _MSR_CONNECTED
        mcr = self._mcr
        # Loopback wires RTS to CTS, DTR to DSR, OUT1 to RI and OUT2 to DCD.
        return (mcr & 2) << 3 | (mcr & 1) << 5 | (mcr & 4) << 4 | (mcr & _MCR_OUT2) << 4

    def _update(self) -> None:
        self._interrupt(self._cause() != _IIR_NONE)

    def save(self) -> UartState:
        """The state for a snapshot; output is the host's by then."""
        return UartState(
            interrupt_enable=self._ier,
            fifo_control=self._fcr,
            line_control=self._lcr,
            modem_control=self._mcr,
            scratch=self._scr,
            divisor=self._divisor,
            transmit_interrupt=self._transmit_interrupt,
            received=bytes(self._received),
        )

    def restore(self, state: UartState) -> None:
        """Take over a saved state."""
        registers = (
            state.interrupt_enable,
            state.fifo_control,
            state.line_control,
            state.modem_control,
            state.scratch,
        )
        if any(not 0 <= value <= 0xFF for value in registers) or not 0 <= state.divisor <= 0xFFFF:
            raise SnapshotError(self.name, "a register is out of range")
        self._ier, self._fcr, self._lcr, self._mcr, self._scr = registers
        self._divisor = state.divisor
        self._transmit_interrupt = state.transmit_interrupt
        self._received[:] = state.received[:INPUT_LIMIT]
        self._update()
