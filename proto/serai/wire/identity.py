"""Who speaks: a role and its owner, named by a URI in the certificate (RFC 5280, 4.2.1.6).

``serai://pip/alpha``, ``serai://agent/alpha/a1``, ``serai://admin/local``. gRPC verifies a server's name
against DNS names only, so a certificate also carries the identity as names below ``serai.internal`` (a domain
reserved for private use): its own, its role's, and one that every party of this authority has.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from serai.errors import InvalidInputError

DOMAIN = "serai.internal"
_SCHEME = "serai://"
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class Role(enum.StrEnum):
    """What a party may be; every RPC states which of these may call it."""

    AGENT = "agent"
    PIP = "pip"
    VNP = "vnp"
    VNO = "vno"
    SP = "sp"
    USER = "user"
    ADMIN = "admin"

    @property
    def server_name(self) -> str:
        """The DNS name that every certificate of this role carries."""
        return f"{self.value}.{DOMAIN}"


ANY_ROLE = frozenset(Role)
"""For methods that every authenticated party may call."""


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """A role and its owner; an agent's owner is ``PROVIDER/NODE``.

    Raises InvalidInputError unless the owner is one to three DNS labels (RFC 1123) with ``/`` between.
    """

    role: Role
    owner: str

    def __post_init__(self) -> None:
        labels = self.owner.split("/")
        if len(labels) > 3 or not all(_LABEL.fullmatch(label) for label in labels):
            raise InvalidInputError(
                f"{self.owner!r} cannot own an identity",
                hint="use one to three names of lower-case letters, digits and hyphens, joined by '/'",
                owner=self.owner,
            )

    @classmethod
    def parse(cls, uri: str) -> Identity:
        """The identity that `uri` names; InvalidInputError for anything else."""
        role, _, owner = uri.removeprefix(_SCHEME).partition("/")
        if not uri.startswith(_SCHEME) or role not in set(Role):
            raise InvalidInputError(
                f"{uri!r} is not an identity",
                hint=f"write {_SCHEME}ROLE/OWNER, ROLE one of {', '.join(Role)}",
            )
        return cls(Role(role), owner)

    @property
    def uri(self) -> str:
        """``serai://ROLE/OWNER``."""
        return f"{_SCHEME}{self.role.value}/{self.owner}"

    @property
    def server_name(self) -> str:
        """The DNS name of exactly this identity, most specific label first."""
        return ".".join([*reversed(self.owner.split("/")), self.role.server_name])

    def __str__(self) -> str:
        return self.uri


def expected_server_name(expected: Role | Identity | None) -> str:
    """The name a server must prove to be `expected`; None accepts any party of the same authority."""
    return DOMAIN if expected is None else expected.server_name
