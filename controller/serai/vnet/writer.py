"""A description to XML, so that reading it gives the same description again. Defaults are left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from serai.vnet import schema
from serai.vnet.model import NAMESPACE, VnetDescription
from serai.vnet.schema import ElementRule


def serialise(description: VnetDescription) -> bytes:
    """The document, UTF-8, two spaces of indentation a level."""
    lines = ['<?xml version="1.0" encoding="UTF-8"?>']
    lines += _element(schema.root(), description, 0, f" xmlns={quoteattr(NAMESPACE)}")
    return ("\n".join(lines) + "\n").encode()


def _element(rule: ElementRule, value: Any, depth: int, namespace: str = "") -> Iterator[str]:
    indent = "  " * depth
    start = f"{indent}<{rule.name}{namespace}{_attributes(rule, value)}"
    children = list(_children(rule, value, depth + 1))
    text = _text(rule, value)
    if text:
        yield f"{start}>{text}</{rule.name}>"
    elif children:
        yield f"{start}>"
        yield from children
        yield f"{indent}</{rule.name}>"
    else:
        yield f"{start}/>"


def _attributes(rule: ElementRule, value: Any) -> str:
    parts: list[str] = []
    for attribute in rule.attributes.values():
        item = getattr(value, attribute.field)
        if attribute.required or item != attribute.default:
            parts.append(f" {attribute.name}={quoteattr(attribute.type.format(item))}")
    return "".join(parts)


def _text(rule: ElementRule, value: Any) -> str:
    if rule.text is None:
        return ""
    text = value if isinstance(value, str) else getattr(value, rule.text.field)
    # The reader drops one line break after the start tag. A bare CR would come back as LF (XML 1.0, 2.11).
    return "\n" + escape(text, {"\r": "&#13;"}) if text else ""


def _children(rule: ElementRule, value: Any, depth: int) -> Iterator[str]:
    for child in rule.children.values():
        items = getattr(value, child.field)
        if child.element.model is None:
            items = (items,) if items else ()
        for item in items:
            yield from _element(child.element, item, depth)
