"""Who may call what: one table for each role's server. What is not in it is refused."""

from __future__ import annotations

from serai.wire.identity import Role
from serai.wire.rpc import AccessTable


def _methods(service: str, names: str, *roles: Role) -> dict[str, frozenset[Role]]:
    return {f"/serai.v1.{service}/{name}": frozenset(roles) for name in names.split()}


_OPERATIONS = "GetOperation ListOperations WatchOperation CancelOperation"
_CONSOLES = "OpenConsole CaptureNodeFrames"

PIP_ACCESS: AccessTable = {
    **_methods("AttachmentService", "Attach", Role.USER, Role.SP, Role.VNP, Role.ADMIN),
    **_methods(
        "InfrastructureService",
        "GetAdvertisement AllocateSlice ProvisionSlice UpdateSlice GetSlice ListSlices WatchSlices"
        " ReleaseSlice StartSliceNode StopSliceNode GetSliceNodeStatistics TraceSliceNode"
        " SnapshotSliceNode ListSliceNodeSnapshots DeleteSliceNodeSnapshot RestoreSliceNode"
        " RelocateSliceNode DepartSliceNode ResizeSliceNode",
        Role.VNP,
        Role.ADMIN,
    ),
    **_methods("InfrastructureService", "ListNodes", Role.ADMIN),
    **_methods("PeeringService", "ConnectLink DisconnectLink AcceptGuest", Role.PIP),
    **_methods("ConsoleService", _CONSOLES, Role.VNP, Role.ADMIN),
    **_methods("OperationService", _OPERATIONS, Role.VNP, Role.ADMIN),
}

VNP_ACCESS: AccessTable = {
    **_methods("AttachmentService", "Attach", Role.VNO, Role.ADMIN),
    **_methods(
        "ProviderService",
        "CreateNetwork GetNetwork ListNetworks WatchNetworks DeleteNetwork StartNetworkNode StopNetworkNode"
        " DeleteNetworkNode GetNetworkNodeStatistics TraceNetworkNode MigrateNetworkNode"
        " SnapshotNetworkNode ListNetworkNodeSnapshots DeleteNetworkNodeSnapshot RestoreNetworkNode"
        " UpdateNetwork ResizeNetworkNode",
        Role.VNO,
        Role.ADMIN,
    ),
    **_methods("ConsoleService", _CONSOLES, Role.VNO, Role.ADMIN),
    **_methods("OperationService", _OPERATIONS, Role.VNO, Role.ADMIN),
}

VNO_ACCESS: AccessTable = {
    **_methods("AttachmentService", "Attach", Role.PIP, Role.ADMIN),
    **_methods(
        "OperatorService",
        "ValidateDescription CreateVnet GetVnet ListVnets WatchVnets DeleteVnet GetVnetNode StartVnetNode"
        " StopVnetNode DeleteVnetNode GetVnetNodeStatistics TraceVnetNode MigrateVnetNode"
        " SnapshotVnetNode ListVnetNodeSnapshots DeleteVnetNodeSnapshot RestoreVnetNode"
        " DiffVnet UpdateVnet ResizeVnetNode"
        " GrantAttachment ListAttachmentGrants RevokeAttachmentGrant",
        Role.SP,
        Role.ADMIN,
    ),
    **_methods("ConsoleService", _CONSOLES, Role.SP, Role.ADMIN),
    **_methods("OperationService", _OPERATIONS, Role.SP, Role.ADMIN),
}
