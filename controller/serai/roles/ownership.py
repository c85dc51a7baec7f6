"""Who may see and touch a resource: the party that asked for it, and administrators."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from serai.errors import NotFoundError
from serai.wire.identity import Identity, Role


class Owned(Protocol):
    """A record with an owner: the URI of an identity."""

    owner: str


T = TypeVar("T", bound=Owned)


def may_see(owner: str, caller: Identity) -> bool:
    """Whether `caller` may know that the resource exists."""
    return caller.role is Role.ADMIN or caller.uri == owner


def owned(records: Iterable[T], caller: Identity) -> list[T]:
    """The records that `caller` may see."""
    return [record for record in records if may_see(record.owner, caller)]


def check_owner(owner: str, caller: Identity, noun: str, name: str) -> None:
    """NotFoundError for everybody else: that a name is taken is the owner's business alone."""
    if not may_see(owner, caller):
        raise NotFoundError(f"{noun} {name!r} does not exist", hint=f"list the {noun}s", resource=name)
