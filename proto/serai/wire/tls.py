"""Certificates: a small authority of one's own, and what a process presents and trusts.

There is no insecure mode. Keys are ECDSA P-256; files are PEM, keys with mode 0600.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from serai.errors import AlreadyExistsError, InvalidInputError, NotFoundError, StateError
from serai.wire.identity import DOMAIN, Identity

CA_FILE, CERTIFICATE_FILE, KEY_FILE, CA_KEY_FILE = "ca.pem", "cert.pem", "key.pem", "ca-key.pem"
_CA_LIFE = datetime.timedelta(days=3650)
_LEAF_LIFE = datetime.timedelta(days=365)
_CLOCK_SKEW = datetime.timedelta(hours=1)
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a process presents and whom it trusts; the three byte strings are PEM."""

    ca: bytes
    certificate: bytes
    key: bytes = field(repr=False)
    identity: Identity

    @classmethod
    def load(cls, directory: Path) -> Credentials:
        """Read ``ca.pem``, ``cert.pem`` and ``key.pem`` and check that they belong together.

        Raises NotFoundError for a missing file, InvalidInputError for one that is damaged or does not match,
        StateError for a certificate that is not valid now.
        """
        ca, certificate, key = (_read(directory / name) for name in (CA_FILE, CERTIFICATE_FILE, KEY_FILE))
        parsed = _parse_certificate(certificate, directory / CERTIFICATE_FILE)
        _check_issued_by(parsed, _parse_certificate(ca, directory / CA_FILE), directory)
        private = _parse_key(key, directory / KEY_FILE)
        if private.public_key() != parsed.public_key():
            raise InvalidInputError(
                f"{directory / KEY_FILE} is not the key of {directory / CERTIFICATE_FILE}",
                hint="issue both again; they are made together",
            )
        _check_valid_now(parsed, directory / CERTIFICATE_FILE)
        return cls(ca, certificate, key, certificate_identity(parsed))

    def save(self, directory: Path) -> None:
        """Write the three files; the directory is made when it is missing."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(directory / CA_FILE, self.ca, 0o644)
        _write(directory / CERTIFICATE_FILE, self.certificate, 0o644)
        _write(directory / KEY_FILE, self.key, 0o600)


class CertificateAuthority:
    """Issues certificates to the parties of one installation."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def create(cls, directory: Path, name: str = "serai") -> CertificateAuthority:
        """A new authority in `directory` (``ca.pem``, ``ca-key.pem``); AlreadyExistsError if one is there."""
        if (directory / CA_KEY_FILE).exists():
            raise AlreadyExistsError(
                f"{directory} already holds a certificate authority",
                hint="load it, or choose another directory",
            )
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} authority")])
        usage = _key_usage(key_cert_sign=True, crl_sign=True)
        builder = _builder(subject, subject, key.public_key(), _CA_LIFE)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(usage, critical=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = builder.add_extension(identifier, critical=False).sign(key, hashes.SHA256())
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(directory / CA_KEY_FILE, _key_pem(key), 0o600)
        _write(directory / CA_FILE, _certificate_pem(certificate), 0o644)
        return cls(certificate, key)

    @classmethod
    def load(cls, directory: Path) -> CertificateAuthority:
        """The authority in `directory`; NotFoundError or InvalidInputError naming the file."""
        key = _parse_key(_read(directory / CA_KEY_FILE), directory / CA_KEY_FILE)
        certificate = _parse_certificate(_read(directory / CA_FILE), directory / CA_FILE)
        if key.public_key() != certificate.public_key():
            raise InvalidInputError(f"{directory / CA_KEY_FILE} is not the key of {directory / CA_FILE}")
        return cls(certificate, key)

    @property
    def certificate(self) -> bytes:
        """The authority's certificate, PEM; what everybody trusts."""
        return _certificate_pem(self._certificate)

    def issue(
        self, identity: Identity, directory: Path | None = None, *, names: Iterable[str] = LOOPBACK_NAMES
    ) -> Credentials:
        """Credentials for `identity`, written to `directory` if given.

        `names` are the DNS names and IP addresses under which programs that know no identities (a browser)
        reach it.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.server_name[:64])])
        builder = _builder(subject, self._certificate.subject, key.public_key(), _LEAF_LIFE)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(digital_signature=True), critical=True)
        both_sides = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(both_sides), critical=False)
        builder = builder.add_extension(_alternative_names(identity, names), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = builder.add_extension(issuer, critical=False).sign(self._key, hashes.SHA256())
        credentials = Credentials(self.certificate, _certificate_pem(certificate), _key_pem(key), identity)
        if directory is not None:
            credentials.save(directory)
        return credentials


def certificate_identity(certificate: x509.Certificate) -> Identity:
    """The one ``serai://`` URI of a certificate; InvalidInputError when there is none or more."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        uris: list[str] = []
    else:
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise InvalidInputError(
            f"certificate {certificate.subject.rfc4514_string()} names {len(uris)} identities, not one",
            hint="issue it with Serai's certificate authority",
        )
    return Identity.parse(uris[0])


def _alternative_names(identity: Identity, names: Iterable[str]) -> x509.SubjectAlternativeName:
    dns = [identity.server_name, identity.role.server_name, DOMAIN]
    general: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri)]
    for name in names:
        try:
            general.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            if name == DOMAIN or name.endswith(f".{DOMAIN}"):
                # Such a name would make this party pass for another one.
                raise InvalidInputError(
                    f"{name!r} is reserved for identities", hint="use a host name"
                ) from None
            dns.append(name)
    return x509.SubjectAlternativeName([*general, *(x509.DNSName(name) for name in dns)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, life: datetime.timedelta
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - _CLOCK_SKEW).not_valid_after(now + life)


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _check_issued_by(certificate: x509.Certificate, ca: x509.Certificate, directory: Path) -> None:
    try:
        certificate.verify_directly_issued_by(ca)
    except Exception as error:  # ValueError, TypeError or InvalidSignature, all with the same meaning here
        raise InvalidInputError(
            f"{directory / CERTIFICATE_FILE} was not issued by {directory / CA_FILE}",
            hint="take both from the same certificate authority",
        ) from error


def _check_valid_now(certificate: x509.Certificate, path: Path) -> None:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not start <= datetime.datetime.now(datetime.UTC) <= end:
        raise StateError(
            f"{path} is valid from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, not now",
            hint="check the clock, or issue a new certificate",
            reason="CERTIFICATE_NOT_VALID",
        )


def _parse_certificate(pem: bytes, path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise InvalidInputError(f"{path} is not a PEM certificate", hint="issue it again") from error


def _parse_key(pem: bytes, path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise InvalidInputError(f"{path} is not an unencrypted PEM key", hint="issue it again") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InvalidInputError(f"{path} is not an elliptic-curve key", hint="issue it again")
    return key


def _certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{path} does not exist", hint="name a directory with ca.pem, cert.pem and key.pem", path=path
        ) from error
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}", path=path) from error


def _write(path: Path, content: bytes, mode: int) -> None:
    """Replace `path` at once; a reader never sees half a file, nor a key with a wider mode."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
