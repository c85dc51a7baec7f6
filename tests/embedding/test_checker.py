"""The checker finds every kind of violation, each on a mapping that is right but for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serai.embedding import (
    Mapping,
    Path,
    Request,
    RequestLink,
    RequestNode,
    Substrate,
    SubstrateLink,
    SubstrateNode,
    check,
)

SUBSTRATE = Substrate(
    (
        SubstrateNode("x", 2, 2, location="north", images=frozenset({"debian"})),
        SubstrateNode("y", 2, 2),
        SubstrateNode("z", 2, 2, location="south"),
        SubstrateNode("closed", 9, 9, schedulable=False, transit=False),
    ),
    (
        SubstrateLink("xy", "x", "y", 10, 2),
        SubstrateLink("yz", "y", "z", 10, 2),
        SubstrateLink("xc", "x", "closed", 10, 0),
        SubstrateLink("cz", "closed", "z", 10, 0),
    ),
)
A = RequestNode("a", 1, 1, image="debian", location="north")
B = RequestNode("b", 1, 1, node="z")
LINK = RequestLink("l", "a", "b", 10, 4)
REQUEST = Request((A, B), (LINK,))
NODES = {"a": "x", "b": "z"}
PATH = Path(("x", "y", "z"), ("xy", "yz"))


def test_a_right_mapping_passes() -> None:
    assert check(SUBSTRATE, REQUEST, Mapping(NODES, {"l": PATH})) == ()


WRONG = {
    "no place": (Mapping({"a": "x"}, {"l": PATH}), "'b' has no place"),
    "no path": (Mapping(NODES, {}), "'l' has no path"),
    "unknown virtual node": (Mapping({**NODES, "c": "x"}, {"l": PATH}), "'c' is no virtual node"),
    "unknown virtual link": (Mapping(NODES, {"l": PATH, "m": PATH}), "'m' is no virtual link"),
    "unknown place": (Mapping({"a": "w", "b": "z"}, {"l": PATH}), "'w', which does not exist"),
    "not where fixed": (Mapping({"a": "x", "b": "y"}, {"l": Path(("x", "y"), ("xy",))}), "fixed to 'z'"),
    "wrong location": (Mapping({"a": "z", "b": "z"}, {"l": Path(("z",))}), "must be at 'north'"),
    "unschedulable": (
        Mapping({"a": "closed", "b": "z"}, {"l": Path(("closed", "z"), ("cz",))}),
        "takes no guests",
    ),
    "broken path": (Mapping(NODES, {"l": Path(("x", "z"), ("xy",))}), "'xy' does not join 'x' and 'z'"),
    "unknown link": (Mapping(NODES, {"l": Path(("x", "z"), ("xz",))}), "'xz' does not join"),
    "miscounted": (Mapping(NODES, {"l": Path(("x", "y", "z"), ("xy",))}), "3 nodes and 1 links"),
    "empty path": (Mapping(NODES, {"l": Path(())}), "0 nodes and 0 links"),
    "wrong end": (Mapping(NODES, {"l": Path(("x", "y"), ("xy",))}), "joins 'x' and 'y'"),
    "backwards": (Mapping(NODES, {"l": Path(("z", "y", "x"), ("yz", "xy"))}), "joins 'z' and 'x'"),
    "no transit": (Mapping(NODES, {"l": Path(("x", "closed", "z"), ("xc", "cz"))}), "lets nothing through"),
    "twice": (
        Mapping(NODES, {"l": Path(("x", "y", "x", "y", "z"), ("xy", "xy", "xy", "yz"))}),
        "30 are used",
    ),
}


@pytest.mark.parametrize(("mapping", "message"), WRONG.values(), ids=WRONG)
def test_wrong_mappings_are_found(mapping: Mapping, message: str) -> None:
    assert any(message in violation for violation in check(SUBSTRATE, REQUEST, mapping))


def test_each_limit() -> None:
    def violations(request: Request, nodes: dict[str, str] = NODES, *, revisitation: bool = True) -> str:
        return "; ".join(check(SUBSTRATE, request, Mapping(nodes, {"l": PATH}), revisitation=revisitation))

    assert "2 vCPUs, 3 are used" in violations(Request((replace(A, vcpus=3), B), (LINK,)))
    assert "2 bytes of memory, 3 are used" in violations(Request((replace(A, memory_bytes=3), B), (LINK,)))
    assert "needs the image 'plan9'" in violations(Request((replace(A, image="plan9"), B), (LINK,)))
    assert "10 bit/s, 11 are used" in violations(Request((A, B), (replace(LINK, bandwidth_bps=11),)))
    assert "4 ns, 3 ns are allowed" in violations(Request((A, B), (replace(LINK, max_delay_ns=3),)))
    three = Request((A, B, RequestNode("c")), (LINK,))
    together = {**NODES, "c": "x"}
    assert violations(three, together) == ""
    assert "holds 2 virtual nodes" in violations(three, together, revisitation=False)
    outside = Request((A, B, RequestNode("c", node="x", external=True)), (LINK,))
    assert violations(outside, together, revisitation=False) == ""
