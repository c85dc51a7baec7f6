"""The published schema, XML Schema 1.0, made from the model. `vnet-1.xsd` beside this module is its output.

python -m serai.vnet.xsd > controller/serai/vnet/vnet-1.xsd

XSD 1.0 cannot say everything: that children come in any order and yet at most once, that an address lies in
its link's subnet. A valid document can therefore still have errors for `parse`; an invalid one always has.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from xml.sax.saxutils import escape, quoteattr

from serai.vnet import schema
from serai.vnet.model import NAMESPACE, SCHEMA_VERSION
from serai.vnet.schema import AttributeRule, ChildRule, ElementRule
from serai.vnet.values import SimpleType

KEYS = (
    ("unique", "link", "v:link", "@name", ""),
    ("key", "node", "v:node", "@name", ""),
    ("keyref", "end-node", "v:link/v:end", "@node", "node"),
)
"""(kind, name, selector, field, the key referred to): names are unique, and ends name nodes that exist."""


def render() -> str:
    """The schema document."""
    root = schema.root()
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        "<!-- Made from serai.vnet.model by serai.vnet.xsd; a test keeps both in step. -->",
        f'<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema" xmlns:v="{NAMESPACE}"',
        f'           targetNamespace="{NAMESPACE}" elementFormDefault="qualified"',
        f'           version="{SCHEMA_VERSION}">',
    ]
    lines += _indent(_root_element(root), 1)
    for rule in _complex(root):
        lines += _indent(_complex_type(rule), 1)
    for simple in _simple_types(root).values():
        lines += _indent(_simple_type(simple), 1)
    lines.append("</xs:schema>")
    return "\n".join(lines) + "\n"


def _indent(lines: Iterator[str] | list[str], levels: int) -> list[str]:
    return ["  " * levels + line for line in lines]


def _root_element(root: ElementRule) -> Iterator[str]:
    yield f'<xs:element name="{root.name}" type="v:{root.name}">'
    for kind, name, selector, field, refer in KEYS:
        reference = f' refer="v:{refer}"' if refer else ""
        yield f'  <xs:{kind} name="{name}"{reference}>'
        yield f'    <xs:selector xpath="{selector}"/>'
        yield f'    <xs:field xpath="{field}"/>'
        yield f"  </xs:{kind}>"
    yield "</xs:element>"


def _complex(rule: ElementRule) -> Iterator[ElementRule]:
    """Elements with a type of their own, outermost first; a text child is just a simple type."""
    if rule.model is not None:
        yield rule
    for child in rule.children.values():
        yield from _complex(child.element)


def _complex_type(rule: ElementRule) -> Iterator[str]:
    yield f'<xs:complexType name="{rule.name}">'
    yield from _indent(_documentation(rule.documentation), 1)
    if rule.text is not None:
        yield "  <xs:simpleContent>"
        yield f'    <xs:extension base="v:{rule.text.type.name}">'
        yield from _indent(_attributes(rule), 3)
        yield "    </xs:extension>"
        yield "  </xs:simpleContent>"
    else:
        yield from _indent(_children(rule), 1)
        yield from _indent(_attributes(rule), 1)
    yield "</xs:complexType>"


def _children(rule: ElementRule) -> Iterator[str]:
    children = list(rule.children.values())
    if len(children) == 1:
        yield "<xs:sequence>"
        yield from _indent(_child(children[0], counted=True), 1)
        yield "</xs:sequence>"
    elif children:
        # Any order. XSD 1.0 cannot count in it, so `parse` does.
        yield '<xs:choice minOccurs="0" maxOccurs="unbounded">'
        for child in children:
            yield from _indent(_child(child, counted=False), 1)
        yield "</xs:choice>"


def _child(child: ChildRule, *, counted: bool) -> Iterator[str]:
    occurs = ""
    if counted:
        occurs = f' minOccurs="{child.least}" maxOccurs="{"unbounded" if child.most is None else child.most}"'
    text = child.element.text
    own = child.element.name if child.element.model is not None or text is None else text.type.name
    yield f'<xs:element name="{child.name}" type="v:{own}"{occurs}>'
    yield from _indent(_documentation(child.documentation), 1)
    yield "</xs:element>"


def _attributes(rule: ElementRule) -> Iterator[str]:
    for attribute in rule.attributes.values():
        use = ' use="required"' if attribute.required else _default(attribute)
        yield f'<xs:attribute name="{attribute.name}" type="v:{attribute.type.name}"{use}>'
        yield from _indent(_documentation(attribute.documentation), 1)
        yield "</xs:attribute>"


def _default(attribute: AttributeRule) -> str:
    return f" default={quoteattr(attribute.default_text)}" if attribute.default_text else ""


def _simple_types(rule: ElementRule) -> dict[str, SimpleType]:
    found = {attribute.type.name: attribute.type for attribute in rule.attributes.values()}
    if rule.text is not None:
        found[rule.text.type.name] = rule.text.type
    for child in rule.children.values():
        found.update(_simple_types(child.element))
    return found


def _simple_type(simple: SimpleType) -> Iterator[str]:
    yield f'<xs:simpleType name="{simple.name}">'
    yield from _indent(_documentation(f"{simple.what}, for example {simple.example}"), 1)
    if simple.item:
        yield "  <xs:list>"
        yield "    <xs:simpleType>"
        yield from _indent(_restriction(simple), 3)
        yield "    </xs:simpleType>"
        yield "  </xs:list>"
    else:
        yield from _indent(_restriction(simple), 1)
    yield "</xs:simpleType>"


def _restriction(simple: SimpleType) -> Iterator[str]:
    if simple.pattern:
        yield f'<xs:restriction base="{simple.base}">'
        yield f"  <xs:pattern value={quoteattr(simple.pattern)}/>"
        yield "</xs:restriction>"
    else:
        yield f'<xs:restriction base="{simple.base}"/>'


def _documentation(text: str) -> Iterator[str]:
    first, *rest = [line.strip() for line in text.strip().splitlines()]
    body = escape(" ".join([first, *rest]).replace("  ", " "))
    yield f"<xs:annotation><xs:documentation>{body}</xs:documentation></xs:annotation>"


if __name__ == "__main__":
    sys.stdout.write(render())
