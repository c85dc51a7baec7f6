"""The simple types of a description: what may stand in an attribute or a text, for the model and for the XSD
alike.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from serai.vnet.units import BANDWIDTH, DELAY, MEMORY, Quantity, ValueProblem

Address = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Gateway = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PAGE_SIZE = 4096
MAX_ADDRESSES = 16
XML_SPACE = " \t\r\n"
XML_WORD = re.compile(f"[^{XML_SPACE}]+")
NAME_PATTERN = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
VIRTUALIZATION_PATTERN = "paravirtual|full"
IMAGE_PATTERN = "[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
LOCATION_PATTERN = "[A-Za-z0-9][A-Za-z0-9._/-]{0,127}"
INTERFACE_PATTERN = "eth(0|[1-9][0-9]?)"
MAC_PATTERN = "[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}"
MODE_PATTERN = "[0-7]{3,4}"
COUNT_PATTERN = "[0-9]{1,9}"
SYSCTL_PATTERN = r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+"
LINE_PATTERN = "[ -~]{1,256}"
ADDRESS_PATTERN = "[0-9A-Fa-f:.]+/[0-9]{1,3}"
GATEWAY_PATTERN = "[0-9A-Fa-f:.]+"


@dataclass(frozen=True)
class SimpleType:
    """The published face of a type: its name and restriction in the XSD, and words for people."""

    name: str
    what: str
    example: str
    pattern: str = ""
    base: str = "xs:string"
    item: str = ""
    """For a list: the name of the type of its items."""
    format: Callable[[Any], str] = str
    """Writes a value so that reading the text gives it back."""


def matching(pattern: str, what: str, hint: str) -> AfterValidator:
    """Accept what the whole of `pattern` matches; the message says what it is not."""
    compiled = re.compile(pattern, re.ASCII)

    def check(value: str) -> str:
        if compiled.fullmatch(value) is None:
            raise ValueProblem(f"{value[:80]!r} is not {what}", hint)
        return value

    return AfterValidator(check)


def _quantity(kind: Quantity, low: int, high: int, step: int = 1) -> tuple[BeforeValidator, AfterValidator]:
    def read(value: object) -> object:
        return kind.parse(value) if isinstance(value, str) else value

    def check(value: int) -> int:
        if not low <= value <= high:
            raise ValueProblem(
                f"{kind.format(value)} is out of range",
                f"{kind.what} from {kind.format(low)} to {kind.format(high)}",
            )
        if value % step:
            raise ValueProblem(f"{kind.format(value)} is not a multiple of {kind.format(step)}")
        return value

    return BeforeValidator(read), AfterValidator(check)


def _read_count(value: object) -> object:
    if not isinstance(value, str):
        return value
    if re.fullmatch(COUNT_PATTERN, value, re.ASCII) is None:
        raise ValueProblem(f"{value[:80]!r} is not a whole number", "write it like 2")
    return int(value)


def _check_vcpus(value: int) -> int:
    if not 1 <= value <= 64:
        raise ValueProblem(f"{value} virtual CPUs are out of range", "from 1 to 64")
    return value


def _read_boolean(value: object) -> object:
    known = {"true": True, "1": True, "false": False, "0": False}
    if isinstance(value, str):
        value = value.strip(XML_SPACE)  # as xs:boolean has it
        if value not in known:
            raise ValueProblem(f"{value[:80]!r} is neither true nor false", 'write "true" or "false"')
        return known[value]
    return value


def _read_mac(value: object) -> object:
    if isinstance(value, str):
        if re.fullmatch(MAC_PATTERN, value, re.ASCII) is None:
            raise ValueProblem(f"{value[:80]!r} is not a MAC address", "write it like 02:00:00:00:00:01")
        return bytes.fromhex(value.replace(":", ""))
    return value


def _check_mac(value: bytes) -> bytes:
    if len(value) != 6:
        raise ValueProblem(f"a MAC address has 6 bytes, not {len(value)}")
    if value[0] & 1 or not any(value):
        raise ValueProblem(
            f"{format_mac(value)} is not the address of one interface",
            "the first byte of a unicast address is even, for example 02",
        )
    return value


def format_mac(mac: bytes) -> str:
    """``02:00:00:00:00:01``."""
    return mac.hex(":")


def _read_mode(value: object) -> object:
    if isinstance(value, str):
        if re.fullmatch(MODE_PATTERN, value, re.ASCII) is None:
            raise ValueProblem(f"{value[:80]!r} is not a file mode", "write it in octal, like 0755")
        return int(value, 8)
    return value


def _check_mode(value: int) -> int:
    if not 0 <= value <= 0o7777:
        raise ValueProblem(f"{value:#o} is not a file mode", "from 0000 to 7777")
    return value


def _read_addresses(value: object) -> object:
    items = XML_WORD.findall(value) if isinstance(value, str) else value
    if isinstance(items, list | tuple) and len(items) > MAX_ADDRESSES:
        raise ValueProblem(f"{len(items)} addresses", f"an interface takes at most {MAX_ADDRESSES}")
    return items


def _read_address(text: object) -> object:
    if not isinstance(text, str):
        return text
    if "/" not in text:
        raise ValueProblem(f"{text[:80]!r} has no prefix length", "write it like 10.1.0.1/24")
    try:
        _refuse_other_notations(text, ADDRESS_PATTERN)
        return ipaddress.ip_interface(text)
    except ValueError:
        raise ValueProblem(f"{text[:80]!r} is not an IP address with prefix", "like 10.1.0.1/24") from None


def _refuse_other_notations(text: str, pattern: str) -> None:
    """Netmasks, hostmasks and scope ids (which may hold anything), all of which `ipaddress` accepts."""
    if re.fullmatch(pattern, text, re.ASCII) is None:
        raise ValueError(text)


def _check_address(address: Address) -> Address:
    if address.version == 6 and address.scope_id is not None:
        raise ValueProblem("an address with a scope id", "leave it out: the interface says it")
    if address.is_multicast or address.is_unspecified or address.is_loopback:
        raise ValueProblem(f"{address.ip} cannot be the address of an interface", "use a unicast address")
    if address.version == 4 and address.network.prefixlen < 31:
        if address.ip == address.network.network_address:
            raise ValueProblem(
                f"{address.ip} is the address of the network {address.network} itself",
                f"for example {address.network.network_address + 1}/{address.network.prefixlen}",
            )
        if address.ip == address.network.broadcast_address:
            raise ValueProblem(
                f"{address.ip} is the broadcast address of {address.network}", "choose another"
            )
    return address


def _read_destination(value: object) -> object:
    if not isinstance(value, str) or value == "default":
        return None if value == "default" else value
    try:
        _refuse_other_notations(value, ADDRESS_PATTERN)
        loose = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueProblem(f"{value[:80]!r} is not a destination", 'write "default" or 10.2.0.0/24') from None
    if ipaddress.ip_interface(value).ip != loose.network_address:
        raise ValueProblem(f"{value!r} has bits set beyond its prefix", f"did you mean {loose}?")
    return loose


def _read_gateway(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        _refuse_other_notations(value, GATEWAY_PATTERN)
        return ipaddress.ip_address(value)
    except ValueError:
        raise ValueProblem(
            f"{value[:80]!r} is not an IP address", "like 10.1.0.1, without a prefix"
        ) from None


def _check_path(value: str) -> str:
    if not value.startswith("/") or not value.isprintable() or len(value) > 1024:
        raise ValueProblem(
            f"{value[:80]!r} is not an absolute path", "like /etc/motd, printable characters only"
        )
    if posixpath.normpath(value) != value or value == "/" or value.startswith("//"):
        raise ValueProblem(
            f"{value[:80]!r} is not a plain path to a file", 'without "..", "." and double slashes'
        )
    if value == "/init" or value.startswith("/etc/serai/") or value == "/etc/serai":
        raise ValueProblem(f"{value!r} belongs to Serai", "choose another path")
    return value


XML_TEXT = re.compile("[\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]*")
"""The characters that XML 1.0 can hold (its production 2, Char)."""


def _check_text(value: str) -> str:
    if XML_TEXT.fullmatch(value) is None:
        raise ValueProblem("text with control characters", 'write a binary file with encoding="base64"')
    return value


def _check_encoding(value: str) -> str:
    if value not in ("text", "base64"):
        raise ValueProblem(f"{value[:80]!r} is not an encoding", 'write "text" or "base64"')
    return value


def decode_text(data: bytes) -> str | None:
    """`data` as text that XML can hold, or None."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return text if XML_TEXT.fullmatch(text) else None


def decode_content(text: str, encoding: str) -> bytes:
    """The bytes that a file's text stands for. Raises ValueProblem for bad base64."""
    if encoding == "text":
        return text.encode()
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueProblem(f"the content is not base64: {error}", 'or write encoding="text"') from None


def _destination_text(value: Network | None) -> str:
    return "default" if value is None else str(value)


Name = Annotated[
    str,
    matching(NAME_PATTERN, "a name", "lower-case letters, digits and hyphens, at most 63 (RFC 1123 label)"),
    SimpleType(
        "name", "a name: lower-case letters, digits, hyphens (RFC 1123 label)", "router", NAME_PATTERN
    ),
]
ImageName = Annotated[
    str,
    matching(IMAGE_PATTERN, "the name of an image", "letters, digits, '.', '_' and '-'"),
    SimpleType("image", "the name of a guest image", "debian", IMAGE_PATTERN),
]
VirtualizationMode = Annotated[
    str,
    matching(VIRTUALIZATION_PATTERN, "a mode of virtualization", 'write "paravirtual" or "full"'),
    SimpleType("virtualization-mode", "paravirtual or full", "full", VIRTUALIZATION_PATTERN),
]
LocationName = Annotated[
    str,
    matching(LOCATION_PATTERN, "a location", "letters, digits, '.', '_', '-' and '/'"),
    SimpleType("location", "a place that providers advertise", "berlin", LOCATION_PATTERN),
]
InterfaceName = Annotated[
    str,
    matching(
        INTERFACE_PATTERN, "the name of an interface", "interfaces are eth0, eth1 and so on up to eth99"
    ),
    SimpleType("interface-name", "an interface: eth0, eth1, ...", "eth0", INTERFACE_PATTERN),
]
Vcpus = Annotated[
    int,
    BeforeValidator(_read_count),
    AfterValidator(_check_vcpus),
    SimpleType("count", "a whole number", "2", COUNT_PATTERN),
]
Memory = Annotated[
    int,
    *_quantity(MEMORY, 2**20, 2**40, PAGE_SIZE),
    SimpleType("memory", "an amount of memory", MEMORY.example, MEMORY.pattern, format=MEMORY.format),
]
Bandwidth = Annotated[
    int,
    *_quantity(BANDWIDTH, 0, 10**13),
    SimpleType("bandwidth", "a bandwidth", BANDWIDTH.example, BANDWIDTH.pattern, format=BANDWIDTH.format),
]
Delay = Annotated[
    int,
    *_quantity(DELAY, 1, 60 * 10**9),
    SimpleType("delay", "a delay", DELAY.example, DELAY.pattern, format=DELAY.format),
]
Boolean = Annotated[
    bool,
    BeforeValidator(_read_boolean),
    SimpleType(
        "boolean", "true or false", "true", base="xs:boolean", format=lambda value: str(value).lower()
    ),
]
Mac = Annotated[
    bytes,
    BeforeValidator(_read_mac),
    AfterValidator(_check_mac),
    SimpleType("mac", "a MAC address", "02:00:00:00:00:01", MAC_PATTERN, format=format_mac),
]
Mode = Annotated[
    int,
    BeforeValidator(_read_mode),
    AfterValidator(_check_mode),
    SimpleType("mode", "permission bits in octal", "0755", MODE_PATTERN, format=lambda value: f"{value:04o}"),
]
InterfaceAddress = Annotated[Address, BeforeValidator(_read_address), AfterValidator(_check_address)]
Addresses = Annotated[
    tuple[InterfaceAddress, ...],
    BeforeValidator(_read_addresses),
    SimpleType(
        "addresses",
        "IP addresses with prefix length, separated by spaces",
        "10.1.0.1/24",
        ADDRESS_PATTERN,
        item="address",
        format=lambda value: " ".join(str(address) for address in value),
    ),
]
Destination = Annotated[
    Network | None,
    BeforeValidator(_read_destination),
    SimpleType(
        "destination",
        '"default" or a network',
        "10.2.0.0/24",
        f"default|{ADDRESS_PATTERN}",
        format=_destination_text,
    ),
]
GatewayAddress = Annotated[
    Gateway,
    BeforeValidator(_read_gateway),
    SimpleType("gateway", "an IP address", "10.1.0.1", GATEWAY_PATTERN),
]
FilePath = Annotated[
    str,
    AfterValidator(_check_path),
    SimpleType("path", "an absolute path", "/etc/motd", "/.{1,1023}"),
]
SysctlName = Annotated[
    str,
    matching(SYSCTL_PATTERN, "the name of a kernel parameter", "like net.ipv4.ip_forward"),
    SimpleType("parameter", "the name of a kernel parameter", "net.ipv4.tcp_ecn", SYSCTL_PATTERN),
]
Line = Annotated[
    str,
    matching(LINE_PATTERN, "one line of at most 256 ASCII characters", "printable ASCII only"),
    SimpleType("line", "one line of ASCII text", "1", LINE_PATTERN),
]
Text = Annotated[str, AfterValidator(_check_text), SimpleType("text", "text", "hello")]
Script = Annotated[
    str,
    AfterValidator(_check_text),
    SimpleType("script", "a shell script", "ping -c 1 10.1.0.1"),
]
Encoding = Annotated[
    str,
    AfterValidator(_check_encoding),
    SimpleType("encoding", '"text" or "base64"', "base64", "text|base64"),
]
