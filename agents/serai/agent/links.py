"""What the agent needs of the data plane; ``serai.network`` has it, tests may stand in."""

from __future__ import annotations

from typing import Protocol

from serai.hypervisor.driver import FramePort


class Links(Protocol):
    """Guests' ports on the switch."""

    def bind_port(self, guest_uid: str, interface: str, port: FramePort) -> None:
        """Connect a guest's interface; frames held for it are delivered first."""

    def hold_port(self, guest_uid: str, interface: str) -> None:
        """From now on keep frames to and from the port, in order, instead of moving them."""

    def unbind_port(self, guest_uid: str, interface: str) -> None:
        """Forget the port; nothing happens when there is none."""
