"""The machine's own small exception tree; it imports nothing of the rest of Serai.

::

    MachineError
    ├── ConfigurationError     a machine that cannot be built as described
    ├── LoadError              a kernel, initramfs or device tree that cannot be loaded
    ├── GuestAccessError       a device was told to touch memory that is not RAM
    ├── VirtqueueError         the driver broke the rules of a virtqueue
    ├── SnapshotError          a snapshot that is damaged or of an unknown version
    ├── CodeError              native code that cannot be generated, compiled or loaded
    ├── DirtyLogError          dirty pages were asked for while nobody logs them
    └── ProtocolError          a control message that is malformed
"""

from __future__ import annotations


class MachineError(Exception):
    """Base of what the machine raises on purpose; the text is for people."""


class ConfigurationError(MachineError):
    """A machine that cannot be built as described."""


class LoadError(MachineError):
    """A kernel, initramfs or device tree that cannot be loaded; the text names the file and the reason."""


class GuestAccessError(MachineError):
    """A device was told to touch guest-physical memory that is not RAM."""


class VirtqueueError(MachineError):
    """The driver broke the rules of a virtqueue; its device then needs a reset."""


class SnapshotError(MachineError):
    """A snapshot that is damaged, truncated or of an unknown version; the text names the section."""

    def __init__(self, section: str, problem: str) -> None:
        super().__init__(f"snapshot section {section!r}: {problem}")
        self.section = section


class DirtyLogError(MachineError):
    """Dirty pages were asked for while nobody logs them."""


class ProtocolError(MachineError):
    """A control message that is malformed, too long or out of order."""


class CodeError(MachineError):
    """The machine's native code cannot be generated, compiled or loaded on this host."""
