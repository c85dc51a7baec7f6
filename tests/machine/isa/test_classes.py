"""Popek and Goldberg's classes: the experiments, the static view, and the published page."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from serai.machine.isa.classes import InstructionClass, classify_all, condition_holds
from serai.machine.isa.report import markdown
from serai.machine.isa.table import INSTRUCTIONS, Effect

PAGE = Path(__file__).parents[3] / "docs/instruction-classes.md"


@functools.cache
def classes() -> dict[str, InstructionClass]:
    return {item.name: item for item in classify_all()}


def test_the_published_page_is_what_the_machine_does() -> None:
    assert PAGE.read_text() == markdown(list(classes().values())), (
        "write it again: python -m serai.machine.isa classify --markdown"
    )


def test_the_condition_holds_and_would_be_noticed_if_it_did_not() -> None:
    found = list(classes().values())
    assert condition_holds(found)
    smsw = InstructionClass(
        "smsw",
        "smsw",
        {"U": "retires", "S": "retires", "M": "retires"},
        False,
        False,
        True,
        (),
        ("mode",),
        (),
    )
    assert smsw.verdict == "SENSITIVE, UNPRIVILEGED"
    assert not condition_holds([*found, smsw])


@pytest.mark.parametrize(
    ("name", "verdict", "modes"),
    [
        ("mret", "privileged, sensitive", ("trap 2", "trap 2", "retires")),
        ("sret", "privileged, sensitive", ("trap 2", "retires", "retires")),
        ("wfi", "privileged, sensitive", ("trap 2", "waits", "waits")),
        ("sfence.vma", "privileged, sensitive", ("trap 2", "retires", "retires")),
        ("csrrs (read) sstatus", "privileged, sensitive", ("trap 2", "retires", "retires")),
        ("csrrw satp", "privileged, sensitive", ("trap 2", "retires", "retires")),
        ("csrrs (read) time", "privileged, sensitive", ("trap 2", "trap 2", "retires")),
        ("ecall", "always traps", ("trap 8", "trap 9", "trap 11")),
        ("csrrw fcsr", "innocuous", ("retires",) * 3),
        ("fadd.d", "innocuous", ("retires",) * 3),
        ("lr.d", "innocuous", ("retires",) * 3),
        ("fence.i", "innocuous", ("retires",) * 3),
    ],
)
def test_known_instructions(name: str, verdict: str, modes: tuple[str, ...]) -> None:
    item = classes()[name]
    assert (item.verdict, tuple(item.outcome.values())) == (verdict, modes)


def test_what_the_text_says_is_innocuous_is_so_when_executed() -> None:
    for item in classes().values():
        if INSTRUCTIONS[item.instruction].effect is not Effect.SYSTEM:
            assert item.static == ()
            assert item.verdict == "innocuous", item
        elif item.sensitive:
            assert item.static, item


def test_every_instruction_is_classified() -> None:
    assert {item.instruction for item in classes().values()} >= INSTRUCTIONS.keys() - {
        "csrrc",
        "csrrwi",
        "csrrsi",
        "csrrci",
    }
