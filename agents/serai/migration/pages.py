"""Pages of guest RAM as arrays: which are dirty, which are zero, and what they look like at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from serai.hypervisor.driver import PAGE_SIZE

WORDS = PAGE_SIZE // 8

Pages: TypeAlias = NDArray[np.uint64]
"""Page contents, one a row of 512 words."""

Numbers: TypeAlias = NDArray[np.uint32]
"""Page numbers."""

Extents: TypeAlias = Sequence[tuple[int, int]]
"""Ranges of page numbers, the end not included."""


def page_view(ram: memoryview) -> Pages:
    """All of RAM as rows of pages, without a copy. Keeps `ram` exported for as long as it lives."""
    return np.frombuffer(ram, dtype=np.uint64).reshape(-1, WORDS)


def numbers_of(bitmap: bytes, page_count: int) -> Numbers:
    """The page numbers whose bits are set, least significant first; bits beyond `page_count` do not count."""
    bits = np.unpackbits(np.frombuffer(bitmap, dtype=np.uint8), count=page_count, bitorder="little")
    return np.flatnonzero(bits).astype(np.uint32)


def zero_mask(pages: Pages) -> NDArray[np.bool_]:
    """True for each page that holds nothing but zeros."""
    mask: NDArray[np.bool_] = np.bitwise_or.reduce(pages, axis=1) == 0
    return mask


def glance(pages: Pages) -> Pages:
    """Two words a page that differ when two versions of it do, accidents of one in 2**64 aside.

    Sum and exclusive or of its words: 24 GB a second, so that all of RAM can be looked at while the guest is
    frozen. No defence against malice, which is what the digests are for.
    """
    return np.stack((np.add.reduce(pages, axis=1), np.bitwise_xor.reduce(pages, axis=1)), axis=1)
