"""From what a caller asks for (``serai.v1.GuestSpec``) to what the driver builds, checked on the way."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from serai.agent.capacity import Demand
from serai.errors import ImageError, InvalidInputError
from serai.hypervisor.driver import PAGE_SIZE, Clock, GuestConfig, InterfaceConfig, Mode
from serai.v1 import guest_pb2

_GUEST_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_INTERFACE = re.compile(r"[a-z][a-z0-9]{0,14}")
_MAX_INTERFACES = 16
GROWN_VCPUS = 8
"""To how many vCPUs a guest can grow that does not say so itself."""

GROWN_MEMORY = 4
"""And to how many times its memory."""
FIRMWARE_IMAGE = "opensbi"
"""The image whose kernel is the firmware of guests in mode full (`serai.images.build_opensbi`)."""

_MAX_FILE_BYTES = 4 * 1024 * 1024


class ImageFiles(Protocol):
    """An image on this node."""

    @property
    def name(self) -> str:
        """What guests ask for."""

    @property
    def kernel(self) -> Path:
        """The kernel image."""

    @property
    def initramfs(self) -> Path:
        """The initial file system."""

    @property
    def command_line(self) -> str:
        """The image's own kernel arguments."""

    @property
    def resizable(self) -> bool:
        """Whether its guests have a balloon and obey what the host channel says of vCPUs."""


class ImageSource(Protocol):
    """The node's images by name."""

    def get(self, name: str) -> ImageFiles:
        """The image; ImageError or NotFoundError when it is not there."""

    def list(self) -> Sequence[ImageFiles]:
        """All of them; reads the disk."""


def guest_name(guest_id: str) -> str:
    """The resource name of a guest."""
    return f"guests/{guest_id}"


def parse_guest_name(name: str) -> str:
    """The id in ``guests/ID``; InvalidInputError for anything else."""
    collection, separator, guest_id = name.partition("/")
    if collection != "guests" or not separator:
        raise InvalidInputError(f"{name!r} is not a guest's name", hint="write guests/ID", name=name)
    return check_guest_id(guest_id)


def check_guest_id(guest_id: str) -> str:
    """Give `guest_id` back if it is an RFC 1123 label."""
    if not _GUEST_ID.fullmatch(guest_id):
        raise InvalidInputError(
            f"{guest_id!r} cannot name a guest",
            hint="use lower-case letters, digits and hyphens, 63 at most, no hyphen at the ends",
            guest_id=guest_id,
        )
    return guest_id


def check_spec(spec: guest_pb2.GuestSpec) -> None:
    """Raise InvalidInputError naming the first field that can never be right."""
    if not spec.vcpus:
        raise _wrong("vcpus", "is 0", "a guest needs at least one")
    if spec.maximum_memory_bytes % PAGE_SIZE:
        raise _wrong(
            "maximum_memory_bytes", f"is {spec.maximum_memory_bytes}", f"give a multiple of {PAGE_SIZE}"
        )
    if not spec.memory_bytes or spec.memory_bytes % PAGE_SIZE:
        raise _wrong("memory_bytes", f"is {spec.memory_bytes}", f"give a multiple of {PAGE_SIZE}")
    if spec.mode not in guest_pb2.GuestSpec.Mode.values():
        raise _wrong("mode", f"is {spec.mode}", "give PARAVIRTUAL or FULL")
    _check_interfaces(spec)
    for file in spec.files:
        _check_file(file)


def with_limits(spec: guest_pb2.GuestSpec, images: ImageSource) -> guest_pb2.GuestSpec:
    """`spec` with how far the guest can grow, chosen here unless it says so itself.

    More memory than at first costs a guest a 64th of what it may grow to (Linux's page descriptors) and the
    time to inflate its balloon, so only images that are known to take part are given room to grow.
    """
    complete = guest_pb2.GuestSpec()
    complete.CopyFrom(spec)
    grows = bool(spec.image) and spec.mode != guest_pb2.GuestSpec.FULL and images.get(spec.image).resizable
    if grows:
        complete.maximum_vcpus = spec.maximum_vcpus or GROWN_VCPUS
        complete.maximum_memory_bytes = spec.maximum_memory_bytes or GROWN_MEMORY * spec.memory_bytes
    return complete


def demand_of(spec: guest_pb2.GuestSpec) -> Demand:
    """What admission control counts."""
    return Demand(spec.vcpus, spec.memory_bytes)


def build_config(uid: str, spec: guest_pb2.GuestSpec, images: ImageSource | None) -> GuestConfig:
    """The driver's configuration; `images` is None for a guest whose RAM arrives and that boots nothing.

    Raises ImageError or NotFoundError when the image, or the firmware of mode full, is not on this node.
    """
    kernel = initramfs = firmware = None
    mode = Mode.FULL if spec.mode == guest_pb2.GuestSpec.FULL else Mode.PARAVIRTUAL
    command_line = spec.kernel_arguments
    if images is not None and spec.image:
        image = images.get(spec.image)
        kernel, initramfs = image.kernel, image.initramfs
        firmware = images.get(FIRMWARE_IMAGE).kernel if mode is Mode.FULL else None
        command_line = " ".join(part for part in (image.command_line, spec.kernel_arguments) if part)
    return GuestConfig(
        uid=uid,
        memory_bytes=spec.memory_bytes,
        vcpus=spec.vcpus,
        maximum_vcpus=spec.maximum_vcpus,
        maximum_memory_bytes=spec.maximum_memory_bytes,
        kernel=kernel,
        initramfs=initramfs,
        command_line=command_line,
        interfaces=tuple(InterfaceConfig(item.name, item.mac) for item in spec.interfaces),
        extra_files={file.path: (file.mode or 0o644, file.content) for file in spec.files},
        clock=Clock.VIRTUAL if spec.clock == guest_pb2.GuestSpec.VIRTUAL else Clock.REAL,
        mode=mode,
        firmware=firmware,
    )


class NoImages:
    """Stands for the image store of a driver that boots nothing."""

    def get(self, name: str) -> ImageFiles:
        """Refuse."""
        raise ImageError(
            f"this node's driver boots no images, and {name!r} was asked for", hint="name no image"
        )

    def list(self) -> Sequence[ImageFiles]:
        """None."""
        return ()


def _check_interfaces(spec: guest_pb2.GuestSpec) -> None:
    if len(spec.interfaces) > _MAX_INTERFACES:
        raise _wrong("interfaces", f"are {len(spec.interfaces)}", f"at most {_MAX_INTERFACES} fit")
    names = [item.name for item in spec.interfaces]
    addresses = [item.mac for item in spec.interfaces]
    for item in spec.interfaces:
        if not _INTERFACE.fullmatch(item.name):
            raise _wrong("interfaces.name", f"is {item.name!r}", "write eth0, eth1 ...")
        if len(item.mac) != 6 or item.mac[0] & 1:
            raise _wrong(
                f"interfaces[{item.name}].mac", f"is {item.mac.hex(':')!r}", "give six bytes, unicast"
            )
    if len(set(names)) < len(names) or len(set(addresses)) < len(addresses):
        raise _wrong("interfaces", "repeat a name or an address", "make them different")


def _check_file(file: guest_pb2.GuestFile) -> None:
    plain = posixpath.normpath(file.path) == file.path and file.path.startswith("/") and file.path != "/"
    if not plain or "\0" in file.path or ".." in file.path.split("/"):
        raise _wrong("files.path", f"is {file.path!r}", "give an absolute path without '..'")
    if len(file.content) > _MAX_FILE_BYTES:
        raise _wrong(
            f"files[{file.path}].content", f"has {len(file.content)} bytes", f"{_MAX_FILE_BYTES} at most"
        )
    if file.mode & ~0o7777:
        raise _wrong(f"files[{file.path}].mode", f"is {oct(file.mode)}", "give permission bits only")


def _wrong(field: str, what: str, hint: str) -> InvalidInputError:
    return InvalidInputError(f"guest spec: {field} {what}", hint=hint, field=f"spec.{field}")
