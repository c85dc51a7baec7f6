"""``serai isa`` asks the machine's own process for its table."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.test_commands import serai


def test_show_and_list(tmp_path: Path) -> None:
    shown = json.loads(serai(tmp_path, "isa", "show", "sret", "-o", "json").stdout)
    assert shown["match"] == "0x10200073"
    assert shown["classes"][0]["outcome"] == {"U": "trap 2", "S": "retires", "M": "retires"}
    listed = serai(tmp_path, "isa", "list").stdout
    assert "c.addi4spn" in listed
    assert "fnmsub.d" in listed


def test_unknown_instruction(tmp_path: Path) -> None:
    result = serai(tmp_path, "isa", "show", "vmlaunch")
    assert result.returncode == 3
    assert "vmlaunch" in result.stderr
    assert "serai isa list" in result.stderr
