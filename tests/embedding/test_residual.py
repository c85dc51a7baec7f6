"""The books: never over capacity, all or nothing, and back to exactly where it was."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from serai.embedding import (
    Mapping,
    Path,
    Request,
    RequestLink,
    RequestNode,
    Residual,
    Substrate,
    SubstrateLink,
    SubstrateNode,
    check,
    embed,
)
from serai.errors import CapacityError, StateError

from .strategies import requests, substrates


class Books(RuleBasedStateMachine):
    """Requests come and go on one substrate; what is free is always the whole less what is reserved."""

    reserved = Bundle("reserved")

    @initialize(substrate=substrates())
    def begin(self, substrate: Substrate) -> None:
        self.substrate = substrate
        self.residual = Residual(substrate)
        self.held: list[tuple[Request, Mapping]] = []

    @rule(target=reserved, data=st.data())
    def arrive(self, data: st.DataObject) -> object:
        request = data.draw(requests(self.substrate))
        free = self.residual.as_substrate()
        result = embed(free, request)
        if not isinstance(result, Mapping):
            return multiple()
        assert check(free, request, result) == ()
        self.residual.reserve(request, result)
        self.held.append((request, result))
        return (request, result)

    @rule(entry=consumes(reserved))
    def depart(self, entry: tuple[Request, Mapping]) -> None:
        self.residual.release(*entry)
        self.held.remove(entry)

    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        """A request that asks for one vCPU more than there is leaves no trace."""
        place = data.draw(st.sampled_from([node.name for node in self.substrate.nodes]))
        before = self._free()
        request = Request(
            (RequestNode("fits"), RequestNode("big", self.residual.vcpus[place] + 1)),
            (RequestLink("l", "fits", "big", 0),),
        )
        with pytest.raises(CapacityError):
            self.residual.reserve(request, Mapping({"fits": place, "big": place}, {"l": Path((place,))}))
        assert self._free() == before

    @invariant()
    def books_are_right(self) -> None:
        vcpus = {node.name: node.vcpus for node in self.substrate.nodes}
        memory = {node.name: node.memory_bytes for node in self.substrate.nodes}
        bandwidth = {link.name: link.capacity_bps for link in self.substrate.links}
        for request, mapping in self.held:
            for node in request.nodes:
                vcpus[mapping.nodes[node.name]] -= node.vcpus
                memory[mapping.nodes[node.name]] -= node.memory_bytes
            for link in request.links:
                for name in mapping.paths[link.name].links:
                    bandwidth[name] -= link.bandwidth_bps
        assert self._free() == (vcpus, memory, bandwidth)
        assert min([*vcpus.values(), *memory.values(), *bandwidth.values()]) >= 0

    def _free(self) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
        return dict(self.residual.vcpus), dict(self.residual.memory_bytes), dict(self.residual.bandwidth_bps)


TestBooks = Books.TestCase
TestBooks.settings = settings(
    max_examples=60, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

PAIR = Substrate((SubstrateNode("s", 2, 2), SubstrateNode("t", 2, 2)), (SubstrateLink("st", "s", "t", 10),))
REQUEST = Request((RequestNode("a", 1, 1), RequestNode("b", 1, 1)), (RequestLink("l", "a", "b", 6),))
MAPPING = Mapping({"a": "s", "b": "t"}, {"l": Path(("s", "t"), ("st",))})


def test_a_link_that_is_full_undoes_the_nodes() -> None:
    residual = Residual(PAIR)
    residual.reserve(REQUEST, MAPPING)
    with pytest.raises(CapacityError, match="'st'"):
        residual.reserve(REQUEST, MAPPING)
    assert (residual.vcpus, residual.bandwidth_bps) == ({"s": 1, "t": 1}, {"st": 4})


@pytest.mark.parametrize("demand", [(1, 0, 0), (0, 1, 0), (0, 0, 1)], ids=["vcpus", "memory", "bandwidth"])
def test_releasing_twice_is_refused(demand: tuple[int, int, int]) -> None:
    vcpus, memory, bandwidth = demand
    nodes = (RequestNode("a", vcpus, memory), RequestNode("b", vcpus, memory))
    request = Request(nodes, (RequestLink("l", "a", "b", bandwidth),))
    residual = Residual(PAIR)
    residual.reserve(request, MAPPING)
    residual.release(request, MAPPING)
    with pytest.raises(StateError):
        residual.release(request, MAPPING)
    assert residual.as_substrate() == PAIR


@given(st.integers(1, 4))
def test_a_walk_that_uses_a_link_twice_takes_it_twice(bandwidth: int) -> None:
    residual = Residual(PAIR)
    residual.take_path(Path(("s", "t", "s"), ("st", "st")), bandwidth)
    assert residual.bandwidth_bps["st"] == 10 - 2 * bandwidth
