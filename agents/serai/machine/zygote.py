"""The zygote: has everything loaded that a guest process needs, and forks one per guest on request.

``python -m serai.machine.zygote FD``, FD being its end of a Unix seqpacket socket; `serai.machine.protocol`
says what is spoken on it. It has one thread, so forking is safe, and no network library is loaded. It ends
when the socket does; its guests outlive it.
"""

from __future__ import annotations

import array
import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from typing import Any

from serai.machine import process
from serai.machine.confinement import confine
from serai.machine.core_factory import make_hart, preload
from serai.machine.protocol import VERSION

_MAXIMUM_REQUEST = 4096
_MAXIMUM_DESCRIPTORS = 64
_FIXED_DESCRIPTORS = 3  # RAM, control, console


class Zygote:
    """Serves fork requests until its socket ends."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._children: dict[int, int] = {}
        self._wakeup_read, self._wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> None:
        """Fork and reap until the agent closes the socket."""
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._wakeup_write)
        selector = selectors.DefaultSelector()
        selector.register(self._link, selectors.EVENT_READ)
        selector.register(self._wakeup_read, selectors.EVENT_READ)
        self._answer({"ready": VERSION})
        while True:
            for key, _ in selector.select():
                if key.fileobj is self._link:
                    if not self._serve_request():
                        return
                else:
                    os.read(self._wakeup_read, 4096)
                    self._reap()

    def _serve_request(self) -> bool:
        """One request; False when there will be no more."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._link, _MAXIMUM_REQUEST, _MAXIMUM_DESCRIPTORS)
        except ConnectionError:
            return False
        if not data:
            return False
        try:
            request = json.loads(data)
            orphan_seconds = float(request.get("orphan_seconds", 0))
            has_source = bool(request.get("source"))
            expected = _FIXED_DESCRIPTORS + int(request["fork"]) + (orphan_seconds > 0) + has_source
            if len(descriptors) != expected:
                raise ValueError(f"{len(descriptors)} descriptors instead of {expected}")
            self._fork(descriptors, orphan_seconds, has_source)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._answer({"error": f"the guest's process cannot be started: {error}"})
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _fork(self, descriptors: list[int], orphan_seconds: float, has_source: bool) -> None:
        pid = os.fork()
        if pid == 0:
            _become_guest(descriptors, orphan_seconds, has_source)
        pidfd = os.pidfd_open(pid)
        try:
            self._children[pid] = pid
            self._answer({"pid": pid}, pidfd)
        finally:
            os.close(pidfd)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._children.pop(pid, None) is not None:
                self._answer({"exited": pid, "status": status})

    def _answer(self, fields: dict[str, Any], descriptor: int | None = None) -> None:
        ancillary = []
        if descriptor is not None:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        # An agent that is gone needs no answer; the end of the socket is noticed in `serve`.
        with contextlib.suppress(OSError):
            self._link.sendmsg([json.dumps(fields).encode()], ancillary)


def _become_guest(descriptors: list[int], orphan_seconds: float, has_source: bool) -> None:
    """The child's side of the fork; never returns."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        kept = _renumber(descriptors)
        confine("serai-guest")
        source = kept.pop() if has_source else None
        listener = kept.pop() if orphan_seconds > 0 else None
        ram, control, console, *frames = kept
        process.run(
            ram,
            control,
            console,
            frames,
            make_hart,
            listener=listener,
            orphan_seconds=orphan_seconds,
            source=source,
        )
        status = 0
    except BaseException:
        traceback.print_exc(file=sys.stderr)
        sys.stderr.flush()
    finally:
        os._exit(status)


def _renumber(descriptors: list[int]) -> list[int]:
    """Move the guest's descriptors to 3, 4 ... and close every other but the standard streams."""
    # Through high numbers, so that none is overwritten before it has moved.
    high = [os.dup2(descriptor, 512 + n, inheritable=False) for n, descriptor in enumerate(descriptors)]
    low = [os.dup2(descriptor, 3 + n, inheritable=False) for n, descriptor in enumerate(high)]
    os.closerange(3 + len(low), 1024)
    return low


def main() -> None:
    """Entry point."""
    link = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    preload()
    gc.collect()
    gc.freeze()  # keeps the garbage collector from touching, and so copying, the pages shared with the guests
    Zygote(link).serve()


if __name__ == "__main__":
    main()
