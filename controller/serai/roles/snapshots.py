"""Snapshots of nodes, the same at every role: the request goes down under the name that is known below, the
answer comes up under the one that is known here.
"""

from __future__ import annotations

from serai.v1.guest_pb2 import ListNodeSnapshotsResponse, Snapshot

SNAPSHOT_SECONDS = 120.0
"""For an agent to write one; each role further up allows `MARGIN_SECONDS` more."""

MARGIN_SECONDS = 10.0


def renamed(snapshot: Snapshot, node: str) -> Snapshot:
    """The snapshot as of `node`."""
    snapshot.guest = node
    return snapshot


def all_renamed(response: ListNodeSnapshotsResponse, node: str) -> ListNodeSnapshotsResponse:
    """All of them as of `node`."""
    for snapshot in response.snapshots:
        renamed(snapshot, node)
    return response
