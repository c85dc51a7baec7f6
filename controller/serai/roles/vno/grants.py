"""Credentials with which end users attach to a VNet: granted, checked, revoked, and over in time.

A token is ``OPERATOR.GRANT.SECRET``. Of the secret, 256 random bits, only the SHA-256 digest is kept, so what
is stored does not attach anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import secrets
import time
from collections.abc import AsyncGenerator, Iterable
from typing import TypeVar

from serai import vnet
from serai.errors import ForbiddenError, InvalidInputError, NotFoundError, SeraiError
from serai.roles.names import unique_label
from serai.roles.vno.records import GrantRecord, VnetRecord
from serai.store import Collection
from serai.v1.operator_pb2 import AttachmentGrant

DEFAULT_LIFETIME_S = 24 * 3600.0
MAX_LIFETIME_S = 30 * 24 * 3600.0

T = TypeVar("T")


class Grants:
    """The credentials of one operator."""

    def __init__(self, operator: str, records: Collection[GrantRecord]) -> None:
        self._operator = operator
        self.records = records

    async def create(
        self, record: VnetRecord, compiled: vnet.Topology, node: str, interface: str, lifetime_s: float
    ) -> tuple[GrantRecord, str]:
        """A grant and its token, which is told only now."""
        if not 0 <= lifetime_s <= MAX_LIFETIME_S:
            raise InvalidInputError(
                f"a credential cannot live {lifetime_s:g} s", hint=f"at most {MAX_LIFETIME_S:.0f} s"
            )
        there = _find_interface(compiled, node, interface)
        taken = [grant.address for grant in self.records if grant.vnet == record.name]
        address, gateway = free_address(compiled, there, taken)
        identifier, secret = unique_label(node), secrets.token_urlsafe(32)
        grant = GrantRecord(
            name=f"grants/{identifier}",
            owner=record.owner,
            vnet=record.name,
            node=node,
            interface=there.name,
            mac=vnet.derive_mac(compiled.name, identifier, secrets.token_hex(8)).hex(),
            address=address,
            gateway=gateway,
            digest=_digest(secret),
            expire_time=time.time() + (lifetime_s or DEFAULT_LIFETIME_S),
        )
        return await self.records.create(grant), f"{self._operator}.{identifier}.{secret}"

    def check(self, token: str) -> GrantRecord:
        """The grant of a token that holds now. ForbiddenError says no more than that it does not."""
        operator, _, rest = token.partition(".")
        identifier, _, secret = rest.partition(".")
        grant = self.records.find(f"grants/{identifier}")
        # Compared also when there is none, so that the time it takes tells nothing.
        right = hmac.compare_digest(grant.digest if grant is not None else _digest(""), _digest(secret))
        if grant is None or not right or operator != self._operator or grant.expire_time <= time.time():
            raise ForbiddenError(
                "this credential is unknown, revoked or has expired",
                hint="ask whoever granted it for a new one",
                reason="CREDENTIAL_REFUSED",
            )
        return grant

    async def while_valid(self, grant: GrantRecord, stream: AsyncGenerator[T]) -> AsyncGenerator[T]:
        """What `stream` gives until the grant is over; then ForbiddenError."""
        over = asyncio.create_task(self._over(grant))
        try:
            async with contextlib.aclosing(stream):
                while True:
                    item = asyncio.ensure_future(anext(stream, None))
                    try:
                        await asyncio.wait({item, over}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        if not item.done():
                            item.cancel()
                            await asyncio.gather(item, return_exceptions=True)
                    if over.done():
                        raise ForbiddenError(
                            "the credential is over", hint="ask for a new one", reason="CREDENTIAL_REFUSED"
                        )
                    result = item.result()
                    if result is None:
                        return
                    yield result
        finally:
            over.cancel()
            await asyncio.gather(over, return_exceptions=True)

    async def _over(self, grant: GrantRecord) -> None:
        with self.records.watch() as watcher:
            while grant.name in self.records and (left := grant.expire_time - time.time()) > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await watcher.changes()

    async def sweep(self, vnets: Collection[VnetRecord]) -> None:
        """Forget grants that are over, and those of VNets that are gone."""
        for grant in self.records:
            if grant.expire_time <= time.time() or grant.vnet not in vnets:
                with contextlib.suppress(SeraiError):
                    await self.records.delete(grant.name)


def view_grant(grant: GrantRecord, token: str = "") -> AttachmentGrant:
    """The grant as its owner sees it."""
    view = AttachmentGrant(
        name=grant.name,
        node=f"{grant.vnet}/nodes/{grant.node}",
        interface=grant.interface,
        mac=bytes.fromhex(grant.mac),
        address=grant.address,
        gateway=grant.gateway,
        token=token,
    )
    view.expire_time.FromNanoseconds(int(grant.expire_time * 1e9))
    return view


def free_address(
    compiled: vnet.Topology, there: vnet.VirtualInterface, taken: Iterable[str]
) -> tuple[str, str]:
    """The highest address of the interface's IPv4 subnet that nobody has, and the interface's own.

    Both are empty where there is no such subnet, the former also where it is full.
    """
    own = next((item for item in there.addresses if item.version == 4), None)
    if own is None:
        return "", ""
    used = {item.ip for node in compiled.nodes for port in node.interfaces for item in port.addresses}
    used |= {ipaddress.ip_interface(item).ip for item in taken if item}
    network = ipaddress.ip_network(str(own.network))
    for number in range(network.num_addresses - 2, 0, -1):
        address = network[number]
        if address not in used:
            return f"{address}/{network.prefixlen}", str(own.ip)
    return "", str(own.ip)


def _find_interface(compiled: vnet.Topology, node: str, interface: str) -> vnet.VirtualInterface:
    for item in compiled.nodes:
        if item.name == node:
            for port in item.interfaces:
                if interface in ("", port.name):
                    return port
            known = ", ".join(port.name for port in item.interfaces) or "none"
            raise NotFoundError(
                f"node {node!r} has no interface {interface!r}", hint=f"it has {known}", resource=interface
            )
    raise NotFoundError(f"there is no node {node!r}", hint="list the nodes", resource=node)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
