"""Four real guests of two providers on one Ethernet segment."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.demo.test_attach import cluster, say

pytestmark = pytest.mark.guest

PLACES = {"a": "alpha", "b": "alpha", "c": "beta", "d": "beta"}


def document(name: str, startups: dict[str, str]) -> str:
    """Guests 10.7.0.1 to 10.7.0.4 on one segment; each answers broadcasts."""
    nodes = "".join(
        f'<node name="{node}" provider="{place}"><interface address="10.7.0.{number}/24"/>'
        f'<sysctl name="net.ipv4.icmp_echo_ignore_broadcasts" value="0"/>'
        f"<startup>{startups.get(node, '')}</startup></node>"
        for number, (node, place) in enumerate(PLACES.items(), start=1)
        if node in startups
    )
    ends = "".join(f'<end node="{node}"/>' for node in startups)
    return f'<vnet xmlns="urn:serai:vnet:1" name="{name}">{nodes}<link name="lan">{ends}</link></vnet>'


def reaches(number: int) -> str:
    """A script that fails unless 10.7.0.`number` answers within a minute."""
    return f"i=0; until ping -c 1 -W 2 10.7.0.{number}; do i=$((i+1)); [ $i -lt 30 ] || exit 1; done\n"


def test_all_reach_all_and_no_other_vnet(tmp_path: Path) -> None:
    """A start-up script that fails is a node that fails: `request` and `apply` tell."""
    everybody = "\n" + "".join(map(reaches, (1, 2, 3, 4)))
    # One question to all, answered by the three others: ping counts their answers as duplicates.
    to_all = everybody + "ping -c 3 -W 3 10.7.0.255 | tee /dev/console | grep -q DUP\n"
    alone = "\n! ping -c 3 -W 2 10.7.0.4\n"
    four = tmp_path / "four.xml"
    four.write_text(document("four", {"a": to_all, "b": everybody, "c": everybody, "d": everybody}))
    three = tmp_path / "three.xml"
    three.write_text(document("three", {"a": alone, "b": alone, "c": alone}))
    with cluster(tmp_path / "state") as environment:
        say(environment, "vnet", "request", "-f", str(four))
        # The same addresses in another VNet: nobody there has 10.7.0.4.
        say(environment, "vnet", "request", "-f", str(three))
        say(environment, "vm", "migrate", "four/d", "--to", "alpha")
        listed = say(environment, "vm", "list")
        assert "alpha/" in next(line for line in listed.splitlines() if line.startswith("four/d"))
        say(environment, "vnet", "delete", "three")
        say(environment, "vnet", "delete", "four")
