"""Events, the buses, and brokers that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiomqtt
import pytest
from pydantic import BaseModel, ValidationError

from serai.errors import InvalidInputError
from serai.wire import bus, events, mqtt
from serai.wire.bus import EventQueue, MemoryBus
from serai.wire.events import (
    Event,
    GuestStateChanged,
    MigrationProgress,
    NodeStateChanged,
    OtherPayload,
    topic_matches,
)
from serai.wire.identity import Identity, Role
from serai.wire.mqtt import BrokerAddress, MqttBus, create_bus
from serai.wire.tls import CertificateAuthority

ROOT = Path(__file__).resolve().parents[2]
A1 = Identity(Role.AGENT, "alpha/a1")
WATCHER = Identity(Role.ADMIN, "local")
RUNNING = GuestStateChanged(guest_uid="u1", node="alpha/a1", state="RUNNING")
MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def ready(node: int) -> NodeStateChanged:
    return NodeStateChanged(node="alpha/a1", state="READY", guest_count=node)


# The models


@pytest.mark.parametrize("payload", [RUNNING, ready(1)], ids=lambda payload: payload.type)
def test_round_trip(payload: events.Payload) -> None:
    event = Event.create(A1, 3, "guests/web", payload)
    assert Event.from_json(event.to_json()) == event
    assert type(Event.from_json(event.to_json()).data) is type(payload)


def test_topic() -> None:
    assert (
        Event.create(A1, 0, "guests/web", RUNNING).topic == "serai/v1/guest/state/agent/alpha/a1/guests/web"
    )


def test_newer_events_can_still_be_read() -> None:
    text = Event.create(A1, 0, "guests/web", RUNNING).to_json().decode()
    newer = text.replace('"guest.state"', '"guest.mood"').replace('"state":"RUNNING"', '"mood":"good"')
    event = Event.from_json(newer.encode())
    assert isinstance(event.data, OtherPayload)
    assert event.data.model_dump()["mood"] == "good"
    grown = text.replace('"state":"RUNNING"', '"state":"RUNNING","colour":"red"')
    assert Event.from_json(grown.encode()).data == RUNNING


@pytest.mark.parametrize(
    "change",
    [
        ('"version":1', '"version":2'),
        ("serai://agent/alpha/a1", "http://agent"),
        ('"state":"RUNNING"', '"mood":"good"'),
        ("guests/web", "guests/#"),
        ("{", ""),
    ],
)
def test_what_is_no_event_is_refused(change: tuple[str, str]) -> None:
    text = Event.create(A1, 0, "guests/web", RUNNING).to_json().decode()
    with pytest.raises(InvalidInputError):
        Event.from_json(text.replace(*change, 1).encode())


@pytest.mark.parametrize("subject", ["", "a//b", "a/+", "#", "a b", "/a", "a/"])
def test_subjects_cannot_break_out_of_their_topic(subject: str) -> None:
    with pytest.raises(ValidationError):
        Event.create(A1, 0, subject, RUNNING)


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("#", True),
        ("serai/v1/guest/#", True),
        ("serai/v1/+/state/agent/#", True),
        ("serai/v1/guest/state", False),
        ("serai/v1/guest/state/agent/alpha/a1/guests/web", True),
        ("serai/v1/guest/state/agent/alpha/a1/guests/web/#", True),
        ("serai/v1/guest/state/agent/alpha/a1/guests/web/+", False),
        ("serai/v1/node/#", False),
    ],
)
def test_topic_filters(pattern: str, matches: bool) -> None:
    assert topic_matches(Event.create(A1, 0, "guests/web", RUNNING).topic, pattern) is matches


# The manual


def fields_in(section: str) -> dict[str, str]:
    return dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE))


def fields_of(model: type[BaseModel]) -> dict[str, str]:
    return {name: str(field.description) for name, field in model.model_fields.items()}


def test_the_manual_and_the_code_agree() -> None:
    manual = (ROOT / "docs" / "events.md").read_text()
    envelope, *sections = manual.split("\n### ")
    assert fields_in(envelope) == fields_of(Event)
    documented = {section.split("`")[1]: section for section in sections}
    assert documented.keys() == events.PAYLOADS.keys()
    for name, section in documented.items():
        assert fields_in(section) == fields_of(events.PAYLOADS[name]), name
        assert f"`{events.TOPIC_ROOT}/{name.replace('.', '/')}/ROLE/OWNER/SUBJECT`" in section
        assert (events.PAYLOADS[name].__doc__ or "?") in section
    assert f"{bus.QUEUE_EVENTS} events wait" in " ".join(manual.split())
    assert (
        f"{mqtt.FIRST_PAUSE:g} s, then at doubling intervals of at most {mqtt.LONGEST_PAUSE:g} s"
        in " ".join(manual.split())
    )


def test_every_payload_is_listed() -> None:
    assert {cls.type for cls in events.Payload.__subclasses__() if cls.type} == events.PAYLOADS.keys()
    assert MigrationProgress.type in events.PAYLOADS


# The buses


async def test_memory_bus() -> None:
    async with (
        MemoryBus(A1) as memory,
        memory.subscribe("serai/v1/guest/#") as guests,
        memory.subscribe() as everything,
    ):
        memory.publish("nodes/a1", ready(0))
        memory.publish("guests/web", RUNNING)
        assert (await anext(guests)).subject == "guests/web"
        assert [(await anext(everything)).sequence for _ in range(2)] == [0, 1]


async def test_a_full_queue_drops_the_oldest_and_counts() -> None:
    queue = EventQueue(limit=3)
    for number in range(5):
        queue.put(Event.create(A1, number, "nodes/a1", ready(0)))
    assert queue.dropped == 2
    assert [(await anext(queue)).sequence for _ in range(3)] == [2, 3, 4]


def test_without_a_broker_events_stay_inside() -> None:
    assert isinstance(create_bus(A1, None), MemoryBus)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:1883",
        "http://x",
        "mqtt://",
        "mqtt://h:99999",
        "mqtt://h/topic",
        "mqtt://h?ca=x",
        "mqtts://h?pw=x",
    ],
)
def test_bad_broker_urls(url: str) -> None:
    with pytest.raises(InvalidInputError):
        BrokerAddress.parse(url)


def test_broker_urls() -> None:
    address = BrokerAddress.parse("mqtts://me:p%40ss@broker.example?ca=/etc/ca.pem")
    assert (address.host, address.port, address.user, address.password) == (
        "broker.example",
        8883,
        "me",
        "p@ss",
    )
    assert "p@ss" not in repr(address)
    with pytest.raises(InvalidInputError) as caught:
        BrokerAddress.parse("mqtt://me:secret@broker/topic")
    assert "secret" not in str(caught.value)


# Brokers


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class BrokerProcess:
    """A broker at a fixed port that a test can kill and start again."""

    def __init__(self, port: int, command: list[str]) -> None:
        self.port = port
        self.url = f"mqtt://127.0.0.1:{port}"
        self._command = command
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT / "proto")}
        self._process = await asyncio.create_subprocess_exec(
            *self._command, env=environment, stdout=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(20):
            while not await self._answers():
                assert self._process.returncode is None, "the broker has ended"
                await asyncio.sleep(0.02)

    async def _answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    async def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


def amqtt_command(port: int, directory: Path) -> list[str]:
    return [sys.executable, "-m", "serai.wire.broker", "--listen", f"127.0.0.1:{port}"]


def mosquitto_command(port: int, directory: Path, extra: str = "allow_anonymous true") -> list[str]:
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    configuration = directory / "mosquitto.conf"
    configuration.write_text(f"listener {port} 127.0.0.1\n{extra}\n")
    return [MOSQUITTO, "-c", str(configuration)]


@pytest.fixture(params=[amqtt_command, mosquitto_command], ids=["amqtt", "mosquitto"])
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BrokerProcess]:
    port = free_port()
    make: Callable[[int, Path], list[str]] = request.param
    process = BrokerProcess(port, make(port, tmp_path))
    await process.start()
    yield process
    await process.kill()


async def take(reader: AsyncIterator[Event], count: int) -> list[Event]:
    async with asyncio.timeout(15):
        return [await anext(reader) for _ in range(count)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not condition():  # noqa: ASYNC110  (other libraries' state: there is no event to wait for)
            await asyncio.sleep(0.02)


async def test_events_arrive_in_order(broker: BrokerProcess) -> None:
    async with (
        MqttBus(A1, broker.url) as publisher,
        MqttBus(WATCHER, broker.url) as watcher,
        watcher.subscribe("serai/v1/node/#") as reader,
    ):
        publisher.publish("guests/web", RUNNING)
        sent = [publisher.publish("nodes/a1", ready(number)) for number in range(50)]
        assert await take(reader, 50) == sent
    assert publisher.statistics.dropped == 0


async def test_a_broker_that_dies_and_returns(broker: BrokerProcess) -> None:
    async with (
        MqttBus(A1, broker.url) as publisher,
        MqttBus(WATCHER, broker.url) as watcher,
        watcher.subscribe() as reader,
    ):
        publisher.publish("nodes/a1", ready(0))
        await take(reader, 1)
        await broker.kill()
        waiting = [publisher.publish("nodes/a1", ready(number)) for number in range(1, 20)]
        assert publisher.waiting == len(waiting)
        await broker.start()
        # Both sides reconnect on their own. Until the reader is back, events pass it by.
        await until(lambda: publisher.waiting == 0)
        async with asyncio.timeout(15):
            while True:
                last = publisher.publish("nodes/a1", ready(20))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(_skip_to(reader, last), 0.5)
                    break


async def test_a_lost_broker_is_noticed_without_any_event(broker: BrokerProcess) -> None:
    async with MqttBus(A1, broker.url) as publisher:
        await until(lambda: publisher.statistics.connections == 1)
        await broker.kill()
        await broker.start()
        await until(lambda: publisher.statistics.connections == 2)


async def _skip_to(reader: AsyncIterator[Event], wanted: Event) -> None:
    async for event in reader:
        if event == wanted:
            return


async def test_nobody_waits_for_a_missing_broker(caplog: pytest.LogCaptureFixture) -> None:
    url = f"mqtt://me:secret@127.0.0.1:{free_port()}"
    missing = MqttBus(A1, url)
    await missing.start()
    for number in range(bus.QUEUE_EVENTS + 10):
        missing.publish("nodes/a1", ready(number))
    assert missing.statistics.dropped == 10
    await until(lambda: any("next attempt" in record.getMessage() for record in caplog.records))
    async with asyncio.timeout(5):
        async with missing.subscribe():
            pass
        await missing.close(grace=0.05)
    assert "secret" not in caplog.text


async def test_messages_of_others_are_ignored(
    broker: BrokerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    async with MqttBus(WATCHER, broker.url) as watcher, watcher.subscribe() as reader:
        async with aiomqtt.Client("127.0.0.1", broker.port) as stranger:
            await stranger.publish("serai/v1/guest/state/x", b"\xff not JSON", qos=1)
            await stranger.publish("serai/v1/guest/state/x", b'"' + bytes(70_000) + b'"', qos=1)
        sent = watcher.publish("nodes/a1", ready(0))
        assert await take(reader, 1) == [sent]
    assert "ignored a message" in caplog.text


# paho leaves the socket of a failed TLS handshake to the collector, which complains.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_tls_and_password(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(tmp_path / "ca")
    authority.issue(Identity(Role.ADMIN, "broker"), tmp_path / "broker")
    password_tool = shutil.which("mosquitto_passwd")
    if MOSQUITTO is None or password_tool is None:
        pytest.skip("mosquitto and mosquitto_passwd are not installed")
    tool = await asyncio.create_subprocess_exec(password_tool, "-c", "-b", tmp_path / "users", "me", "p@ss")
    assert await tool.wait() == 0
    files = tmp_path / "broker"
    settings = [
        f"cafile {files}/ca.pem\ncertfile {files}/cert.pem\nkeyfile {files}/key.pem",
        f"allow_anonymous false\npassword_file {tmp_path}/users\nuser root",
    ]
    port = free_port()
    process = BrokerProcess(port, mosquitto_command(port, tmp_path, "\n".join(settings)))
    await process.start()
    try:
        url = f"mqtts://me:p%40ss@localhost:{port}?ca={tmp_path}/ca/ca.pem"
        async with MqttBus(A1, url) as publisher, publisher.subscribe() as reader:
            sent = publisher.publish("nodes/a1", ready(0))
            assert await take(reader, 1) == [sent]
        for wrong in (url.replace("p%40ss", "wrong"), f"mqtts://me:p%40ss@localhost:{port}"):
            refused = MqttBus(A1, wrong)
            async with refused.subscribe():
                assert refused.statistics.connections == 0
    finally:
        await process.kill()
        gc.collect()


# The broker's command line


async def run_broker(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "serai.wire.broker",
        *arguments,
        env=os.environ | {"PYTHONPATH": str(ROOT / "proto")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_the_broker_says_where_it_listens_and_stops_cleanly() -> None:
    process = await run_broker("--listen", "127.0.0.1:0")
    assert process.stdout is not None
    address = (await asyncio.wait_for(process.stdout.readline(), 20)).decode().strip()
    async with MqttBus(A1, f"mqtt://{address}") as it, it.subscribe() as reader:
        sent = it.publish("nodes/a1", ready(0))
        assert await take(reader, 1) == [sent]
    process.send_signal(signal.SIGTERM)
    _, errors = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 0
    assert errors == b""


@pytest.mark.parametrize(("address", "problem"), [("0.0.0.0:0", b"loopback"), ("nowhere", b"HOST:PORT")])
async def test_the_broker_refuses(address: str, problem: bytes) -> None:
    process = await run_broker("--listen", address)
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1
    assert problem in errors
    assert b"Traceback" not in errors


async def test_the_broker_names_a_busy_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = await run_broker("--listen", address)
        _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1
    assert address.encode() in errors
    assert b"choose another port" in errors
