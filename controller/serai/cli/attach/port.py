"""The attached Ethernet port: frames from and to the VNet, recorded, and used by whoever wants them."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, BinaryIO

from serai.errors import StateError
from serai.v1.attachment_pb2 import AttachInput, Attachment, AttachOutput
from serai.v1.attachment_pb2_grpc import AttachmentServiceStub
from serai.wire.rpc import Channel

_PCAP_HEADER = struct.pack("=IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 0x40000, 1)
"""pcap with nanoseconds, link type Ethernet (draft-ietf-opsawg-pcap)."""
_MAX_QUEUED = 4096


class Recorder:
    """Writes frames to `file` as pcap, at once, so that a reader at the other end of a pipe sees them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        file.write(_PCAP_HEADER)
        file.flush()

    def record(self, frames: Iterable[bytes]) -> None:
        """Frames that pass now, in either direction."""
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        for frame in frames:
            self._file.write(struct.pack("=IIII", seconds, nanoseconds, len(frame), len(frame)) + frame)
        self._file.flush()


class AttachedPort:
    """An Ethernet port in a VNet. `on_frames` gets what arrives."""

    def __init__(self, call: Any, attachment: Attachment, recorder: Recorder | None) -> None:
        self.attachment = attachment
        self.on_frames: Callable[[list[bytes]], None] = lambda _: None
        self.dropped = 0
        """Frames not sent because the other side takes none."""
        self._call = call
        self._recorder = recorder
        self._outgoing: asyncio.Queue[list[bytes]] = asyncio.Queue(_MAX_QUEUED)

    def send(self, frames: list[bytes]) -> None:
        """Put frames on the wire; never blocks, drops when too many wait."""
        if not frames:
            return
        try:
            self._outgoing.put_nowait(frames)
        except asyncio.QueueFull:
            self.dropped += len(frames)
            return
        if self._recorder is not None:
            self._recorder.record(frames)

    async def run(self) -> None:
        """Pass frames until the attachment ends; raises why."""
        sending = asyncio.create_task(self._send_forever())
        try:
            async for output in self._call:
                frames = list(output.frames)
                if self._recorder is not None:
                    self._recorder.record(frames)
                self.on_frames(frames)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _send_forever(self) -> None:
        while True:
            await self._call.write(AttachInput(frames=await self._outgoing.get()))


@asynccontextmanager
async def attach(channel: Channel, token: str, recorder: Recorder | None) -> AsyncIterator[AttachedPort]:
    """Attach at the provider behind `channel` with a credential; detaches at the end."""
    call: Any = AttachmentServiceStub(channel).Attach()
    try:
        await call.write(AttachInput(token=token))
        first: AttachOutput | None = None
        async for output in call:
            first = output
            break
        if first is None:
            raise StateError("the provider ended the attachment at once", hint="try again")
        yield AttachedPort(call, first.attachment, recorder)
    finally:
        call.cancel()
