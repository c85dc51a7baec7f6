"""The in-memory form of a VNet description, and the only place where the language is defined.

The XSD, `explain`, the reader and the writer all walk these classes. What may be left out has a default here,
or is None and decided later: by `compile` (names of interfaces and links, MAC addresses) or by a role
(provider).
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serai.vnet.values import (
    Addresses,
    Bandwidth,
    Boolean,
    Delay,
    Destination,
    Encoding,
    FilePath,
    GatewayAddress,
    ImageName,
    InterfaceName,
    Line,
    LocationName,
    Mac,
    Memory,
    Mode,
    Name,
    Script,
    SysctlName,
    Text,
    Vcpus,
    VirtualizationMode,
    decode_content,
    decode_text,
)

NAMESPACE = "urn:serai:vnet:1"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Attribute:
    """The field is the XML attribute `name`. Fields without a marker are attributes of their own name."""

    name: str


@dataclass(frozen=True)
class Children:
    """The field holds child elements called `name`: from `least` to `most` of them (None: any number)."""

    name: str
    least: int = 0
    most: int | None = None


@dataclass(frozen=True)
class TextChild:
    """The field is the text of the one child element called `name`."""

    name: str


@dataclass(frozen=True)
class Content:
    """The field is the text of the element itself."""


class Element(BaseModel):
    """An element of the description; its docstring and its fields' descriptions are the documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Interface(Element):
    """A network interface of a node.

    Interfaces that only links name need not be declared. Without a name it is the first one that is free.
    """

    name: Annotated[InterfaceName | None, Field(description="eth0, eth1 and so on, without gaps")] = None
    addresses: Annotated[
        Addresses, Attribute("address"), Field(description="addresses that the guest gives it at start-up")
    ] = ()
    mac: Annotated[
        Mac | None,
        Field(description="its MAC address; left out: derived from the names of VNet, node and interface"),
    ] = None


class Route(Element):
    """A route that the guest adds at start-up."""

    to: Annotated[Destination, Field(description='where to: "default" or a network')]
    via: Annotated[GatewayAddress, Field(description="the gateway, inside a subnet of one of the interfaces")]


class File(Element):
    """A file that the guest finds from its first process on.

    The text is taken as it is, except that a line break right after the start tag is dropped.
    """

    path: Annotated[FilePath, Field(description="where; directories are made")]
    mode: Annotated[Mode, Field(description="its permission bits")] = 0o644
    encoding: Annotated[
        Encoding, Field(description='how the content is written: "text" (UTF-8) or "base64"')
    ] = "text"
    content: Annotated[Text, Content(), Field(description="what is in the file")] = ""

    @model_validator(mode="after")
    def _check_content(self) -> Self:
        decode_content(self.content, self.encoding)
        return self

    @property
    def data(self) -> bytes:
        """The bytes of the file."""
        return decode_content(self.content, self.encoding)

    @classmethod
    def of(cls, path: str, data: bytes, mode: int = 0o644) -> Self:
        """A file that holds `data`, as text where that is possible."""
        text = decode_text(data)
        if text is None:
            return cls(path=path, mode=mode, encoding="base64", content=base64.b64encode(data).decode())
        return cls(path=path, mode=mode, content=text)


class Sysctl(Element):
    """A kernel parameter that the guest sets at start-up."""

    name: Annotated[SysctlName, Field(description="the parameter, as sysctl(8) names it")]
    value: Annotated[Line, Field(description="what to set it to")]


class Node(Element):
    """A virtual machine."""

    name: Annotated[Name, Field(description="unique in the VNet, and the guest's host name")]
    image: Annotated[ImageName, Field(description="the guest image to start")] = "debian"
    vcpus: Annotated[Vcpus, Field(description="how many virtual CPUs, 1 to 64")] = 1
    memory_bytes: Annotated[
        Memory, Attribute("memory"), Field(description="its memory, a multiple of 4KiB")
    ] = 128 * 2**20
    provider: Annotated[
        Name | None, Field(description="only at this infrastructure provider; left out: any")
    ] = None
    location: Annotated[
        LocationName | None, Field(description="only at this place, as providers advertise it; left out: any")
    ] = None
    mode: Annotated[
        VirtualizationMode,
        Field(
            description="paravirtual: the hypervisor is the firmware; full: a bare board that runs OpenSBI"
        ),
    ] = "paravirtual"
    forwarding: Annotated[Boolean, Field(description="forward IP packets between interfaces (a router)")] = (
        False
    )
    interfaces: Annotated[
        tuple[Interface, ...], Children("interface", most=100), Field(description="its network interfaces")
    ] = ()
    routes: Annotated[
        tuple[Route, ...], Children("route", most=256), Field(description="routes to add at start-up")
    ] = ()
    sysctls: Annotated[
        tuple[Sysctl, ...], Children("sysctl", most=1000), Field(description="kernel parameters to set")
    ] = ()
    files: Annotated[
        tuple[File, ...], Children("file", most=1000), Field(description="files to put into the guest")
    ] = ()
    startup: Annotated[
        Script,
        TextChild("startup"),
        Field(
            description="a shell script, run after addresses and routes are set; fails the node if it fails"
        ),
    ] = ""


class End(Element):
    """One end of a link."""

    node: Annotated[Name, Field(description="the node at this end")]
    interface: Annotated[
        InterfaceName | None, Field(description="its interface; left out: the first one that no link uses")
    ] = None


class Link(Element):
    """A virtual link: between two interfaces an Ethernet cable, between more an Ethernet segment.

    It is shared with nobody. On a segment everybody hears what is sent to all; bandwidth and delay hold
    between each end and the bridge in its middle, the delay at half.
    """

    name: Annotated[Name | None, Field(description="unique in the VNet; left out: link1, link2, ...")] = None
    bandwidth_bps: Annotated[
        Bandwidth,
        Attribute("bandwidth"),
        Field(description="reserved in each direction; left out or 0bit/s: best effort, nothing reserved"),
    ] = 0
    delay_ns: Annotated[
        Delay | None,
        Attribute("delay"),
        Field(description="the most delay that the path may have; left out: any"),
    ] = None
    ends: Annotated[
        tuple[End, ...],
        Children("end", least=2, most=100),
        Field(description="what it connects: two ends, or more"),
    ]


class VnetDescription(Element):
    """A virtual network: nodes and the links between them."""

    name: Annotated[Name, Field(description="the name of the VNet")]
    nodes: Annotated[
        tuple[Node, ...], Children("node", most=1000), Field(description="its virtual machines")
    ] = ()
    links: Annotated[
        tuple[Link, ...], Children("link", most=5000), Field(description="its virtual links")
    ] = ()


ROOT_ELEMENT = "vnet"

__all__ = [
    "NAMESPACE",
    "ROOT_ELEMENT",
    "SCHEMA_VERSION",
    "End",
    "File",
    "Interface",
    "Link",
    "Node",
    "Route",
    "Sysctl",
    "VnetDescription",
]
