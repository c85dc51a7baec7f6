"""Who may call what at an agent. A method that is not in the table is refused to everybody."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FileDescriptor

from serai.errors import ForbiddenError
from serai.v1 import attachment_pb2, guest_pb2, link_pb2, migration_pb2, node_pb2
from serai.wire.identity import Role
from serai.wire.rpc import caller

OWNER_ROLES = frozenset({Role.PIP, Role.ADMIN})
"""The node's own provider, and whoever administers the installation."""

PEER_ROLES = frozenset({Role.AGENT})
"""Other nodes."""

_SERVICES: dict[str, tuple[FileDescriptor, frozenset[Role]]] = {
    "NodeService": (node_pb2.DESCRIPTOR, OWNER_ROLES),
    "GuestService": (guest_pb2.DESCRIPTOR, OWNER_ROLES),
    "SegmentService": (link_pb2.DESCRIPTOR, OWNER_ROLES),
    "AttachmentService": (attachment_pb2.DESCRIPTOR, OWNER_ROLES),
    "MigrationService": (migration_pb2.DESCRIPTOR, OWNER_ROLES),
    "MigrationPeerService": (migration_pb2.DESCRIPTOR, PEER_ROLES),
    "ChannelService": (migration_pb2.DESCRIPTOR, PEER_ROLES),
}


def access_table(*names: str) -> dict[str, frozenset[Role]]:
    """``/serai.v1.GuestService/CreateGuest`` -> roles, for each method of `names` (all services if none)."""
    return {
        f"/{service.full_name}/{method.name}": roles
        for name, (file, roles) in _SERVICES.items()
        if not names or name in names
        for service in [file.services_by_name[name]]
        for method in service.methods
    }


class ProviderScope:
    """A servicer that refuses providers other than the node's own."""

    def __init__(self, servicer: object, provider: str) -> None:
        self._servicer = servicer
        self._provider = provider

    def __getattr__(self, method: str) -> Callable[[Any, Any], Any]:
        behaviour = getattr(self._servicer, method)

        @functools.wraps(behaviour)
        def scoped(request: Any, context: Any) -> Any:
            self._check(context, method)
            return behaviour(request, context)

        return scoped

    def _check(self, context: Any, method: str) -> None:
        identity = caller(context)
        if identity.role is Role.PIP and identity.owner != self._provider:
            raise ForbiddenError(
                f"{identity} may not call {method}: the node belongs to the provider {self._provider}",
                hint="ask that provider",
                reason="OTHER_PROVIDER",
                caller=identity,
            )
