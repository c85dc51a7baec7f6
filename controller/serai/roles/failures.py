"""Errors kept in resources: `Failure` messages <-> ``serai.errors``."""

from __future__ import annotations

from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from serai.errors import SeraiError
from serai.v1.operation_pb2 import Failure
from serai.wire.status import DOMAIN, error_to_status, status_to_error


def error_to_failure(error: SeraiError) -> Failure:
    """The message that keeps `error`."""
    status = error_to_status(error)
    info = ErrorInfo()
    status.details[0].Unpack(info)
    # As on the wire: the metadata also names the class, so that it comes back as what it was.
    metadata = {key: value for key, value in info.metadata.items() if key != "hint"}
    return Failure(
        code=status.code, message=status.message, reason=info.reason, hint=error.hint, metadata=metadata
    )


def failure_to_error(failure: Failure) -> SeraiError:
    """The error that `failure` keeps."""
    info = ErrorInfo(reason=failure.reason, domain=DOMAIN, metadata=failure.metadata)
    if failure.hint:
        info.metadata["hint"] = failure.hint
    detail = AnyMessage()
    detail.Pack(info)
    return status_to_error(Status(code=failure.code, message=failure.message, details=[detail]))
