"""Where the other roles are, and connections to them."""

from __future__ import annotations

from collections.abc import Mapping

from serai.errors import UnavailableError
from serai.wire.identity import Identity
from serai.wire.rpc import Channel, connect
from serai.wire.tls import Credentials


class Directory:
    """One role's connections. `local` are the roles of this process, filled as they begin to serve."""

    def __init__(self, credentials: Credentials, local: Mapping[Identity, str]) -> None:
        self._credentials = credentials
        self._local = local
        self._given: dict[Identity, str] = {}
        self._channels: dict[Identity, Channel] = {}

    def add(self, identity: Identity, address: str) -> None:
        """Say where `identity` is; an empty address means in this process."""
        if address:
            self._given[identity] = address

    def channel(self, identity: Identity) -> Channel:
        """The connection to `identity`, which its certificate must name; UnavailableError if unknown."""
        if identity not in self._channels:
            address = self._given.get(identity) or self._local.get(identity)
            if address is None:
                raise UnavailableError(
                    f"nobody said where {identity} is",
                    hint="give its address in the settings of this controller",
                )
            self._channels[identity] = connect(address, self._credentials, identity)
        return self._channels[identity]

    async def close(self) -> None:
        """Disconnect from all."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()
