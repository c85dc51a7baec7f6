"""What the machine's apt configuration says: which Debian mirror, which proxy. Read, never changed.

Formats: sources.list(5) in both styles, apt.conf(5), apt-transport-mirror(1). Works without apt being
installed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

APT_ROOT = Path("/etc/apt")
# Releases and their aliases, without the pockets (-security, -updates): those are other archives or have no
# kernel.
_RELEASES = ("buster", "bullseye", "bookworm", "trixie", "forky", "duke", "sid")
_ALIASES = ("oldoldstable", "oldstable", "stable", "testing", "unstable", "experimental")
_SUITES = frozenset(_RELEASES + _ALIASES)
_OPTION = re.compile(r"\[([^]]*)\]")


@dataclass(frozen=True, slots=True)
class AptSource:
    """One address of one entry; `signed_by` are the keyrings and fingerprints that it names."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DebianMirror:
    """The base address of a Debian archive, without a slash at the end; the keyring its entry names."""

    url: str
    keyring: Path | None = None


def debian_mirrors(root: Path = APT_ROOT) -> list[DebianMirror]:
    """Return the mirrors of the Debian archive below `root`, in the configuration's order, each once.

    An entry counts as Debian's when its address is that of an archive called ``debian``, its suite is a
    Debian release, it has the component main, and its keyring, if it names one, is Debian's. The rest are
    third parties'.
    """
    found: dict[str, DebianMirror] = {}
    for source in read_sources(root):
        if not _is_debian(source):
            continue
        # gpgv reads no armored keyrings.
        usable = [path for path in _keyrings(source) if path.suffix != ".asc" and path.exists()]
        keyring = usable[0] if usable else None
        for url in _addresses(source.uri):
            found.setdefault(url, DebianMirror(url, keyring))
    return list(found.values())


def read_sources(root: Path = APT_ROOT) -> list[AptSource]:
    """Return the entries for binary packages below `root`; lines that apt would not accept are left out."""
    folder = root / "sources.list.d"
    files = [root / "sources.list"]
    if folder.is_dir():
        files += sorted(path for path in folder.iterdir() if path.suffix in (".list", ".sources"))
    found: list[AptSource] = []
    for path in files:
        text = _read(path)
        parse = parse_deb822 if path.suffix == ".sources" else parse_one_line
        found += parse(text)
    return found


def parse_one_line(text: str) -> list[AptSource]:
    """Parse ``deb [options] uri suite component...`` lines."""
    found = []
    for raw in text.splitlines():
        line = raw.partition("#")[0].strip()
        options = _OPTION.search(line)
        fields = _OPTION.sub(" ", line, count=1).split()
        if len(fields) < 3 or fields[0] != "deb":
            continue
        values = dict(
            option.split("=", 1) for option in (options[1].split() if options else []) if "=" in option
        )
        signed_by = tuple(values.get("signed-by", "").replace(",", " ").split())
        found.append(AptSource(fields[1], (fields[2],), tuple(fields[3:]), signed_by))
    return found


def parse_deb822(text: str) -> list[AptSource]:
    """Parse the stanzas of a ``.sources`` file."""
    found = []
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields = _stanza(stanza)
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in (
            "no",
            "false",
        ):
            continue
        signed_by = fields.get("signed-by", "")
        keyrings = () if "BEGIN PGP" in signed_by else tuple(signed_by.split())
        suites, components = (
            tuple(fields.get("suites", "").split()),
            tuple(fields.get("components", "").split()),
        )
        found += [AptSource(uri, suites, components, keyrings) for uri in fields.get("uris", "").split()]
    return found


def proxies(root: Path = APT_ROOT) -> dict[str, str]:
    """Return the proxies that apt.conf names, as {"http": address, "https": address}; "DIRECT" is none.

    Only the settings for all hosts count (``Acquire::http::Proxy "...";``), in flat or nested style.
    """
    folder = root / "apt.conf.d"
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    settings: dict[str, str] = {}
    for path in [*files, root / "apt.conf"]:
        settings.update(parse_apt_conf(_read(path)))
    found = {}
    for scheme in ("http", "https"):
        value = settings.get(f"acquire::{scheme}::proxy", "")
        if value and value.upper() not in ("DIRECT", "FALSE"):
            found[scheme] = value
    # apt's https method falls back to the proxy for http.
    if "http" in found and not settings.get("acquire::https::proxy"):
        found["https"] = found["http"]
    return found


def parse_apt_conf(text: str) -> dict[str, str]:
    """Return the scalar settings of an apt.conf(5) text, by their full name in lower case."""
    settings: dict[str, str] = {}
    scopes: list[str] = []
    words: list[str] = []
    for token in _conf_tokens(text):
        if token == "{":
            scopes.append("::".join(words).lower())
            words = []
        elif token == "}":
            scopes, words = scopes[:-1], []
        elif token == ";":
            if len(words) == 2:
                settings["::".join(part for part in (*scopes, words[0].lower()) if part)] = words[1]
            words = []
        else:
            words.append(token.strip('"') if token.startswith('"') else token)
    return settings


def _conf_tokens(text: str) -> Iterator[str]:
    without_comments = re.sub(
        r'("[^"\n]*")|/\*.*?\*/|//[^\n]*|#[^\n]*', lambda found: found[1] or " ", text, flags=re.S
    )
    yield from re.findall(r'"[^"]*"|[{};]|[^\s{};"]+', without_comments)


def _stanza(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        if line[:1] in (" ", "\t"):
            if key:
                fields[key] += "\n" + line.strip()
            continue
        name, separator, value = line.partition(":")
        if separator:
            key = name.strip().lower()
            fields[key] = value.strip()
    return fields


def _is_debian(source: AptSource) -> bool:
    path = urlsplit(source.uri).path.rstrip("/")
    is_mirror_list = source.uri.startswith("mirror+")
    named_debian = path.endswith("/debian") or (is_mirror_list and Path(path).stem == "debian")
    keyring_is_debians = all(path.name.startswith("debian-archive") for path in _keyrings(source))
    return (
        named_debian
        and keyring_is_debians
        and "main" in source.components
        and any(suite in _SUITES for suite in source.suites)
    )


def _keyrings(source: AptSource) -> list[Path]:
    return [Path(name) for name in source.signed_by if name.startswith("/")]


def _addresses(uri: str) -> Iterator[str]:
    if uri.startswith("mirror+file:"):
        lines: Iterable[str] = _read(Path(urlsplit(uri).path)).splitlines()
        addresses = [fields[0] for line in lines if (fields := line.partition("#")[0].split())]
    else:
        addresses = [uri]
    for address in addresses:
        if urlsplit(address).scheme in ("http", "https"):
            yield address.rstrip("/")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
