"""Whole lists out of paginated ones (AIP-158)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, TypeVar


class _Page(Protocol):
    @property
    def next_page_token(self) -> str: ...


Page = TypeVar("Page", bound=_Page)
Item = TypeVar("Item")


async def collect(
    fetch: Callable[[str], Awaitable[Page]], items: Callable[[Page], Iterable[Item]]
) -> list[Item]:
    """All items: `fetch` a page by its token until there is no next one."""
    collected: list[Item] = []
    token = ""
    while True:
        page = await fetch(token)
        collected.extend(items(page))
        token = page.next_page_token
        if not token:
            return collected
