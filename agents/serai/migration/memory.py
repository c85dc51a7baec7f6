"""Having the kernel find memory before it is written.

Page faults one by one, with the interpreter's lock held, would stop everything else in the agent.
"""

from __future__ import annotations

import ctypes

import numpy as np

from serai.hypervisor.driver import PAGE_SIZE
from serai.migration.pages import Numbers, Pages

_MADV_POPULATE_WRITE = 23
"""Linux 5.14; older kernels refuse it, and then faults are taken one by one."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.madvise.restype = ctypes.c_int


def populate(ram: Pages, numbers: Numbers) -> None:
    """Make pages of `ram` present; ctypes gives up the interpreter's lock meanwhile. `numbers` may repeat."""
    if not len(numbers):
        return
    base = ram.ctypes.data
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    for run in np.split(numbers, breaks):
        _libc.madvise(base + int(run[0]) * PAGE_SIZE, len(run) * PAGE_SIZE, _MADV_POPULATE_WRITE)
