"""VNet descriptions: XML, schema, validation, compilation. No I/O.

``parse`` reads a document and reports everything that is wrong with it; ``compile_vnet`` fills in what it
leaves open and makes the guests' files; ``serialise`` writes it back; ``explain`` documents the language.
"""

from serai.vnet.check import check
from serai.vnet.compile import (
    InterfaceReference,
    Topology,
    VirtualInterface,
    VirtualLink,
    VirtualNode,
    compile_vnet,
    derive_mac,
)
from serai.vnet.diagnostics import Diagnostic, Finding, Severity
from serai.vnet.difference import Action, Change, Difference, Effect, diff
from serai.vnet.explain import explain
from serai.vnet.guest import GuestFile
from serai.vnet.model import (
    NAMESPACE,
    SCHEMA_VERSION,
    End,
    File,
    Interface,
    Link,
    Node,
    Route,
    Sysctl,
    VnetDescription,
)
from serai.vnet.reader import Result, parse
from serai.vnet.writer import serialise

__all__ = [
    "NAMESPACE",
    "SCHEMA_VERSION",
    "Action",
    "Change",
    "Diagnostic",
    "Difference",
    "Effect",
    "End",
    "File",
    "Finding",
    "GuestFile",
    "Interface",
    "InterfaceReference",
    "Link",
    "Node",
    "Result",
    "Route",
    "Severity",
    "Sysctl",
    "Topology",
    "VirtualInterface",
    "VirtualLink",
    "VirtualNode",
    "VnetDescription",
    "check",
    "compile_vnet",
    "derive_mac",
    "diff",
    "explain",
    "parse",
    "serialise",
]
