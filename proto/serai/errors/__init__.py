"""The one exception tree of Serai, drawn here and nowhere else.

::

    SeraiError                      code                  default reason
    ├── InvalidInputError           INVALID_ARGUMENT      INVALID_INPUT
    │   └── DescriptionError        INVALID_ARGUMENT      DESCRIPTION_INVALID
    ├── NotFoundError               NOT_FOUND             NOT_FOUND
    ├── AlreadyExistsError          ALREADY_EXISTS        ALREADY_EXISTS
    ├── StateError                  FAILED_PRECONDITION   WRONG_STATE
    │   └── ImageError              FAILED_PRECONDITION   IMAGE_UNAVAILABLE
    ├── CapacityError               RESOURCE_EXHAUSTED    CAPACITY_SHORT
    ├── ForbiddenError              PERMISSION_DENIED     FORBIDDEN
    ├── UnauthenticatedError        UNAUTHENTICATED       UNAUTHENTICATED
    ├── UnavailableError            UNAVAILABLE           UNAVAILABLE
    ├── ConflictError               ABORTED               CONFLICT
    │   └── MigrationError          ABORTED               MIGRATION_FAILED
    ├── IntegrityError              DATA_LOSS             INTEGRITY
    ├── CancelledByUserError        CANCELLED             CANCELLED
    └── InternalError               INTERNAL              INTERNAL
        └── HypervisorError         INTERNAL              HYPERVISOR_FAILED

Errors carry data, not prose alone: `message` says what is wrong and where, `hint` the next step, `reason` is
for programs, `metadata` names the things. ``serai.wire`` maps them to ``google.rpc.Status`` with
``ErrorInfo`` and back, so what an agent raised is what its caller catches.
"""

from __future__ import annotations

from typing import ClassVar


class SeraiError(Exception):
    """Base of everything Serai raises on purpose.

    `reason` is UPPER_SNAKE and at most 63 characters (AIP-193); `metadata` maps names to strings.
    """

    code: ClassVar[str] = "UNKNOWN"
    default_reason: ClassVar[str] = "UNKNOWN"

    def __init__(self, message: str, *, hint: str = "", reason: str = "", **metadata: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.reason = reason or self.default_reason
        self.metadata = {key: str(value) for key, value in metadata.items()}

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidInputError(SeraiError):
    """A value that can never be right: a malformed name, a negative size."""

    code = "INVALID_ARGUMENT"
    default_reason = "INVALID_INPUT"


class DescriptionError(InvalidInputError):
    """A VNet description with errors; all of them are in the message, one a line, with line and path."""

    default_reason = "DESCRIPTION_INVALID"


class NotFoundError(SeraiError):
    """The named thing does not exist."""

    code = "NOT_FOUND"
    default_reason = "NOT_FOUND"


class AlreadyExistsError(SeraiError):
    """The name is taken."""

    code = "ALREADY_EXISTS"
    default_reason = "ALREADY_EXISTS"


class StateError(SeraiError):
    """Right in itself, but not in the state that things are in now."""

    code = "FAILED_PRECONDITION"
    default_reason = "WRONG_STATE"


class ImageError(StateError):
    """A guest image is missing, damaged, or cannot be built."""

    default_reason = "IMAGE_UNAVAILABLE"


class CapacityError(SeraiError):
    """Not enough of a resource; the message names it, what was asked and what is left."""

    code = "RESOURCE_EXHAUSTED"
    default_reason = "CAPACITY_SHORT"


class ForbiddenError(SeraiError):
    """The caller is known and may not do this."""

    code = "PERMISSION_DENIED"
    default_reason = "FORBIDDEN"


class UnauthenticatedError(SeraiError):
    """The caller did not prove who it is."""

    code = "UNAUTHENTICATED"
    default_reason = "UNAUTHENTICATED"


class UnavailableError(SeraiError):
    """The other side cannot be reached now; trying again may help."""

    code = "UNAVAILABLE"
    default_reason = "UNAVAILABLE"


class ConflictError(SeraiError):
    """Lost against something concurrent."""

    code = "ABORTED"
    default_reason = "CONFLICT"


class MigrationError(ConflictError):
    """A migration ended without hand-over; the guest goes on at the source."""

    default_reason = "MIGRATION_FAILED"


class IntegrityError(SeraiError):
    """Bytes that do not match their digest."""

    code = "DATA_LOSS"
    default_reason = "INTEGRITY"


class CancelledByUserError(SeraiError):
    """Stopped because somebody asked for it."""

    code = "CANCELLED"
    default_reason = "CANCELLED"


class InternalError(SeraiError):
    """A defect of Serai's, not of its input."""

    code = "INTERNAL"
    default_reason = "INTERNAL"


class HypervisorError(InternalError):
    """The hypervisor or a guest's process failed."""

    default_reason = "HYPERVISOR_FAILED"
