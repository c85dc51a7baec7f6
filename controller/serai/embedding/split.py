"""Splitting a request between providers: which provider gets which virtual node, and where links cross.

This is the VNP's side. It sees advertisements only - totals, the largest node, images, places and borders -
never a provider's topology (limited information disclosure), so a split can still be refused by a provider's
own embedding. A link crosses at most one border: paths over third providers are not part of this version.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from serai.embedding.model import Infeasible, NotFound, Request, RequestLink, RequestNode

MAX_STEPS = 100_000


@dataclass(frozen=True, slots=True)
class Border:
    """A link to the provider `peer`; both sides know it by the same name."""

    name: str
    peer: str
    available_bps: int
    delay_ns: int = 0


@dataclass(frozen=True, slots=True)
class Advertisement:
    """What a provider tells: free totals, the largest node, images (None: any), locations and borders."""

    provider: str
    vcpus: int
    memory_bytes: int
    largest_vcpus: int
    largest_memory_bytes: int
    images: frozenset[str] | None = None
    locations: frozenset[str] = frozenset()
    borders: tuple[Border, ...] = ()


@dataclass(frozen=True, slots=True)
class Crossing:
    """A virtual link between two providers: `a_provider` has the link's end `a`.

    `side_delay_ns` is what is left for the path inside each of the two providers (0: any).
    """

    link: str
    border: str
    a_provider: str
    b_provider: str
    side_delay_ns: int = 0


@dataclass(frozen=True)
class Split:
    """Every virtual node's provider, and every crossing by the link's name. `optimal`: no split crosses less
    often.
    """

    providers: dict[str, str] = field(default_factory=dict)
    crossings: dict[str, Crossing] = field(default_factory=dict)
    optimal: bool = True


def split(
    advertisements: tuple[Advertisement, ...],
    request: Request,
    *,
    time_limit: float = 5.0,
    max_steps: int = MAX_STEPS,
) -> Split | Infeasible | NotFound:
    """Assign nodes to providers: as few crossings as possible, then the load as even as possible.

    Branch and bound, so the best split is found where the limits suffice, and the best so far otherwise.
    """
    by_name = {item.provider: item for item in advertisements}
    candidates: dict[str, tuple[str, ...]] = {}
    for node in request.nodes:
        found = _suitable(advertisements, node)
        if isinstance(found, Infeasible):
            return found
        candidates[node.name] = found
    short = _total(advertisements, request) or _fixed_links(by_name, request, candidates)
    return short or _Search(by_name, request, candidates).run(time_limit, max_steps)


def _suitable(advertisements: tuple[Advertisement, ...], node: RequestNode) -> tuple[str, ...] | Infeasible:
    found = [item for item in advertisements if node.provider in ("", item.provider)]
    known = ", ".join(sorted(item.provider for item in advertisements)) or "none"
    if not found:
        message = (
            f"{node.name!r} must be at the provider {node.provider!r}, which is not known; known: {known}"
        )
        return Infeasible("provider", node.name, message)
    where = f"at {node.provider!r}" if node.provider else "at any provider"
    found = [item for item in found if not node.location or node.location in item.locations]
    if not found:
        return Infeasible(
            "location", node.name, f"{node.name!r} has no place: no location {node.location!r} {where}"
        )
    found = [item for item in found if not node.image or item.images is None or node.image in item.images]
    if not found:
        return Infeasible("image", node.name, f"{node.name!r} has no place: no image {node.image!r} {where}")
    return _large_enough(found, node, where)


def _large_enough(found: list[Advertisement], node: RequestNode, where: str) -> tuple[str, ...] | Infeasible:
    vcpus = max(item.largest_vcpus for item in found)
    if node.vcpus > vcpus:
        message = f"{node.name!r} asks for {node.vcpus} vCPUs; the largest node {where} has {vcpus} free"
        return Infeasible("vcpus", node.name, message, node.vcpus, vcpus)
    found = [item for item in found if node.vcpus <= item.largest_vcpus]
    memory = max(item.largest_memory_bytes for item in found)
    if node.memory_bytes > memory:
        asked = f"{node.name!r} asks for {node.memory_bytes} bytes of memory"
        message = f"{asked}; the largest node {where} has {memory} free"
        return Infeasible("memory", node.name, message, node.memory_bytes, memory)
    return tuple(item.provider for item in found if node.memory_bytes <= item.largest_memory_bytes)


def _total(advertisements: tuple[Advertisement, ...], request: Request) -> Infeasible | None:
    asked, free = sum(n.vcpus for n in request.nodes), sum(i.vcpus for i in advertisements)
    if asked > free:
        message = f"the request asks for {asked} vCPUs; all providers together have {free} free"
        return Infeasible("vcpus", "", message, asked, free)
    asked, free = sum(n.memory_bytes for n in request.nodes), sum(i.memory_bytes for i in advertisements)
    if asked > free:
        message = f"the request asks for {asked} bytes of memory; all providers together have {free} free"
        return Infeasible("memory", "", message, asked, free)
    for item in advertisements:
        own = [n for n in request.nodes if n.provider == item.provider]
        for resource, asked, free in (
            ("vcpus", sum(n.vcpus for n in own), item.vcpus),
            ("memory", sum(n.memory_bytes for n in own), item.memory_bytes),
        ):
            if asked > free:
                message = f"the nodes for {item.provider!r} ask for {resource} {asked}; it has {free} free"
                return Infeasible(resource, item.provider, message, asked, free)
    return None


def _borders(by_name: dict[str, Advertisement], first: str, second: str) -> list[Border]:
    """The borders that both sides advertise, each with the lesser bandwidth and the greater delay of the two
    views.
    """
    theirs = {border.name: border for border in by_name[second].borders if border.peer == first}
    return [
        Border(
            border.name,
            second,
            min(border.available_bps, theirs[border.name].available_bps),
            max(border.delay_ns, theirs[border.name].delay_ns),
        )
        for border in by_name[first].borders
        if border.peer == second and border.name in theirs
    ]


def _fixed_links(
    by_name: dict[str, Advertisement], request: Request, candidates: dict[str, tuple[str, ...]]
) -> Infeasible | None:
    """Links that cross whatever is chosen, one by one."""
    for link in request.links:
        sources, targets = candidates[link.a], candidates[link.b]
        if set(sources) & set(targets):
            continue
        borders = [border for a in sources for b in targets for border in _borders(by_name, a, b)]
        first, second = " or ".join(sources), " or ".join(targets)
        ends = f"the link {link.name!r} from {link.a!r} ({first}) to {link.b!r} ({second})"
        if not borders:
            message = (
                f"{ends} cannot be made: these providers have no common border, and a path over a third "
                "provider is not possible in this version"
            )
            return Infeasible("border", link.name, message)
        best = max(border.available_bps for border in borders)
        if best < link.bandwidth_bps:
            message = f"{ends} asks for {link.bandwidth_bps} bit/s; the widest border has {best} bit/s free"
            return Infeasible("bandwidth", link.name, message, link.bandwidth_bps, best)
        delay = min(border.delay_ns for border in borders if border.available_bps >= link.bandwidth_bps)
        if link.max_delay_ns and delay > link.max_delay_ns:
            message = (
                f"{ends} may take {link.max_delay_ns / 1e6:g} ms; the fastest border that is wide enough "
                f"takes {delay / 1e6:g} ms"
            )
            return Infeasible("delay", link.name, message, link.max_delay_ns, delay)
    return None


@dataclass(slots=True)
class _Frame:
    node: RequestNode
    providers: Iterator[str]
    provider: str = ""
    crossings: list[Crossing] = field(default_factory=list)


class _LimitReachedError(Exception):
    """Leaves the search, never this module."""


class _Search:
    def __init__(
        self, by_name: dict[str, Advertisement], request: Request, candidates: dict[str, tuple[str, ...]]
    ) -> None:
        self._by_name = by_name
        self._request = request
        self._candidates = candidates
        self._vcpus = {name: item.vcpus for name, item in by_name.items()}
        self._memory = {name: item.memory_bytes for name, item in by_name.items()}
        self._border = {(a, b): _borders(by_name, a, b) for a in by_name for b in by_name if a != b}
        self._free_bps = {b.name: b.available_bps for found in self._border.values() for b in found}
        self._providers: dict[str, str] = {}
        self._crossings = 0
        self._best: Split | None = None
        self._best_cost = (len(request.links) + 1, 0.0)
        self._uncrossed = ""
        self._full = ""
        self._steps = 0

    def run(self, time_limit: float, max_steps: int) -> Split | Infeasible | NotFound:
        self._deadline = time.monotonic() + time_limit
        self._max_steps = max_steps
        try:
            self._explore(self._order())
        except _LimitReachedError:
            if self._best is None:
                return NotFound(f"no split found in {self._steps} steps; it may still exist", self._steps)
            return Split(self._best.providers, self._best.crossings, optimal=False)
        return self._best or self._exhausted()

    def _exhausted(self) -> Infeasible | NotFound:
        if self._uncrossed:
            # Which border a crossing takes is chosen greedily, so this is no proof.
            message = f"no split found: {self._uncrossed}"
            return NotFound(message, self._steps)
        message = f"{self._full!r} finds no provider with room beside the other nodes"
        return Infeasible("placement", self._full, message)

    def _order(self) -> list[RequestNode]:
        """Nodes with the fewest choices first, then neighbours of what is there, the largest first."""
        waiting = {node.name: node for node in self._request.nodes}
        near: set[str] = set()
        order: list[RequestNode] = []
        while waiting:
            name = min(
                waiting,
                key=lambda n: (len(self._candidates[n]) > 1, n not in near, -waiting[n].memory_bytes, n),
            )
            order.append(waiting.pop(name))
            for link in self._request.links_of[name]:
                near.update((link.a, link.b))
        return order

    def _explore(self, order: list[RequestNode]) -> None:
        frames: list[_Frame] = []
        while True:
            if len(frames) == len(order):
                self._note(frames)
            else:
                frames.append(_Frame(order[len(frames)], iter(self._ranked(order[len(frames)]))))
            while frames and not self._advance(frames[-1]):
                frames.pop()
            if not frames:
                return

    def _ranked(self, node: RequestNode) -> list[str]:
        """Providers of the most neighbours first, then the one with the most room."""

        def rank(provider: str) -> tuple[int, float, str]:
            new = sum(self._providers.get(other, provider) != provider for other in self._neighbours(node))
            return new, -self._room(provider), provider

        return sorted(self._candidates[node.name], key=rank)

    def _neighbours(self, node: RequestNode) -> Iterator[str]:
        for link in self._request.links_of[node.name]:
            yield link.b if link.a == node.name else link.a

    def _room(self, provider: str) -> float:
        item = self._by_name[provider]
        return min(
            self._vcpus[provider] / max(1, item.vcpus), self._memory[provider] / max(1, item.memory_bytes)
        )

    def _advance(self, frame: _Frame) -> bool:
        self._undo(frame)
        for provider in frame.providers:
            if self._steps >= self._max_steps or time.monotonic() > self._deadline:
                raise _LimitReachedError
            self._steps += 1
            if self._place(frame, provider):
                return True
            self._undo(frame)
        return False

    def _place(self, frame: _Frame, provider: str) -> bool:
        node = frame.node
        if node.vcpus > self._vcpus[provider] or node.memory_bytes > self._memory[provider]:
            self._full = node.name
            return False
        frame.provider = provider
        self._providers[node.name] = provider
        self._vcpus[provider] -= node.vcpus
        self._memory[provider] -= node.memory_bytes
        for link in sorted(self._request.links_of[node.name], key=lambda link: -link.bandwidth_bps):
            ends = (self._providers.get(link.a), self._providers.get(link.b))
            if ends[0] is None or ends[1] is None or ends[0] == ends[1]:
                continue
            crossing = self._cross(link, ends[0], ends[1])
            if crossing is None:
                return False
            frame.crossings.append(crossing)
            self._free_bps[crossing.border] -= link.bandwidth_bps
            self._crossings += 1
        # Room evens out only at the end, so ties are kept and compared there.
        return self._crossings <= self._best_cost[0]

    def _cross(self, link: RequestLink, first: str, second: str) -> Crossing | None:
        """The fastest border that suits, then the one with the most bandwidth left."""
        fitting = [
            border
            for border in self._border[first, second]
            if self._free_bps[border.name] >= link.bandwidth_bps
            and (not link.max_delay_ns or border.delay_ns <= link.max_delay_ns)
        ]
        if not fitting:
            why = (
                "no border with the bandwidth or delay" if self._border[first, second] else "no common border"
            )
            self._uncrossed = f"for the link {link.name!r} the providers {first!r} and {second!r} have {why}"
            return None
        border = min(fitting, key=lambda border: (border.delay_ns, -self._free_bps[border.name], border.name))
        # A path of exactly no delay cannot be asked for: 0 means any, so 1 ns stands for it.
        side = max(1, (link.max_delay_ns - border.delay_ns) // 2) if link.max_delay_ns else 0
        return Crossing(link.name, border.name, first, second, side)

    def _undo(self, frame: _Frame) -> None:
        if not frame.provider:
            return
        for crossing in frame.crossings:
            self._free_bps[crossing.border] += self._request.link[crossing.link].bandwidth_bps
        self._crossings -= len(frame.crossings)
        frame.crossings.clear()
        self._vcpus[frame.provider] += frame.node.vcpus
        self._memory[frame.provider] += frame.node.memory_bytes
        del self._providers[frame.node.name]
        frame.provider = ""

    def _note(self, frames: list[_Frame]) -> None:
        rooms = [self._room(provider) for provider in self._by_name]
        cost = (self._crossings, max(rooms, default=0.0) - min(rooms, default=0.0))
        if self._best is None or cost < self._best_cost:
            crossings = {crossing.link: crossing for frame in frames for crossing in frame.crossings}
            self._best, self._best_cost = Split(dict(self._providers), crossings), cost
