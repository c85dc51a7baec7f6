"""The digest of a guest: SHA-256 over the hashes of its pages and its state (a tree of two levels).

::

    page   P[n] = XXH3-128(page n)
    root      R = SHA-256("serai guest digest 2" | page count u64 | P[0] | P[1] | ... | SHA-256(state))

Both sides keep P as pages are sent and arrive, each from its own memory, and only what the last round carried
is hashed while the guest stands still. P guards against accidents, ours first of all: nobody can change a
page on its way, because every record is sealed with AES-GCM. SHA-256 of every page would be most of what a
migration costs (0.63 CPU-s a gigabyte at each end; XXH3 0.08, AES-GCM 0.05).

A page that is to follow after the guest has moved (post-copy) has the hash of zeros in the root that is
compared at the freeze; the root compared at the end has the hash of what came.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import xxhash

from serai.hypervisor.driver import PAGE_SIZE
from serai.migration.pages import Numbers

HASH_BYTES = 16
_DOMAIN = b"serai guest digest 2"
_ZERO_PAGE = np.frombuffer(xxhash.xxh3_128_digest(bytes(PAGE_SIZE)), dtype=np.uint8)


class PageDigests:
    """P of a guest whose RAM is zero until told otherwise."""

    def __init__(self, page_count: int) -> None:
        self._digests = np.empty((page_count, HASH_BYTES), dtype=np.uint8)
        self._digests[:] = _ZERO_PAGE

    def update(self, numbers: Numbers, contents: memoryview) -> None:
        """The pages `numbers` hold `contents`, one after the other."""
        hash_of = xxhash.xxh3_128_digest
        joined = b"".join(
            [
                hash_of(contents[start : start + PAGE_SIZE])
                for start in range(0, len(numbers) * PAGE_SIZE, PAGE_SIZE)
            ]
        )
        self._digests[numbers] = np.frombuffer(joined, dtype=np.uint8).reshape(-1, HASH_BYTES)

    def clear(self, numbers: Numbers) -> None:
        """The pages `numbers` are zero, or count as such."""
        self._digests[numbers] = _ZERO_PAGE

    def root(self, state: bytes) -> bytes:
        """R with this device state."""
        whole = hashlib.sha256(_DOMAIN + struct.pack("!Q", len(self._digests)))
        whole.update(self._digests.data)
        whole.update(hashlib.sha256(state).digest())
        return whole.digest()
