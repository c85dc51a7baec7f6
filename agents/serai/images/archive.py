"""A Debian archive as its indexes describe it: Release, Packages, and the hashes that tie them to each
package.

The chain: a signature vouches for Release, Release holds the hash of Packages.xz, Packages the hash of every
.deb. Formats: deb822(5) and DebianRepository/Format in the Debian wiki.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from serai.errors import ImageError

from .transfer import Blob

_HASH = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 1 << 16
_STANZA_LIMIT_BYTES = 1 << 20
_UNPACKED_LIMIT_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Release:
    """What a Release file says: its fields by lower-case name, and its files with their hashes."""

    fields: Mapping[str, str]
    files: Mapping[str, Blob]

    def require(self, *, suite: str, architecture: str, now: datetime | None = None) -> None:
        """Raise ImageError unless this is Debian's `suite`, has `architecture`, and is still valid."""
        if self.fields.get("origin") != "Debian":
            raise _unsuitable(
                f"the archive calls itself {self.fields.get('origin', 'nothing')!r}, not 'Debian'"
            )
        if suite not in (self.fields.get("codename"), self.fields.get("suite")):
            raise _unsuitable(
                f"the archive holds {self.fields.get('codename', 'nothing')!r} where {suite!r} should be"
            )
        if architecture not in self.fields.get("architectures", "").split():
            raise _unsuitable(f"the archive has no packages for {architecture}")
        until = self.fields.get("valid-until")
        if until and _date(until) < (now or datetime.now(UTC)):
            raise _unsuitable(f"the archive's index is out of date since {until}")


@dataclass(frozen=True, slots=True)
class Package:
    """One binary package: where its file is below the mirror, what it must hash to, what it depends on."""

    name: str
    version: str
    filename: str
    blob: Blob
    depends: str = ""


def parse_release(text: str) -> Release:
    """Parse a Release file (the signed text, without its signature).

    Raises ImageError when it is malformed.
    """
    fields: dict[str, str] = {}
    files: dict[str, Blob] = {}
    key = ""
    for line in text.splitlines():
        if line.startswith(" "):
            if key == "sha256":
                digest, size, name = _hash_line(line)
                files[name] = Blob(digest, size)
        elif line:
            name, separator, value = line.partition(":")
            if not separator:
                raise _malformed("Release", f"the line {line[:60]!r} has no colon")
            key = name.lower()
            fields[key] = value.strip()
    if not files:
        raise _malformed("Release", "it lists no SHA-256 hashes")
    return Release(fields, files)


def read_packages(index: Path, names: Iterable[str]) -> dict[str, Package]:
    """Return the packages of `names` that the xz-compressed index has, by name; of several versions the last.

    The index is streamed: 54 MB of text pass through a few hundred kilobytes of memory.
    """
    wanted = {f"Package: {name}".encode() for name in names}
    found: dict[str, Package] = {}
    for stanza in _stanzas(index):
        if stanza.partition(b"\n")[0] in wanted:
            package = _parse_package(stanza.decode(errors="replace"))
            found[package.name] = package
    return found


def dependency(package: Package, prefix: str) -> str:
    """Return the name of the first package that `package` depends on and whose name starts with `prefix`."""
    for alternative in re.split(r"[,|]", package.depends):
        fields = alternative.split()
        if fields and fields[0].startswith(prefix):
            return fields[0].partition(":")[0]
    raise _malformed("Packages", f"{package.name} depends on no package {prefix}*")


def _stanzas(index: Path) -> Iterator[bytes]:
    try:
        pending = b""
        for chunk in _unpack(index):
            *complete, pending = (pending + chunk).split(b"\n\n")
            yield from complete
            if len(pending) > _STANZA_LIMIT_BYTES:
                raise _malformed("Packages", f"an entry is larger than {_STANZA_LIMIT_BYTES} bytes")
        if pending.strip():
            yield pending
    except (lzma.LZMAError, EOFError) as error:
        raise _malformed("Packages.xz", str(error)) from error


def _unpack(index: Path) -> Iterator[bytes]:
    decompressor = lzma.LZMADecompressor(memlimit=256 << 20)
    produced = 0
    with index.open("rb") as source:
        while not decompressor.eof:
            chunk = source.read(_CHUNK_BYTES) if decompressor.needs_input else b""
            if not chunk and decompressor.needs_input:
                raise EOFError("it is cut short")
            data = decompressor.decompress(chunk, _CHUNK_BYTES)
            produced += len(data)
            if produced > _UNPACKED_LIMIT_BYTES:
                raise EOFError(f"it unpacks to more than {_UNPACKED_LIMIT_BYTES} bytes")
            yield data


def _parse_package(stanza: str) -> Package:
    fields = {}
    for line in stanza.splitlines():
        name, separator, value = line.partition(":")
        if separator and not line.startswith(" "):
            fields[name.lower()] = value.strip()
    try:
        filename, digest, size = fields["filename"], fields["sha256"].lower(), int(fields["size"])
        name, version = fields["package"], fields["version"]
    except (KeyError, ValueError) as error:
        raise _malformed("Packages", f"the entry of {fields.get('package')} lacks {error}") from error
    if not _HASH.fullmatch(digest) or size < 0 or ".." in filename.split("/") or filename.startswith("/"):
        raise _malformed("Packages", f"the entry of {name} has a wrong file name, size or hash")
    return Package(name, version, filename, Blob(digest, size), fields.get("depends", ""))


def _hash_line(line: str) -> tuple[str, int, str]:
    fields = line.split()
    if len(fields) != 3 or not _HASH.fullmatch(fields[0].lower()) or not fields[1].isdecimal():
        raise _malformed("Release", f"the line {line.strip()[:100]!r} is no hash, size and name")
    return fields[0].lower(), int(fields[1]), fields[2]


def _date(text: str) -> datetime:
    try:
        date = parsedate_to_datetime(text)
    except ValueError as error:
        raise _malformed("Release", f"{text!r} is no date") from error
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _malformed(file: str, problem: str) -> ImageError:
    return ImageError(
        f"the archive's {file} is malformed: {problem}",
        hint="use another mirror with --mirror URL",
        reason="ARCHIVE_MALFORMED",
    )


def _unsuitable(problem: str) -> ImageError:
    return ImageError(problem, hint="use another Debian mirror with --mirror URL", reason="MIRROR_UNSUITABLE")
