"""The language as a table: which element has which attributes and children. Read off the model, never written
twice.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic.fields import FieldInfo

from serai.vnet.model import ROOT_ELEMENT, Attribute, Children, Content, Element, TextChild, VnetDescription
from serai.vnet.values import SimpleType


@dataclass(frozen=True)
class AttributeRule:
    """An attribute, or the text of an element, and the model's field behind it."""

    name: str
    field: str
    type: SimpleType
    required: bool
    default: Any
    documentation: str

    @property
    def default_text(self) -> str:
        """The default as one would write it; empty where there is none."""
        return "" if self.required or self.default in (None, "", ()) else self.type.format(self.default)


@dataclass(frozen=True)
class ChildRule:
    """A child element that may occur from `least` to `most` times (None: any number)."""

    name: str
    field: str
    least: int
    most: int | None
    element: ElementRule
    documentation: str


@dataclass(frozen=True)
class ElementRule:
    """An element of the language. `text` is set where it has text content."""

    name: str
    model: type[Element] | None
    documentation: str
    attributes: dict[str, AttributeRule] = field(default_factory=dict)
    children: dict[str, ChildRule] = field(default_factory=dict)
    text: AttributeRule | None = None


@functools.cache
def root() -> ElementRule:
    """The rule for the document element."""
    return _element(ROOT_ELEMENT, VnetDescription)


def _element(name: str, model: type[Element]) -> ElementRule:
    attributes: dict[str, AttributeRule] = {}
    children: dict[str, ChildRule] = {}
    text: AttributeRule | None = None
    for field_name, info in model.model_fields.items():
        marker = _marker(info, Attribute, Children, TextChild, Content)
        if isinstance(marker, Children):
            children[marker.name] = _children(field_name, info, marker)
        elif isinstance(marker, TextChild):
            children[marker.name] = _text_child(field_name, info, marker)
        elif isinstance(marker, Content):
            text = _attribute("", field_name, info)
        else:
            rule = _attribute(marker.name if isinstance(marker, Attribute) else field_name, field_name, info)
            attributes[rule.name] = rule
    return ElementRule(name, model, model.__doc__ or "", attributes, children, text)


def _attribute(name: str, field_name: str, info: FieldInfo) -> AttributeRule:
    simple = _marker(info, SimpleType)
    if not isinstance(simple, SimpleType):
        raise TypeError(f"the field {field_name} has no SimpleType")
    required = info.is_required()
    default = None if required else info.default
    return AttributeRule(name, field_name, simple, required, default, info.description or "")


def _children(field_name: str, info: FieldInfo, marker: Children) -> ChildRule:
    model = get_args(info.annotation)[0]
    element = _element(marker.name, model)
    return ChildRule(marker.name, field_name, marker.least, marker.most, element, info.description or "")


def _text_child(field_name: str, info: FieldInfo, marker: TextChild) -> ChildRule:
    text = _attribute("", field_name, info)
    element = ElementRule(marker.name, None, (info.description or "").capitalize() + ".", text=text)
    return ChildRule(marker.name, field_name, 0, 1, element, info.description or "")


def _marker(info: FieldInfo, *kinds: type) -> object:
    for item in info.metadata:
        if isinstance(item, kinds):
            return item
    # Markers inside `X | None` are not lifted by pydantic: the first member of the union carries them.
    for member in get_args(info.annotation):
        for item in getattr(member, "__metadata__", ()):
            if isinstance(item, kinds):
                return item
    return None
