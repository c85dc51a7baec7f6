"""Calling the contracts: a channel that knows whom it expects and raises ``serai.errors``.

`Channel` wraps gRPC's own instead of using its client interceptors, because those do not see the errors of a
response stream that is read later.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Self

import grpc

from serai.errors import CancelledByUserError, SeraiError, UnavailableError
from serai.wire.identity import Identity, Role, expected_server_name
from serai.wire.options import CLIENT_OPTIONS
from serai.wire.status import rpc_error_to_error
from serai.wire.tls import Credentials

DEFAULT_TIMEOUT = 30.0
"""Seconds that a call without a stream may take unless it says otherwise."""


def connect(
    address: str,
    credentials: Credentials,
    expected: Role | Identity | None,
    *,
    timeout: float | None = DEFAULT_TIMEOUT,
) -> Channel:
    """A channel to `address` (``HOST:PORT``); the connection is made by the first call.

    The server must prove to be `expected`: a role, exactly one identity, or None for any party of the same
    authority. `timeout` (seconds) holds for calls that are not streams and give none themselves.
    """
    secure = grpc.ssl_channel_credentials(credentials.ca, credentials.key, credentials.certificate)
    name = expected_server_name(expected)
    options = [*CLIENT_OPTIONS, ("grpc.ssl_target_name_override", name), ("grpc.default_authority", name)]
    return Channel(grpc.aio.secure_channel(address, secure, options=options), address, timeout)


class Channel(grpc.aio.Channel):
    """What generated stubs take. Calls raise SeraiError classes, deadlines UnavailableError."""

    def __init__(self, inner: grpc.aio.Channel, address: str, timeout: float | None) -> None:
        self._inner = inner
        self._timeout = timeout
        self.address = address

    async def wait_ready(self, seconds: float) -> None:
        """Return when connected; UnavailableError after `seconds`."""
        try:
            await asyncio.wait_for(self._inner.channel_ready(), seconds)
        except TimeoutError as error:
            raise UnavailableError(
                f"no connection to {self.address} within {seconds:g} s",
                hint="is the server running and the address right?",
                address=self.address,
            ) from error

    async def close(self, grace: float | None = None) -> None:
        """Cancel what is under way after `grace` seconds and disconnect."""
        await self._inner.close(grace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """As gRPC's."""
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """As gRPC's."""
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """As gRPC's; `wait_ready` has a limit."""
        await self._inner.channel_ready()

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        """As gRPC's."""
        return self._wrap(self._inner.unary_unary(*arguments, **options), self._timeout)

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        """As gRPC's."""
        return self._wrap(self._inner.stream_unary(*arguments, **options), None)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        """As gRPC's."""
        return self._wrap(self._inner.unary_stream(*arguments, **options), None)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        """As gRPC's."""
        return self._wrap(self._inner.stream_stream(*arguments, **options), None)

    def _wrap(self, start: Callable[..., Any], default_timeout: float | None) -> Callable[..., _Call]:
        def call(*arguments: Any, timeout: float | None = default_timeout, **options: Any) -> _Call:
            try:
                return _Call(start(*arguments, timeout=timeout, **options), self.address)
            except grpc.aio.UsageError as error:
                raise _closed(self.address) from error

        return call


class _Call:
    """A call under way, with errors translated; the rest is gRPC's."""

    def __init__(self, call: Any, address: str) -> None:
        self._call = call
        self._address = address
        self._cancelled_here = False
        self._messages: AsyncIterator[Any] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def cancel(self) -> bool:
        """As gRPC's; waiting for the call then raises asyncio.CancelledError."""
        self._cancelled_here = True
        return bool(self._call.cancel())

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._translated(_awaited(self._call)).__await__()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._messages is None:
            self._messages = aiter(self._call)
        return await self._translated(_awaited(anext(self._messages)))

    async def read(self) -> Any:
        """As gRPC's: the next message, or grpc.aio.EOF."""
        return await self._translated(self._call.read())

    async def write(self, request: Any) -> None:
        """As gRPC's; once the call has failed, its error."""
        await self._translated(self._call.write(request))

    async def done_writing(self) -> None:
        """As gRPC's."""
        await self._translated(self._call.done_writing())

    async def wait_for_connection(self) -> None:
        """As gRPC's."""
        await self._translated(self._call.wait_for_connection())

    async def _translated(self, operation: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await operation
        except grpc.aio.AioRpcError as error:
            raise rpc_error_to_error(error, self._address) from error
        except asyncio.InvalidStateError as error:
            raise await self._outcome() from error
        except grpc.aio.UsageError as error:
            raise _closed(self._address) from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if self._cancelled_here or (task is not None and task.cancelling()):
                raise
            # Closing the channel cancels its calls; the tasks that wait for them were not cancelled.
            raise _closed(self._address) from error

    async def _outcome(self) -> SeraiError:
        """Why a finished call takes no more messages."""
        code = await self._call.code()
        if code is grpc.StatusCode.OK:
            return CancelledByUserError(f"{self._address} has ended the call", hint="start a new one")
        error = grpc.aio.AioRpcError(
            code,
            await self._call.initial_metadata(),
            await self._call.trailing_metadata(),
            await self._call.details(),
        )
        return rpc_error_to_error(error, self._address)


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def _closed(address: str) -> UnavailableError:
    return UnavailableError(
        f"the channel to {address} is closed", hint="connect again", reason="CHANNEL_CLOSED"
    )
