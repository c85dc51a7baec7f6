"""Errors on the wire: ``serai.errors`` <-> ``google.rpc.Status`` with ``ErrorInfo`` (AIP-193).

The only place that maps them. The class travels as metadata, so a caller catches what the other side raised;
a program in another language reads code and reason.
"""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from serai import errors
from serai.errors import SeraiError

DOMAIN = "serai"
DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata that carries the serialized Status (gRPC's convention, as in grpcio-status)."""

MAX_DETAILS_BYTES = 24 * 1024
"""Longest serialized Status; the metadata limit of the channel is twice that."""

_MAX_MESSAGE = 16 * 1024
_MAX_PLAIN_MESSAGE = 1024
_HINT, _CLASS = "hint", "exception"

_Metadata = tuple[tuple[str, str | bytes], ...]


def _all_classes(root: type[SeraiError]) -> Iterable[type[SeraiError]]:
    yield root
    for child in root.__subclasses__():
        yield from _all_classes(child)


_BY_NAME = {cls.__name__: cls for cls in _all_classes(SeraiError) if cls.__module__ == errors.__name__}
_BY_CODE: dict[str, type[SeraiError]] = {}
for _class in _BY_NAME.values():
    _BY_CODE.setdefault(_class.code, _class)

_FOREIGN_CODES: dict[grpc.StatusCode, type[SeraiError]] = {
    # Codes that gRPC itself or other programs give and that no class of ours carries.
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.UnavailableError,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidInputError,
    grpc.StatusCode.UNIMPLEMENTED: errors.InternalError,
    grpc.StatusCode.UNKNOWN: errors.InternalError,
}


def error_to_status(error: SeraiError) -> Status:
    """The Status that carries `error`; message and metadata are cut where they would not fit a trailer."""
    metadata = {_CLASS: type(error).__name__}
    if error.hint:
        metadata[_HINT] = error.hint[:_MAX_PLAIN_MESSAGE]
    for key, value in error.metadata.items():
        metadata.setdefault(key[:64], value[:_MAX_PLAIN_MESSAGE])
    status = Status(code=_code(error).value[0], message=_cut(error.message, _MAX_MESSAGE))
    detail = Any()
    detail.Pack(ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    status.details.append(detail)
    if status.ByteSize() > MAX_DETAILS_BYTES:
        del status.details[:]
        kept = {key: metadata[key] for key in (_CLASS, _HINT) if key in metadata}
        detail.Pack(ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=kept))
        status.details.append(detail)
    return status


def status_to_error(status: Status) -> SeraiError:
    """The error that `status` carries; codes without a class of ours become the nearest."""
    code = _status_code(status.code)
    info = ErrorInfo()
    for detail in status.details:
        if detail.Is(ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
            break
    metadata = dict(info.metadata)
    hint = metadata.pop(_HINT, "")
    named = _BY_NAME.get(metadata.pop(_CLASS, "")) if info.domain == DOMAIN else None
    fits = named is not None and named.code == code.name
    cls = named if named is not None and fits else _class_of(code)
    error = cls(status.message, hint=hint, reason=info.reason or _foreign_reason(code))
    error.metadata = metadata
    return error


def abort_arguments(error: SeraiError) -> tuple[grpc.StatusCode, str, _Metadata]:
    """Code, plain message and trailing metadata for ``context.abort``."""
    details = error_to_status(error).SerializeToString()
    return _code(error), _cut(error.message, _MAX_PLAIN_MESSAGE), ((DETAILS_KEY, details),)


def rpc_error_to_error(error: grpc.aio.AioRpcError, address: str) -> SeraiError:
    """What a failed call raises at the caller; `address` names the server in errors of the transport."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            return status_to_error(Status.FromString(value))
    return _transport_error(error.code(), error.details() or "", address)


def _transport_error(code: grpc.StatusCode, details: str, address: str) -> SeraiError:
    if code is grpc.StatusCode.UNAVAILABLE and _is_handshake_failure(details):
        return errors.UnauthenticatedError(
            f"no trusted connection to {address}: {details}",
            hint="is it the right server, and do both sides have certificates of the same authority?",
            reason="HANDSHAKE_FAILED",
            address=address,
        )
    if code is grpc.StatusCode.UNAVAILABLE:
        return errors.UnavailableError(
            f"cannot reach {address}: {details}",
            hint="is the server running and the address right?",
            address=address,
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.UnavailableError(
            f"{address} did not answer in time",
            reason=code.name,
            hint="try again, or allow more time",
            address=address,
        )
    return _class_of(code)(
        f"{address}: {details or code.name}", reason=_foreign_reason(code), address=address
    )


def _is_handshake_failure(details: str) -> bool:
    lowered = details.lower()
    return any(sign in lowered for sign in ("handshake", "certificate", "verification", "ssl_error"))


def _class_of(code: grpc.StatusCode) -> type[SeraiError]:
    return _FOREIGN_CODES.get(code) or _BY_CODE.get(code.name, errors.InternalError)


def _foreign_reason(code: grpc.StatusCode) -> str:
    return code.name if code in _FOREIGN_CODES else ""


def _code(error: SeraiError) -> grpc.StatusCode:
    return grpc.StatusCode[error.code]


def _status_code(number: int) -> grpc.StatusCode:
    by_number = {code.value[0]: code for code in grpc.StatusCode}
    return by_number.get(number, grpc.StatusCode.UNKNOWN)


def _cut(text: str, limit: int) -> str:
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    return encoded[: limit - 3].decode(errors="ignore") + "..."
