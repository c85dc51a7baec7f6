"""Identities, the certificate authority and credentials on disk."""

from __future__ import annotations

import datetime
import stat
from pathlib import Path

import pytest

from serai.errors import AlreadyExistsError, InvalidInputError, NotFoundError, StateError
from serai.wire import tls
from serai.wire.identity import Identity, Role
from serai.wire.tls import CertificateAuthority, Credentials

A1 = Identity(Role.AGENT, "alpha/a1")


@pytest.mark.parametrize("uri", ["serai://pip/alpha", "serai://agent/alpha/a1", "serai://admin/local"])
def test_identity_round_trip(uri: str) -> None:
    assert str(Identity.parse(uri)) == uri


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "serai://",
        "serai://pip",
        "serai://root/x",
        "http://pip/alpha",
        "serai://pip/Alpha",
        "serai://pip/a//b",
    ],
)
def test_identity_refuses(uri: str) -> None:
    with pytest.raises(InvalidInputError):
        Identity.parse(uri)


def test_server_names_do_not_collide() -> None:
    identities = [
        A1,
        Identity(Role.AGENT, "a1"),
        Identity(Role.AGENT, "a1/alpha"),
        Identity(Role.PIP, "agent"),
    ]
    names = {identity.server_name for identity in identities} | {role.server_name for role in Role}
    assert len(names) == len(identities) + len(Role)


def test_issue_and_load(tmp_path: Path) -> None:
    CertificateAuthority.create(tmp_path / "ca")
    issued = CertificateAuthority.load(tmp_path / "ca").issue(A1, tmp_path / "a1")
    loaded = Credentials.load(tmp_path / "a1")
    assert loaded == issued
    assert loaded.identity == A1
    assert "PRIVATE KEY" not in repr(loaded)
    for path in (tmp_path / "ca" / "ca-key.pem", tmp_path / "a1" / "key.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not list(tmp_path.rglob(".*"))


def test_an_authority_is_never_overwritten(tmp_path: Path) -> None:
    before = CertificateAuthority.create(tmp_path).certificate
    with pytest.raises(AlreadyExistsError):
        CertificateAuthority.create(tmp_path)
    assert CertificateAuthority.load(tmp_path).certificate == before


def test_reserved_names_are_refused(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(tmp_path)
    with pytest.raises(InvalidInputError, match="reserved"):
        authority.issue(A1, names=["alpha.pip.serai.internal"])


@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem"])
def test_load_names_what_is_missing_or_damaged(tmp_path: Path, name: str) -> None:
    CertificateAuthority.create(tmp_path / "ca").issue(A1, tmp_path / "a1")
    (tmp_path / "a1" / name).write_bytes(b"not PEM")
    with pytest.raises(InvalidInputError, match=name):
        Credentials.load(tmp_path / "a1")
    (tmp_path / "a1" / name).unlink()
    with pytest.raises(NotFoundError, match=name):
        Credentials.load(tmp_path / "a1")


def test_load_refuses_a_mixture(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(tmp_path / "ca")
    authority.issue(A1, tmp_path / "a1")
    other = authority.issue(Identity(Role.AGENT, "alpha/a2"))
    (tmp_path / "a1" / "key.pem").write_bytes(other.key)
    with pytest.raises(InvalidInputError, match="not the key"):
        Credentials.load(tmp_path / "a1")
    foreign = CertificateAuthority.create(tmp_path / "foreign")
    other.save(tmp_path / "a2")
    (tmp_path / "a2" / "ca.pem").write_bytes(foreign.certificate)
    with pytest.raises(InvalidInputError, match="not issued by"):
        Credentials.load(tmp_path / "a2")


def test_load_refuses_what_is_expired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "_LEAF_LIFE", datetime.timedelta(minutes=-1))
    CertificateAuthority.create(tmp_path / "ca").issue(A1, tmp_path / "a1")
    with pytest.raises(StateError, match="not now"):
        Credentials.load(tmp_path / "a1")


def test_the_authority_itself_is_no_party(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(tmp_path)
    with pytest.raises(InvalidInputError, match="identities"):
        tls.certificate_identity(tls._parse_certificate(authority.certificate, tmp_path))
