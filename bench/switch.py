"""What a frame costs from a port on one node to a port on another, beside asyncio streams without sealing.

Two processes on loopback. `serai` is the data plane: port, switch, AES-GCM records, switch, port. The named
peer is what one writes first: length-prefixed frames over asyncio's StreamWriter and StreamReader, neither
switched nor encrypted. CPU-seconds are user and system time of both processes; on a busy machine trust them
and the ratio, not the rates.

    PYTHONPATH=agents:proto python bench/switch.py [--seconds 1] [--sizes 64 1514 9000 64000]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from serai.hypervisor.driver import FramePort
from serai.network.dataplane import DataPlane
from serai.network.peers import ChannelOffer
from serai.network.switch import GuestPort, PeerLabel, SegmentConfig
from serai.wire.records import ChannelSecret

BURST = 32
IN_FLIGHT_BYTES = 1 << 20
IN_FLIGHT_FRAMES = 4096
LENGTH = struct.Struct("!I")


@dataclass
class Measured:
    """One side's part of a run."""

    frames: int
    bytes: int
    seconds: float
    cpu_seconds: float


class Meter:
    """Wall and CPU time from its creation to `stop`."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), _cpu()

    def stop(self, frames: int, size: int) -> Measured:
        return Measured(frames, frames * size, time.monotonic() - self._wall, _cpu() - self._cpu)


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class CountingPort(FramePort):
    """Sends what it is told to, counts what it gets; copies each frame as a guest's ring would."""

    def __init__(self) -> None:
        self.frames = 0
        self.meter: Meter | None = None
        self._ring = bytearray(1 << 16)
        self.transmit: Callable[[Sequence[bytes]], None] | None = None

    def deliver(self, frame: bytes | memoryview) -> bool:
        if self.meter is None:
            self.meter = Meter()
        self._ring[: len(frame)] = frame
        self.frames += 1
        return True

    def set_receiver(self, receiver: Callable[[Sequence[bytes]], None] | None) -> None:
        self.transmit = receiver


async def _node(name: str, other: str, offer: ChannelOffer | None) -> tuple[DataPlane, CountingPort]:
    async def open_channel(peer: str) -> ChannelOffer:
        if offer is None:
            await asyncio.Event().wait()
        assert offer is not None
        return offer

    plane, port = DataPlane(name, open_channel), CountingPort()
    await plane.start()
    plane.bind_port("guest", "eth0", port)
    plane.create_segment(SegmentConfig("s", GuestPort("guest", "eth0"), PeerLabel(other, 1)))
    return plane, port


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  (the data plane tells nobody when its queues are empty)
        await asyncio.sleep(0.0005)


async def receive_serai(size: int) -> Measured:
    plane, port = await _node("bench/rx", "bench/tx", None)
    offer = plane.accept_channel("bench/tx")
    print(json.dumps([offer.secret.identifier.hex(), offer.secret.key.hex(), offer.data_address]), flush=True)
    await _input_closed()
    assert port.meter is not None, "no frame arrived"
    measured = port.meter.stop(port.frames, size)
    await plane.close()
    return measured


async def send_serai(size: int, seconds: float, start: list[str]) -> Measured:
    secret = ChannelSecret(bytes.fromhex(start[0]), bytes.fromhex(start[1]))
    plane, port = await _node("bench/tx", "bench/rx", ChannelOffer(secret, start[2]))
    peer = plane._peers["bench/rx"]
    await until(lambda: peer.connected)
    burst = [os.urandom(size)] * BURST
    assert port.transmit is not None
    meter, frames = Meter(), 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        port.transmit(burst)
        frames += BURST
        await asyncio.sleep(0)
        await until(lambda: peer._queued_bytes <= IN_FLIGHT_BYTES and len(peer._queue) <= IN_FLIGHT_FRAMES)
    await until(lambda: not peer._queue)
    measured = meter.stop(frames, size)
    assert peer.counters.dropped_out == 0
    await plane.close()
    return measured


async def receive_streams(size: int) -> Measured:
    done: asyncio.Future[Measured] = asyncio.get_running_loop().create_future()
    ring = bytearray(1 << 16)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        meter, frames = Meter(), 0
        try:
            while True:
                (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                ring[:length] = await reader.readexactly(length)
                frames += 1
        except asyncio.IncompleteReadError:
            done.set_result(meter.stop(frames, size))
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(json.dumps(list(server.sockets[0].getsockname())), flush=True)
    measured = await done
    server.close()
    return measured


async def send_streams(size: int, seconds: float, start: list[str]) -> Measured:
    _, writer = await asyncio.open_connection(start[0], int(start[1]))
    frame = os.urandom(size)
    meter, frames = Meter(), 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        writer.writelines([LENGTH.pack(size), frame] * BURST)
        frames += BURST
        await writer.drain()
    writer.close()
    await writer.wait_closed()
    return meter.stop(frames, size)


async def _input_closed() -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


RECEIVERS = {"serai": receive_serai, "streams": receive_streams}
SENDERS = {"serai": send_serai, "streams": send_streams}


async def run(transport: str, size: int, seconds: float) -> tuple[Measured, Measured]:
    """One run: this process sends, a child receives."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        "--receive",
        transport,
        "--sizes",
        str(size),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        start = json.loads(await child.stdout.readline())
        sent = await SENDERS[transport](size, seconds, start)
        # The last bytes are in the kernel's buffers when the sender is done.
        await asyncio.sleep(0.05)
        child.stdin.close()
        received = Measured(**json.loads(await child.stdout.readline()))
    finally:
        if child.returncode is None:
            child.terminate()
        await child.wait()
    assert received.frames == sent.frames, (
        f"{sent.frames - received.frames} of {sent.frames} frames were lost"
    )
    return sent, received


def cost(sent: Measured, received: Measured) -> tuple[float, float]:
    """CPU-seconds per Gbit at the sender and at the receiver."""
    gigabits = received.bytes * 8 / 1e9
    return sent.cpu_seconds / gigabits, received.cpu_seconds / gigabits


async def compare(sizes: Sequence[int], seconds: float) -> None:
    print(f"{'':8}{'serai':^52}{'asyncio streams':^20}")
    print(
        f"{'frame':>6}  {'kframe/s':>9} {'Gbit/s':>8} {'tx':>8} {'rx':>8} {'CPU-s/Gbit':>11}   "
        f"{'CPU-s/Gbit':>11} {'ratio':>7}"
    )
    for size in sizes:
        sent, received = await run("serai", size, seconds)
        tx, rx = cost(sent, received)
        theirs = sum(cost(*await run("streams", size, seconds)))
        rate = received.frames / sent.seconds
        print(
            f"{size:6}  {rate / 1e3:9.1f} {rate * size * 8 / 1e9:8.2f} {tx:8.3f} {rx:8.3f} {tx + rx:11.3f}   "
            f"{theirs:11.3f} {(tx + rx) / theirs:7.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1514, 9000, 64000])
    parser.add_argument("--receive", choices=sorted(RECEIVERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.receive:
        print(json.dumps(asdict(asyncio.run(RECEIVERS[options.receive](options.sizes[0])))), flush=True)
    else:
        asyncio.run(compare(options.sizes, options.seconds))


if __name__ == "__main__":
    main()
