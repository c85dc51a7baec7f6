"""What tells two compiled VNets apart, and what each change costs the guests. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from serai.vnet.compile import Topology, VirtualInterface, VirtualLink, VirtualNode
from serai.vnet.guest import GuestFile
from serai.vnet.values import format_mac

T = TypeVar("T", VirtualNode, VirtualLink)


class Action(enum.StrEnum):
    """What becomes of an element."""

    ADD = "add"
    REMOVE = "remove"
    CHANGE = "change"


class Effect(enum.StrEnum):
    """What a change does to what runs, from nothing to the most."""

    NONE = "none"
    """Nothing that runs is touched."""
    RELINK = "relink"
    """The virtual link is realised anew beside the old one; guests go on."""
    MOVE = "move"
    """The guest goes to another provider while it runs."""
    RESTART = "restart"
    """The guest is created anew: what it reads when it boots has changed."""


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `field`, `old` and `new` are of a changed element."""

    action: Action
    kind: str
    """``node`` or ``link``."""
    name: str
    field: str = ""
    old: str = ""
    new: str = ""
    effect: Effect = Effect.NONE

    def __str__(self) -> str:
        if self.action is not Action.CHANGE:
            return f"{self.action} {self.kind} {self.name}"
        return f"change {self.kind} {self.name}: {self.field} {self.old or '-'} -> {self.new or '-'}"


@dataclass(frozen=True, slots=True)
class Difference:
    """All changes, those of nodes first, each in the order of the description."""

    changes: tuple[Change, ...]

    def __bool__(self) -> bool:
        return bool(self.changes)

    def restarted(self) -> list[str]:
        """Nodes whose guests have to be created anew."""
        return self._nodes(Effect.RESTART)

    def moved(self) -> list[str]:
        """Nodes that have to go elsewhere and need no restart."""
        return [name for name in self._nodes(Effect.MOVE) if name not in self.restarted()]

    def _nodes(self, effect: Effect) -> list[str]:
        return list(dict.fromkeys(item.name for item in self.changes if item.effect is effect))


def diff(running: Topology, wanted: Topology) -> Difference:
    """What has to change for `running` to become `wanted`; empty when they mean the same."""
    old_nodes, new_nodes = _by_name(running.nodes), _by_name(wanted.nodes)
    old_links, new_links = _by_name(running.links), _by_name(wanted.links)
    changes = [*_additions("node", old_nodes, new_nodes), *_removals("node", old_nodes, new_nodes)]
    for name, node in new_nodes.items():
        if name in old_nodes:
            changes += _node_changes(old_nodes[name], node)
    changes += [*_additions("link", old_links, new_links), *_removals("link", old_links, new_links)]
    for name, link in new_links.items():
        if name in old_links:
            changes += _link_changes(old_links[name], link)
    return Difference(tuple(changes))


def _by_name(items: Iterable[T]) -> dict[str, T]:
    return {item.name: item for item in items}


def _additions(kind: str, old: Iterable[str], new: Iterable[str]) -> Iterator[Change]:
    known = set(old)
    return (Change(Action.ADD, kind, name) for name in new if name not in known)


def _removals(kind: str, old: Iterable[str], new: Iterable[str]) -> Iterator[Change]:
    kept = set(new)
    return (Change(Action.REMOVE, kind, name) for name in old if name not in kept)


def _node_changes(old: VirtualNode, new: VirtualNode) -> Iterator[Change]:
    def change(field: str, before: object, after: object, effect: Effect) -> Iterator[Change]:
        if before != after:
            yield Change(Action.CHANGE, "node", new.name, field, str(before), str(after), effect)

    yield from change("image", old.image, new.image, Effect.RESTART)
    yield from change("vcpus", old.vcpus, new.vcpus, Effect.RESTART)
    yield from change("memory", f"{old.memory_bytes}B", f"{new.memory_bytes}B", Effect.RESTART)
    # A constraint that falls away is met by every place, also by the present one.
    yield from change("provider", old.provider, new.provider, Effect.MOVE if new.provider else Effect.NONE)
    yield from change("location", old.location, new.location, Effect.RESTART if new.location else Effect.NONE)
    before, after = _interfaces(old.interfaces), _interfaces(new.interfaces)
    for name in dict.fromkeys([*before, *after]):
        yield from change(f"interface {name}", before.get(name, ""), after.get(name, ""), Effect.RESTART)
    files, wanted = _files(old.files), _files(new.files)
    for path in dict.fromkeys([*files, *wanted]):
        if files.get(path) != wanted.get(path):
            yield from change(
                f"file {path}",
                _describe(files.get(path)),
                _describe(wanted.get(path), other=True),
                Effect.RESTART,
            )


def _interfaces(interfaces: Iterable[VirtualInterface]) -> dict[str, str]:
    return {item.name: " ".join([format_mac(item.mac), *map(str, item.addresses)]) for item in interfaces}


def _files(files: Iterable[GuestFile]) -> dict[str, GuestFile]:
    return {file.path: file for file in files}


def _describe(file: GuestFile | None, *, other: bool = False) -> str:
    if file is None:
        return ""
    return f"{'other ' if other else ''}{len(file.content)} bytes, mode {file.mode:04o}"


def _link_changes(old: VirtualLink, new: VirtualLink) -> Iterator[Change]:
    def change(field: str, before: object, after: object) -> Iterator[Change]:
        if before != after:
            yield Change(Action.CHANGE, "link", new.name, field, str(before), str(after), Effect.RELINK)

    yield from change("bandwidth", f"{old.bandwidth_bps}bit/s", f"{new.bandwidth_bps}bit/s")
    yield from change("delay", _delay(old.max_delay_ns), _delay(new.max_delay_ns))
    yield from change("ends", _ends(old), _ends(new))


def _delay(nanoseconds: int) -> str:
    return f"{nanoseconds}ns" if nanoseconds else "any"


def _ends(link: VirtualLink) -> str:
    return " ".join(sorted(f"{end.node}.{end.interface}" for end in (link.a, link.b)))
