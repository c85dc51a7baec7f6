"""The user's terminal joined to a guest's serial console."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sys
import termios
import tty
from collections.abc import AsyncIterator, Iterator

from serai.cli.output import stderr
from serai.v1.console_pb2_grpc import ConsoleServiceStub
from serai.v1.guest_pb2 import ConsoleInput
from serai.wire.rpc import Channel

ESCAPE = b"\x1d"
"""Ctrl-], as in telnet and virsh."""


async def attach(channel: Channel, name: str, title: str) -> None:
    """Copy both ways until Ctrl-], end of input, or the console's end.

    `name` is what the server calls the node, `title` what the user does.
    """
    stderr.print(f"attached to {title}; Ctrl-] detaches")
    with _raw_terminal():
        call = ConsoleServiceStub(channel).OpenConsole(_typed(name))
        async for output in call:
            _write_all(output.data)
    stderr.print(f"\ndetached from {title}")


async def _typed(name: str) -> AsyncIterator[ConsoleInput]:
    yield ConsoleInput(name=name)
    async for data in _standard_input():
        before, escape, _ = data.partition(ESCAPE)
        if before:
            yield ConsoleInput(data=before)
        if escape:
            return


async def _standard_input() -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes] = asyncio.Queue()
    descriptor = sys.stdin.fileno()

    def readable() -> None:
        data = os.read(descriptor, 4096)
        if not data:
            loop.remove_reader(descriptor)
        chunks.put_nowait(data)

    try:
        loop.add_reader(descriptor, readable)
    except PermissionError:
        # A regular file cannot be polled, and needs not be: it is always readable.
        yield await asyncio.to_thread(sys.stdin.buffer.read)
        return
    try:
        while data := await chunks.get():
            yield data
    finally:
        loop.remove_reader(descriptor)


def _write_all(data: bytes) -> None:
    """Write to stdout, which raw mode may have left non-blocking together with stdin."""
    view = memoryview(data)
    while view:
        with contextlib.suppress(BlockingIOError):
            view = view[os.write(sys.stdout.fileno(), view) :]


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Raw mode while attached, so that Ctrl-C reaches the guest; nothing changes without a terminal."""
    descriptor = sys.stdin.fileno()
    if not os.isatty(descriptor):
        yield
        return
    settings = termios.tcgetattr(descriptor)
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, settings)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
