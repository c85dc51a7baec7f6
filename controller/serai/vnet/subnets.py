"""Which interface of a node reaches an address directly."""

from __future__ import annotations

from dataclasses import dataclass

from serai.vnet.model import Interface
from serai.vnet.values import Gateway, Network


@dataclass(frozen=True, slots=True)
class Subnet:
    """A subnet that a node is connected to. Numbers, because comparing them is much faster than `in`."""

    version: int
    first: int
    last: int
    network: Network
    interface: str


def subnets_of(interfaces: dict[str, Interface]) -> tuple[Subnet, ...]:
    """The connected subnets, each once per interface, the most specific first."""
    found = {
        (name, address.network): Subnet(
            address.version,
            int(address.network.network_address),
            int(address.network.broadcast_address),
            address.network,
            name,
        )
        for name, interface in interfaces.items()
        for address in interface.addresses
    }
    return tuple(sorted(found.values(), key=lambda subnet: -subnet.network.prefixlen))


def connected_interface(subnets: tuple[Subnet, ...], address: Gateway) -> str:
    """The interface with the most specific subnet that holds `address`; empty where there is none."""
    version, number = address.version, int(address)
    for subnet in subnets:
        if subnet.version == version and subnet.first <= number <= subnet.last:
            return subnet.interface
    return ""
