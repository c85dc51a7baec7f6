"""mTLS, authorisation and error mapping between real gRPC servers and clients."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from serai import errors
from serai.errors import SeraiError
from serai.wire.identity import Identity, Role
from serai.wire.rpc import Channel, Server, caller, connect, create_server
from serai.wire.tls import CertificateAuthority, Credentials

ERROR_CLASSES = [
    cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, SeraiError)
]
SERVICE = "serai.test.Echo"
PIP = Identity(Role.PIP, "alpha")
ADMIN = Identity(Role.ADMIN, "local")


def fail(name: str) -> SeraiError:
    cls = getattr(errors, name, None)
    if cls is None:
        raise KeyError(name)
    error: SeraiError = cls("no room on a1", hint="free some", reason="SOME_REASON", node="a1", missing=3)
    return error


class Echo:
    """Methods of the four kinds; a request names the error class to raise, "" for none."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def unary(self, request: StringValue, context: Any) -> StringValue:
        if request.value == "caller":
            return StringValue(value=str(caller(context)))
        if request.value == "hang":
            await asyncio.Event().wait()
        if request.value:
            raise fail(request.value)
        return request

    async def stream(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        try:
            yield StringValue(value="first")
            if request.value == "hang":
                await asyncio.Event().wait()
            if request.value:
                raise fail(request.value)
            yield StringValue(value="last")
        finally:
            self.closed.set()

    async def collect(self, requests: AsyncIterator[StringValue], context: Any) -> StringValue:
        values = [request.value async for request in requests]
        if values[0]:
            raise fail(values[0])
        return StringValue(value=",".join(values[1:]))

    async def chat(self, requests: AsyncIterator[StringValue], context: Any) -> AsyncIterator[StringValue]:
        async for request in requests:
            if request.value.endswith("Error"):
                raise fail(request.value)
            yield request

    async def secret(self, request: StringValue, context: Any) -> StringValue:
        return StringValue(value="must never be seen")


def add_echo(servicer: Echo, server: Any) -> None:
    codec = (StringValue.FromString, StringValue.SerializeToString)
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(servicer.unary, *codec),
        "Stream": grpc.unary_stream_rpc_method_handler(servicer.stream, *codec),
        "Collect": grpc.stream_unary_rpc_method_handler(servicer.collect, *codec),
        "Chat": grpc.stream_stream_rpc_method_handler(servicer.chat, *codec),
        "Secret": grpc.unary_unary_rpc_method_handler(servicer.secret, *codec),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)


ACCESS = {
    f"/{SERVICE}/Unary": {Role.PIP, Role.ADMIN},
    f"/{SERVICE}/Stream": {Role.ADMIN},
    f"/{SERVICE}/Collect": {Role.ADMIN},
    f"/{SERVICE}/Chat": {Role.ADMIN},
}


class Stub:
    def __init__(self, channel: Any) -> None:
        codec = (StringValue.SerializeToString, StringValue.FromString)
        self.unary = channel.unary_unary(f"/{SERVICE}/Unary", *codec)
        self.stream = channel.unary_stream(f"/{SERVICE}/Stream", *codec)
        self.collect = channel.stream_unary(f"/{SERVICE}/Collect", *codec)
        self.chat = channel.stream_stream(f"/{SERVICE}/Chat", *codec)
        self.secret = channel.unary_unary(f"/{SERVICE}/Secret", *codec)
        self.missing = channel.unary_unary(f"/{SERVICE}/Missing", *codec)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority.create(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def server(authority: CertificateAuthority, echo: Echo) -> AsyncIterator[Server]:
    agent = authority.issue(Identity(Role.AGENT, "alpha/a1"))
    async with await create_server(agent, "127.0.0.1:0", [(add_echo, echo)], ACCESS) as running:
        yield running


@pytest.fixture
def admin(authority: CertificateAuthority) -> Credentials:
    return authority.issue(ADMIN)


@pytest.fixture
async def channel(server: Server, admin: Credentials) -> AsyncIterator[Channel]:
    async with connect(server.address, admin, Role.AGENT) as it:
        yield it


async def test_calls_of_all_kinds(channel: Channel) -> None:
    stub = Stub(channel)
    assert (await stub.unary(StringValue())).value == ""
    assert [message.value async for message in stub.stream(StringValue())] == ["first", "last"]
    numbers = [StringValue(), StringValue(value="1"), StringValue(value="2")]
    assert (await stub.collect(iter(numbers))).value == "1,2"
    chat = stub.chat()
    await chat.write(StringValue(value="ping"))
    assert (await chat.read()).value == "ping"
    await chat.done_writing()
    assert await chat.read() is grpc.aio.EOF


@pytest.mark.parametrize("cls", ERROR_CLASSES, ids=lambda cls: cls.__name__)
async def test_every_error_class_round_trips(channel: Channel, cls: type[SeraiError]) -> None:
    stub = Stub(channel)
    name = StringValue(value=cls.__name__)

    async def chat() -> None:
        call = stub.chat()
        await call.write(name)
        await call.read()

    async def drain() -> None:
        async for _ in stub.stream(name):
            pass

    for attempt in (stub.unary(name), drain(), stub.collect(iter([name])), chat()):
        with pytest.raises(SeraiError) as caught:
            await attempt
        assert type(caught.value) is cls
        assert caught.value.message == "no room on a1"
        assert caught.value.hint == "free some"
        assert caught.value.reason == "SOME_REASON"
        assert caught.value.metadata == {"node": "a1", "missing": "3"}


async def test_a_long_error_arrives(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "\n".join(f"line {number}: unknown element <vnoed>" for number in range(300))

    def long(name: str) -> SeraiError:
        return errors.DescriptionError(lines, vnet="x" * 60_000)

    monkeypatch.setitem(globals(), "fail", long)
    with pytest.raises(errors.DescriptionError) as caught:
        await Stub(channel).unary(StringValue(value="any"))
    assert caught.value.message == lines


async def test_a_defect_is_logged_and_hidden(channel: Channel, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(errors.InternalError) as caught:
        await Stub(channel).unary(StringValue(value="no such class"))
    incident = caught.value.metadata["incident"]
    assert incident in str(caught.value)
    assert "no such class" not in str(caught.value)
    record = next(record for record in caplog.records if incident in record.getMessage())
    assert record.exc_info is not None


async def test_write_after_the_end_tells_why(channel: Channel) -> None:
    call = Stub(channel).chat()
    await call.write(StringValue(value="CapacityError"))
    with pytest.raises(errors.CapacityError):
        await call.read()
    with pytest.raises(errors.CapacityError):
        await call.write(StringValue(value="more"))


async def test_deadline(channel: Channel, server: Server) -> None:
    with pytest.raises(errors.UnavailableError) as caught:
        await Stub(channel).unary(StringValue(value="hang"), timeout=0.1)
    assert caught.value.reason == "DEADLINE_EXCEEDED"
    assert server.address in str(caught.value)


async def test_default_deadline(server: Server, admin: Credentials) -> None:
    async with connect(server.address, admin, Role.AGENT, timeout=0.1) as quick:
        with pytest.raises(errors.UnavailableError, match="in time"):
            await Stub(quick).unary(StringValue(value="hang"))


async def test_cancellation_stays_cancellation(channel: Channel, echo: Echo) -> None:
    task = asyncio.create_task(_drain(Stub(channel).stream(StringValue(value="hang"))))
    call = Stub(channel).stream(StringValue(value="hang"))
    assert (await call.read()).value == "first"
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.read()
    await asyncio.wait_for(echo.closed.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _drain(call: Any) -> None:
    async for _ in call:
        pass


async def test_closing_the_channel_is_not_cancellation(server: Server, admin: Credentials) -> None:
    channel = connect(server.address, admin, Role.AGENT)
    task = asyncio.create_task(_drain(Stub(channel).stream(StringValue(value="hang"))))
    await channel.wait_ready(5)
    await channel.close()
    with pytest.raises(errors.UnavailableError):
        await asyncio.wait_for(task, 5)
    with pytest.raises(errors.UnavailableError):
        await Stub(channel).unary(StringValue())


async def test_caller_identity(server: Server, authority: CertificateAuthority) -> None:
    async with connect(server.address, authority.issue(PIP), Identity(Role.AGENT, "alpha/a1")) as channel:
        assert (await Stub(channel).unary(StringValue(value="caller"))).value == "serai://pip/alpha"


async def test_wrong_role_is_refused(server: Server, authority: CertificateAuthority) -> None:
    async with connect(server.address, authority.issue(PIP), Role.AGENT) as channel:
        with pytest.raises(errors.ForbiddenError) as caught:
            await _drain(Stub(channel).stream(StringValue()))
    assert caught.value.metadata["method"] == f"/{SERVICE}/Stream"


async def test_method_missing_from_the_table_is_refused(channel: Channel) -> None:
    with pytest.raises(errors.ForbiddenError):
        await Stub(channel).secret(StringValue())


async def test_unknown_method(channel: Channel) -> None:
    with pytest.raises(errors.InternalError) as caught:
        await Stub(channel).missing(StringValue())
    assert caught.value.reason == "UNIMPLEMENTED"


async def test_unexpected_server_is_refused(server: Server, admin: Credentials) -> None:
    for expected in (Role.PIP, Identity(Role.AGENT, "alpha/a2"), Identity(Role.AGENT, "a1")):
        async with connect(server.address, admin, expected) as channel:
            with pytest.raises(errors.UnauthenticatedError) as caught:
                await Stub(channel).unary(StringValue())
            assert server.address in str(caught.value)
    async with connect(server.address, admin, None) as channel:
        assert (await Stub(channel).unary(StringValue())).value == ""


async def test_foreign_authority_is_refused(server: Server, tmp_path: Any, admin: Credentials) -> None:
    foreign = CertificateAuthority.create(tmp_path).issue(ADMIN)
    # Trusts the right authority, presents a foreign certificate: the server must hang up.
    impostor = Credentials(admin.ca, foreign.certificate, foreign.key, ADMIN)
    for credentials in (foreign, impostor):
        async with connect(server.address, credentials, Role.AGENT) as channel:
            with pytest.raises((errors.UnavailableError, errors.UnauthenticatedError)):
                await Stub(channel).unary(StringValue(), timeout=5)


async def test_no_certificate_is_refused(server: Server, admin: Credentials) -> None:
    secure = grpc.ssl_channel_credentials(admin.ca)
    options = [("grpc.ssl_target_name_override", Role.AGENT.server_name)]
    async with grpc.aio.secure_channel(server.address, secure, options=options) as anonymous:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await Stub(anonymous).unary(StringValue(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    async with grpc.aio.insecure_channel(server.address) as plain:
        with pytest.raises(grpc.aio.AioRpcError):
            await Stub(plain).unary(StringValue(), timeout=5)


async def test_nobody_there(admin: Credentials) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with connect(address, admin, Role.AGENT) as channel:
            with pytest.raises(errors.UnavailableError, match=address):
                await Stub(channel).unary(StringValue())
            with pytest.raises(errors.UnavailableError, match=address):
                await channel.wait_ready(0.05)


async def test_busy_port_names_the_address(server: Server, admin: Credentials, echo: Echo) -> None:
    with pytest.raises(errors.AlreadyExistsError) as caught:
        await create_server(admin, server.address, [(add_echo, echo)], ACCESS)
    assert server.address in caught.value.message
    assert caught.value.hint
    with pytest.raises(errors.UnavailableError, match=r"192\.0\.2\.1"):
        await create_server(admin, "192.0.2.1:7777", [(add_echo, echo)], ACCESS)


async def test_access_table_must_name_real_methods(admin: Credentials, echo: Echo) -> None:
    with pytest.raises(errors.InternalError, match="Renamed"):
        await create_server(admin, "127.0.0.1:0", [(add_echo, echo)], {f"/{SERVICE}/Renamed": {Role.PIP}})


async def test_health(channel: Channel, server: Server) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for name in ("", SERVICE):
        reply = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(errors.NotFoundError):
        await stub.Check(health_pb2.HealthCheckRequest(service="no.such.Service"))


async def test_reflection(channel: Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    reply = await anext(call)
    assert SERVICE in {service.name for service in reply.list_services_response.service}


async def test_close_lets_calls_finish(server: Server, channel: Channel) -> None:
    chat = Stub(channel).chat()
    await chat.write(StringValue(value="before"))
    assert (await chat.read()).value == "before"
    closing = asyncio.create_task(server.close(grace=5))
    await asyncio.sleep(0)
    await chat.write(StringValue(value="during"))
    assert (await chat.read()).value == "during"
    await chat.done_writing()
    await asyncio.wait_for(closing, 4)
