"""How an agent and its guest processes talk; version 1. Everything of it is in this file.

**Control socket** (Unix stream, one per guest). Messages in both directions::

    4   length of the fields    4   length of the payload    n   fields (JSON object)    m   payload

little-endian. Requests of the agent carry `id` and `op`, replies the same `id` and either nothing else,
results, or `error` (text for people) with `kind` (the exception's class). Requests are answered in order.

==============  =========================================  ==========================================
op              fields, payload                            reply
==============  =========================================  ==========================================
configure       version, config (see `config_to_fields`),  - builds the machine, loads nothing
                incoming                                   - `incoming`: it is to be restored
start           -                                          - loads kernel and initramfs and runs
pause           -                                          - after the last instruction
resume          elapsed_ns                                 -
start_dirty     -                                          -
take_dirty      -                                          payload: bitmap
stop_dirty      -                                          -
save            -                                          payload: snapshot
restore         payload: snapshot; absent                  - `absent`: pages may be on their way; a byte each
                                                           behind RAM in its file is not 0 until it is there
present         all                                        - pages that were asked for came; `all`: all did
statistics      -                                          instructions, cpu_seconds, ready_seconds, exits,
                                                           events (like exits), costs (cause: events,
                                                           nanoseconds), kernel_release, frames_lost
trace           count, low, high, steps                    - see serai.machine.trace
take_trace      -                                          finished, steps; payload: records
stop_trace      -                                          -
complete_ram    limit                                      remaining: bytes of RAM that only the process sees
identify        words                                      - sends `identity WORDS` over the host channel
power_off       -                                          - asks the guest over the host channel
resize          vcpus, memory_bytes                        - asks the guest; the event `resized` follows
stop            -                                          - and the process ends
==============  =========================================  ==========================================

Events carry `event`: `line` (text; a line on the host channel); `absent` (pages; the guest stands still until
they are there, `present` says when to look again); and, with the same fields as the reply to
`statistics`: `ready`, `stopped` (reason), `rebooted`, `fault` (reason), `resized` (view: processors, total
and free bytes as the guest sees them). When the control socket ends, the
guest process ends at once, unless it was given a listening socket.

**Listening socket** (Unix stream; of guests that outlive their agent). For `orphan_seconds` after the control
socket ended, the process takes a connection there as its next control socket. The agent's first message is
`adopt` (version) with new console and frame sockets as ancillary data; the answer has `state` (`defined`,
`running` or `paused`), the counters, the console's scrollback as payload, and as ancillary data the RAM and a
pidfd of the process; or `error`. Events of the time in between follow.

**Frame sockets** (Unix seqpacket, one per network interface). A packet is a batch of frames, each after its
length in four bytes; no virtio header.

**Console socket** (Unix stream): the serial line's bytes.

**Zygote socket** (Unix seqpacket). It says `{"ready": version}` once it is warm. Requests are JSON with the
file descriptors of RAM, control, console and frames as ancillary data: `{"fork": n}`, n the number of frame
sockets; with `"orphan_seconds": s`, the listening socket follows, with `"source": true` the file that RAM
begins as (see `serai.machine.private_ram`). Answers: `{"pid": p}` with a pidfd, or `{"error": text}`; and,
when a guest process ends, `{"exited": p, "status": s}` (a wait status).
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serai.machine.board import Disk, MachineConfig, Mode, NetworkInterface
from serai.machine.errors import ProtocolError
from serai.machine.hart import ClockSource, Execution

VERSION = 1

MAXIMUM_FIELDS = 1 << 20
MAXIMUM_PAYLOAD = 256 << 20
MAXIMUM_BATCH = 128 << 10
"""Bytes of the longest packet on a frame socket."""

BATCH_TARGET = 60_000
"""A batch is sent on once it has this many bytes."""

HOST_CHANNEL_POWER_OFF = "poweroff"
HOST_CHANNEL_READY = "ready"
HOST_CHANNEL_SIZE = "size"
HOST_CHANNEL_IDENTITY = "identity"

_HEAD = struct.Struct("<II")
_LENGTH = struct.Struct("<I")


@dataclass(slots=True)
class Message:
    """One control message."""

    fields: dict[str, Any]
    payload: bytes = b""


def encode(message: Message) -> bytes:
    """A message for the control socket."""
    fields = json.dumps(message.fields, separators=(",", ":")).encode()
    return _HEAD.pack(len(fields), len(message.payload)) + fields + message.payload


def message_length(data: bytes) -> int | None:
    """Bytes of the message that `data` begins with; None while its head is not complete."""
    if len(data) < _HEAD.size:
        return None
    fields, payload = _HEAD.unpack_from(data)
    return _HEAD.size + int(fields) + int(payload)


@dataclass
class Decoder:
    """Cuts the control stream into messages."""

    _buffer: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> list[Message]:
        """Messages completed by `data`. Raises ProtocolError on a stream that cannot be right."""
        self._buffer += data
        messages: list[Message] = []
        position = 0
        while len(self._buffer) - position >= _HEAD.size:
            fields_length, payload_length = _HEAD.unpack_from(self._buffer, position)
            if fields_length > MAXIMUM_FIELDS or payload_length > MAXIMUM_PAYLOAD:
                raise ProtocolError(f"a control message of {fields_length} + {payload_length} bytes")
            start = position + _HEAD.size
            end = start + fields_length + payload_length
            if len(self._buffer) < end:
                break
            middle = start + fields_length
            messages.append(_message(bytes(self._buffer[start:middle]), bytes(self._buffer[middle:end])))
            position = end
        del self._buffer[:position]
        return messages


def _message(raw: bytes, payload: bytes) -> Message:
    try:
        fields = json.loads(raw)
    except ValueError as error:
        raise ProtocolError(f"a control message that is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ProtocolError("a control message that is not an object")
    return Message(fields, payload)


def encode_frame(frame: bytes | memoryview) -> bytes:
    """A frame as it stands in a batch."""
    return _LENGTH.pack(len(frame)) + frame


def decode_batch(batch: memoryview) -> Iterator[bytes]:
    """The frames of a batch. Raises ProtocolError when the lengths do not add up."""
    position, end = 0, len(batch)
    while position < end:
        if end - position < _LENGTH.size:
            raise ProtocolError("a batch of frames that ends within a length")
        length = _LENGTH.unpack_from(batch, position)[0]
        position += _LENGTH.size
        if length > end - position:
            raise ProtocolError(f"a frame of {length} bytes in the {end - position} left of its batch")
        yield bytes(batch[position : position + length])
        position += length


def config_to_fields(config: MachineConfig) -> dict[str, Any]:
    """A machine's configuration as JSON values."""
    return {
        "memory_bytes": config.memory_bytes,
        "vcpus": config.vcpus,
        "kernel": None if config.kernel is None else str(config.kernel),
        "initramfs": None if config.initramfs is None else str(config.initramfs),
        "command_line": config.command_line,
        "interfaces": [[interface.name, interface.mac.hex()] for interface in config.interfaces],
        "disks": [[str(disk.path), disk.read_only] for disk in config.disks],
        "extra_files": {
            path: [mode, base64.b64encode(content).decode("ascii")]
            for path, (mode, content) in config.extra_files.items()
        },
        "clock": config.clock.value,
        "mode": config.mode.value,
        "execution": config.execution.value,
        "firmware": None if config.firmware is None else str(config.firmware),
        "maximum_vcpus": config.maximum_vcpus,
        "maximum_memory_bytes": config.maximum_memory_bytes,
    }


def config_from_fields(fields: dict[str, Any]) -> MachineConfig:
    """The inverse. Raises ProtocolError when something is missing or of another shape."""
    try:
        kernel, initramfs = fields["kernel"], fields["initramfs"]
        return MachineConfig(
            memory_bytes=int(fields["memory_bytes"]),
            vcpus=int(fields["vcpus"]),
            kernel=None if kernel is None else Path(kernel),
            initramfs=None if initramfs is None else Path(initramfs),
            command_line=str(fields["command_line"]),
            interfaces=tuple(
                NetworkInterface(name, bytes.fromhex(mac)) for name, mac in fields["interfaces"]
            ),
            disks=tuple(Disk(Path(path), bool(read_only)) for path, read_only in fields["disks"]),
            extra_files={
                path: (int(mode), base64.b64decode(content))
                for path, (mode, content) in fields["extra_files"].items()
            },
            clock=ClockSource(fields["clock"]),
            mode=Mode(fields["mode"]),
            execution=Execution(fields["execution"]),
            firmware=None if fields["firmware"] is None else Path(fields["firmware"]),
            maximum_vcpus=int(fields["maximum_vcpus"]),
            maximum_memory_bytes=int(fields["maximum_memory_bytes"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise ProtocolError(f"a machine configuration that cannot be read: {error!r}") from None
