"""Resource names and identifiers."""

from __future__ import annotations

import re
import secrets

from serai.errors import InvalidInputError

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def check_label(value: str, what: str) -> str:
    """`value` if it is a DNS label in lower case (RFC 1123), else InvalidInputError naming `what`."""
    if not _LABEL.fullmatch(value):
        raise InvalidInputError(
            f"{what} {value[:80]!r} is not a valid name",
            hint="use at most 63 lower-case letters, digits and hyphens, with a letter or digit at both ends",
        )
    return value


def resource_id(name: str, collection: str) -> str:
    """The id in ``COLLECTION/ID``; InvalidInputError for another shape."""
    prefix, _, identifier = name.partition("/")
    if prefix != collection or not identifier:
        raise InvalidInputError(f"{name[:120]!r} is not a name of this kind", hint=f"write {collection}/NAME")
    return identifier


def unique_label(stem: str) -> str:
    """A label that starts like `stem` and that nobody else has."""
    return f"{stem[:50].rstrip('-')}-{secrets.token_hex(4)}"


def random_label64() -> int:
    """A label of a virtual link on the wire: 64 random bits, never 0."""
    return secrets.randbits(64) | 1


def new_handle() -> str:
    """An opaque handle: 128 random bits say nothing of what it names."""
    return f"h-{secrets.token_hex(16)}"
