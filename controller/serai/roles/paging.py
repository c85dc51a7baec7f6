"""Pagination of lists (AIP-158)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable
from typing import TypeVar

from serai.errors import InvalidInputError

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000

T = TypeVar("T")


def page(items: Iterable[T], size: int, token: str, *, key: Callable[[T], str]) -> tuple[list[T], str]:
    """One page of `items` in the order of `key`, and the token of the next ("" after the last).

    The token names the last item given, so that items which come and go meanwhile neither repeat nor hide
    others.
    Raises InvalidInputError for a negative size and for a token that no list gave.
    """
    if size < 0:
        raise InvalidInputError(f"page_size {size} is negative", hint="leave it out for the default")
    after = _decode(token) if token else None
    rest = sorted((item for item in items if after is None or key(item) > after), key=key)
    count = min(size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
    chosen = rest[:count]
    return chosen, _encode(key(chosen[-1])) if len(rest) > count else ""


def _encode(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def _decode(token: str) -> str:
    try:
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError) as error:
        raise InvalidInputError(
            f"page_token {token[:40]!r} did not come from a list", hint="start again without a token"
        ) from error
