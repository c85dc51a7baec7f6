"""What is left of a substrate: exact bookkeeping of reservations, every change checked before it is made."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from serai.embedding.model import Mapping, Path, Request, RequestNode, Substrate
from serai.errors import CapacityError, StateError


class Residual:
    """The free part of a substrate. Amounts are never below zero nor above the substrate's own."""

    def __init__(self, substrate: Substrate) -> None:
        self.substrate = substrate
        self.vcpus = {node.name: node.vcpus for node in substrate.nodes}
        self.memory_bytes = {node.name: node.memory_bytes for node in substrate.nodes}
        self.bandwidth_bps = {link.name: link.capacity_bps for link in substrate.links}

    def fits(self, node: RequestNode, place: str) -> bool:
        """Whether `place` has what `node` asks for."""
        return node.vcpus <= self.vcpus[place] and node.memory_bytes <= self.memory_bytes[place]

    def take_node(self, node: RequestNode, place: str) -> None:
        """Reserve a node's demand. Raises CapacityError, changing nothing, where it does not fit."""
        if not self.fits(node, place):
            raise CapacityError(f"{node.name!r} does not fit on {place!r}", node=place)
        self.vcpus[place] -= node.vcpus
        self.memory_bytes[place] -= node.memory_bytes

    def give_node(self, node: RequestNode, place: str) -> None:
        """Free a node's demand. Raises StateError where more would be free than there is."""
        total = self.substrate.node[place]
        vcpus, memory = self.vcpus[place] + node.vcpus, self.memory_bytes[place] + node.memory_bytes
        if vcpus > total.vcpus or memory > total.memory_bytes:
            raise StateError(f"{node.name!r} holds nothing on {place!r}")
        self.vcpus[place], self.memory_bytes[place] = vcpus, memory

    def take_path(self, path: Path, bandwidth_bps: int) -> None:
        """Reserve bandwidth along a path. Raises CapacityError, changing nothing, where a link has too
        little.
        """
        uses = Counter(path.links)
        for link, count in uses.items():
            if self.bandwidth_bps[link] < count * bandwidth_bps:
                raise CapacityError(f"the link {link!r} has too little bandwidth", link=link)
        for link, count in uses.items():
            self.bandwidth_bps[link] -= count * bandwidth_bps

    def give_path(self, path: Path, bandwidth_bps: int) -> None:
        """Free bandwidth along a path. Raises StateError where more would be free than there is."""
        uses = Counter(path.links)
        for link, count in uses.items():
            if self.bandwidth_bps[link] + count * bandwidth_bps > self.substrate.link[link].capacity_bps:
                raise StateError(f"nothing so big is reserved on the link {link!r}")
        for link, count in uses.items():
            self.bandwidth_bps[link] += count * bandwidth_bps

    def reserve(self, request: Request, mapping: Mapping) -> None:
        """Reserve a whole mapping, or nothing: raises CapacityError where something does not fit."""
        done_nodes: list[RequestNode] = []
        done_links = []
        try:
            for node in request.nodes:
                self.take_node(node, mapping.nodes[node.name])
                done_nodes.append(node)
            for link in request.links:
                self.take_path(mapping.paths[link.name], link.bandwidth_bps)
                done_links.append(link)
        except CapacityError:
            for link in done_links:
                self.give_path(mapping.paths[link.name], link.bandwidth_bps)
            for node in done_nodes:
                self.give_node(node, mapping.nodes[node.name])
            raise

    def release(self, request: Request, mapping: Mapping) -> None:
        """Free what `reserve` took. Raises StateError where it was not reserved."""
        for link in request.links:
            self.give_path(mapping.paths[link.name], link.bandwidth_bps)
        for node in request.nodes:
            self.give_node(node, mapping.nodes[node.name])

    def as_substrate(self) -> Substrate:
        """The same graph with only what is free, for embedding the next request."""
        return Substrate(
            nodes=tuple(
                replace(node, vcpus=self.vcpus[node.name], memory_bytes=self.memory_bytes[node.name])
                for node in self.substrate.nodes
            ),
            links=tuple(
                replace(link, capacity_bps=self.bandwidth_bps[link.name]) for link in self.substrate.links
            ),
        )
