"""Paths for one virtual link: fewest hops under a bandwidth and a delay bound, and the widest and fastest
there are.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

from serai.embedding.model import Path, Substrate

Previous = dict[str, tuple[str, str]]
"""Node -> (the node before it, the link between)."""


def find_path(
    substrate: Substrate,
    free_bps: Mapping[str, int],
    source: str,
    target: str,
    *,
    bandwidth_bps: int = 0,
    max_delay_ns: int = 0,
) -> Path | None:
    """The path with the fewest hops whose every link has `bandwidth_bps` free and whose delay is at most
    `max_delay_ns` (0: any); of those, the fastest. None exactly when no such path exists.

    Layer h holds the least delay with which each node can be reached in h hops, so hops and delay, which make
    the general constrained shortest path NP-hard, are searched exactly: hops are small integers (Bellman-Ford
    by layers).
    """
    if source == target:
        return Path((source,))
    best = {source: 0}
    layer = {source: 0}
    steps: list[Previous] = []
    for _ in range(len(substrate.nodes) - 1):
        found: dict[str, int] = {}
        previous: Previous = {}
        for node, delay in layer.items():
            if node != source and not substrate.node[node].transit:
                continue
            for neighbour, link in substrate.adjacent[node]:
                reached = delay + link.delay_ns
                if free_bps[link.name] < bandwidth_bps or (max_delay_ns and reached > max_delay_ns):
                    continue
                # A longer way is worth keeping only where it is faster than every shorter one.
                if reached < min(best.get(neighbour, reached + 1), found.get(neighbour, reached + 1)):
                    found[neighbour] = reached
                    previous[neighbour] = (node, link.name)
        if not found:
            return None
        best.update(found)
        steps.append(previous)
        if target in found:
            return _trace(steps, target)
        layer = found
    return None


def _trace(steps: list[Previous], target: str) -> Path:
    nodes, links = [target], []
    for previous in reversed(steps):
        node, link = previous[nodes[-1]]
        nodes.append(node)
        links.append(link)
    return Path(tuple(reversed(nodes)), tuple(reversed(links)))


def widest(
    substrate: Substrate, free_bps: Mapping[str, int], sources: Iterable[str], targets: set[str]
) -> int | None:
    """The most bandwidth that any path from any source to any target has; None where there is no path at all.

    Sources and targets must have no node in common: staying on one node needs no bandwidth.
    """
    starts = set(sources)
    unlimited = 1 + max(free_bps.values(), default=0)
    done: set[str] = set()
    queue = [(-unlimited, source) for source in sorted(starts)]
    while queue:
        negative, node = heapq.heappop(queue)
        if node in done:
            continue
        done.add(node)
        if node in targets:
            return -negative
        if node not in starts and not substrate.node[node].transit:
            continue
        for neighbour, link in substrate.adjacent[node]:
            heapq.heappush(queue, (max(negative, -free_bps[link.name]), neighbour))
    return None


def fastest(
    substrate: Substrate,
    free_bps: Mapping[str, int],
    sources: Iterable[str],
    targets: set[str],
    bandwidth_bps: int,
) -> int | None:
    """The least delay of any path from any source to any target over links with `bandwidth_bps` free; or
    None.
    """
    done: set[str] = set()
    starts = set(sources)
    queue = [(0, source) for source in sorted(starts)]
    while queue:
        delay, node = heapq.heappop(queue)
        if node in done:
            continue
        done.add(node)
        if node in targets:
            return delay
        if node not in starts and not substrate.node[node].transit:
            continue
        for neighbour, link in substrate.adjacent[node]:
            if free_bps[link.name] >= bandwidth_bps and neighbour not in done:
                heapq.heappush(queue, (delay + link.delay_ns, neighbour))
    return None
