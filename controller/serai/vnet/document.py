"""XML to a tree of elements with lines, safely: a document is hostile until proved otherwise.

Expat stops at the start of a DOCTYPE, before it has read a single declaration, so that no entity is ever
defined, let alone expanded or fetched. Depth, number of elements and size are bounded while reading.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.parsers import expat

from serai.vnet.diagnostics import Diagnostic, Severity

MAX_DOCUMENT_BYTES = 2**20
MAX_DEPTH = 16
MAX_ELEMENTS = 50_000


@dataclass(slots=True)
class XmlElement:
    """An element as it stands in the document. Names are (namespace, local name)."""

    namespace: str
    name: str
    line: int
    path: str
    attributes: dict[tuple[str, str], str]
    children: list[XmlElement] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    """How many children of each name so far."""

    @property
    def text(self) -> str:
        """All text directly inside, children left out."""
        return "".join(self.texts)


class _Refused(Exception):  # noqa: N818 - leaves the parser's callbacks, never this module
    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def read_document(document: bytes) -> tuple[XmlElement | None, Diagnostic | None]:
    """The root element, or what is wrong. After a violation of XML itself nothing can be read, so it is one
    error.
    """
    if len(document) > MAX_DOCUMENT_BYTES:
        message = f"the document has {len(document)} bytes, at most {MAX_DOCUMENT_BYTES} are read"
        return None, Diagnostic(Severity.ERROR, 0, "/", message, "put big files into an image instead")
    reader = _Reader()
    try:
        reader.parser.Parse(document, True)
    except expat.ExpatError as error:
        message = f"malformed XML: {expat.ErrorString(error.code)} (column {error.offset + 1})"
        return None, Diagnostic(Severity.ERROR, error.lineno, reader.path, message, reader.open_hint)
    except _Refused as error:
        line = reader.parser.CurrentLineNumber
        return None, Diagnostic(Severity.ERROR, line, reader.path, error.message, error.hint)
    except (LookupError, ValueError) as error:
        # Python's codecs answer for encodings that Expat does not know itself.
        return None, Diagnostic(
            Severity.ERROR, 1, "/", f"unreadable encoding: {error}", "write the document in UTF-8"
        )
    return reader.root, None


class _Reader:
    def __init__(self) -> None:
        self.root: XmlElement | None = None
        self._stack: list[XmlElement] = []
        self._elements = 0
        self.parser = expat.ParserCreate(namespace_separator=" ")
        self.parser.buffer_text = True
        self.parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text

    @property
    def path(self) -> str:
        return self._stack[-1].path if self._stack else "/"

    @property
    def open_hint(self) -> str:
        if not self._stack:
            return ""
        return f"<{self._stack[-1].name}> of line {self._stack[-1].line} is still open"

    def _doctype(self, name: str, system: str | None, public: str | None, internal: bool) -> None:
        raise _Refused("a DOCTYPE is not allowed", "leave it out; descriptions have no entities")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._elements += 1
        if self._elements > MAX_ELEMENTS:
            raise _Refused(f"more than {MAX_ELEMENTS} elements", "split the VNet")
        if len(self._stack) >= MAX_DEPTH:
            raise _Refused(f"elements nested deeper than {MAX_DEPTH}", "the language needs three levels")
        namespace, local = _split(name)
        element = XmlElement(
            namespace,
            local,
            self.parser.CurrentLineNumber,
            self._child_path(local),
            {_split(key): value for key, value in attributes.items()},
        )
        if self._stack:
            self._stack[-1].children.append(element)
        else:
            self.root = element
        self._stack.append(element)

    def _child_path(self, name: str) -> str:
        if not self._stack:
            return f"/{name}"
        parent = self._stack[-1]
        parent.counts[name] = parent.counts.get(name, 0) + 1
        return f"{parent.path}/{name}[{parent.counts[name]}]"

    def _end(self, name: str) -> None:
        self._stack.pop()

    def _text(self, data: str) -> None:
        self._stack[-1].texts.append(data)


def _split(name: str) -> tuple[str, str]:
    namespace, _, local = name.rpartition(" ")
    return namespace, local
