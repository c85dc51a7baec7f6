"""A sample of `make soak-migration`: a fault in each migration; and seeds that found something."""

from __future__ import annotations

from tests.soak.migration import _with_kills, soak


async def test_faults_at_random_steps_violate_nothing() -> None:
    report = await soak(4, 1, seconds=60, verbose=False)
    assert report["runs"] and not report["violations"], report["details"]


async def test_seed_29_a_source_agent_killed_while_pages_follow() -> None:
    """Its successor let go of the frozen half, and the guest waited for ever."""
    report = await soak(1, 29, verbose=False)
    assert report["runs"] and not report["violations"], report["details"]


def test_a_copy_that_is_found_standing_stopped_before_its_agent_died() -> None:
    assert _with_kills([(1, 0, True), (9, 0, False)], [5], 0) == [(1, 0, True), (5, 0, False), (9, 0, False)]
    assert _with_kills([(1, 0, True), (9, 0, True)], [5], 0) == [(1, 0, True), (9, 0, True)]
