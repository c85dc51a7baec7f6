"""A sample of the differential test against Unicorn; ``make soak`` runs a million sequences."""

from __future__ import annotations

import pytest

pytest.importorskip("unicorn")

from tests.soak.differential import Ours, Result, compare, describe, difference
from tests.soak.sequences import DATA, MAKERS, generate

SAMPLE = 3000


def test_random_sequences_do_the_same_as_in_another_implementation() -> None:
    trapped, failures = compare(10_000_000, SAMPLE)
    report = "\n\n".join(f"seed {seed}: {why}\n{describe(generate(seed))}" for seed, why in failures[:3])
    assert not failures, report
    assert trapped < SAMPLE / 100


def test_a_difference_would_be_seen() -> None:
    result = Ours().run(generate(1))
    assert isinstance(result, Result)
    assert difference(result, result) == ""
    wrong = Result((*result.integers[:5], 1, *result.integers[6:]), result.floats, 7, b"")
    found = difference(result, wrong)
    assert "x5" in found
    assert "fcsr" in found
    assert "memory" in found
    assert "trap" in difference(result, None)


def test_sequences_are_reproducible_and_reach_every_entry() -> None:
    assert generate(5) == generate(5)
    words = {line.split()[1] for seed in range(1500) for line in describe(generate(seed)).splitlines()}
    names = {word.split(".aq")[0].split(".rl")[0] for word in words}
    assert len(MAKERS["w"]) > 175
    assert {"fmadd.d", "c.fsd", "lr.w", "sc.d", "divw", "c.jalr", "jalr"} <= names
    assert {"csrrci", "fcvt.s.lu", "fence", "c.addi4spn", "amomaxu.w"} <= names
    assert DATA % 4096 == 0


@pytest.mark.parametrize("seed", [96_342, 126_618, 876_556])
def test_infinity_times_zero_plus_nan_is_where_the_reference_is_outdated(seed: int) -> None:
    assert Ours().meets_outdated_reference(generate(seed))
    assert compare(seed, 1) == (0, [])
