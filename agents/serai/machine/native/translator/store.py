"""The stencils of this CPU: from the cache on disk, or built in the background while guests are interpreted.

The memory that holds them is shared with the process that builds them and with every process forked
meanwhile, so that a guest that is running already goes over to translation when they are ready.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import importlib
import logging
import mmap
import os
import struct
import sys
import time
from pathlib import Path

from serai.machine.native import build
from serai.machine.native.translator.forms import MAGIC

__all__ = ["Stencils", "load_stencils"]

CAPACITY = 4 << 20
DESCRIPTOR = 3  # of the memory, in the process that builds
NO_INFLUENCE = {  # sources that the stencils do not depend on
    *("build.py", "loader.py", "decoder.py", "stubs.py", "copier.py", "patcher.py", "buffer.py", "store.py"),
    *("pages.py", "fetch.py", "csr.py", "pmp.py", "jumps.py"),
}
POLL_SECONDS = 0.02
NICENESS = 5  # guests go on meanwhile

log = logging.getLogger(__name__)


class Stencils:
    """Memory with the stencils in it, sooner or later."""

    def __init__(self, memory: mmap.mmap) -> None:
        self.memory = memory
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(memory))

    @property
    def ready(self) -> bool:
        """Whether they are there."""
        return bool(struct.unpack_from("<Q", self.memory)[0] == MAGIC)

    def fill(self, blob: bytes) -> None:
        """Put them there; the first word, which says so, comes last."""
        self.memory[8 : len(blob)] = blob[8:]
        self.memory[:8] = blob[:8]

    def wait(self, seconds: float) -> bool:
        """Wait until they are ready; False when the time is over."""
        deadline = time.monotonic() + seconds
        while not self.ready:
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True


def cache_path() -> Path:
    """Where the stencils of this CPU are kept; they depend on less than the machine's object does."""
    sources = [path for path in build.sources() if path.name not in NO_INFLUENCE]
    return build.cache_directory() / f"{build.cache_key(sources)}.stencils"


@functools.cache
def load_stencils() -> Stencils:
    """Return the stencils, or have them built by another process."""
    path = cache_path()
    blob = build.read_cache(path)
    if blob is not None:
        stencils = Stencils(mmap.mmap(-1, max(len(blob), 8), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        stencils.fill(blob)
        return stencils
    descriptor = os.memfd_create("serai-stencils", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, CAPACITY)
        stencils = Stencils(mmap.mmap(descriptor, CAPACITY))
        _build_aside(descriptor)
    finally:
        os.close(descriptor)
    return stencils


def _build_aside(descriptor: int) -> None:
    """Start the process that builds; without it guests stay interpreted."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    arguments = [sys.executable, "-m", __name__]
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, descriptor, DESCRIPTOR),
    ]
    try:
        os.posix_spawn(sys.executable, arguments, environment, file_actions=actions)
    except OSError as error:
        log.warning("the translator's stencils cannot be built, guests are interpreted: %s", error)


def build_stencils() -> bytes:
    """Compile the stencils for this CPU. Takes some seconds."""
    build.import_semantics()
    module = importlib.import_module("serai.machine.native.translator.blob")
    blob: bytes = module.build_blob(build.host_constants())
    return blob


def main() -> None:
    """Build the stencils, once for all processes that want them, and put them into the memory given."""
    os.nice(NICENESS)
    path = cache_path()
    stencils = Stencils(mmap.mmap(DESCRIPTOR, CAPACITY))
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / "stencils.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        blob = build.read_cache(path)
        if blob is None:
            blob = build_stencils()
            build.write_cache(path, blob)
    stencils.fill(blob)


if __name__ == "__main__":
    main()
