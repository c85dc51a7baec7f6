"""A document to a description, with every error at once.

Structure is read by the schema's table, values by the model. A value or element with an error is reported,
left out, and the rest is looked at again, so that one wrong unit does not hide an unknown node further down.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from serai.errors import DescriptionError
from serai.vnet import schema
from serai.vnet.check import check
from serai.vnet.diagnostics import Diagnostic, Finding, Location, Severity, did_you_mean
from serai.vnet.document import XmlElement, read_document
from serai.vnet.model import NAMESPACE, ROOT_ELEMENT, VnetDescription
from serai.vnet.schema import ElementRule
from serai.vnet.values import XML_SPACE

MAX_DIAGNOSTICS = 200
XSI = "http://www.w3.org/2001/XMLSchema-instance"
SCHEMA_HINTS = {(XSI, "schemaLocation"), (XSI, "noNamespaceSchemaLocation")}
"""Attributes that tell editors where the schema is."""


@dataclass(frozen=True, slots=True)
class Result:
    """What `parse` found. `description` is None exactly when there is at least one error."""

    description: VnetDescription | None
    diagnostics: tuple[Diagnostic, ...]

    @property
    def errors(self) -> tuple[Diagnostic, ...]:
        """The diagnostics that are errors."""
        return tuple(item for item in self.diagnostics if item.severity is Severity.ERROR)

    def require(self) -> VnetDescription:
        """The description. Raises DescriptionError with all errors, one a line, where there are any."""
        if self.description is None:
            lines = "\n".join(str(item) for item in self.errors)
            raise DescriptionError(f"the description has errors:\n{lines}", errors=len(self.errors))
        return self.description


def parse(document: bytes) -> Result:
    """Read a VNet description. Never raises for anything that `document` may hold."""
    root, problem = read_document(document)
    if root is None:
        return Result(None, (problem,) if problem else ())
    return _Reading().read(root)


@dataclass(slots=True)
class _Part:
    """An element that the language knows, with the values that are still in the running."""

    rule: ElementRule
    element: XmlElement
    top: _Part | None
    values: dict[str, str] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    children: dict[str, list[_Part]] = field(default_factory=dict)
    dead: bool = False

    def subtree(self) -> Iterator[_Part]:
        yield self
        for parts in self.children.values():
            for part in parts:
                yield from part.subtree()


@dataclass(frozen=True, slots=True)
class _Place:
    part: _Part
    field: str
    path: str


class _Reading:
    def __init__(self) -> None:
        self._diagnostics: list[Diagnostic] = []
        self._suspect: set[str] = set()

    def read(self, root: XmlElement) -> Result:
        if not self._is_ours(root):
            return self._result(None)
        part = self._part(root, schema.root(), None)
        description, places = self._validate(part)
        names = {child.values.get("name", "") for child in part.children.get("nodes", [])}
        for finding in check(description, known_nodes=names, incomplete=self._suspect):
            self._report(finding, places)
        return self._result(description)

    def _result(self, description: VnetDescription | None) -> Result:
        found = sorted(self._diagnostics, key=lambda item: item.line)
        failed = any(item.severity is Severity.ERROR for item in found)
        if len(found) > MAX_DIAGNOSTICS:
            # Errors first: a flood of warnings must not push them out.
            found.sort(key=lambda item: item.severity is not Severity.ERROR)
            rest = len(found) - MAX_DIAGNOSTICS
            severity = found[MAX_DIAGNOSTICS].severity
            more = Diagnostic(severity, 0, "/", f"and {rest} more", "mend these first")
            found = [*found[:MAX_DIAGNOSTICS], more]
        return Result(None if failed else description, tuple(found))

    # Structure

    def _is_ours(self, root: XmlElement) -> bool:
        if root.name != ROOT_ELEMENT:
            hint = f'a description starts with <{ROOT_ELEMENT} xmlns="{NAMESPACE}" name="...">'
            self._error(root, root.path, f"unknown document element <{root.name}>", hint)
            return False
        if root.namespace == NAMESPACE:
            return True
        if root.namespace:
            hint = f"this version of Serai reads {NAMESPACE}"
            self._error(root, root.path, f"unknown namespace {root.namespace!r}", hint)
            return False
        self._error(
            root, root.path, "no namespace is given", f'write <{ROOT_ELEMENT} xmlns="{NAMESPACE}" ...>'
        )
        return True

    def _part(self, element: XmlElement, rule: ElementRule, parent: _Part | None) -> _Part:
        top = None if parent is None else parent.top
        part = _Part(rule, element, top)
        if parent is not None and parent.top is None and parent.rule.name == ROOT_ELEMENT:
            part.top = part
        self._read_attributes(part)
        self._read_text(part)
        self._read_children(part)
        return part

    def _read_attributes(self, part: _Part) -> None:
        for (namespace, name), value in part.element.attributes.items():
            rule = part.rule.attributes.get(name) if not namespace else None
            path = f"{part.element.path}/@{name}"
            if rule is not None:
                part.values[rule.field] = value
                part.paths[rule.field] = path
            elif (namespace, name) not in SCHEMA_HINTS:
                hint = did_you_mean(name, part.rule.attributes)
                self._error(part.element, path, f"<{part.rule.name}> has no attribute {name!r}", hint)

    def _read_text(self, part: _Part) -> None:
        text = part.element.text
        if part.rule.text is not None:
            # Writers put the content on its own lines; the break after the tag is theirs.
            part.values[part.rule.text.field] = text.removeprefix("\n")
            part.paths[part.rule.text.field] = part.element.path
        elif text.strip(XML_SPACE):
            message = f"text is not expected in <{part.rule.name}>: {text.strip(XML_SPACE)[:40]!r}"
            self._error(part.element, part.element.path, message)

    def _read_children(self, part: _Part) -> None:
        seen: dict[str, int] = dict.fromkeys(part.rule.children, 0)
        for child in part.element.children:
            rule = part.rule.children.get(child.name)
            if rule is None or child.namespace != part.element.namespace:
                hint = did_you_mean(child.name, part.rule.children)
                message = f"unknown element <{child.name}> in <{part.rule.name}>"
                self._error(child, child.path, message, hint)
                self._distrust(part.top)
                continue
            seen[child.name] += 1
            if rule.most is not None and seen[child.name] > rule.most:
                if seen[child.name] == rule.most + 1:
                    message = f"<{part.rule.name}> takes at most {rule.most} <{child.name}>"
                    self._error(child, child.path, message)
                    part.dead = part.dead or rule.least > 0
                continue
            part.children.setdefault(rule.field, []).append(self._part(child, rule.element, part))
        for rule in part.rule.children.values():
            if seen[rule.name] < rule.least:
                message = f"<{part.rule.name}> needs {rule.least} <{rule.name}>, it has {seen[rule.name]}"
                self._error(part.element, part.element.path, message)
                part.dead = True

    # Values

    def _validate(self, root: _Part) -> tuple[VnetDescription, dict[Location, _Place]]:
        while True:
            places: dict[Location, _Place] = {}
            payload = _payload(root, (), places)
            try:
                return VnetDescription.model_validate(payload), places
            except ValidationError as error:
                for details in error.errors(include_url=False):
                    self._take_out(details, places)
            if root.dead:
                # Only the VNet's own name: go on with another to see the other errors.
                root.dead = False
                root.values["name"] = "unnamed"
                root.paths["name"] = root.element.path

    def _take_out(self, details: ErrorDetails, places: dict[Location, _Place]) -> None:
        place = _locate(places, details["loc"])
        message, hint = _explain_error(details, place)
        self._error(place.part.element, place.path, message, hint)
        self._distrust(place.part.top)
        rule = next((r for r in place.part.rule.attributes.values() if r.field == place.field), None)
        if place.field and (rule is None or not rule.required):
            place.part.values.pop(place.field, None)
        else:
            place.part.dead = True

    def _distrust(self, top: _Part | None) -> None:
        """Remember the nodes of which something is missing now, so that what follows from that is not
        reported.
        """
        if top is None:
            return
        if top.rule.name == "node":
            self._suspect.add(top.values.get("name", ""))
        for part in top.subtree():
            if part.rule.name == "end":
                self._suspect.add(part.values.get("node", ""))

    # Reports

    def _error(self, element: XmlElement, path: str, message: str, hint: str = "") -> None:
        self._diagnostics.append(Diagnostic(Severity.ERROR, element.line, path, message, hint))

    def _report(self, finding: Finding, places: dict[Location, _Place]) -> None:
        place = _locate(places, finding.location)
        line = place.part.element.line
        self._diagnostics.append(
            Diagnostic(finding.severity, line, place.path, finding.message, finding.hint)
        )


def _payload(part: _Part, location: Location, places: dict[Location, _Place]) -> dict[str, Any]:
    places[location] = _Place(part, "", part.element.path)
    data: dict[str, Any] = dict(part.values)
    for name in part.values:
        places[(*location, name)] = _Place(part, name, part.paths[name])
    for name, parts in part.children.items():
        living = [child for child in parts if not _is_dead(child)]
        if parts[0].rule.model is None:  # a text child: one value
            text = parts[0].rule.text
            if living and text is not None and text.field in living[0].values:
                data[name] = living[0].values[text.field]
                places[(*location, name)] = _Place(living[0], text.field, living[0].element.path)
        else:
            data[name] = tuple(
                _payload(child, (*location, name, index), places) for index, child in enumerate(living)
            )
    return data


def _is_dead(part: _Part) -> bool:
    """Dead itself, or short of a child that it needs."""
    if part.dead:
        return True
    for rule in part.rule.children.values():
        if rule.least and any(child.dead for child in part.children.get(rule.field, [])):
            return True
    return False


def _locate(places: dict[Location, _Place], location: Location) -> _Place:
    while location not in places:
        location = location[:-1]
    return places[location]


def _explain_error(details: ErrorDetails, place: _Place) -> tuple[str, str]:
    if details["type"] == "missing":
        missing = next(r for r in place.part.rule.attributes.values() if r.field == details["loc"][-1])
        example = f'for example {missing.name}="{missing.type.example}"'
        return f"<{place.part.rule.name}> needs the attribute {missing.name!r}", example
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, Exception):
        return str(cause), getattr(cause, "hint", "")
    return details["msg"], ""
