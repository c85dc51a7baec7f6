"""Node ranks of the literature, from demands or free amounts: one number per node, the greater the better.

All work on a substrate as on a request, since each treats its own graph alone: `amounts` are the nodes'
vCPUs (free or demanded), `ends` the links and `bandwidths` what they have free or demand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from serai.embedding.graph import Floats

Edge = tuple[int, int]
Rank = Callable[[Sequence[int], Sequence[Edge], Sequence[int]], Floats]


def _adjacency(count: int, ends: Sequence[Edge], bandwidths: Sequence[int]) -> Floats:
    matrix = np.zeros((count, count))
    for (a, b), bandwidth in zip(ends, bandwidths, strict=True):
        if a != b:
            matrix[a, b] += bandwidth
            matrix[b, a] += bandwidth
    return matrix


def _normalised(matrix: Floats) -> Floats:
    """Every row divided by its sum; rows of zeros stay."""
    sums = matrix.sum(axis=1, keepdims=True)
    rows: Floats = np.divide(matrix, sums, out=np.zeros_like(matrix), where=sums > 0)
    return rows


def nrm(amounts: Sequence[int], ends: Sequence[Edge], bandwidths: Sequence[int]) -> Floats:
    """Network resource metric: vCPUs times the sum of adjacent bandwidth (Yu et al., CCR 2008; Zhang et al.,
    IEEE IoT Journal 2018).
    """
    rank: Floats = np.asarray(amounts, float) * _adjacency(len(amounts), ends, bandwidths).sum(axis=1)
    return rank


def nea(amounts: Sequence[int], ends: Sequence[Edge], bandwidths: Sequence[int]) -> Floats:
    """vCPUs times degree, the order in which node essentiality assessment takes virtual nodes (Fan et al.,
    IEEE TPDS 2023).
    """
    degree = np.bincount(np.asarray(ends, dtype=np.int64).ravel(), minlength=len(amounts))
    rank: Floats = np.asarray(amounts, float) * degree
    return rank


def grc(
    amounts: Sequence[int],
    ends: Sequence[Edge],
    bandwidths: Sequence[int],
    *,
    damping: float = 0.85,
    tolerance: float = 1e-5,
) -> Floats:
    """Global resource capacity: a node is worth its vCPUs and a share of its neighbours' worth, shared out by
    bandwidth (Gong et al., INFOCOM 2014).
    """
    own = np.asarray(amounts, float)
    own = own / max(1.0, own.sum())
    matrix = _normalised(_adjacency(len(amounts), ends, bandwidths))
    rank: Floats = own
    while True:
        following: Floats = (1 - damping) * own + damping * (rank @ matrix)
        if np.linalg.norm(following - rank) < tolerance:
            return following
        rank = following


def random_walk(
    amounts: Sequence[int],
    ends: Sequence[Edge],
    bandwidths: Sequence[int],
    *,
    jump: float = 0.15,
    tolerance: float = 1e-4,
) -> Floats:
    """NodeRank: where a random walk ends up that jumps to any node, or steps to a neighbour, in proportion to
    vCPUs times adjacent bandwidth (Cheng et al., CCR 2011).
    """
    weight = nrm(amounts, ends, bandwidths)
    start = weight / max(1e-9, weight.sum())
    linked = _adjacency(len(amounts), ends, [1] * len(ends)) > 0
    forward = _normalised(linked * weight)
    matrix = jump * np.tile(start, (len(amounts), 1)) + (1 - jump) * forward
    rank: Floats = start
    while True:
        following: Floats = rank @ matrix
        if np.linalg.norm(following - rank) < tolerance:
            return following
        rank = following
