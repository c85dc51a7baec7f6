"""Doing several things at once where each has effects elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def settle(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all of `work` at once and return the results, or raise the first error when all have ended.

    What is under way is never abandoned, not even when the caller is cancelled: a request whose outcome is
    unknown cannot be undone.
    """
    gathered = asyncio.ensure_future(asyncio.gather(*work, return_exceptions=True))
    try:
        outcomes = await asyncio.shield(gathered)
    except asyncio.CancelledError:
        await gathered
        raise
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]


async def first_failure(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait for all of `work`; the first error cancels the rest and is raised as it is."""
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    try:
        for next_done in asyncio.as_completed(tasks):
            await next_done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
