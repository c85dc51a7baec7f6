from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from serai.errors import ImageError, IntegrityError
from serai.images import signature
from serai.images.signature import verify_clearsigned

TEXT = "Origin: Debian\n- dashed\nSuite: stable\n"
needs_gpg = pytest.mark.skipif(
    not (shutil.which("gpg") and shutil.which("gpgv")), reason="gpg and gpgv make the keys"
)


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    # A key's home holds a socket, whose path must be short.
    return {"folder": tmp_path_factory.mktemp("g")}


@pytest.fixture
def signer(signers: dict[str, Any], make_signer: Callable[[Path], Any]) -> Any:
    return (
        signers.setdefault("debian", None)
        or signers.update(debian=make_signer(signers["folder"] / "a"))
        or signers["debian"]
    )


@pytest.fixture
def stranger(signers: dict[str, Any], make_signer: Callable[[Path], Any]) -> Any:
    return (
        signers.setdefault("other", None)
        or signers.update(other=make_signer(signers["folder"] / "b"))
        or signers["other"]
    )


@needs_gpg
def test_a_good_signature_gives_the_text_and_the_key(signer: Any) -> None:
    signed = verify_clearsigned(signer.sign(TEXT), signer.keyring)
    assert signed.verified and len(signed.signers[0]) == 40
    assert signed.text.rstrip("\n") == TEXT.rstrip("\n")


@needs_gpg
def test_text_around_the_signed_part_is_not_taken(signer: Any) -> None:
    message = b"Origin: Evil\n\n" + signer.sign(TEXT) + b"Origin: Evil\n"
    with suppress(IntegrityError):  # refusing it altogether is as good
        assert "Evil" not in verify_clearsigned(message, signer.keyring).text


@needs_gpg
def test_a_changed_text_is_refused(signer: Any) -> None:
    message = signer.sign(TEXT).replace(b"Suite: stable", b"Suite: stabler")
    with pytest.raises(IntegrityError, match="BAD signature") as raised:
        verify_clearsigned(message, signer.keyring)
    assert raised.value.reason == "ARCHIVE_SIGNATURE_BAD"


@needs_gpg
def test_a_signature_by_a_key_that_is_not_in_the_keyring_is_refused(signer: Any, stranger: Any) -> None:
    with pytest.raises(IntegrityError, match="signature is not good"):
        verify_clearsigned(stranger.sign(TEXT), signer.keyring)


@needs_gpg
@pytest.mark.parametrize("message", [b"", b"Origin: Debian\n", b"<html>log in</html>"])
def test_a_missing_signature_is_refused_where_it_could_be_checked(signer: Any, message: bytes) -> None:
    with pytest.raises(IntegrityError):
        verify_clearsigned(message, signer.keyring)


@needs_gpg
def test_a_signature_cut_off_is_refused(signer: Any) -> None:
    message = signer.sign(TEXT)
    with pytest.raises(IntegrityError):
        verify_clearsigned(message[: message.index(b"-----BEGIN PGP SIGNATURE")], signer.keyring)


@needs_gpg
def test_the_keyring_that_is_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no keyring"):
        verify_clearsigned(b"x", tmp_path / "none.gpg")


@needs_gpg
def test_without_a_debian_keyring_the_result_says_so(signer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signature, "DEBIAN_KEYRINGS", (Path("/nonexistent.gpg"),))
    signed = verify_clearsigned(signer.sign(TEXT))
    assert (
        not signed.verified
        and "keyring" in signed.unverified_because
        and signed.text.rstrip() == TEXT.rstrip()
    )


@pytest.mark.usefixtures("no_gpgv")
def test_without_gpgv_the_text_is_read_and_the_result_says_so() -> None:
    message = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\nHash: SHA512\n\nOrigin: Debian\n- - dashed\n"
    signed = verify_clearsigned(
        (message + "-----BEGIN PGP SIGNATURE-----\n\nx\n").replace("\n", "\r\n").encode()
    )
    assert not signed.verified and "gpgv" in signed.unverified_because
    assert signed.text == "Origin: Debian\n- dashed"


@pytest.mark.usefixtures("no_gpgv")
@pytest.mark.parametrize("message", [b"", b"<html>please log in</html>", b"\xff\xfe", b"Origin: Debian\n"])
def test_what_is_no_signed_message_is_a_clear_error(message: bytes) -> None:
    with pytest.raises(ImageError, match="not a signed index"):
        verify_clearsigned(message)
