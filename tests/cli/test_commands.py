"""The command line as people meet it: messages, streams and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from serai.cli.app import EXIT_CODES

ROOT = Path(__file__).resolve().parents[2]
SOURCES = os.pathsep.join(str(ROOT / folder) for folder in ("agents", "controller", "proto"))
EXAMPLE = ROOT / "docs/examples/two-providers.xml"


def serai(state: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "serai.cli.main", *arguments],
        env={**os.environ, "PYTHONPATH": SOURCES, "SERAI_STATE": str(state), "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_names_every_noun(tmp_path: Path) -> None:
    result = serai(tmp_path, "--help")
    assert result.returncode == 0
    for noun in ("cluster", "image", "node", "vnet", "vm", "event", "demo"):
        assert noun in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [("vm", "list"), ("node", "list"), ("vnet", "list"), ("cluster", "status"), ("cluster", "down")],
)
def test_without_a_cluster_the_next_step_is_named(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = serai(tmp_path, *arguments)
    assert result.returncode == 3
    assert result.stdout == ""
    assert "no cluster 'default' is running" in result.stderr
    assert "serai cluster up" in result.stderr


def test_unknown_image_is_refused_with_what_there_is(tmp_path: Path) -> None:
    result = serai(tmp_path, "image", "build", "windows")
    assert result.returncode == 2
    assert "windows" in result.stderr
    assert "debian" in result.stderr


def test_demo_without_an_image_says_how_to_build_it(tmp_path: Path) -> None:
    result = serai(tmp_path, "demo", SERAI_IMAGES=str(tmp_path / "empty"))
    assert result.returncode == 5
    assert "serai image build debian" in result.stderr
    assert not list(tmp_path.glob("clusters/*"))


def test_a_good_description_is_counted(tmp_path: Path) -> None:
    result = serai(tmp_path, "vnet", "validate", "-f", str(EXAMPLE))
    assert result.returncode == 0
    assert "vnet demo: 3 nodes, 3 links" in result.stdout


def test_every_error_of_a_description_has_file_and_line(tmp_path: Path) -> None:
    broken = EXAMPLE.read_text().replace('node="router" interface="eth1"', 'node="ruter" interface="eth1"')
    file = tmp_path / "broken.xml"
    file.write_text(broken.replace('bandwidth="10Mbit/s"', 'bandwidth="10"'))
    result = serai(tmp_path, "vnet", "validate", "-f", str(file))
    assert result.returncode == 2
    lines = [
        line for line in result.stderr.splitlines() if line.startswith(f"{file}:") and ": error: " in line
    ]
    assert any("ruter" in line and "router" in line for line in lines)
    assert any("10" in line and "unit" in line for line in lines)
    numbered = {int(line.removeprefix(f"{file}:").partition(":")[0]) for line in lines}
    wrong = {
        n for n, text in enumerate(file.read_text().splitlines(), 1) if "ruter" in text or '"10"' in text
    }
    assert numbered == wrong


def test_malformed_xml(tmp_path: Path) -> None:
    file = tmp_path / "cut.xml"
    file.write_bytes(EXAMPLE.read_bytes()[:700])
    result = serai(tmp_path, "vnet", "validate", "-f", str(file))
    assert result.returncode == 2
    assert f"{file}:" in result.stderr


def test_missing_files_and_wrong_options(tmp_path: Path) -> None:
    assert serai(tmp_path, "vnet", "validate", "-f", str(tmp_path / "none.xml")).returncode == 3
    assert serai(tmp_path, "cluster", "up", "-f", str(tmp_path / "none.yaml")).returncode == 3
    assert serai(tmp_path, "vm", "list", "-o", "colour").returncode == 2
    assert serai(tmp_path, "demo", "--report", str(tmp_path / "no/such/folder/r.json")).returncode == 2


def test_a_damaged_state_file_is_named(tmp_path: Path) -> None:
    state = tmp_path / "clusters/default/cluster.json"
    state.parent.mkdir(parents=True)
    state.write_text("{")
    result = serai(tmp_path, "vm", "list")
    assert result.returncode == 2
    assert str(state) in result.stderr


def test_image_list_as_json(tmp_path: Path) -> None:
    result = serai(tmp_path, "image", "list", "-o", "json", SERAI_IMAGES=str(tmp_path / "empty"))
    assert result.returncode == 0
    assert json.loads(result.stdout) == []


def test_exit_codes_are_documented() -> None:
    documented = (ROOT / "docs/cli.md").read_text()
    for code in EXIT_CODES.values():
        assert f"| {code} |" in documented


def test_explain_speaks_of_an_element_or_says_which_there_are(tmp_path: Path) -> None:
    result = serai(tmp_path, "vnet", "explain", "vnet.link.bandwidth")
    assert result.returncode == 0
    assert result.stdout.startswith("vnet.link.bandwidth: ") and "Example" in result.stdout
    assert serai(tmp_path, "vnet", "explain").stdout.startswith("vnet: element <vnet>")
    wrong = serai(tmp_path, "vnet", "explain", "vnet.link.bandwith")
    assert wrong.returncode == 3
    assert "bandwidth" in wrong.stderr


@pytest.mark.parametrize("verb", ["diff", "apply"])
def test_a_wrong_description_is_refused_before_anybody_is_asked(tmp_path: Path, verb: str) -> None:
    file = tmp_path / "wrong.xml"
    file.write_text('<vnet xmlns="urn:serai:vnet:1" name="x"><node name="a" vcpus="0"/></vnet>')
    result = serai(tmp_path, "vnet", verb, "-f", str(file))
    assert result.returncode == 2
    assert "vcpus" in result.stderr
