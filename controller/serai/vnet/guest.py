"""The files that make a stock guest the node that the description asks for.

`/etc/serai/startup` runs at boot, as the first thing after the kernel's file systems are mounted; its exit
status is the node's: not zero means that the node did not start. It needs a POSIX shell and an `ip` such as
busybox has.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from serai.vnet.model import Interface, Node
from serai.vnet.subnets import connected_interface, subnets_of

HOSTNAME_PATH = "/etc/serai/hostname"
STARTUP_PATH = "/etc/serai/startup"
USER_STARTUP_PATH = "/etc/serai/startup-user"


@dataclass(frozen=True, slots=True)
class GuestFile:
    """A file in a guest's root file system; `path` is absolute, `mode` its permission bits."""

    path: str
    content: bytes
    mode: int = 0o644


def guest_files(node: Node, interfaces: dict[str, Interface]) -> tuple[GuestFile, ...]:
    """All files of a node: host name, start-up script, the user's script, and the user's files.

    `interfaces` are all of the node's, by name, as `assign_interfaces` gives them.
    """
    files = [
        GuestFile(HOSTNAME_PATH, f"{node.name}\n".encode()),
        GuestFile(STARTUP_PATH, _startup(node, interfaces).encode(), 0o755),
    ]
    if node.startup.strip():
        files.append(GuestFile(USER_STARTUP_PATH, node.startup.encode(), 0o755))
    files += [GuestFile(file.path, file.data, file.mode) for file in node.files]
    return tuple(files)


def _startup(node: Node, interfaces: dict[str, Interface]) -> str:
    lines = ["#!/bin/sh", f"# Network and start-up of node {node.name}, made by Serai.", "set -eu"]
    lines += ["ip link set dev lo up", *_sysctl_lines(node)]
    for name, interface in interfaces.items():
        lines += _interface_lines(name, interface)
    lines += _route_lines(node, interfaces)
    if node.startup.strip():
        # A file of its own: nothing that the user wrote is ever quoted, and its exit status is ours.
        run = USER_STARTUP_PATH if node.startup.startswith("#!") else f"/bin/sh {USER_STARTUP_PATH}"
        lines.append(f"exec {run}")
    return "\n".join(lines) + "\n"


def _sysctl_lines(node: Node) -> Iterator[str]:
    if node.forwarding:
        yield "echo 1 > /proc/sys/net/ipv4/ip_forward"
        # A kernel may be built without IPv6.
        yield "[ ! -e /proc/sys/net/ipv6 ] || echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"
    for sysctl in node.sysctls:
        path = "/proc/sys/" + sysctl.name.replace(".", "/")
        yield f"printf '%s\\n' {shlex.quote(sysctl.value)} > {shlex.quote(path)}"


def _interface_lines(name: str, interface: Interface) -> Iterator[str]:
    yield f"ip link set dev {name} up"
    for address in interface.addresses:
        family = "-6 " if address.version == 6 else ""
        yield f"ip {family}addr add {shlex.quote(str(address))} dev {name}"


def _route_lines(node: Node, interfaces: dict[str, Interface]) -> Iterator[str]:
    subnets = subnets_of(interfaces)
    for route in node.routes:
        family = "-6 " if route.via.version == 6 else ""
        destination = "default" if route.to is None else shlex.quote(str(route.to))
        device = connected_interface(subnets, route.via)
        line = f"ip {family}route add {destination} via {shlex.quote(str(route.via))}"
        yield f"{line} dev {device}" if device else line
