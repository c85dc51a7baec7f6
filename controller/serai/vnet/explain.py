"""Documentation of the language from the language's own table: `explain("vnet.link.bandwidth")`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

from serai.errors import NotFoundError
from serai.vnet import schema
from serai.vnet.diagnostics import did_you_mean
from serai.vnet.schema import AttributeRule, ChildRule, ElementRule


def explain(path: str = "") -> str:
    """What an element or attribute means, as text for people.

    `path` is dotted (``vnet.link.bandwidth``) or as diagnostics write it (``/vnet/link[2]/@bandwidth``); the
    leading ``vnet`` may be left out. Raises NotFoundError, with the closest known name, for a path that leads
    nowhere.
    """
    names = [re.sub(r"\[\d+\]|@", "", name) for name in re.split(r"[./]", path) if name]
    rule = schema.root()
    if names and names[0] == rule.name:
        names.pop(0)
    place, child = rule.name, None
    for position, name in enumerate(names):
        if name in rule.attributes and position == len(names) - 1:
            return "\n".join(_explain_attribute(place, rule.attributes[name])) + "\n"
        if name not in rule.children:
            hint = did_you_mean(name, [*rule.attributes, *rule.children])
            raise NotFoundError(f"<{rule.name}> has no {name!r}", hint=hint, path=path)
        child = rule.children[name]
        rule = child.element
        place = f"{place}.{name}"
    return "\n".join(_explain_element(place, rule, child)) + "\n"


def _explain_attribute(place: str, rule: AttributeRule) -> Iterator[str]:
    yield f"{place}.{rule.name}: {rule.type.what}{_presence(rule)}"
    yield ""
    yield f"  {_sentence(rule.documentation)}"
    yield f'  Example: {rule.name}="{rule.type.example}"'


def _explain_element(place: str, rule: ElementRule, child: ChildRule | None) -> Iterator[str]:
    yield f"{place}: element <{rule.name}>{_occurrence(child)}"
    yield ""
    for line in inspect.cleandoc(rule.documentation).splitlines():
        yield f"  {line}".rstrip()
    width = max((len(name) for name in [*rule.attributes, *rule.children]), default=0)
    if rule.attributes:
        yield from ["", "Attributes:"]
        for attribute in rule.attributes.values():
            yield f"  {attribute.name:<{width}}  {_sentence(attribute.documentation)}{_presence(attribute)}"
    if rule.children:
        yield from ["", "Elements:"]
        for item in rule.children.values():
            yield f"  {item.name:<{width}}  {_sentence(item.documentation)}"
    if rule.text is not None:
        yield from ["", f"Text: {rule.text.type.what}, for example: {rule.text.type.example}"]


def _presence(rule: AttributeRule) -> str:
    if rule.required:
        return " (required)"
    return f" (default {rule.default_text})" if rule.default_text else " (may be left out)"


def _occurrence(child: ChildRule | None) -> str:
    if child is None:
        return ""
    if child.most == 1:
        return ", at most one"
    if child.least == child.most:
        return f", exactly {child.least}"
    return ", any number" if child.most is None else f", at most {child.most}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
