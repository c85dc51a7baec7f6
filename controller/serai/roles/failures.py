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
    code = error_to_status(error).code
    return Failure(
        code=code, message=error.message, reason=error.reason, hint=error.hint, metadata=error.metadata
    )


def failure_to_error(failure: Failure) -> SeraiError:
    """The error that `failure` keeps, of the class that its code names."""
    info = ErrorInfo(reason=failure.reason, domain=DOMAIN, metadata=failure.metadata)
    if failure.hint:
        info.metadata["hint"] = failure.hint
    detail = AnyMessage()
    detail.Pack(info)
    return status_to_error(Status(code=failure.code, message=failure.message, details=[detail]))
