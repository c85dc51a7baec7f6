from __future__ import annotations

from pathlib import Path

import pytest

from serai.images.apt import (
    AptSource,
    DebianMirror,
    debian_mirrors,
    parse_apt_conf,
    parse_deb822,
    parse_one_line,
    proxies,
)


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_one_line_entries_with_options_and_comments() -> None:
    text = """
# deb http://commented.example/debian trixie main
deb [arch=amd64,riscv64 signed-by=/k/debian-archive-keyring.gpg] http://a.example/debian sid main contrib # x
deb-src http://a.example/debian trixie main
deb http://b.example/debian/ bookworm main
deb http://broken.example/debian
"""
    assert parse_one_line(text) == [
        AptSource(
            "http://a.example/debian", ("sid",), ("main", "contrib"), ("/k/debian-archive-keyring.gpg",)
        ),
        AptSource("http://b.example/debian/", ("bookworm",), ("main",)),
    ]


def test_deb822_stanzas_with_continuation_comments_and_disabled_ones() -> None:
    text = """Types: deb deb-src
# a comment inside
URIs: http://a.example/debian
  http://b.example/debian
Suites: trixie trixie-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.pgp

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: trixie
Components: main

Types: deb-src
URIs: http://source.example/debian
Suites: trixie
Components: main
"""
    keyring = ("/usr/share/keyrings/debian-archive-keyring.pgp",)
    assert parse_deb822(text) == [
        AptSource(uri, ("trixie", "trixie-updates"), ("main",), keyring)
        for uri in ("http://a.example/debian", "http://b.example/debian")
    ]


def test_a_key_inside_the_entry_is_not_taken_for_a_path() -> None:
    entry = "Types: deb\nURIs: http://a.example/debian\nSuites: sid\nComponents: main\n"
    text = entry + "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQIN"
    assert parse_deb822(text)[0].signed_by == ()


def test_mirrors_are_found_in_both_formats_in_order_and_once(tmp_path: Path) -> None:
    write(tmp_path, "sources.list", "deb http://one.example/debian bookworm main\n")
    write(tmp_path, "sources.list.d/b.list", "deb http://one.example/debian/ bookworm-updates main\n")
    write(
        tmp_path,
        "sources.list.d/debian.sources",
        "Types: deb\nURIs: https://two.example/pub/debian/\nSuites: bookworm\nComponents: main\n"
        f"Signed-By: {tmp_path}/debian-archive-keyring.gpg\n",
    )
    write(tmp_path, "debian-archive-keyring.gpg", "keys")
    assert debian_mirrors(tmp_path) == [
        DebianMirror("http://one.example/debian"),
        DebianMirror("https://two.example/pub/debian", tmp_path / "debian-archive-keyring.gpg"),
    ]


@pytest.mark.parametrize(
    "named", ["/nowhere/debian-archive.gpg", "{}/debian-archive.asc", "0123456789ABCDEF"]
)
def test_a_keyring_that_gpgv_cannot_use_leaves_the_default_one(tmp_path: Path, named: str) -> None:
    write(tmp_path, "debian-archive.asc", "armored")
    signed_by = named.format(tmp_path)
    write(tmp_path, "sources.list", f"deb [signed-by={signed_by}] http://one.example/debian trixie main\n")
    assert debian_mirrors(tmp_path) == [DebianMirror("http://one.example/debian")]


@pytest.mark.parametrize(
    "line",
    [
        "deb http://security.example/debian-security bookworm-security main",
        "deb http://third.example/linux/debian bookworm stable",
        "deb [signed-by=/etc/apt/keyrings/vendor.gpg] http://third.example/debian bookworm main",
        "deb http://third.example/apt nodistro main",
        "deb http://archive.example/ubuntu noble main",
        "deb cdrom:[Debian]/ bookworm main",
        "deb file:/srv/debian trixie main",
    ],
)
def test_third_party_entries_are_ignored(tmp_path: Path, line: str) -> None:
    write(tmp_path, "sources.list", line + "\n")
    assert debian_mirrors(tmp_path) == []


def test_disabled_files_and_other_suffixes_are_not_read(tmp_path: Path) -> None:
    write(tmp_path, "sources.list.d/debian.list.disabled", "deb http://off.example/debian trixie main\n")
    write(tmp_path, "sources.list.d/debian.list.save", "deb http://off.example/debian trixie main\n")
    assert debian_mirrors(tmp_path) == []


def test_a_list_of_mirrors_as_cloud_images_have_it(tmp_path: Path) -> None:
    write(
        tmp_path,
        "mirrors/debian.list",
        "# best first\nhttp://near.example/debian priority:1\nhttp://far.example/debian\n",
    )
    write(
        tmp_path,
        "sources.list.d/debian.sources",
        f"Types: deb\nURIs: mirror+file://{tmp_path}/mirrors/debian.list\nSuites: trixie\nComponents: main\n",
    )
    assert [mirror.url for mirror in debian_mirrors(tmp_path)] == [
        "http://near.example/debian",
        "http://far.example/debian",
    ]


def test_a_machine_without_apt_has_no_mirrors_and_no_proxies(tmp_path: Path) -> None:
    assert debian_mirrors(tmp_path / "nothing") == []
    assert proxies(tmp_path / "nothing") == {}


def test_proxies_in_flat_and_nested_style(tmp_path: Path) -> None:
    write(
        tmp_path,
        "apt.conf.d/10proxy",
        '// http://not.example\nAcquire::http::Proxy "http://flat.example:3128";\n',
    )
    assert proxies(tmp_path) == {"http": "http://flat.example:3128", "https": "http://flat.example:3128"}
    nested = 'Acquire {\n  http { Proxy "http://nested.example:1"; };\n  https::Proxy "DIRECT";\n}; # end\n'
    write(tmp_path, "apt.conf.d/20proxy", nested)
    assert proxies(tmp_path) == {"http": "http://nested.example:1"}


def test_apt_conf_keeps_addresses_and_drops_comments() -> None:
    text = '/* Acquire::http::Proxy "http://no.example"; */ A::B "x//y#z"; C { D "1"; E { F "2"; }; };'
    assert parse_apt_conf(text) == {"a::b": "x//y#z", "c::d": "1", "c::e::f": "2"}
