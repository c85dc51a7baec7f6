"""`serai attach` with real guests: a TCP port that leads into a VNet, a recording, and nothing left."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = os.pathsep.join(str(ROOT / folder) for folder in ("agents", "controller", "proto"))
SIZE = 300_000

pytestmark = pytest.mark.guest

VNET = f"""<vnet xmlns="urn:serai:vnet:1" name="web">
  <node name="www" provider="alpha">
    <interface address="10.9.0.1/24"/>
    <startup>
mkdir -p /srv &amp;&amp; head -c {SIZE} /dev/zero | tr '\\0' x &gt; /srv/big
echo 'it works' &gt; /srv/index.html
busybox httpd -p 80 -h /srv
</startup>
  </node>
  <node name="peer" provider="alpha"><interface address="10.9.0.2/24"/></node>
  <link><end node="www"/><end node="peer"/></link>
</vnet>"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "serai.cli.main", *arguments]


@contextmanager
def cluster(state: Path) -> Iterator[dict[str, str]]:
    environment = {**os.environ, "PYTHONPATH": SOURCES, "SERAI_STATE": str(state), "COLUMNS": "200"}
    subprocess.run(command("cluster", "up"), env=environment, check=True, timeout=90)
    try:
        yield environment
    finally:
        subprocess.run(command("cluster", "down"), env=environment, check=True, timeout=60)


def say(environment: dict[str, str], *arguments: str) -> str:
    result = subprocess.run(
        command(*arguments), env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@contextmanager
def attached(environment: dict[str, str], token: str, *options: str) -> Iterator[list[str]]:
    """The lines that it says when it is attached."""
    process = subprocess.Popen(
        command("attach", token, *options), env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        lines = [process.stderr.readline() for _ in range(1 + options.count("--forward"))]
        yield lines
    finally:
        process.terminate()
        rest = process.communicate(timeout=20)[1]
        assert process.returncode == 130, rest


def fetch(address: str, path: str) -> bytes:
    with urllib.request.urlopen(f"http://{address}/{path}", timeout=20) as answer:
        content: bytes = answer.read()
        return content


def test_a_user_attaches_to_a_web_server(tmp_path: Path) -> None:
    """At a provider that hosts nothing of the VNet, with two forwards and a recording."""
    document, record = tmp_path / "web.xml", tmp_path / "web.pcap"
    document.write_text(VNET)
    with cluster(tmp_path / "state") as environment:
        say(environment, "vnet", "request", "-f", str(document))
        token = say(environment, "vnet", "grant", "web", "--node", "www").strip()
        options = ("--provider", "beta", "--forward", "0:10.9.0.1:80", "--forward", "0:10.9.0.1:81")
        with attached(environment, token, *options, "--pcap", str(record)) as lines:
            assert "10.9.0.254/24" in lines[0], lines
            addresses = [line.split()[0] for line in lines[1:]]
            assert fetch(addresses[0], "index.html") == b"it works\n"
            assert fetch(addresses[0], "big") == b"x" * SIZE
            with pytest.raises(OSError):
                fetch(addresses[1], "")
        frames = record.read_bytes()
        assert frames[:4] == (0xA1B23C4D).to_bytes(4, sys.byteorder)
        assert b"GET /index.html" in frames and b"it works" in frames
        grant = say(environment, "vnet", "grants").splitlines()[1].split()[0]
        say(environment, "vnet", "revoke", grant)
        result = subprocess.run(
            command("attach", token, "--pcap", os.devnull),
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert result.returncode == 7 and "credential" in result.stderr
        with socket.socket() as probe:
            host, port = addresses[0].split(":")
            assert probe.connect_ex((host, int(port))) != 0
        say(environment, "vnet", "delete", "web")
