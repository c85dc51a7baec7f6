"""The guest process: one thread that runs the machine in slices and does its I/O in between.

While the guest executes, the sockets are polled once a slice, which costs a fraction of a percent; while it
waits for an interrupt, the process sleeps in the same poll. A second thread would add a hand-over to both.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import sys
import time
import traceback
from collections.abc import Callable

from serai.machine import protocol
from serai.machine.errors import ConfigurationError, MachineError, ProtocolError
from serai.machine.frames import FrameLink
from serai.machine.hart import ClockSource
from serai.machine.machine import HartFactory, Machine, MachineExit
from serai.machine.private_ram import Ram
from serai.machine.protocol import Message
from serai.machine.resizing import GuestView, Resizing, parse_view
from serai.machine.survival import FAREWELL_SECONDS, Survival
from serai.machine.trace import Tracer

SLICE_NS = 500_000
"""What a slice should take; bounds the time until input is noticed by a guest that computes."""

_MINIMUM_BUDGET, _MAXIMUM_BUDGET = 2_000, 2_000_000
_OUTPUT_LIMIT = 256 * 1024
"""Console output kept while the agent does not read; beyond it the oldest is lost."""

_SCROLLBACK_BYTES = 64 * 1024
_WAITING_MESSAGES = 64 * 1024
"""Bytes of events kept for the next agent."""

_FAREWELL_SECONDS = 2.0
_RECEIVE_BYTES = 256 * 1024


class GuestProcess:
    """Connects one machine to its sockets; `serve` returns when the process should end."""

    def __init__(
        self,
        ram_file: int,
        control: socket.socket,
        console: socket.socket,
        frames: list[socket.socket],
        make_hart: HartFactory,
        *,
        survival: Survival | None = None,
        source: int | None = None,
    ) -> None:
        self._source = source
        self._ram: Ram | None = None
        self._survival = survival or Survival(None, 0.0)
        self._loaded = False
        self._expired = False
        self._powered_off = False
        self._scrollback = bytearray()
        self._ram_file = ram_file
        self._control = control
        self._console = console
        self._frame_sockets = frames
        self._make_hart = make_hart
        self._machine: Machine | None = None
        self._resizing: Resizing | None = None
        self._tracer: Tracer | None = None
        self._links: list[FrameLink] = []
        self._decoder = protocol.Decoder()
        self._outgoing = bytearray()
        self._running = False
        self._stalled = False
        self._fetching = False
        self._devices_wait = False
        self._deferred: list[Message] = []
        self._finished = False
        self._budget = _MINIMUM_BUDGET
        self._started_at = 0.0
        self._console_open = False
        self._console_events = select.EPOLLIN
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._operations: dict[str, Callable[[Message], Message]] = {
            "configure": self._configure,
            "start": self._start,
            "pause": self._pause,
            "resume": self._resume,
            "start_dirty": self._start_dirty,
            "take_dirty": self._take_dirty,
            "stop_dirty": self._stop_dirty,
            "save": self._save,
            "restore": self._restore,
            "complete_ram": self._complete_ram,
            "identify": self._identify,
            "present": self._present,
            "statistics": self._statistics,
            "trace": self._trace,
            "take_trace": self._take_trace,
            "stop_trace": self._stop_trace,
            "power_off": self._power_off,
            "resize": self._resize,
            "stop": self._stop,
        }
        control.setblocking(False)
        console.setblocking(False)
        self._watch(control.fileno(), self._control_ready)

    def close(self) -> None:
        """Let go of what this opened itself, or was given later."""
        for held in (self._control, self._console, *self._frame_sockets):
            held.close()
        self._epoll.close()
        if self._machine is not None:
            self._machine.close()

    # The loop.

    def serve(self) -> None:
        """Run until told to stop, the guest ends, or the agent is gone for good."""
        try:
            while not self._finished:
                if self._survival.remaining == 0:
                    self._nobody_came()
                self._catch_up()
                if self._running and not self._stalled:
                    self._slice()
                else:
                    self._poll(None)
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self._event("fault", reason=f"defect in the machine: {error!r}")
            self._say_farewell()
            raise
        self._say_farewell()

    def _catch_up(self) -> None:
        """Do what could not be done while a device waited for pages, or before the agent had its answer."""
        while self._deferred:
            self._answer(self._deferred.pop(0))
        if self._devices_wait and self._running:
            self._devices_wait = False
            self._require_machine().serve_devices()

    def _slice(self) -> None:
        machine = self._require_machine()
        began = time.perf_counter_ns()
        if self._tracer is not None and not self._tracer.finished:
            cause = self._tracer.run(machine)
        else:
            cause = machine.run(self._budget)
            self._adapt(time.perf_counter_ns() - began, cause)
        self._flush_output(machine)
        if cause is MachineExit.WAIT:
            self._idle(machine)
        elif cause is MachineExit.ABSENT:
            self._stalled = True
            self._send(Message({"event": "absent", "pages": [machine.missing]}))
            self._poll(0)
        else:
            if cause is not MachineExit.BUDGET:
                self._ended(machine, cause)
            self._poll(0)

    def _adapt(self, elapsed_ns: int, cause: MachineExit) -> None:
        """Aim at slices of SLICE_NS, whatever the guest is doing."""
        if cause is MachineExit.BUDGET:
            scaled = self._budget * SLICE_NS // max(elapsed_ns, 1)
            # At most double: one lucky slice must not make a long one.
            self._budget = max(_MINIMUM_BUDGET, min(scaled, self._budget * 2, _MAXIMUM_BUDGET))

    def _idle(self, machine: Machine) -> None:
        deadline = machine.harts.wait_deadline_ns()
        if machine.config.clock is ClockSource.VIRTUAL and deadline is not None:
            self._poll(0)
            machine.harts.skip_to_deadline()
        else:
            self._poll(None if deadline is None else max(deadline, 0) / 1e9)

    def _ended(self, machine: Machine, cause: MachineExit) -> None:
        if cause is MachineExit.REBOOT:
            try:
                machine.reboot()
            except MachineError as error:
                self._running = False
                self._event("fault", reason=f"cannot reboot: {error}")
            else:
                self._event("rebooted")
            return
        self._running = False
        if cause is MachineExit.POWERED_OFF:
            self._event("stopped", reason="powered off")
            # Without an agent it stays a while to tell the next one.
            self._powered_off = True
            self._finished = not self._survival.orphaned
        else:
            self._event("fault", reason=machine.fault)

    def _poll(self, timeout: float | None) -> None:
        """Serve what is ready, waiting up to `timeout` seconds for it (None: as long as it takes)."""
        if (remaining := self._survival.remaining) is not None:
            timeout = remaining if timeout is None else min(timeout, remaining)
        if timeout != 0:
            # select takes microseconds where epoll rounds up to milliseconds, which a timer would feel.
            select.select([self._epoll], [], [], timeout)
        for descriptor, events in self._epoll.poll(0):
            handler = self._handlers.get(descriptor)
            if handler is not None:
                handler(events)

    def _watch(self, descriptor: int, handler: Callable[[int], None], events: int = select.EPOLLIN) -> None:
        if descriptor in self._handlers:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
        self._handlers[descriptor] = handler

    def _unwatch(self, descriptor: int) -> None:
        if self._handlers.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    # Control.

    def _control_ready(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush_control()
        if not events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            return
        try:
            data = self._control.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._agent_gone()
            return
        for message in self._decoder.feed(data):
            if self._fetching and message.fields.get("op") not in ("present", "statistics"):
                self._deferred.append(message)
            else:
                self._answer(message)

    def _agent_gone(self) -> None:
        """Wait for the next one if that is wanted, else end: nobody may own this guest any more."""
        self._outgoing.clear()
        if not self._survival.possible or self._machine is None:
            self._finished = True
            self._running = False
            return
        assert self._survival.listener is not None
        self._unwatch(self._control.fileno())
        self._control.close()
        self._decoder = protocol.Decoder()
        self._machine.stop_dirty_log()
        self._close_console()
        self._survival.begin()
        self._watch(self._survival.listener.fileno(), self._agent_came)

    def _agent_came(self, events: int) -> None:
        machine = self._require_machine()
        adoption = self._survival.accept(len(self._links))
        if adoption is None:
            return
        state = "running" if self._running else "paused" if self._loaded else "defined"
        hello = Message({"state": state, **self._counters(machine)}, bytes(self._scrollback))
        if not self._survival.welcome(adoption, self._ram_file, hello):
            for link in (adoption.control, adoption.console, *adoption.frames):
                link.close()
            return
        assert self._survival.listener is not None
        self._unwatch(self._survival.listener.fileno())
        self._control, self._console = adoption.control, adoption.console
        self._control.setblocking(False)
        self._open_console()
        for frame_link, frame_socket in zip(self._links, adoption.frames, strict=True):
            frame_link.reconnect(frame_socket)
        self._frame_sockets = adoption.frames
        self._watch(self._control.fileno(), self._control_ready)
        self._flush_control()
        self._finished = self._powered_off

    def _nobody_came(self) -> None:
        if self._running and self._survival.orphaned and not self._expired:
            self._expired = True
            self._require_machine().console.send_line(protocol.HOST_CHANNEL_POWER_OFF)
            self._survival.extend(FAREWELL_SECONDS)
        else:
            self._running = False
            self._finished = True

    def _answer(self, request: Message) -> None:
        operation = self._operations.get(str(request.fields.get("op")))
        try:
            if operation is None:
                raise ProtocolError(f"unknown operation {request.fields.get('op')!r}")
            reply = operation(request)
        except MachineError as error:
            reply = Message({"error": str(error), "kind": type(error).__name__})
        reply.fields["id"] = request.fields.get("id")
        self._send(reply)

    def _event(self, name: str, **fields: object) -> None:
        counters = {} if self._machine is None or name == "line" else self._counters(self._machine)
        self._send(Message({"event": name, **fields, **counters}))

    def _send(self, message: Message) -> None:
        if self._survival.orphaned:
            if len(self._outgoing) < _WAITING_MESSAGES:
                self._outgoing += protocol.encode(message)
            return
        self._outgoing += protocol.encode(message)
        self._flush_control()

    def _flush_control(self) -> None:
        try:
            while self._outgoing:
                sent = self._control.send(self._outgoing)
                del self._outgoing[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._outgoing.clear()
        events = select.EPOLLIN | (select.EPOLLOUT if self._outgoing else 0)
        self._watch(self._control.fileno(), self._control_ready, events)

    def _say_farewell(self) -> None:
        """Give the last messages a chance to reach the agent."""
        if self._survival.orphaned:
            return
        self._control.settimeout(_FAREWELL_SECONDS)
        try:
            self._control.sendall(self._outgoing)
        except OSError:
            pass  # the agent is gone or stuck: it learns of the end from the process
        finally:
            self._outgoing.clear()

    def _require_machine(self) -> Machine:
        if self._machine is None:
            raise ProtocolError("the machine has not been configured")
        return self._machine

    # Operations.

    def _configure(self, request: Message) -> Message:
        if request.fields.get("version") != protocol.VERSION:
            raise ProtocolError(
                f"protocol version {request.fields.get('version')}, here it is {protocol.VERSION}"
            )
        if self._machine is not None:
            raise ProtocolError("the machine has been configured already")
        config = protocol.config_from_fields(request.fields.get("config", {}))
        config.check()
        try:
            self._ram = Ram(self._ram_file, config.ram_bytes, self._source)
        except OSError as error:
            raise ConfigurationError(str(error)) from None
        machine = Machine(config, self._ram.view, self._make_hart)
        machine.console.line_received = self._line_received
        if len(self._frame_sockets) != len(machine.nets):
            raise ProtocolError(
                f"{len(self._frame_sockets)} frame sockets for {len(machine.nets)} interfaces"
            )
        for frame_socket, net in zip(self._frame_sockets, machine.nets.values(), strict=True):
            link = FrameLink(frame_socket, net, self._watch, self._unwatch)
            self._links.append(link)
        self._machine = machine
        self._resizing = Resizing(machine, self._resized)
        self._open_console()
        if request.fields.get("incoming"):
            # What a restore needs is loaded and this process's own before a guest stands still for it.
            machine.restore(machine.save())
        return Message({})

    def _start(self, request: Message) -> Message:
        machine = self._require_machine()
        machine.boot()
        self._started_at = time.monotonic()
        self._running = self._loaded = True
        return Message({})

    def _pause(self, request: Message) -> Message:
        self._require_machine().paused()
        self._running = False
        return Message({})

    def _resume(self, request: Message) -> Message:
        self._require_machine().resumed(int(request.fields.get("elapsed_ns", 0)))
        self._devices_wait = self._require_machine().memory.absent is not None
        self._running = True
        return Message({})

    def _start_dirty(self, request: Message) -> Message:
        self._require_machine().start_dirty_log()
        return Message({})

    def _take_dirty(self, request: Message) -> Message:
        return Message({}, self._require_machine().take_dirty_log())

    def _stop_dirty(self, request: Message) -> Message:
        self._require_machine().stop_dirty_log()
        return Message({})

    def _complete_ram(self, request: Message) -> Message:
        """A piece at a time, so that the guest is never stopped for long."""
        self._require_machine()
        assert self._ram is not None
        try:
            return Message({"remaining": self._ram.complete(int(request.fields["limit"]))})
        except OSError as error:
            raise ProtocolError(f"RAM cannot be completed: {error}") from None

    def _identify(self, request: Message) -> Message:
        """Tell a copied guest who it is; it says `ready` again when it has taken that on."""
        machine = self._require_machine()
        machine.ready_seconds = None
        self._started_at = time.monotonic()
        if not machine.console.send_line(f"{protocol.HOST_CHANNEL_IDENTITY} {request.fields['words']}"):
            raise ProtocolError("the guest does not read its host channel")
        return Message({})

    def _save(self, request: Message) -> Message:
        machine = self._require_machine()
        if self._running:
            raise ProtocolError("the guest runs: pause it before its state is saved")
        self._flush_output(machine)
        self._read_console(machine)
        for link in self._links:
            link.drain()
        return Message({}, machine.save())

    def _restore(self, request: Message) -> Message:
        machine = self._require_machine()
        if self._running:
            raise ProtocolError("the guest runs: its state cannot be replaced")
        machine.restore(request.payload)
        if request.fields.get("absent"):
            machine.set_absent(self._map_absent(machine))
            machine.memory.fetch = self._fetch
        self._loaded = True
        return Message({})

    def _map_absent(self, machine: Machine) -> memoryview:
        """The bytes that say which pages are still on their way lie behind RAM, shared with the agent."""
        size = machine.config.ram_bytes
        pages = size // mmap.PAGESIZE
        length = -(-pages // mmap.PAGESIZE) * mmap.PAGESIZE
        return memoryview(mmap.mmap(self._ram_file, length, offset=size))[:pages]

    def _present(self, request: Message) -> Message:
        """Pages that were asked for have come; with `all`, every page has."""
        self._stalled = False
        if request.fields.get("all"):
            self._require_machine().set_absent(None)
        return Message({})

    def _fetch(self, pages: list[int]) -> None:
        """A device needs absent pages: wait, and meanwhile answer only what cannot disturb the device."""
        absent = self._require_machine().memory.absent
        self._send(Message({"event": "absent", "pages": pages}))
        self._fetching = True
        try:
            while absent is not None and any(absent[page] for page in pages):
                if self._finished:
                    raise ProtocolError(f"page {pages[0]} will not come: the agent is gone")
                ends = [self._control] if self._survival.listener is None else [self._survival.listener]
                if self._survival.remaining is None:
                    ends = [self._control]
                if select.select(ends, [], [], 1.0)[0]:
                    for descriptor in {end.fileno() for end in ends} & set(self._handlers):
                        self._handlers[descriptor](select.EPOLLIN)
        finally:
            self._fetching = False

    def _statistics(self, request: Message) -> Message:
        machine = self._require_machine()
        if self._running:
            machine.balloon.refresh_statistics()  # for the next time
        return Message(self._counters(machine))

    def _trace(self, request: Message) -> Message:
        fields = request.fields
        self._require_machine()
        if self._tracer is not None and not self._tracer.finished:
            raise ProtocolError("another trace of this guest is under way")
        self._tracer = Tracer(
            int(fields["count"]), int(fields["low"]), int(fields["high"]), int(fields["steps"])
        )
        return Message({})

    def _take_trace(self, request: Message) -> Message:
        if self._tracer is None:
            raise ProtocolError("the guest is not being traced")
        tracer = self._tracer
        return Message({"finished": tracer.finished, "steps": tracer.steps}, tracer.take())

    def _stop_trace(self, request: Message) -> Message:
        self._tracer = None
        return Message({})

    def _counters(self, machine: Machine) -> dict[str, object]:
        return {
            "instructions": machine.instructions,
            "cpu_seconds": time.process_time(),
            "ready_seconds": machine.ready_seconds,
            "exits": machine.exits,
            "events": machine.events(),
            "costs": {cause: [cost.events, cost.nanoseconds] for cause, cost in machine.costs().items()},
            "kernel_release": machine.kernel_release,
            "vcpus": machine.harts.started,
            "memory_bytes": machine.memory_bytes,
            "balloon": machine.balloon.statistics,
            "frames_lost": {name: net.lost for name, net in machine.nets.items()},
        }

    def _resize(self, request: Message) -> Message:
        self._require_machine()
        if not self._running or self._resizing is None:
            raise ProtocolError("the guest does not run: it cannot change its size")
        self._resizing.begin(int(request.fields["vcpus"]), int(request.fields["memory_bytes"]))
        return Message({})

    def _resized(self, view: GuestView) -> None:
        self._event("resized", view=[view.vcpus, view.memory_total, view.memory_free])

    def _power_off(self, request: Message) -> Message:
        self._require_machine().console.send_line(protocol.HOST_CHANNEL_POWER_OFF)
        return Message({})

    def _stop(self, request: Message) -> Message:
        self._running = False
        self._finished = True
        return Message({})

    # Host channel and console.

    def _line_received(self, line: str) -> None:
        machine = self._require_machine()
        words = line.split()
        if words[0] == protocol.HOST_CHANNEL_SIZE:
            view = parse_view(words)
            if view is not None and self._resizing is not None:
                self._resizing.reported(view)
            return
        if words[0] != protocol.HOST_CHANNEL_READY:
            self._event("line", text=line)
            return
        values = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        machine.kernel_release = values.get("kernel", "")
        if machine.ready_seconds is None:
            machine.ready_seconds = time.monotonic() - self._started_at
        self._event("ready")

    def _open_console(self) -> None:
        self._console.setblocking(False)
        self._console_open = True
        self._console_events = select.EPOLLIN
        self._watch(self._console.fileno(), self._console_ready)

    def _close_console(self) -> None:
        if self._console_open:
            self._console_open = False
            self._unwatch(self._console.fileno())

    def _console_ready(self, events: int) -> None:
        machine = self._require_machine()
        if events & (select.EPOLLHUP | select.EPOLLERR):
            self._close_console()
            return
        if events & select.EPOLLIN:
            self._read_console(machine)
        self._flush_output(machine)

    def _read_console(self, machine: Machine) -> None:
        """Input as far as the guest has room for it; the rest waits in the agent."""
        if self._console_open and machine.uart.room > 0:
            try:
                data = self._console.recv(machine.uart.room)
            except (BlockingIOError, ConnectionError):
                data = b""
            machine.uart.receive(data)

    def _flush_output(self, machine: Machine) -> None:
        """Write what the guest printed; watch for what keeps the console from flowing."""
        output = machine.uart.output
        if not self._console_open:
            # The end of the agent may be known of the console first, so the last output is kept in any case.
            del output[:-_OUTPUT_LIMIT]
            return
        if output:
            try:
                sent = self._console.send(output)
                self._scrollback += output[:sent]
                del output[:sent]
                del self._scrollback[:-_SCROLLBACK_BYTES]
            except BlockingIOError:
                del output[:-_OUTPUT_LIMIT]
            except OSError:
                self._close_console()
                return
        events = select.EPOLLIN if machine.uart.room > 0 else 0
        events |= select.EPOLLOUT if output else 0
        if events != self._console_events:
            self._console_events = events
            self._watch(self._console.fileno(), self._console_ready, events)


def run(
    ram_file: int,
    control: int,
    console: int,
    frames: list[int],
    make_hart: HartFactory,
    *,
    listener: int | None = None,
    orphan_seconds: float = 0.0,
    source: int | None = None,
) -> None:
    """Be a guest process on these file descriptors, to the end; with `listener`, past the agent's end."""
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, ram_file)
        sockets = [socket.socket(fileno=number) for number in (control, console, *frames)]
        door = None if listener is None else stack.enter_context(socket.socket(fileno=listener))
        survival = Survival(door, orphan_seconds)
        process = GuestProcess(
            ram_file, sockets[0], sockets[1], sockets[2:], make_hart, survival=survival, source=source
        )
        stack.callback(process.close)
        process.serve()
