"""Serving the contracts: gRPC over mutual TLS, deny by default, errors mapped in one interceptor."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from serai.errors import (
    AlreadyExistsError,
    ForbiddenError,
    InternalError,
    InvalidInputError,
    SeraiError,
    UnauthenticatedError,
    UnavailableError,
)
from serai.wire.identity import ANY_ROLE, Identity, Role
from serai.wire.options import SERVER_OPTIONS
from serai.wire.status import abort_arguments
from serai.wire.tls import Credentials

log = logging.getLogger(__name__)

AccessTable = Mapping[str, Collection[Role]]
"""``"/serai.v1.GuestService/CreateGuest"`` -> the roles that may call it. What is missing is refused."""

Service = tuple[Callable[[Any, Any], None], object]
"""A generated ``add_XServicer_to_server`` and the servicer."""

_Context = grpc.aio.ServicerContext[Any, Any]
_Behaviour = Callable[[Any, _Context], Any]

_COMMON_ACCESS: AccessTable = {
    f"/{health.SERVICE_NAME}/Check": ANY_ROLE,
    f"/{health.SERVICE_NAME}/List": ANY_ROLE,
    f"/{health.SERVICE_NAME}/Watch": ANY_ROLE,
    f"/{reflection.SERVICE_NAME}/ServerReflectionInfo": ANY_ROLE,
}


def caller(context: _Context) -> Identity:
    """Who calls, from the verified certificate; UnauthenticatedError when it names no identity."""
    names = context.auth_context().get("peer_uri") or ()
    uris = [name.decode(errors="replace") for name in names]
    if len(uris) != 1:
        raise UnauthenticatedError(
            f"the caller's certificate names {len(uris)} identities, not one",
            hint="issue it with this installation's certificate authority",
        )
    try:
        return Identity.parse(uris[0])
    except InvalidInputError as error:
        raise UnauthenticatedError(f"the caller's certificate: {error.message}", hint=error.hint) from error


class Server:
    """A running server; `create_server` makes it."""

    def __init__(self, server: grpc.aio.Server, host: str, port: int, services: Sequence[str]) -> None:
        self._server = server
        self._services = services
        self._health = health.aio.HealthServicer()
        self.host = host
        self.port = port

    @property
    def address(self) -> str:
        """``HOST:PORT`` as bound."""
        return f"{self.host}:{self.port}"

    async def start(self) -> None:
        """Serve, and say so to health checks."""
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*self._services, health.SERVICE_NAME), self._server)
        await self._server.start()
        for name in ("", *self._services):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def close(self, grace: float = 1.0) -> None:
        """Refuse new calls, let those under way go on for `grace` seconds, then cancel them."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace)

    async def wait_closed(self) -> None:
        """Return when the server has stopped."""
        await self._server.wait_for_termination()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


async def create_server(
    credentials: Credentials, address: str, services: Sequence[Service], access: AccessTable
) -> Server:
    """Serve `services` at `address` (``HOST:PORT``, port 0 for any free one) and start.

    Every caller must present a certificate of the same authority. `access` must name every method that
    anybody may call. Raises AlreadyExistsError when the port is taken, UnavailableError when the address
    cannot be bound, InternalError when `access` names a method that no service has.
    """
    host, _, _ = address.rpartition(":")
    server = grpc.aio.server(
        interceptors=[_Guard({**_COMMON_ACCESS, **access}, address)], options=SERVER_OPTIONS
    )
    registry = _Registry(server)
    for add, servicer in services:
        add(servicer, registry)
    unknown = sorted(access.keys() - registry.methods)
    if unknown:
        raise InternalError(f"the access table names {', '.join(unknown)}, which no service at {address} has")
    try:
        port = server.add_secure_port(address, _server_credentials(credentials))
    except RuntimeError as error:
        raise _bind_error(address) from error
    names = sorted({method.split("/")[1] for method in registry.methods})
    running = Server(server, host, port, names)
    await running.start()
    log.info("%s serves %s at %s", credentials.identity, ", ".join(names), running.address)
    return running


def _server_credentials(credentials: Credentials) -> grpc.ServerCredentials:
    pair = (credentials.key, credentials.certificate)
    return grpc.ssl_server_credentials([pair], root_certificates=credentials.ca, require_client_auth=True)


def _bind_error(address: str) -> SeraiError:
    """gRPC tells no cause; binding once more by hand does."""
    host, _, port = address.rpartition(":")
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except ValueError:
        return InvalidInputError(f"{address!r} is not an address", hint="write HOST:PORT")
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return AlreadyExistsError(
                f"{address} is in use by another process",
                hint="stop that process (`ss -ltnp` shows it) or choose another port, 0 for any free one",
                reason="ADDRESS_IN_USE",
                address=address,
            )
        return UnavailableError(
            f"cannot listen at {address}: {error.strerror or os.strerror(error.errno or 0)}",
            hint="use an address of this machine and a port above 1023",
            reason="ADDRESS_UNUSABLE",
            address=address,
        )
    return UnavailableError(f"cannot listen at {address}", hint="try again", address=address)


class _Registry:
    """Stands for the server while services register, and notes their methods."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server
        self.methods: set[str] = set()

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """As the server's."""
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(
        self, service: str, handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """As the server's; every generated service calls it."""
        self.methods.update(f"/{service}/{method}" for method in handlers)
        self._server.add_registered_method_handlers(service, handlers)


class _Guard(grpc.aio.ServerInterceptor):
    """Authorises each call, then runs it and maps what it raises."""

    def __init__(self, access: AccessTable, address: str) -> None:
        self._access = access
        self._address = address

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of the method; None (gRPC then answers UNIMPLEMENTED) when there is none."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        make, behaviour = _kind(handler)
        run = _stream if handler.response_streaming else _single

        async def guarded(request: Any, context: _Context) -> Any:
            try:
                self._authorise(method, context)
                return await run(behaviour, request, context)
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except SeraiError as error:
                failure = error
            except Exception:
                failure = self._incident(method)
            return await context.abort(*abort_arguments(failure))

        return make(guarded, handler.request_deserializer, handler.response_serializer)

    def _authorise(self, method: str, context: _Context) -> None:
        identity = caller(context)
        if identity.role not in self._access.get(method, ()):
            log.warning("refused %s to %s at %s", method, identity, self._address)
            raise ForbiddenError(
                f"{identity} may not call {method.removeprefix('/')}",
                hint="use the certificate of a role that may",
                reason="ROLE_NOT_ALLOWED",
                method=method,
                caller=identity,
            )

    def _incident(self, method: str) -> InternalError:
        incident = secrets.token_hex(4)
        log.exception("incident %s in %s at %s", incident, method, self._address)
        return InternalError(
            f"defect in {method.removeprefix('/')}, incident {incident}",
            hint=f"look for {incident} in the log of the server at {self._address}",
            incident=incident,
        )


def _kind(handler: Any) -> tuple[Callable[..., Any], _Behaviour]:
    if handler.request_streaming and handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler, handler.stream_stream
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler, handler.stream_unary
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler, handler.unary_stream
    return grpc.unary_unary_rpc_method_handler, handler.unary_unary


async def _single(behaviour: _Behaviour, request: Any, context: _Context) -> Any:
    result = behaviour(request, context)
    return await result if inspect.isawaitable(result) else result


async def _stream(behaviour: _Behaviour, request: Any, context: _Context) -> None:
    result = behaviour(request, context)
    if inspect.isawaitable(result):
        await result
        return
    # Closing the generator here runs its clean-up now and not when the collector gets to it.
    async with contextlib.aclosing(result) as messages:
        async for message in messages:
            await context.write(message)
