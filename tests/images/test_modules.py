from __future__ import annotations

import lzma
from collections.abc import Callable

import pytest

from serai.errors import ImageError
from serai.images.initramfs import module_files
from serai.images.modules import Module, load_order, module_name, parse_module, without_signature

SIGNED = b"~Module signature appended~\n"


def module(name: str, *depends: str) -> Module:
    return Module(name, b"", depends, (), "6")


def test_names_are_the_kernels() -> None:
    assert module_name("kernel/drivers/char/hw_random/virtio-rng.ko.xz") == "virtio_rng"


def test_dependencies_come_first_and_once() -> None:
    modules = {m.name: m for m in (module("a", "b", "c"), module("b", "c"), module("c"), module("d"))}
    assert [m.name for m in load_order(["a", "b", "d"], modules)] == ["c", "b", "a", "d"]


def test_a_missing_module_and_who_needs_it_are_named() -> None:
    with pytest.raises(ImageError, match="no module gone, needed by a"):
        load_order(["a"], {"a": module("a", "gone")})


def test_a_cycle_is_refused() -> None:
    with pytest.raises(ImageError, match="a -> b -> a"):
        load_order(["a"], {"a": module("a", "b"), "b": module("b", "a")})


def test_modinfo_is_read(make_module: Callable[..., bytes]) -> None:
    packed = lzma.compress(make_module("virtio_net", "net_failover,page-pool", ["virtio:d1v*", "x"]))
    read = parse_module("a/virtio-net.ko.xz", packed)
    assert (read.name, read.depends) == ("virtio_net", ("net_failover", "page_pool"))
    assert (read.aliases, read.release) == (("virtio:d1v*", "x"), "6.12.1-test")


def test_the_appended_signature_is_taken_off(make_module: Callable[..., bytes]) -> None:
    plain = make_module("m")
    signature = b"S" * 400
    signed = plain + signature + bytes(8) + len(signature).to_bytes(4, "big") + SIGNED
    assert parse_module("m.ko.xz", lzma.compress(signed)).data == plain
    assert without_signature(plain) == plain


@pytest.mark.parametrize("data", [SIGNED, b"x" + SIGNED, bytes(8) + b"\xff\xff\xff\xff" + SIGNED])
def test_a_signature_longer_than_the_module_leaves_nothing(data: bytes) -> None:
    assert without_signature(data) == b""


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("m.ko.xz", b"not xz"),
        ("m.ko.xz", lzma.compress(b"x" * 100)[:-20]),
        ("m.ko.gz", b""),
        ("m.ko", b"\x7fELF\x02\x01"),
        ("m.ko", b"\x7fELF\x02\x01" + b"\xff" * 100),
        ("m.ko", b"MZ" + bytes(100)),
    ],
)
def test_what_is_no_module_is_a_clear_error(path: str, data: bytes) -> None:
    with pytest.raises(ImageError, match=f"kernel module {path} cannot be read"):
        parse_module(path, data)


def test_a_truncated_module_is_a_clear_error(make_module: Callable[..., bytes]) -> None:
    whole = make_module("m", "a")
    for length in range(len(whole)):
        with pytest.raises(ImageError, match="cannot be read"):
            parse_module("m.ko", whole[:length])


def test_indexes_name_all_dependencies_nearest_first() -> None:
    order = [module("llc"), module("stp", "llc"), module("bridge", "llc", "stp")]
    files = {entry.name: entry.data for entry in module_files(order, "6")}
    assert files["lib/modules/6/modules.dep"] == b"llc.ko:\nstp.ko: llc.ko\nbridge.ko: stp.ko llc.ko\n"
