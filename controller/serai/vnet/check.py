"""What the words of a description must mean together: names, links, interfaces, addresses, routes, files.

Works on the model, so descriptions made by a program are checked like those read from XML. Every rule is a
function from the whole to findings; none stops at the first.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from serai.vnet.check_addresses import check_links, check_routes, check_vnet_addresses
from serai.vnet.diagnostics import Finding, Location, Severity, did_you_mean
from serai.vnet.interfaces import MAX_INTERFACES, Interfaces, assign_interfaces, interface_index
from serai.vnet.model import File, Node, VnetDescription
from serai.vnet.values import format_mac


@dataclass(frozen=True)
class _Whole:
    description: VnetDescription
    interfaces: Interfaces
    known_nodes: Collection[str]
    incomplete: Collection[str]


def check(
    description: VnetDescription, *, known_nodes: Collection[str] = (), incomplete: Collection[str] = ()
) -> tuple[Finding, ...]:
    """All findings. `known_nodes` are names that exist although the node itself could not be read;
    `incomplete` names nodes of which a part could not be read, so that nothing is concluded from what they
    lack.
    """
    whole = _Whole(description, assign_interfaces(description), known_nodes, incomplete)
    found: list[Finding] = []
    found += _names(whole)
    found += _ends(whole)
    found += _node_interfaces(whole)
    found += _macs(whole)
    found += check_links(description, whole.interfaces)
    found += check_vnet_addresses(description, whole.interfaces)
    for index, node in enumerate(description.nodes):
        found += _files(index, node)
        found += _sysctls(index, node)
        if node.name not in incomplete:
            found += check_routes(index, node, whole.interfaces.of_node[node.name])
    return tuple(found)


def _error(location: Location, message: str, hint: str = "") -> Finding:
    return Finding(Severity.ERROR, location, message, hint)


def _names(whole: _Whole) -> Iterator[Finding]:
    nodes = [node.name for node in whole.description.nodes]
    links = [link.name for link in whole.description.links]
    for kind, names in (("node", nodes), ("link", links)):
        for index, first, name in _repeated(names):
            place: Location = (f"{kind}s", index, "name")
            yield _error(place, f"two {kind}s are called {name!r}", f"the other is {kind}[{first + 1}]")


def _repeated(items: Iterable[str | None]) -> Iterator[tuple[int, int, str]]:
    """(index, index of the first, item) for every item that came before."""
    first: dict[str, int] = {}
    for index, item in enumerate(items):
        if item is None:
            continue
        if item in first:
            yield index, first[item], item
        else:
            first[item] = index


def _ends(whole: _Whole) -> Iterator[Finding]:
    names = {node.name for node in whole.description.nodes}
    used: dict[tuple[str, str], int] = {}
    for link_index, link in enumerate(whole.description.links):
        if len(link.ends) < 2:
            yield _error(
                ("links", link_index), f"a link has two ends or more, not {len(link.ends)}", "add an <end>"
            )
        at = [end.node for end in link.ends]
        for node in sorted({node for node in at if at.count(node) > 1}):
            both = "both" if len(at) == 2 else "several"
            yield _error(("links", link_index), f"{both} ends of the link are at node {node!r}")
        for end_index, end in enumerate(link.ends):
            place: Location = ("links", link_index, "ends", end_index)
            if end.node not in names and end.node not in whole.known_nodes:
                yield _error(
                    (*place, "node"), f"there is no node {end.node!r}", did_you_mean(end.node, names)
                )
            elif end.interface is not None and end.node in names:
                key = (end.node, end.interface)
                if key in used:
                    yield _error(
                        (*place, "interface"),
                        f"the interface {end.interface} of node {end.node!r} is used twice",
                        f"link[{used[key] + 1}] has it already; leave it out to take the next free one",
                    )
                used.setdefault(key, link_index)


def _node_interfaces(whole: _Whole) -> Iterator[Finding]:
    linked: dict[str, set[str]] = defaultdict(set)
    for (link_index, end_index), interface in whole.interfaces.of_end.items():
        linked[whole.description.links[link_index].ends[end_index].node].add(interface)
    for index, node in enumerate(whole.description.nodes):
        for position, _, name in _repeated(interface.name for interface in node.interfaces):
            yield _error(("nodes", index, "interfaces", position, "name"), f"{name} is declared twice")
        if node.name in whole.incomplete:
            continue
        names = list(whole.interfaces.of_node[node.name])
        yield from _gaps(index, node, names)
        for position, declared in enumerate(node.interfaces):
            if declared.name is not None and declared.name not in linked[node.name]:
                yield Finding(
                    Severity.WARNING,
                    ("nodes", index, "interfaces", position),
                    f"no link uses the interface {declared.name} of node {node.name!r}",
                    'add a link with <end node="' + node.name + '"/>',
                )


def _gaps(index: int, node: Node, names: list[str]) -> Iterator[Finding]:
    if f"eth{MAX_INTERFACES}" in names:
        yield _error(("nodes", index), f"node {node.name!r} has more than {MAX_INTERFACES} interfaces")
        return
    missing = [f"eth{i}" for i in range(len(names)) if f"eth{i}" not in names]
    if missing:
        beyond = [name for name in names if interface_index(name) >= len(names)]
        yield _error(
            ("nodes", index),
            f"node {node.name!r} has {', '.join(beyond)} but no {missing[0]}",
            f"interfaces are numbered without gaps: did you mean {missing[0]!r}?",
        )


def _macs(whole: _Whole) -> Iterator[Finding]:
    first: dict[bytes, str] = {}
    for index, node in enumerate(whole.description.nodes):
        for position, interface in enumerate(node.interfaces):
            if interface.mac is None:
                continue
            if interface.mac in first:
                yield _error(
                    ("nodes", index, "interfaces", position, "mac"),
                    f"the MAC address {format_mac(interface.mac)} is used twice",
                    f"node {first[interface.mac]!r} has it already; leave it out to get one that is unique",
                )
            first.setdefault(interface.mac, node.name)


def _files(index: int, node: Node) -> Iterator[Finding]:
    for position, _, path in _repeated(file.path for file in node.files):
        yield _error(("nodes", index, "files", position, "path"), f"the file {path!r} is given twice")
    paths = {file.path for file in node.files}
    for position, file in enumerate(node.files):
        for parent in _parents(file):
            if parent in paths:
                place: Location = ("nodes", index, "files", position, "path")
                yield _error(place, f"{file.path!r} lies below {parent!r}, which is a file")


def _parents(file: File) -> Iterator[str]:
    path = file.path.rpartition("/")[0]
    while path:
        yield path
        path = path.rpartition("/")[0]


def _sysctls(index: int, node: Node) -> Iterator[Finding]:
    counts = Counter(sysctl.name for sysctl in node.sysctls)
    for position, sysctl in enumerate(node.sysctls):
        if counts[sysctl.name] > 1:
            yield _error(("nodes", index, "sysctls", position), f"the parameter {sysctl.name} is set twice")
            counts[sysctl.name] = 1
