"""A substrate as arrays: nodes and links by number, so that a least-cost search is few numpy calls."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serai.embedding.model import Path, Substrate

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class SubstrateGraph:
    """Adjacency of a substrate, padded to the greatest degree.

    Row u of `neighbour` and `via` lists the nodes next to u and the links between, in the order of
    `Substrate.adjacent`; the rest of the row points at a node and a link that do not exist (numbers `nodes`
    and `links`).
    """

    def __init__(self, substrate: Substrate) -> None:
        self.substrate = substrate
        self.nodes, self.links = len(substrate.nodes), len(substrate.links)
        self.number = {node.name: i for i, node in enumerate(substrate.nodes)}
        self.link_number = {link.name: i for i, link in enumerate(substrate.links)}
        self.vcpus = np.array([node.vcpus for node in substrate.nodes], dtype=np.int64)
        self.memory = np.array([node.memory_bytes for node in substrate.nodes], dtype=np.int64)
        self.capacity = np.array([link.capacity_bps for link in substrate.links], dtype=np.int64)
        self.delay = np.array([link.delay_ns for link in substrate.links], dtype=np.int64)
        # The padding is a node that nothing leads through.
        self.transit = np.array([*(node.transit for node in substrate.nodes), False])
        self.ends = [(self.number[link.a], self.number[link.b]) for link in substrate.links]
        rows: list[list[tuple[int, int]]] = [[] for _ in range(self.nodes)]
        for i, (a, b) in enumerate(self.ends):
            if a != b:
                rows[a].append((b, i))
                rows[b].append((a, i))
        self.rows = rows
        width = max((len(row) for row in rows), default=0)
        self.neighbour = np.full((self.nodes, width), self.nodes, dtype=np.int64)
        self.via = np.full((self.nodes, width), self.links, dtype=np.int64)
        for u, row in enumerate(rows):
            if row:
                self.neighbour[u, : len(row)], self.via[u, : len(row)] = zip(*row, strict=True)

    def adjacent_bandwidth(self, free: Ints) -> Ints:
        """The sum of what is free on the links of each node."""
        padded = np.append(free, 0)
        total: Ints = padded[self.via].sum(axis=1)
        return total

    def costs(self, weights: Floats, sources: list[int]) -> Floats:
        """For every source (a row), the least sum of link weights to every node; infinite where no path
        leads.

        `weights` has a row per source, one weight per link and a last, infinite, entry for the padding; an
        infinite weight closes a link. Bellman-Ford over all sources at once: as many rounds as the longest
        least-cost path has hops.
        """
        count = len(sources)
        rows = np.arange(count)
        cost: Floats = np.full((count, self.nodes + 1), np.inf)
        cost[rows, sources] = 0.0
        if not self.neighbour.size:
            unreached: Floats = cost[:, :-1]
            return unreached
        steps = weights[:, self.via]
        through = np.broadcast_to(self.transit, cost.shape).copy()
        through[rows, sources] = True
        while True:
            passing = np.where(through, cost, np.inf)
            reached: Floats = (passing[:, self.neighbour] + steps).min(axis=2)
            np.minimum(reached, cost[:, :-1], out=reached)
            if np.array_equal(reached, cost[:, :-1]):
                return reached
            cost[:, :-1] = reached

    def trace(self, weights: Floats, cost: Floats, source: int, target: int) -> list[int] | None:
        """The links of a least-cost path from `source` to `target`, by walking back through one row of
        `costs`; None where there is none.
        """
        if not np.isfinite(cost[target]):
            return None
        links: list[int] = []
        padded, node = np.append(cost, np.inf), target
        padded[:-1][~self.transit[:-1]] = np.inf
        padded[source] = 0.0
        while node != source:
            slot = int((padded[self.neighbour[node]] + weights[self.via[node]]).argmin())
            links.append(int(self.via[node, slot]))
            node = int(self.neighbour[node, slot])
        links.reverse()
        return links

    def path(self, source: int, links: list[int]) -> Path:
        """The path of these links, given in order from `source` or towards it."""
        if links and source not in self.ends[links[0]]:
            links = links[::-1]
        nodes, node = [self.substrate.nodes[source].name], source
        for link in links:
            a, b = self.ends[link]
            node = b if node == a else a
            nodes.append(self.substrate.nodes[node].name)
        return Path(tuple(nodes), tuple(self.substrate.links[link].name for link in links))
