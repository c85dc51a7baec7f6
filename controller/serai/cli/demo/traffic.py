"""The demo's traffic: pings with gaps, a TCP transfer with digests, and an ear on the other VNet."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Iterable

from serai.cli.demo.console import GuestConsole
from serai.cli.demo.report import IsolationReport, PingReport
from serai.errors import InternalError, UnavailableError
from serai.v1.console_pb2_grpc import ConsoleServiceStub
from serai.v1.link_pb2 import CaptureFramesRequest
from serai.wire.rpc import Channel

PING_INTERVAL_S = 0.05
_REPLY = re.compile(r"bytes from .* (?:icmp_)?seq=(\d+)")
_SUMMARY = re.compile(r"(\d+) packets transmitted, (\d+) packets received")
_ETHERNET_HEADER = 14
_SOURCE_MAC = slice(6, 12)


class Ping:
    """`ping` in a guest until told to stop; replies are timed as they reach the console."""

    def __init__(self, console: GuestConsole, target: str) -> None:
        self._console = console
        self._arrivals: list[float] = []
        self._summary: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        self._progress = asyncio.Condition()
        console.start(f"ping -i {PING_INTERVAL_S} {target}")
        self._task = asyncio.create_task(self._listen(), name="ping")

    async def answered(self, *, within: float) -> None:
        """Return after the first reply. Raises UnavailableError after `within` seconds without one."""
        try:
            await self.replies(1, within=within)
        except TimeoutError:
            raise UnavailableError(
                f"{self._console.name}: no ping was answered within {within:.0f} s",
                hint="look at the guests with serai vm console",
            ) from None

    async def replies(self, count: int, *, within: float) -> None:
        """Return when `count` more replies have come."""
        wanted = len(self._arrivals) + count
        async with asyncio.timeout(within), self._progress:
            await self._progress.wait_for(lambda: len(self._arrivals) >= wanted)

    async def stop(self) -> PingReport:
        """Press Ctrl-C and read ping's own account."""
        self._console.interrupt()
        sent, received = await asyncio.wait_for(self._summary, 15.0)
        gaps = [later - earlier for earlier, later in zip(self._arrivals, self._arrivals[1:], strict=False)]
        return PingReport(sent=sent, received=received, max_gap_ms=round(1000 * max(gaps, default=0.0), 1))

    async def _listen(self) -> None:
        async for arrival, line in self._console.lines():
            if _REPLY.search(line):
                self._arrivals.append(arrival)
                async with self._progress:
                    self._progress.notify_all()
            elif match := _SUMMARY.search(line):
                self._summary.set_result((int(match[1]), int(match[2])))
                return
        self._summary.set_exception(
            UnavailableError(f"{self._console.name}: the console ended during the ping")
        )


class Transfer:
    """A file of random bytes from one guest to another over TCP.

    The receiver's part runs in the background of its shell, so that its console stays free for other work.
    """

    _PORT = 5000
    _UNDER_WAY_BYTES = 1 << 20

    def __init__(
        self, sender: GuestConsole, receiver: GuestConsole, *, size: int, receiver_address: str
    ) -> None:
        self._sender, self._receiver = sender, receiver
        self._address = receiver_address
        self.size = size
        self.sha256_sent = self.sha256_received = ""
        self.begin = self.end = 0.0

    async def prepare(self) -> None:
        """Make the bytes and let the receiver listen."""
        blocks = self.size // 65536
        await self._sender.check(
            f"dd if=/dev/urandom of=/tmp/sent bs=64k count={blocks} 2>/dev/null", within=60.0
        )
        self.sha256_sent = (await self._sender.check("sha256sum /tmp/sent", within=60.0)).split()[0]
        # -e gives the program the socket itself, so that end of file means the peer's and nothing else.
        await self._receiver.check(f"nc -l -p {self._PORT} -e dd of=/tmp/received bs=64k >/dev/null 2>&1 &")

    async def start(self) -> None:
        """Begin sending; returns once a first part is on its way."""
        counter = "/sys/class/net/eth0/statistics/tx_bytes"
        before = int(await self._sender.check(f"cat {counter}"))
        await self._sender.check(f"nc {self._address} {self._PORT} </tmp/sent &")
        self.begin = time.monotonic()
        wanted = before + self._UNDER_WAY_BYTES
        await self._sender.check(
            f"while [ $(cat {counter}) -lt {wanted} ]; do usleep 20000; done", within=30.0
        )

    async def sent(self) -> None:
        """Wait until the receiver has taken everything and closed."""
        await self._sender.check("wait", within=120.0)
        self.end = time.monotonic()

    async def verify(self) -> None:
        """Let the receiver say how much came and compute its digest. Raises InternalError on another size."""
        await self._receiver.check("wait", within=30.0)
        size = int(await self._receiver.check("wc -c </tmp/received"))
        if size != self.size:
            raise InternalError(f"{size} of {self.size} bytes arrived")
        self.sha256_received = (await self._receiver.check("sha256sum /tmp/received", within=60.0)).split()[0]


class Ear:
    """Listens at all ports of some guests and tells their own frames from foreign ones."""

    def __init__(self, channel: Channel, nodes: Iterable[str], own_macs: Iterable[str]) -> None:
        self._own = {bytes.fromhex(mac.replace(":", "")) for mac in own_macs}
        self._heard = IsolationReport(own_frames=0, foreign_frames=0)
        self._tasks = [asyncio.create_task(self._listen(channel, node), name=f"ear {node}") for node in nodes]

    async def _listen(self, channel: Channel, node: str) -> None:
        request = CaptureFramesRequest(name=node, snapshot_length=_ETHERNET_HEADER)
        async for frame in ConsoleServiceStub(channel).CaptureNodeFrames(request):
            if frame.data[_SOURCE_MAC] in self._own:
                self._heard.own_frames += 1
            else:
                self._heard.foreign_frames += 1

    async def stop(self) -> IsolationReport:
        """What was heard. Raises what ended the listening early, if anything did."""
        for task in self._tasks:
            if not task.done():
                task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        return self._heard
