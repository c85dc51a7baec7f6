"""Every test of the suites for what Serai advertises: rv64 ui, um, ua, uf, ud, uc, si, mi; -p and -v."""

from __future__ import annotations

from pathlib import Path

from tests.conformance.htif import Board


def test_passes(riscv_elf: Path) -> None:
    result = Board(riscv_elf).run()
    assert result == 1, f"check {result >> 1} failed"
