r"""The snapshot format: versioned sections, each with its own length and checksum.

::

    8   magic "SERAISNP"
    2   format version (this file: 1)
    2   number of sections
    then for each section
    1   length of the name        n  name (ASCII)
    2   version of the section    4  length of the body
    32  SHA-256 of the body       m  body

All numbers are little-endian. A section's body is what its owner says: a core's own bytes, or a state
dataclass written by `encode`. RAM is not in a snapshot. The format is versioned apart from the product.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import hashlib
import json
import struct
import types
import typing
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from serai.machine.errors import SnapshotError

MAGIC = b"SERAISNP"
FORMAT_VERSION = 1

_HEAD = struct.Struct("<8sHH")
_SECTION = struct.Struct("<HI32s")


class State(Protocol):
    """A dataclass of plain values (int, bool, str, bytes, lists, dictionaries, other such dataclasses)."""

    VERSION: ClassVar[int]
    __dataclass_fields__: ClassVar[dict[str, Any]]


_S = TypeVar("_S", bound=State)


@dataclass(frozen=True, slots=True)
class Section:
    """One named, versioned part of a snapshot."""

    name: str
    version: int
    body: bytes


def pack(sections: list[Section]) -> bytes:
    """Write a snapshot."""
    parts = [_HEAD.pack(MAGIC, FORMAT_VERSION, len(sections))]
    for section in sections:
        name = section.name.encode("ascii")
        digest = hashlib.sha256(section.body).digest()
        parts += [
            bytes([len(name)]),
            name,
            _SECTION.pack(section.version, len(section.body), digest),
            section.body,
        ]
    return b"".join(parts)


def unpack(data: bytes) -> dict[str, Section]:
    """Read a snapshot. Raises SnapshotError naming the first section that is not whole."""
    if len(data) < _HEAD.size:
        raise SnapshotError("header", "the snapshot is shorter than its header")
    magic, version, count = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise SnapshotError("header", "this is not a Serai snapshot")
    if version != FORMAT_VERSION:
        raise SnapshotError("header", f"format version {version} is unknown here (known: {FORMAT_VERSION})")
    sections: dict[str, Section] = {}
    position = _HEAD.size
    for number in range(count):
        section, position = _unpack_section(data, position, f"#{number}")
        if section.name in sections:
            raise SnapshotError(section.name, "is there twice")
        sections[section.name] = section
    if position != len(data):
        raise SnapshotError("header", f"{len(data) - position} bytes follow the last section")
    return sections


def _unpack_section(data: bytes, position: int, number: str) -> tuple[Section, int]:
    name_end = position + 1 + data[position] if position < len(data) else len(data) + 1
    if name_end + _SECTION.size > len(data):
        raise SnapshotError(number, "the snapshot is truncated here")
    raw_name = data[position + 1 : name_end]
    if not raw_name.isascii():
        raise SnapshotError(number, "its name is damaged")
    name = raw_name.decode("ascii")
    version, length, digest = _SECTION.unpack_from(data, name_end)
    start = name_end + _SECTION.size
    body = data[start : start + length]
    if len(body) != length:
        raise SnapshotError(name, f"is truncated: {len(body)} of {length} bytes")
    if hashlib.sha256(body).digest() != digest:
        raise SnapshotError(name, "its checksum does not match: it is damaged")
    return Section(name, version, body), start + length


def save_section(name: str, state: State) -> Section:
    """The section of a state dataclass."""
    return Section(name, state.VERSION, encode(state))


def load_section(sections: dict[str, Section], name: str, kind: type[_S]) -> _S:
    """The state dataclass of section `name`. Raises SnapshotError when that cannot be had."""
    section = sections.get(name)
    if section is None:
        raise SnapshotError(name, "is missing")
    if section.version != kind.VERSION:
        raise SnapshotError(name, f"version {section.version} is unknown here (known: {kind.VERSION})")
    try:
        return decode(kind, section.body)
    except (ValueError, TypeError, KeyError, binascii.Error, RecursionError) as error:
        raise SnapshotError(name, f"cannot be read: {error}") from None


def encode(state: State) -> bytes:
    """A state dataclass as JSON, bytes in base64; equal states give equal bytes."""
    return json.dumps(_plain(state), separators=(",", ":"), sort_keys=True).encode()


def decode(kind: type[_S], body: bytes) -> _S:
    """The inverse of `encode`; every field must be there and of its declared type, and no other."""
    value: _S = _typed(kind, json.loads(body), kind.__name__)
    return value


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _typed(kind: Any, value: object, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else _typed(inner, value, where)
    if origin is list:
        return [
            _typed(arguments[0], item, f"{where}[{n}]") for n, item in enumerate(_expect(list, value, where))
        ]
    if origin is dict:
        items = _expect(dict, value, where).items()
        return {key: _typed(arguments[1], item, f"{where}[{key!r}]") for key, item in items}
    if kind is bytes:
        return base64.b64decode(_expect(str, value, where), validate=True)
    if dataclasses.is_dataclass(kind):
        return _typed_dataclass(kind, _expect(dict, value, where), where)
    return _expect(kind, value, where)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    # Resolving them takes most of a restore, for which a guest stands still.
    return typing.get_type_hints(kind)


def _typed_dataclass(kind: Any, values: dict[str, object], where: str) -> Any:
    hints = _hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    if set(values) != set(names):
        raise ValueError(f"{where} has the fields {sorted(values)} instead of {sorted(names)}")
    return kind(**{name: _typed(hints[name], values[name], f"{where}.{name}") for name in names})


def _expect(kind: Any, value: object, where: str) -> Any:
    # JSON's true is an int to isinstance, and a float may stand for an int nowhere.
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ValueError(f"{where} is {type(value).__name__}, not {kind.__name__}")
    return value
