"""The image, booted by QEMU: a machine that is not Serai's, so it is the image that is tested."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serai.images import Image, build_debian, overlay

QEMU = "qemu-system-riscv64"
HELLO_SHA256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
STARTUP = """
echo started on $(hostname)
ip link set eth0 up
ip addr add 10.9.0.1/24 dev eth0
exit 3
"""

pytestmark = [pytest.mark.guest, pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"needs {QEMU}")]


class Line:
    """A connected serial line: what came so far, and waiting for what must come."""

    def __init__(self, connected: socket.socket) -> None:
        self.text = ""
        self._socket = connected
        self._news = threading.Condition()
        self._open = True
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._socket.recv(4096):
                with self._news:
                    self.text += data.decode(errors="replace").replace("\r", "")
                    self._news.notify_all()
        with self._news:
            self._open = False
            self._news.notify_all()

    def wait_for(self, pattern: str, *, since: int = 0, timeout: float = 60) -> str:
        deadline = time.monotonic() + timeout
        with self._news:
            while not (found := re.search(pattern, self.text[since:], re.M)):
                left = deadline - time.monotonic()
                assert left > 0 and self._open, f"{pattern!r} never came:\n{self.text}"
                self._news.wait(left)
        return found[0]

    def send(self, text: str) -> None:
        self._socket.sendall(text.encode())

    def run(self, command: str) -> str:
        """Run a command in the shell on this line and return what it prints."""
        since = len(self.text)
        # The shell echoes what is typed, hence the quotes: only the output has these words in one piece.
        self.send(f"echo BE''GIN; {command}; echo EN''D\n")
        self.wait_for(r"END\n(?:\[.*\n)?[^\n]*# ", since=since)
        return self.text[since:].partition("\nBEGIN\n")[2].partition("END\n")[0]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._socket.close()


class Guest:
    """A QEMU process with the image in it, its console and its host channel."""

    def __init__(self, image: Image, folder: Path) -> None:
        initramfs = folder / "initramfs"
        extra = overlay(hostname="alice", startup=STARTUP, files={"root/note": b"from the host\n"})
        initramfs.write_bytes(image.initramfs.read_bytes() + extra)
        (folder / "disk").write_bytes(b"first block".ljust(1 << 20, b"\0"))
        devices = [
            "virtio-serial-device", "virtconsole,chardev=hvc", "virtio-blk-device,drive=d",
            "virtio-net-device,netdev=a,mac=52:54:00:00:00:0a",
            "virtio-net-device,netdev=b,mac=52:54:00:00:00:0b",
            "virtio-balloon-device", "virtio-rng-device",
        ]  # fmt: skip
        arguments = [
            "-machine", "virt", "-m", "192M", "-display", "none", "-monitor", "none",
            "-kernel", str(image.kernel), "-initrd", str(initramfs), "-append", image.command_line,
            "-global", "virtio-mmio.force-legacy=false",
            "-chardev", f"socket,id=tty,path={folder}/tty,server=on", "-serial", "chardev:tty",
            "-chardev", f"socket,id=hvc,path={folder}/hvc,server=on",
            "-netdev", "user,id=a,restrict=on", "-netdev", "user,id=b,restrict=on",
            "-drive", f"file={folder}/disk,format=raw,if=none,id=d",
        ]  # fmt: skip
        for device in devices:
            arguments += ["-device", device]
        self.process = subprocess.Popen(
            [QEMU, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.console, self.channel = _connect(folder / "tty"), _connect(folder / "hvc")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.console.close()
        self.channel.close()


def _connect(path: Path) -> Line:
    deadline = time.monotonic() + 20
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            assert time.monotonic() < deadline, f"QEMU never listened on {path}"
            time.sleep(0.02)
        else:
            return Line(connection)


@pytest.fixture(scope="module")
def image() -> Image:
    return build_debian()


@pytest.fixture
def start(image: Image, tmp_path: Path) -> Iterator[Callable[[], Guest]]:
    started: list[Guest] = []

    def run() -> Guest:
        started.append(Guest(image, tmp_path))
        return started[-1]

    yield run
    for guest in started:
        guest.close()


def test_the_image_boots_reports_serves_its_devices_and_powers_off(
    start: Callable[[], Guest], image: Image
) -> None:
    guest = start()
    guest.channel.wait_for(rf"^ready kernel={re.escape(image.kernel_release)}$")
    # Nothing else: no echo, no carriage returns that were not asked for, the failure before the end.
    assert guest.channel.text == f"startup-failed status=3\nready kernel={image.kernel_release}\n"
    console = guest.console
    console.wait_for(r"^root@alice:~# ")
    assert console.run("tty").strip() == "/dev/ttyS0"
    assert "can't access tty" not in console.text
    assert console.run("cat /run/serai/startup.log /root/note") == "started on alice\nfrom the host\n"
    addresses = console.run("ip -o addr")
    assert "inet 127.0.0.1/8" in addresses and "inet 10.9.0.1/24" in addresses
    macs = console.run("cat /sys/class/net/eth0/address /sys/class/net/eth1/address").split()
    assert macs == ["52:54:00:00:00:0a", "52:54:00:00:00:0b"]
    assert console.run("head -c 11 /dev/vda") == "first block"
    modules = console.run("cut -d ' ' -f 1 /proc/modules").split()
    assert {"virtio_mmio", "virtio_net", "virtio_blk", "virtio_balloon", "virtio_rng"} <= set(modules)
    check_tools(console)
    guest.channel.send("nonsense\npoweroff\n")
    assert guest.process.wait(timeout=20) == 0


def check_tools(console: Line) -> None:
    """Use what start-up scripts and tests rely on: ping, sockets, hashes, bridges, VLANs, job control."""
    assert "4 packets received" in console.run("ping -c 4 -i 0.05 127.0.0.1")
    console.run("mkdir /tmp/w; echo hello >/tmp/w/f; httpd -p 127.0.0.1:80 -h /tmp/w")
    assert HELLO_SHA256 in console.run("wget -q -O - http://127.0.0.1/f | sha256sum")
    assert "over tcp" in console.run("nc -l -p 7 & sleep 1; echo over tcp | nc -w 1 127.0.0.1 7; wait")
    console.run("brctl addbr br0; brctl addif br0 eth1; vconfig add eth1 5")
    assert console.run("ls /sys/class/net").split() == ["br0", "eth0", "eth1", "eth1.5", "lo"]
    assert console.run("which ip udhcpc tftp traceroute tc telnetd >/dev/null; echo $?") == "0\n"
    since = len(console.text)
    # The job itself says so, not the shell: when it is read, the job has the terminal.
    console.send("sh -c 'echo slee\"\"ping; exec sleep 1000'\n")
    console.wait_for("^sleeping$", since=since)
    console.send("\x03")
    console.wait_for(r"\^C\n[^\n]*# ", since=since)
    # Nobody is left unreaped by the start-up script and the host channel.
    assert console.run("grep -l '^State:.Z' /proc/[0-9]*/status") == ""


def test_a_shell_that_ends_comes_back_and_poweroff_works_from_it(start: Callable[[], Guest]) -> None:
    guest = start()
    guest.channel.wait_for("^ready ")
    guest.console.wait_for(r"^root@alice:~# ")
    guest.console.run("A=1")
    since = len(guest.console.text)
    guest.console.send("exit\n")
    guest.console.wait_for(r"^root@alice:~# ", since=since)
    assert guest.console.run("echo [$A]") == "[]\n"
    guest.console.send("poweroff\n")
    assert guest.process.wait(timeout=20) == 0
