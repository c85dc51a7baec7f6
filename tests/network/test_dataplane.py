"""Data planes of several nodes over real sockets: paths, shaping, restarts, moving guests, hostile peers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import pytest

from serai.errors import AlreadyExistsError, InvalidInputError, NotFoundError, UnavailableError
from serai.hypervisor.driver import FramePort
from serai.network import listener
from serai.network.dataplane import DataPlane
from serai.network.listener import DataListener
from serai.network.peers import QUEUE_BYTES, ChannelOffer
from serai.network.ports import HOLD_FRAMES, PortState
from serai.network.switch import AttachmentPoint, GuestPort, PeerLabel, SegmentConfig
from serai.wire.records import PREAMBLE_BYTES, ChannelSecret, Direction
from serai.wire.streams import RecordStream, dial_socket

ETH0 = "eth0"


class Interface(FramePort):
    """A guest's interface played by the test."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.times: list[float] = []
        self.room = 1 << 30
        self._receiver: Callable[[Sequence[bytes]], None] | None = None
        self._arrived = asyncio.Event()

    def deliver(self, frame: bytes | memoryview) -> bool:
        if self.room <= 0:
            return False
        self.room -= 1
        self.received.append(bytes(frame))
        self.times.append(time.monotonic())
        self._arrived.set()
        return True

    def set_receiver(self, receiver: Callable[[Sequence[bytes]], None] | None) -> None:
        self._receiver = receiver

    @property
    def attached(self) -> bool:
        return self._receiver is not None

    def send(self, *frames: bytes) -> None:
        assert self._receiver is not None, "a guest that is not bound cannot send"
        self._receiver(frames)

    async def wait(self, count: int, seconds: float = 10.0) -> list[bytes]:
        async with asyncio.timeout(seconds):
            while len(self.received) < count:
                self._arrived.clear()
                await self._arrived.wait()
        return self.received


class Cluster:
    """Nodes that find each other as agents would over gRPC."""

    def __init__(self) -> None:
        self.nodes: dict[str, DataPlane] = {}
        self.refuse: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        self._labels = iter(range(1, 1 << 20))
        self._names = iter(range(1 << 20))

    async def add(self, *names: str) -> list[DataPlane]:
        for name in names:
            self.nodes[name] = DataPlane(name, lambda peer, me=name: self._open(me, peer))  # type: ignore[misc]
            await self.nodes[name].start()
        return [self.nodes[name] for name in names]

    async def _open(self, me: str, peer: str) -> ChannelOffer:
        self.requests.append((me, peer))
        if peer in self.refuse or peer not in self.nodes:
            raise UnavailableError(f"{peer} does not answer")
        return self.nodes[peer].accept_channel(me)

    def guest(self, node: str, uid: str) -> Interface:
        interface = Interface()
        self.nodes[node].bind_port(uid, ETH0, interface)
        return interface

    def segment(self, node: str, a: AttachmentPoint, b: AttachmentPoint, **shape: float) -> str:
        name = f"s{next(self._names)}"
        self.nodes[node].create_segment(SegmentConfig(name, a, b, **shape))  # type: ignore[arg-type]
        return name

    def link(self, path: list[str], a: str, b: str, **shape: float) -> list[tuple[str, str]]:
        """Connect `a` on the first node with `b` on the last; returns (node, segment) along the path."""
        labels = [next(self._labels) for _ in path[1:]]
        names = []
        for index, node in enumerate(path):
            left = GuestPort(a, ETH0) if index == 0 else PeerLabel(path[index - 1], labels[index - 1])
            last = index == len(path) - 1
            right = GuestPort(b, ETH0) if last else PeerLabel(path[index + 1], labels[index])
            names.append((node, self.segment(node, left, right, **(shape if index == 0 else {}))))
        return names


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    it = Cluster()
    yield it
    for node in it.nodes.values():
        await node.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  (counters have no event to wait for)
            await asyncio.sleep(0.001)


def numbered(start: int, count: int, size: int = 100) -> list[bytes]:
    return [number.to_bytes(4) + bytes(size - 4) for number in range(start, start + count)]


def numbers(frames: Sequence[bytes]) -> list[int]:
    return [int.from_bytes(frame[:4]) for frame in frames]


async def test_two_guests_on_one_node(cluster: Cluster) -> None:
    await cluster.add("p/a")
    web, db = cluster.guest("p/a", "web"), cluster.guest("p/a", "db")
    cluster.link(["p/a"], "web", "db")
    web.send(*numbered(0, 3))
    db.send(*numbered(9, 1))
    assert numbers(db.received) == [0, 1, 2]
    assert numbers(web.received) == [9]


@pytest.mark.parametrize("size", [60, 1514, 65_000])
async def test_three_hops_both_ways_in_order(cluster: Cluster, size: int) -> None:
    await cluster.add("p/a", "p/b", "q/c", "q/d")
    web, db = cluster.guest("p/a", "web"), cluster.guest("q/d", "db")
    cluster.link(["p/a", "p/b", "q/c", "q/d"], "web", "db")
    there, back = numbered(0, 100, size), numbered(5000, 100, size)
    web.send(*there)
    db.send(*back)
    assert await db.wait(100) == there
    assert await web.wait(100) == back
    relay = cluster.nodes["p/b"].counters()
    assert relay.peers["p/a"].frames_in == relay.peers["q/c"].frames_out == 100
    (segment,) = relay.segments.values()
    assert (segment.a_to_b.bytes, segment.b_to_a.frames, segment.active) == (100 * size, 100, True)


async def test_networks_with_the_same_addresses_never_meet(cluster: Cluster) -> None:
    await cluster.add("p/a", "p/b")
    guests = {uid: cluster.guest("p/a" if uid[1] == "1" else "p/b", uid) for uid in ("r1", "r2", "s1", "s2")}
    cluster.link(["p/a", "p/b"], "r1", "r2")
    cluster.link(["p/a", "p/b"], "s1", "s2")
    broadcast = b"\xff" * 6 + bytes(54)
    with cluster.nodes["p/b"].capture("s2") as tap:
        for number in range(50):
            guests["r1"].send(broadcast + bytes([number]))
        guests["s1"].send(broadcast + b"own")
        await guests["r2"].wait(50)
        await guests["s2"].wait(1)
    assert guests["s2"].received == [broadcast + b"own"]
    assert [frame.data async for frame in tap] == [broadcast + b"own"]


async def test_bandwidth(cluster: Cluster) -> None:
    await cluster.add("p/a", "p/b")
    web, db = cluster.guest("p/a", "web"), cluster.guest("p/b", "db")
    megabits = 20
    cluster.link(["p/a", "p/b"], "web", "db", bandwidth_bps=megabits * 1_000_000)
    frame = bytes(1500)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        # More than twice the bandwidth; the queue rides over the pauses of a busy machine.
        web.send(*[frame] * 20)
        await asyncio.sleep(0.004)
    counters = cluster.nodes["p/a"].counters().segments["s0"]
    await db.wait(1)
    # The bucket and the queue's tail aside, what came in the steady part is the bandwidth.
    steady = [moment for moment in db.times if db.times[0] + 0.1 <= moment <= db.times[0] + 0.45]
    rate = (len(steady) - 1) * 1500 * 8 / (steady[-1] - steady[0])
    assert rate == pytest.approx(megabits * 1e6, rel=0.1)
    assert counters.a_to_b.dropped > 0


async def test_delay(cluster: Cluster) -> None:
    await cluster.add("p/a", "p/b")
    web, db = cluster.guest("p/a", "web"), cluster.guest("p/b", "db")
    cluster.link(["p/a", "p/b"], "web", "db")
    web.send(*numbered(0, 1))
    await db.wait(1)  # the channel is up
    slow = cluster.link(["p/a", "p/b"], "web", "db", delay_seconds=0.1)
    for node, name in slow:
        cluster.nodes[node].activate_segment(name)
    started = time.monotonic()
    web.send(*numbered(1, 1))
    await db.wait(2)
    assert db.times[1] - started >= 0.1
    db.send(*numbered(2, 1))
    await web.wait(1)
    assert web.times[0] - started >= 0.2


async def test_activation_loses_nothing(cluster: Cluster) -> None:
    await cluster.add("p/a", "p/b", "p/c")
    web, db = cluster.guest("p/a", "web"), cluster.guest("p/c", "db")
    paths = [["p/a", "p/b", "p/c"], ["p/a", "p/c"]]
    segments = cluster.link(paths[0], "web", "db")
    sent = 0
    for turn in range(8):
        new = cluster.link(paths[(turn + 1) % 2], "web", "db", delay_seconds=0.002)
        for node, name in new:
            web.send(*numbered(sent, 20))
            db.send(*numbered(sent, 20))
            sent += 20
            cluster.nodes[node].activate_segment(name)
            await asyncio.sleep(0)
        # Break only when the old path is empty, as whoever moves a link must.
        await asyncio.gather(web.wait(sent), db.wait(sent))
        for node, name in segments:
            cluster.nodes[node].delete_segment(name)
        segments = new
    assert sorted(numbers(db.received)) == sorted(numbers(web.received)) == list(range(sent))


class Traffic:
    """A guest that sends a numbered frame every millisecond or so."""

    def __init__(self, interface: Interface) -> None:
        self.sent = 0
        self._interface = interface
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            self._interface.send(*numbered(self.sent, 3))
            self.sent += 3
            await asyncio.sleep(0.001)

    async def more(self, count: int = 30) -> None:
        """Return when so many more have been sent."""
        goal = self.sent + count
        await until(lambda: self.sent >= goal)

    async def stop(self) -> int:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        return self.sent


async def test_a_guest_moves_and_no_frame_is_lost(cluster: Cluster) -> None:
    _, b, c = await cluster.add("p/a", "p/b", "q/c")
    web, there = cluster.guest("p/a", "web"), cluster.guest("p/b", "db")
    old = cluster.link(["p/a", "p/b"], "web", "db")
    traffic = Traffic(web)
    await there.wait(10)
    # Prepare: a place for the guest, and the new way beside the old one.
    c.hold_port("db", ETH0, redirect_from="p/b")
    new = cluster.link(["p/a", "q/c"], "web", "db")
    await traffic.more()
    # Freeze.
    b.hold_port("db", ETH0)
    there.send(*numbered(6, 1))  # it had left the guest before, and was still in the driver
    frozen = len(there.received)
    await traffic.more()
    # Hand over: the guest runs at its destination; what the source held, and still gets, follows it.
    here = Interface()
    c.bind_port("db", ETH0, here)
    b.redirect_port("db", ETH0, "q/c")
    assert not there.attached
    await traffic.more()
    here.send(*numbered(7, 1))
    await traffic.more()
    for node, name in new:
        cluster.nodes[node].activate_segment(name)
    here.send(*numbered(8, 1))
    await traffic.more()
    sent = await traffic.stop()
    await here.wait(sent - frozen)
    for node, name in old:
        cluster.nodes[node].delete_segment(name)
    b.unbind_port("db", ETH0)
    assert len(there.received) == frozen
    assert sorted(numbers(there.received + here.received)) == list(range(sent))
    held = numbers(here.received)[:10]
    assert held == list(range(frozen, frozen + 10))
    await web.wait(3)
    assert numbers(web.received) == [6, 7, 8]
    port = b.counters().ports
    assert port == {}


async def test_an_aborted_move_loses_nothing(cluster: Cluster) -> None:
    _, b = await cluster.add("p/a", "p/b")
    web, db = cluster.guest("p/a", "web"), cluster.guest("p/b", "db")
    cluster.link(["p/a", "p/b"], "web", "db")
    web.send(*numbered(0, 5))
    await db.wait(5)
    b.hold_port("db", ETH0)
    web.send(*numbered(5, 5))
    await until(lambda: b.counters().ports[GuestPort("db", ETH0)].held == 5)
    assert b.port_state("db", ETH0) is PortState.HELD
    b.bind_port("db", ETH0, db)
    web.send(*numbered(10, 5))
    assert numbers(await db.wait(15)) == list(range(15))


async def test_redirection_only_from_where_the_guest_was(cluster: Cluster) -> None:
    a, b, c = await cluster.add("p/a", "p/b", "q/c")
    db = cluster.guest("q/c", "db")
    for node in (a, b):
        node.hold_port("db", ETH0)
        node.redirect_port("db", ETH0, "q/c")
        cluster.segment(node.node_name, GuestPort("x", ETH0), GuestPort("db", ETH0))
    c.hold_port("db", ETH0, redirect_from="p/b")
    c.bind_port("db", ETH0, db)
    cluster.guest("p/a", "x").send(*numbered(1, 4))
    await until(lambda: c.counters().refused == 4)
    cluster.guest("p/b", "x").send(*numbered(2, 1))
    assert numbers(await db.wait(1)) == [2]


async def test_held_frames_are_bounded(cluster: Cluster) -> None:
    (a,) = await cluster.add("p/a")
    web = cluster.guest("p/a", "web")
    cluster.link(["p/a"], "web", "db")
    a.hold_port("db", ETH0)
    web.send(*numbered(0, HOLD_FRAMES + 50))
    counters = a.counters().ports[GuestPort("db", ETH0)]
    assert (counters.held, counters.dropped_in) == (HOLD_FRAMES, 50)
    db = cluster.guest("p/a", "db")
    assert numbers(db.received) == list(range(HOLD_FRAMES))
    a.hold_port("db", ETH0)
    web.send(*[bytes(60_000)] * 100)
    assert counters.held == HOLD_FRAMES + 4 * 1024 * 1024 // 60_000


async def test_a_slow_guest_gets_what_was_held_in_order(cluster: Cluster) -> None:
    (a,) = await cluster.add("p/a")
    web, db = cluster.guest("p/a", "web"), Interface()
    cluster.link(["p/a"], "web", "db")
    a.hold_port("db", ETH0)
    web.send(*numbered(0, 40))
    db.room = 10
    a.bind_port("db", ETH0, db)
    assert len(db.received) == 10
    web.send(*numbered(40, 10))
    db.room = 1 << 30
    assert numbers(await db.wait(50)) == list(range(50))
    db.room = 0
    web.send(*numbered(50, 1))
    assert a.counters().ports[GuestPort("db", ETH0)].dropped_in == 1


async def test_a_peer_restarts(cluster: Cluster) -> None:
    a, b = await cluster.add("p/a", "p/b")
    web, db = cluster.guest("p/a", "web"), cluster.guest("p/b", "db")
    ((_, _), (_, name)) = cluster.link(["p/a", "p/b"], "web", "db")
    config = b.get_segment(name).config
    web.send(*numbered(0, 1))
    await db.wait(1)
    del cluster.nodes["p/b"]
    await b.close()
    web.send(*numbered(1, 1))  # may wait or be lost, but disturbs nobody
    (b,) = await cluster.add("p/b")
    db = cluster.guest("p/b", "db")
    b.create_segment(config)
    number = 2
    async with asyncio.timeout(15):
        while not db.received:
            web.send(*numbered(number, 1))
            number += 1
            await asyncio.sleep(0.01)
    db.send(*numbered(99, 1))
    assert numbers(await web.wait(1)) == [99]
    assert a.counters().peers["p/b"].connections >= 2


async def test_frames_wait_for_a_peer_that_is_not_there_yet(cluster: Cluster) -> None:
    await cluster.add("p/a", "p/b")
    cluster.refuse = {"p/a", "p/b"}
    web, db = cluster.guest("p/a", "web"), cluster.guest("p/b", "db")
    cluster.link(["p/a", "p/b"], "web", "db")
    web.send(*numbered(0, 10))
    await until(lambda: len(cluster.requests) >= 4)
    assert db.received == []
    cluster.refuse = set()
    assert numbers(await db.wait(10)) == list(range(10))


async def test_channels_go_when_the_last_segment_goes(cluster: Cluster) -> None:
    a, b = await cluster.add("p/a", "p/b")
    web, db = cluster.guest("p/a", "web"), cluster.guest("p/b", "db")
    segments = cluster.link(["p/a", "p/b"], "web", "db")
    web.send(*numbered(0, 1))
    await db.wait(1)
    for node, name in segments:
        cluster.nodes[node].delete_segment(name)
    await until(lambda: not any(peer.connected for node in (a, b) for peer in node._peers.values()))
    assert a.list_segments() == []


async def test_a_peer_that_does_not_read_blocks_nobody(cluster: Cluster) -> None:
    (a,) = await cluster.add("p/a")
    web, db = cluster.guest("p/a", "web"), cluster.guest("p/a", "db")
    stuck = socket.create_server(("127.0.0.1", 0))

    async def open_channel(peer: str) -> ChannelOffer:
        return ChannelOffer(ChannelSecret.generate(), f"127.0.0.1:{stuck.getsockname()[1]}")

    a._open_channel = open_channel
    cluster.segment("p/a", GuestPort("web", ETH0), PeerLabel("p/stuck", 1))
    cluster.segment("p/a", GuestPort("db", ETH0), GuestPort("www", ETH0))
    with stuck:
        for _ in range(400):
            web.send(*[bytes(65_000)] * 4)
            await asyncio.sleep(0)
        assert a.counters().peers["p/stuck"].dropped_out > 0
        www = cluster.guest("p/a", "www")
        db.send(*numbered(1, 1))
        assert numbers(www.received) == [1]


async def test_queues_count_what_is_in_them_now(cluster: Cluster) -> None:
    a, _ = await cluster.add("p/a", "p/b")
    web, db = cluster.guest("p/a", "web"), cluster.guest("p/b", "db")
    cluster.link(["p/a", "p/b"], "web", "db")
    batch = numbered(0, 64, 60_000)
    rounds = 2 * QUEUE_BYTES // (64 * 60_000) + 1
    for number in range(rounds):
        web.send(*batch[: len(batch) // 2])
        await asyncio.sleep(0)  # so that the queue is never seen empty
        web.send(*batch[len(batch) // 2 :])
        await db.wait(64 * (number + 1))
    assert a.counters().peers["p/b"].dropped_out == 0


async def test_capture(cluster: Cluster) -> None:
    (a,) = await cluster.add("p/a")
    web, db = cluster.guest("p/a", "web"), cluster.guest("p/a", "db")
    cluster.link(["p/a"], "web", "db")
    with a.capture("web", ETH0, snapshot_length=20) as tap, a.capture("db") as other:
        web.send(*numbered(1, 1))
        db.send(*numbered(2, 1))
        web.send(*numbered(3, 5000))
        first, second = await anext(tap), await anext(tap)
    web.send(*numbered(4, 1))  # after the end
    assert (first.inbound, second.inbound, first.original_length, len(first.data)) == (False, True, 100, 20)
    assert first.port == GuestPort("web", ETH0)
    assert tap.lost == 5002 - 4096
    rest = [frame async for frame in other]
    assert len(rest) == 4096
    assert rest[0].inbound
    with pytest.raises(NotFoundError):
        a.capture("nobody")


async def test_illegal_frames_are_dropped(cluster: Cluster) -> None:
    (a,) = await cluster.add("p/a")
    web, db = cluster.guest("p/a", "web"), cluster.guest("p/a", "db")
    cluster.link(["p/a"], "web", "db")
    web.send(b"", bytes(13), bytes(14), bytes(65_553), bytes(65_554))
    assert [len(frame) for frame in db.received] == [14, 65_553]
    assert a.counters().ports[GuestPort("web", ETH0)].dropped_out == 3


async def test_mistakes_are_named(cluster: Cluster) -> None:
    (a,) = await cluster.add("p/a")
    with pytest.raises(InvalidInputError, match="this node itself"):
        cluster.segment("p/a", GuestPort("web", ETH0), PeerLabel("p/a", 1))
    with pytest.raises(InvalidInputError):
        a.hold_port("x" * 256, ETH0)
    with pytest.raises(NotFoundError):
        a.redirect_port("no", ETH0, "p/b")
    with pytest.raises(NotFoundError):
        a.delete_segment("no")
    a.unbind_port("no", ETH0)
    with pytest.raises(AlreadyExistsError, match=a.data_address):
        await DataListener(a.data_address).start()


@contextlib.contextmanager
def connection(address: str, first: bytes) -> Iterator[socket.socket]:
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), 5) as sock:
        sock.sendall(first)
        yield sock


async def refused(a: DataPlane, first: bytes) -> None:
    """The node hangs up on whoever starts like this."""
    with connection(a.data_address, first) as sock:
        sock.setblocking(False)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 1), 5) == b""


async def test_strangers_are_refused_and_disturb_nobody(cluster: Cluster) -> None:
    a, _ = await cluster.add("p/a", "p/b")
    web, db = cluster.guest("p/a", "web"), cluster.guest("p/b", "db")
    secret = a.accept_channel("p/x").secret
    forged = ChannelSecret(secret.identifier, bytes(16))
    with connection(a.data_address, b"S"):  # and then nothing
        await refused(a, b"GET / HTTP/1.1\r\n".ljust(PREAMBLE_BYTES))
        await refused(a, ChannelSecret.generate().preamble())
        await refused(a, forged.preamble())
        await refused(a, secret.preamble(1))
        cluster.link(["p/b", "p/a"], "db", "web")
        db.send(*numbered(1, 1))
        await web.wait(1)
    # The forgeries have not used up the channel; once it has been taken, nobody can take it again.
    sock = await dial_socket(a.data_address, secret)
    await refused(a, secret.preamble())
    sock.close()


async def test_a_silent_stranger_is_hung_up_on(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "PREAMBLE_SECONDS", 0.05)
    (a,) = await cluster.add("p/a")
    await refused(a, b"SRAI")


async def test_a_peer_that_sends_nonsense_is_cut_off(cluster: Cluster) -> None:
    (a,) = await cluster.add("p/a")
    secret = a.accept_channel("p/x").secret
    web = cluster.guest("p/a", "web")
    cluster.segment("p/a", GuestPort("web", ETH0), PeerLabel("p/x", 5))

    def speak() -> int:
        with RecordStream.dial(a.data_address, secret, maximum=1 << 18, timeout=5) as stream:
            good = (5).to_bytes(8) + (14).to_bytes(4) + bytes(14)
            stream.send(1, good)
            stream.send(1, good[:-1])
            try:
                return 0 if stream.receive() is None else 1
            except UnavailableError:
                return 2

    assert await asyncio.wait_for(asyncio.to_thread(speak), 10) == 2
    assert web.received == [bytes(14)]


async def test_other_channels_are_handed_over(cluster: Cluster) -> None:
    (a,) = await cluster.add("p/a")
    secret = ChannelSecret.generate()
    taken: asyncio.Queue[tuple[socket.socket, int]] = asyncio.Queue()
    offer = a.register_channel(secret, lambda sock, stream: taken.put_nowait((sock, stream)), streams=2)
    with pytest.raises(AlreadyExistsError):
        a.register_channel(secret, lambda sock, stream: None)

    def send(stream: int) -> None:
        with RecordStream.dial(offer.data_address, secret, stream=stream) as it:
            it.send(9, bytes(1 << 20), argument=stream)
            it.finish()

    def receive(sock: socket.socket, stream: int) -> tuple[int, int]:
        sock.settimeout(5)
        with RecordStream(sock, secret, Direction.RESPONDER, stream=stream) as it:
            record = it.receive()
            assert record is not None
            assert it.receive() is None
            return record[0].argument, len(record[1])

    senders = [asyncio.to_thread(send, stream) for stream in (0, 1)]
    sending = asyncio.gather(*senders)
    got = [await asyncio.to_thread(receive, *await asyncio.wait_for(taken.get(), 5)) for _ in range(2)]
    await sending
    assert sorted(got) == [(0, 1 << 20), (1, 1 << 20)]


async def test_a_channel_is_not_expected_for_ever(cluster: Cluster) -> None:
    (a,) = await cluster.add("p/a")
    secret = ChannelSecret.generate()
    a.register_channel(secret, lambda sock, stream: None, seconds=0.01)
    await until(lambda: not a._listener._expected)
    await refused(a, secret.preamble())
