"""Admission control: what the node has promised, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass

from serai.errors import CapacityError


@dataclass(frozen=True, slots=True)
class Demand:
    """What one guest is promised."""

    vcpus: int
    memory_bytes: int


class Capacity:
    """Promises by key (a guest's uid); the sum never exceeds the total."""

    def __init__(self, node: str, total: Demand) -> None:
        self._node = node
        self.total = total
        self._promises: dict[str, Demand] = {}

    @property
    def allocated(self) -> Demand:
        """The sum of the promises."""
        promises = self._promises.values()
        return Demand(sum(p.vcpus for p in promises), sum(p.memory_bytes for p in promises))

    def reserve(self, key: str, demand: Demand) -> None:
        """Promise `demand`; one key twice counts once. CapacityError names what is short, asked and left."""
        if key in self._promises:
            return
        used = self.allocated
        self._check("vCPUs", demand.vcpus, self.total.vcpus - used.vcpus)
        self._check("bytes of memory", demand.memory_bytes, self.total.memory_bytes - used.memory_bytes)
        self._promises[key] = demand

    def change(self, key: str, demand: Demand) -> None:
        """Promise more or less than before; CapacityError names what is short, and nothing has changed."""
        old = self._promises.get(key, Demand(0, 0))
        used = self.allocated
        for resource, more, left in (
            ("vCPUs", demand.vcpus - old.vcpus, self.total.vcpus - used.vcpus),
            (
                "bytes of memory",
                demand.memory_bytes - old.memory_bytes,
                self.total.memory_bytes - used.memory_bytes,
            ),
        ):
            if more > 0:
                self._check(resource, more, left)
        self._promises[key] = demand

    def release(self, key: str) -> None:
        """Take the promise back; nothing happens when there is none."""
        self._promises.pop(key, None)

    def _check(self, resource: str, asked: int, left: int) -> None:
        if asked > left:
            raise CapacityError(
                f"node {self._node} is short of {resource}: {asked} asked, {left} left",
                hint="choose another node, ask for less, or end a guest there",
                node=self._node,
                resource=resource,
                asked=asked,
                left=left,
            )
