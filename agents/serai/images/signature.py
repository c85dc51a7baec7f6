"""Who signed an archive's Release: asks gpgv, which every Debian machine and most others have.

Without gpgv, or without a keyring of Debian's, there is only the chain of hashes, and whoever answers for the
mirror (or sits on the wire to it) could serve anything. The result says which of the two it was.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from serai.errors import ImageError, IntegrityError

DEBIAN_KEYRINGS = tuple(
    Path("/usr/share/keyrings") / f"debian-archive-keyring.{suffix}" for suffix in ("pgp", "gpg")
)
_TIMEOUT_SECONDS = 30
_CLEARSIGNED = re.compile(
    r"\A\s*-----BEGIN PGP SIGNED MESSAGE-----\n(?:[A-Za-z]+: [^\n]*\n)*\n(.*?)\n?"
    r"-----BEGIN PGP SIGNATURE-----",
    re.S,
)


@dataclass(frozen=True, slots=True)
class SignedText:
    """The text that was signed, and the fingerprints of the verified keys or why there are none."""

    text: str
    signers: tuple[str, ...] = ()
    unverified_because: str = ""

    @property
    def verified(self) -> bool:
        """Tell whether at least one signature of a known key is good."""
        return bool(self.signers)


def verify_clearsigned(message: bytes, keyring: Path | None = None) -> SignedText:
    """Return what a clear-signed message (RFC 9580, 7) says, verified if this machine can.

    `keyring` is used alone if given. Raises IntegrityError for a bad signature or one by no key of the
    keyring, and ImageError for bytes that are no clear-signed message.
    """
    program = shutil.which("gpgv")
    rings = [keyring] if keyring else [path for path in DEBIAN_KEYRINGS if path.exists()][:1]
    if keyring and not keyring.exists():
        raise ImageError(
            f"there is no keyring {keyring}", hint="name a file that gpgv can read", reason="NO_KEYRING"
        )
    if program is None:
        return SignedText(_unsigned_text(message), (), "this machine has no gpgv")
    if not rings:
        return SignedText(
            _unsigned_text(message), (), "this machine has no Debian keyring (debian-archive-keyring)"
        )
    return _run_gpgv(program, rings[0], message)


def _run_gpgv(program: str, keyring: Path, message: bytes) -> SignedText:
    with tempfile.TemporaryDirectory(prefix="serai-gpgv-") as name:
        folder = Path(name)
        (folder / "message").write_bytes(message)
        # gpgv writes out exactly what was signed; text before or after the signed part never gets into it.
        arguments = ["--status-fd", "1", "--keyring", str(keyring), "--output", str(folder / "text")]
        try:
            result = subprocess.run(
                [program, "--homedir", name, *arguments, str(folder / "message")],
                capture_output=True, check=False, timeout=_TIMEOUT_SECONDS, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ImageError(f"gpgv cannot be run: {error}", reason="SIGNATURE_TOOL_FAILED") from error
        status = result.stdout.decode(errors="replace")
        signers = tuple(re.findall(r"^\[GNUPG:\] VALIDSIG ([0-9A-F]+)", status, re.M))
        bad = re.search(r"^\[GNUPG:\] BADSIG ", status, re.M)
        if bad or not signers or not (folder / "text").exists():
            raise _refused(keyring, result.stderr.decode(errors="replace"))
        return SignedText((folder / "text").read_text("utf-8", errors="replace"), signers)


def _refused(keyring: Path, complaint: str) -> IntegrityError:
    lines = [line.removeprefix("gpgv: ").strip() for line in complaint.splitlines() if line.strip()]
    return IntegrityError(
        f"the archive's signature is not good: {'; '.join(lines[-3:]) or 'no signature'} (keyring {keyring})",
        hint="use another mirror with --mirror URL; if debian-archive-keyring is old, update it",
        reason="ARCHIVE_SIGNATURE_BAD",
    )


def _unsigned_text(message: bytes) -> str:
    """Return the text of a clear-signed message without checking who signed it."""
    found = _CLEARSIGNED.match(message.decode(errors="replace").replace("\r\n", "\n"))
    if not found:
        raise ImageError(
            "the mirror's InRelease is not a signed index",
            hint="check that the address is a Debian mirror and that no proxy or portal answers in its place",
            reason="ARCHIVE_MALFORMED",
        )
    # Dash escaping (RFC 9580, 7.1).
    return re.sub(r"^- ", "", found[1], flags=re.M)
