"""Cluster files: what is accepted, and that every error names its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from serai.cli.local.config import DEFAULT, load
from serai.errors import InvalidInputError, NotFoundError


def write(folder: Path, text: str) -> Path:
    file = folder / "cluster.yaml"
    file.write_text(text)
    return file


def test_units_and_defaults(tmp_path: Path) -> None:
    config = load(
        write(
            tmp_path,
            """
name: lab
providers:
  - name: alpha
    nodes: [{name: a1, memory: 512MiB, vcpus: 2}, {name: a2}]
    links: [{a: a1, b: a2, bandwidth: 10Mbit/s, delay: 2ms}]
""",
        )
    )
    assert config.providers[0].nodes[0].memory == 512 << 20
    assert (config.providers[0].links[0].bandwidth, config.providers[0].links[0].delay) == (
        10_000_000,
        2_000_000,
    )
    assert config.broker == "embedded"


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("providers: []", "providers", "at least 1"),
        ("providers: [{name: Alpha, nodes: [{name: a1}]}]", "providers[0].name", "pattern"),
        ("providers: [{name: alpha, nodes: [{name: a1, memory: 512}, {name: a1}]}]", "providers[0]", "twice"),
        (
            "providers: [{name: a, nodes: [{name: a1, memory: 5 apples}]}]",
            "providers[0].nodes[0].memory",
            "apples",
        ),
        ("providers: [{name: a, nodes: [{name: a1}], colour: red}]", "providers[0].colour", "Extra"),
        (
            "providers: [{name: a, nodes: [{name: a1}], links: [{a: a1, b: a9}]}]",
            "providers[0]",
            "names node 'a9'",
        ),
        (
            "providers: [{name: a, nodes: [{name: a1}]}]\nborders: [{name: x, a: a/a1, b: z/z1}]",
            "cluster",
            "'z/z1'",
        ),
        ("just text", "cluster", ""),
        ("a: [", "", "expected"),
    ],
)
def test_errors_name_file_and_place(tmp_path: Path, text: str, place: str, reason: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(InvalidInputError) as caught:
        load(file)
    assert str(file) in caught.value.message
    assert place in caught.value.message
    assert reason in caught.value.message
    assert caught.value.hint


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no cluster file"):
        load(tmp_path / "none.yaml")


def test_the_documented_example_is_the_built_in_cluster() -> None:
    example = Path(__file__).resolve().parents[2] / "docs/examples/cluster.yaml"
    assert load(example) == DEFAULT
