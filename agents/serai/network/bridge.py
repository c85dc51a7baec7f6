"""A learning bridge (IEEE 802.1D, 7.8 and 7.9): the hub of a virtual link with more than two ends. Pure.

Its ports are attachment points of the switch, each the end of one arm of the link. The arms form a star, so
there are no loops and no spanning tree protocol is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

AGEING_SECONDS = 300.0
"""How long an address is remembered after it was last heard (the standard's default)."""
MAX_ADDRESSES = 8192
_MAC_BYTES = 6


class Bridge:
    """Ports by name. Times are seconds on any monotonic clock."""

    def __init__(self) -> None:
        self.ports: set[str] = set()
        self._learned: dict[bytes, tuple[str, float]] = {}

    def add(self, port: str) -> None:
        """A port; no error if it is there."""
        self.ports.add(port)

    def remove(self, port: str) -> None:
        """Forget a port and what was learned from it."""
        self.ports.discard(port)
        self._learned = {mac: entry for mac, entry in self._learned.items() if entry[0] != port}

    def forward(self, port: str, frames: Sequence[bytes], now: float) -> dict[str, list[bytes]]:
        """Frames arrive at `port`; which of them leave over which other ports, in order."""
        out: dict[str, list[bytes]] = {}
        for frame in frames:
            self._learn(frame[_MAC_BYTES : 2 * _MAC_BYTES], port, now)
            for destination in self._destinations(frame, port, now):
                out.setdefault(destination, []).append(frame)
        return out

    def _destinations(self, frame: bytes, port: str, now: float) -> Sequence[str]:
        if not frame[0] & 1:
            known = self._learned.get(frame[:_MAC_BYTES])
            if known is not None and known[1] > now:
                return () if known[0] == port else (known[0],)
        return sorted(self.ports - {port})

    def _learn(self, source: bytes, port: str, now: float) -> None:
        if source[0] & 1:
            return
        if source not in self._learned and len(self._learned) >= MAX_ADDRESSES:
            self._learned = {mac: entry for mac, entry in self._learned.items() if entry[1] > now}
            if len(self._learned) >= MAX_ADDRESSES:
                # Unknown addresses are flooded: correct, if not frugal.
                return
        self._learned[bytes(source)] = (port, now + AGEING_SECONDS)
