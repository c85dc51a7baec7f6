"""The digest of a guest: SHA-256 over the digests of its pages and its state (a Merkle tree of two levels).

::

    page   P[n] = SHA-256(page n)
    root      R = SHA-256("serai guest digest 1" | page count u64 | P[0] | P[1] | ... | SHA-256(state))

Hashing all of RAM takes 0.7 ms a mebibyte, more than a freeze may last; so both sides keep P as pages are
sent and arrive, each from its own memory, and only what the last round carried is hashed while the guest
stands still.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np

from serai.hypervisor.driver import PAGE_SIZE
from serai.migration.pages import Numbers

DIGEST_BYTES = 32
_DOMAIN = b"serai guest digest 1"
_ZERO_PAGE = np.frombuffer(hashlib.sha256(bytes(PAGE_SIZE)).digest(), dtype=np.uint8)


class PageDigests:
    """P of a guest whose RAM is zero until told otherwise."""

    def __init__(self, page_count: int) -> None:
        self._digests = np.empty((page_count, DIGEST_BYTES), dtype=np.uint8)
        self._digests[:] = _ZERO_PAGE

    def update(self, numbers: Numbers, contents: memoryview) -> None:
        """The pages `numbers` hold `contents`, one after the other."""
        sha256 = hashlib.sha256
        joined = b"".join(
            sha256(contents[start : start + PAGE_SIZE]).digest()
            for start in range(0, len(numbers) * PAGE_SIZE, PAGE_SIZE)
        )
        self._digests[numbers] = np.frombuffer(joined, dtype=np.uint8).reshape(-1, DIGEST_BYTES)

    def clear(self, numbers: Numbers) -> None:
        """The pages `numbers` are zero."""
        self._digests[numbers] = _ZERO_PAGE

    def root(self, state: bytes) -> bytes:
        """R with this device state."""
        whole = hashlib.sha256(_DOMAIN + struct.pack("!Q", len(self._digests)))
        whole.update(self._digests.data)
        whole.update(hashlib.sha256(state).digest())
        return whole.digest()
