"""Flattened device trees (Devicetree Specification 0.4, chapter 5), written without dtc."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

Value = int | str | bytes | list[int] | list[str] | None
"""One cell, a string, raw bytes, cells, strings, or an empty property."""

_MAGIC = 0xD00DFEED
_VERSION, _LAST_COMPATIBLE = 17, 16
_BEGIN_NODE, _END_NODE, _PROPERTY, _END = 1, 2, 3, 9
_HEADER = struct.Struct(">10I")


@dataclass
class Node:
    """A node with its properties and children, in order."""

    name: str
    properties: dict[str, Value] = field(default_factory=dict)
    children: list[Node] = field(default_factory=list)


def cells64(*values: int) -> list[int]:
    """Each value as two cells, for #address-cells and #size-cells of 2."""
    return [half for value in values for half in (value >> 32, value & 0xFFFF_FFFF)]


def write(root: Node, *, boot_hart: int = 0) -> bytes:
    """The tree as a blob of version 17 with an empty memory reservation block."""
    strings = _Strings()
    structure = _node(root, strings) + struct.pack(">I", _END)
    reservations = bytes(16)
    structure_offset = _HEADER.size + len(reservations)
    strings_offset = structure_offset + len(structure)
    header = _HEADER.pack(
        _MAGIC,
        strings_offset + len(strings.data),
        structure_offset,
        strings_offset,
        _HEADER.size,
        _VERSION,
        _LAST_COMPATIBLE,
        boot_hart,
        len(strings.data),
        len(structure),
    )
    return header + reservations + structure + bytes(strings.data)


class _Strings:
    """The strings block: property names, each once."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._offsets: dict[str, int] = {}

    def offset(self, name: str) -> int:
        if name not in self._offsets:
            self._offsets[name] = len(self.data)
            self.data += name.encode("ascii") + b"\0"
        return self._offsets[name]


def _node(node: Node, strings: _Strings) -> bytes:
    parts = [struct.pack(">I", _BEGIN_NODE), _padded(node.name.encode("ascii") + b"\0")]
    for name, value in node.properties.items():
        data = _value(value)
        parts += [struct.pack(">III", _PROPERTY, len(data), strings.offset(name)), _padded(data)]
    parts += [_node(child, strings) for child in node.children]
    parts.append(struct.pack(">I", _END_NODE))
    return b"".join(parts)


def _value(value: Value) -> bytes:
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode() + b"\0"
    if isinstance(value, int):
        return struct.pack(">I", value)
    return b"".join(_value(item) for item in value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
