"""Settings of the controller, and what the daemon does with wrong ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.roles.bench import ROOT

from serai.controller.settings import SOURCE, ControllerSettings
from serai.errors import InvalidInputError
from serai.wire.identity import Identity, Role
from serai.wire.tls import CertificateAuthority


def minimal(**changes: Any) -> dict[str, Any]:
    pip = {
        "name": "alpha",
        "credentials": "/credentials",
        "nodes": [{"name": "a1", "address": "127.0.0.1:1"}, {"name": "a2", "address": "127.0.0.1:2"}],
        "links": [{"a": "a1", "b": "a2", "capacity": "1Gbit/s", "delay": "2ms"}],
    }
    return {"state_dir": "/state", "pips": [{**pip, **changes}]}


def load(tmp_path: Path, content: dict[str, Any], **flags: str) -> ControllerSettings:
    file = tmp_path / "controller.yaml"
    file.write_text(yaml.safe_dump(content))
    return SOURCE.load(flags, file)


def test_file_environment_and_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(tmp_path, minimal())
    assert settings.pips[0].links[0].capacity == 10**9
    assert settings.pips[0].links[0].delay == 2.0
    monkeypatch.setenv("SERAI_CONTROLLER_EVENTS_URL", "mqtt://one:1")
    assert load(tmp_path, minimal()).events_url == "mqtt://one:1"
    assert load(tmp_path, minimal(), events_url="mqtt://two:2").events_url == "mqtt://two:2"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"state_dir": "/state"}, "no role"),
        (minimal(nodes=[]), "nodes"),
        (minimal(links=[{"a": "a1", "b": "a9", "capacity": 1}]), "a9"),
        (minimal(links=[{"a": "a1", "b": "a2", "capacity": "lots"}]), "lots"),
        (minimal(typo=1), "typo"),
        (minimal(name="Alpha!"), "Alpha!"),
        (
            minimal(borders=[{"name": "x", "node": "a1", "peer_provider": "beta", "capacity": 1}]),
            "serai://pip/beta",
        ),
        (
            {
                "state_dir": "/s",
                "vno": {"name": "o", "credentials": "/c", "provider": {"name": "nobody"}},
            },
            "serai://vnp/nobody",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        load(tmp_path, content)
    assert words in caught.value.message


def test_the_manuals_example_is_right(tmp_path: Path) -> None:
    manual = (ROOT / "docs" / "architecture.md").read_text()
    example = yaml.safe_load(manual.split("```yaml\n")[1].split("```")[0])
    settings = load(tmp_path, example)
    assert [role.name for role in settings.roles] == ["alpha", "vnp", "operator"]


def test_the_deployments_settings_are_right() -> None:
    settings = SOURCE.load({}, ROOT / "deploy" / "controller.yaml")
    assert {pip.name for pip in settings.pips} == {"alpha", "beta"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(str(ROOT / part) for part in ("controller", "proto"))
    return subprocess.run(
        [sys.executable, "-m", "serai.controller.main", *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_wrong_settings_end_with_2(tmp_path: Path) -> None:
    result = run("--config", str(tmp_path / "missing.yaml"))
    assert result.returncode == 2
    assert "missing.yaml" in result.stderr and "Traceback" not in result.stderr


def test_somebody_elses_certificate(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(tmp_path / "ca")
    authority.issue(Identity(Role.PIP, "beta"), tmp_path / "credentials")
    content = minimal(credentials=str(tmp_path / "credentials"))
    file = tmp_path / "controller.yaml"
    file.write_text(yaml.safe_dump({**content, "state_dir": str(tmp_path / "state")}))
    result = run("--config", str(file))
    assert result.returncode == 2
    assert "serai://pip/beta" in result.stderr and "Traceback" not in result.stderr
