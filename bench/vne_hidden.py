"""The price of hidden topology: the same requests with one provider that knows everything, and with four that
each know only themselves.

The quadrants of a Waxman-100 substrate are four providers; links between quadrants are borders. The VNet
provider sees advertisements (totals, largest node, borders), splits, and each provider embeds its part; a
request is accepted when all do. With `rounds` above one, a provider that refuses is left out and the rest is
split again. The parts are joined and checked against the whole substrate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from statistics import mean

from bench.vne_instances import Instance
from bench.vne_simulation import Outcome, simulate

from serai.embedding import (
    Advertisement,
    Border,
    Mapping,
    NotFound,
    Path,
    Request,
    RequestLink,
    RequestNode,
    Result,
    Split,
    Substrate,
    SubstrateNode,
    split,
)
from serai.embedding.joint import embed

SPLIT_STEPS = 3000


@dataclass(frozen=True)
class Domains:
    """Which provider has which substrate node."""

    provider: dict[str, str]

    @cached_property
    def names(self) -> list[str]:
        return sorted(set(self.provider.values()))

    def ends(self, a: str, b: str) -> tuple[str, str]:
        return self.provider[a], self.provider[b]

    def advertise(self, substrate: Substrate, name: str) -> Advertisement:
        nodes = [node for node in substrate.nodes if self.provider[node.name] == name]
        borders = []
        for link in substrate.links:
            first, second = self.ends(link.a, link.b)
            if name in (first, second) and first != second:
                peer = second if first == name else first
                borders.append(Border(link.name, peer, link.capacity_bps, link.delay_ns))
        vcpus, memory = [node.vcpus for node in nodes], [node.memory_bytes for node in nodes]
        return Advertisement(name, sum(vcpus), sum(memory), max(vcpus), max(memory), borders=tuple(borders))

    def view(self, substrate: Substrate, name: str) -> Substrate:
        """A provider's own substrate: behind each border a node that takes and passes nothing."""
        nodes = [node for node in substrate.nodes if self.provider[node.name] == name]
        links = []
        for link in substrate.links:
            first, second = self.ends(link.a, link.b)
            if first == second == name:
                links.append(link)
            elif name in (first, second):
                far = link.b if first == name else link.a
                nodes.append(SubstrateNode(f"{far}@{link.name}", 0, 0, schedulable=False, transit=False))
                a, b = (link.a, nodes[-1].name) if first == name else (nodes[-1].name, link.b)
                links.append(type(link)(link.name, a, b, link.capacity_bps, link.delay_ns))
        return Substrate(tuple(nodes), tuple(links))


def quadrants(instance: Instance) -> Domains:
    return Domains(
        {
            f"s{i}": ("north" if y > 0.5 else "south") + ("east" if x > 0.5 else "west")
            for i, (x, y) in enumerate(instance.positions)
        }
    )


def embed_hidden(
    domains: Domains, substrate: Substrate, request: Request, *, seed: int, rounds: int
) -> Result:
    willing = list(domains.names)
    result: Result = NotFound("no provider is left", 0)
    for _ in range(rounds):
        advertisements = tuple(domains.advertise(substrate, name) for name in willing)
        found = split(advertisements, request, time_limit=1.0, max_steps=SPLIT_STEPS)
        if not isinstance(found, Split):
            return found
        refusing, result = _embed_parts(domains, substrate, request, found, seed=seed)
        if not refusing:
            return result
        willing.remove(refusing)
    return result


def _embed_parts(
    domains: Domains, substrate: Substrate, request: Request, found: Split, *, seed: int
) -> tuple[str, Result]:
    """The provider that refuses, or the joined mapping."""
    nodes: dict[str, str] = {}
    halves: dict[str, dict[str, Path]] = {}
    for name in sorted(set(found.providers.values())):
        part = _part(domains, substrate, request, found, name)
        view = domains.view(substrate, name)
        result = embed(view, part, revisitation=False, seed=seed, time_limit=1.0)
        if not isinstance(result, Mapping):
            return name, result
        nodes.update({key: place for key, place in result.nodes.items() if not key.startswith("far ")})
        halves[name] = result.paths
    paths = {link.name: _join(found, halves, nodes, domains, link) for link in request.links}
    return "", Mapping(nodes, paths)


def _part(domains: Domains, substrate: Substrate, request: Request, found: Split, name: str) -> Request:
    """A provider's nodes and links, with an external end for every link that leaves it."""
    nodes = [node for node in request.nodes if found.providers[node.name] == name]
    links = []
    for link in request.links:
        crossing = found.crossings.get(link.name)
        if crossing is None:
            links += [link] if found.providers[link.a] == name else []
            continue
        if name not in (crossing.a_provider, crossing.b_provider):
            continue
        border = substrate.link[crossing.border]
        far = border.b if domains.provider[border.a] == name else border.a
        nodes.append(RequestNode(f"far {link.name}", node=f"{far}@{border.name}", external=True))
        near = link.a if crossing.a_provider == name else link.b
        links.append(RequestLink(link.name, near, nodes[-1].name, link.bandwidth_bps))
    return Request(tuple(nodes), tuple(links))


def _join(
    found: Split,
    halves: dict[str, dict[str, Path]],
    nodes: dict[str, str],
    domains: Domains,
    link: RequestLink,
) -> Path:
    crossing = found.crossings.get(link.name)
    if crossing is None:
        return halves[domains.provider[nodes[link.a]]][link.name]
    first, second = halves[crossing.a_provider][link.name], halves[crossing.b_provider][link.name]
    # Both end with the border's link, each at the other's side.
    return Path(
        (*first.nodes[:-1], *reversed(second.nodes[:-1])), (*first.links, *reversed(second.links[:-1]))
    )


def measure_hidden(instances: list[Instance], *, requests: int) -> dict[str, object]:
    report: dict[str, object] = {
        "setting": f"Waxman 100 nodes, four providers (quadrants), the first {requests} requests"
    }
    for name, rounds in (("full", 0), ("hidden", 1), ("hidden_four_rounds", 4)):
        outcomes = [_run(instance, rounds, requests) for instance in instances]
        report[name] = {
            "acceptance": mean(item.acceptance for item in outcomes),
            "revenue_to_cost": mean(item.revenue_to_cost for item in outcomes),
            "s_per_request": mean(mean(item.seconds) for item in outcomes),
        }
    return report


def _run(instance: Instance, rounds: int, requests: int) -> Outcome:
    domains = quadrants(instance)

    def embedder(substrate: Substrate, request: Request, number: int) -> Result:
        if rounds:
            return embed_hidden(domains, substrate, request, seed=number, rounds=rounds)
        return embed(substrate, request, revisitation=False, seed=number, time_limit=1.0)

    return simulate(instance, embedder, requests=requests)
