"""Robin and Irvine's instructions, as the published page says."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("unicorn")

from serai.machine.isa.x86 import CASES, markdown, try_out

PAGE = Path(__file__).parents[3] / "docs/instruction-classes-x86.md"


def test_the_published_page_is_what_is_seen() -> None:
    results = {result.name: result for result in try_out()}
    assert len(results) == len(CASES) == 18
    for name in ("SGDT", "SIDT", "SLDT", "STR"):  # the real register, whoever asks
        assert results[name].ring3.split("memory")[1] == results[name].ring0.split("memory")[1]
        assert results[name].confirmed
    for name in ("POPF", "LAR", "LSL", "VERR", "VERW", "PUSH CS", "MOV from CS"):
        assert results[name].confirmed
        assert results[name].ring0 != results[name].ring3
    assert not results["INT n"].confirmed
    assert PAGE.read_text() == markdown(list(results.values()))
