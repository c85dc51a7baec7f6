"""Model, XSD, writer, reader and documentation say the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

import serai.vnet
from serai.errors import NotFoundError
from serai.vnet import File, Node, VnetDescription, explain, parse, schema, serialise
from serai.vnet.schema import ElementRule
from serai.vnet.units import BANDWIDTH, DELAY, MEMORY, Quantity, ValueProblem
from serai.vnet.xsd import render

from .strategies import descriptions

ROOT = Path(__file__).parents[2]
PUBLISHED = Path(serai.vnet.__path__[0]) / "vnet-1.xsd"
XSD = etree.XMLSchema(etree.parse(str(PUBLISHED)))
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.xml"))


def test_published_schema_is_what_the_model_says() -> None:
    assert PUBLISHED.read_text() == render()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid_without_warnings(path: Path) -> None:
    result = parse(path.read_bytes())
    assert result.diagnostics == ()
    XSD.assertValid(etree.fromstring(path.read_bytes()))


@given(descriptions())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_round_trip(description: VnetDescription) -> None:
    document = serialise(description)
    result = parse(document)
    assert result.errors == ()
    assert result.description == description
    XSD.assertValid(etree.fromstring(document))


@pytest.mark.parametrize("text", ["\n\n x", "\r\n", " ", "]]>", "\n"])
def test_text_is_kept_exactly(text: str) -> None:
    node = Node(name="a", startup=text, files=(File(path="/a", content=text),))
    description = VnetDescription(name="x", nodes=(node,))
    assert parse(serialise(description)).description == description


@given(descriptions(), st.data())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_what_the_schema_refuses_the_parser_refuses(
    description: VnetDescription, data: st.DataObject
) -> None:
    """After a random change to a valid document. (The other way does not hold.)"""
    tree = etree.fromstring(serialise(description))
    elements = [element for element in tree.iter() if isinstance(element.tag, str)]
    element = data.draw(st.sampled_from(elements), label="element")
    change = data.draw(st.sampled_from(["value", "drop", "add", "rename", "copy", "text"]), label="change")
    if change == "value" and element.attrib:
        key = data.draw(st.sampled_from(sorted(element.attrib)))
        junk = st.sampled_from(
            ["", "1", "eth0", "10.0.0.1/24", "5ms", "a b", "A", "0", "\t1", "true ", "1 MiB"]
        )
        element.set(key, data.draw(junk))
    elif change == "drop" and element.attrib:
        del element.attrib[data.draw(st.sampled_from(sorted(element.attrib)))]
    elif change == "add":
        element.set(data.draw(st.sampled_from(["name", "vcpus", "to", "x", "mode", "delay", "address"])), "1")
    elif change == "rename":
        element.tag = data.draw(st.sampled_from(["{urn:serai:vnet:1}node", "{urn:serai:vnet:1}end", "node"]))
    elif change == "copy" and (parent := element.getparent()) is not None:
        parent.append(etree.fromstring(etree.tostring(element)))
    elif change == "text":
        element.text = "x"
    document = etree.tostring(tree)
    if not XSD.validate(etree.fromstring(document)):
        assert parse(document).errors


def _paths(rule: ElementRule, place: str) -> Iterator[tuple[str, str]]:
    yield place, rule.documentation
    for attribute in rule.attributes.values():
        yield f"{place}.{attribute.name}", attribute.documentation
    for child in rule.children.values():
        yield from _paths(child.element, f"{place}.{child.name}")


def test_everything_is_explained() -> None:
    for path, documentation in _paths(schema.root(), "vnet"):
        assert documentation, path
        assert explain(path).startswith(f"{path}: ")
    assert explain("/vnet/link[2]/@bandwidth") == explain("link.bandwidth")
    assert "default 128MiB" in explain("vnet.node.memory")
    with pytest.raises(NotFoundError, match="did you mean 'bandwidth'"):
        explain("vnet.link.bandwith")


def test_everything_is_in_the_manual() -> None:
    manual = (ROOT / "docs" / "vnet-description.md").read_text()
    for path, _ in _paths(schema.root(), "vnet"):
        assert f"`{path.rpartition('.')[2]}`" in manual or f"<{path.rpartition('.')[2]}>" in manual, path


def test_examples_of_the_manual_are_right() -> None:
    manual = (ROOT / "docs" / "vnet-description.md").read_text()
    blocks = re.findall(r"```xml\n(.*?)```", manual, re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        assert parse(block.encode()).diagnostics == ()


@pytest.mark.parametrize("kind", [MEMORY, BANDWIDTH, DELAY], ids=lambda kind: kind.what)
@given(value=st.integers(0, 10**15))
def test_quantities_are_exact(kind: Quantity, value: int) -> None:
    assert kind.parse(kind.format(value)) == value
    assert re.fullmatch(kind.pattern, kind.format(value))


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (MEMORY, "1.5GiB", 3 * 2**29),
        (MEMORY, "1 kB", 1000),
        (BANDWIDTH, "2.5Gbit/s", 2_500_000_000),
        (DELAY, "0.1ms", 100_000),
        (DELAY, "0.000000001s", 1),
    ],
)
def test_units(kind: Quantity, text: str, value: int) -> None:
    assert kind.parse(text) == value


@pytest.mark.parametrize(
    "text", ["", "MiB", "1e3B", "+1B", "1,5MiB", " 1B", "1B ", "1  B", "\u0661B", ".5MiB", "1.MiB", "1 B\n"]
)
def test_sloppy_quantities_are_refused(text: str) -> None:
    with pytest.raises(ValueProblem):
        MEMORY.parse(text)
