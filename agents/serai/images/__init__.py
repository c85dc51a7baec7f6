"""Guest images: built from Debian packages without root, cached by content. Stands alone.

::

    image = build_debian(progress=...)          # or ImageStore().get("debian"), which never builds initramfs
    = image.initramfs.read_bytes() + overlay(hostname="r1", startup="ip addr add 10.0.0.1/24 dev eth0")
"""

from __future__ import annotations

from .cpio import CpioEntry, read_cpio, write_cpio
from .debian import COMMAND_LINE, IMAGE_NAME, MODULES, SUITE, build_debian
from .initramfs import overlay
from .opensbi import FIRMWARE_NAME, build_opensbi
from .progress import Progress, silent
from .store import Image, ImageStore, Manifest, SourcePackage, default_root

__all__ = [
    "COMMAND_LINE",
    "FIRMWARE_NAME",
    "IMAGE_NAME",
    "MODULES",
    "SUITE",
    "CpioEntry",
    "Image",
    "ImageStore",
    "Manifest",
    "Progress",
    "SourcePackage",
    "build_debian",
    "build_opensbi",
    "default_root",
    "overlay",
    "read_cpio",
    "silent",
    "write_cpio",
]
