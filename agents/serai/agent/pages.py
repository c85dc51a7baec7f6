"""Pagination as in AIP-158: opaque tokens, a default size and a bound."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import TypeVar

from serai.errors import InvalidInputError

DEFAULT_SIZE = 100
MAX_SIZE = 1000

Item = TypeVar("Item")


def paginate(
    items: Sequence[Item], key: Callable[[Item], str], size: int, token: str
) -> tuple[list[Item], str]:
    """The page after `token` in the order of `key`, and the token of the next one ("" after the last).

    What is deleted or added between two calls neither repeats nor hides anything else.
    """
    if size < 0:
        raise InvalidInputError(f"page_size is {size}", hint="0 means the default")
    after = _decode(token)
    rest = sorted((item for item in items if key(item) > after), key=key)
    page = rest[: min(size or DEFAULT_SIZE, MAX_SIZE)]
    more = len(rest) > len(page)
    return page, base64.urlsafe_b64encode(key(page[-1]).encode()).decode() if more else ""


def _decode(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise InvalidInputError(
            "page_token is not one of this server", hint="give next_page_token back unchanged"
        ) from error
