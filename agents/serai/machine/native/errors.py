"""The errors of the machine: one small tree. The machine imports nothing else of Serai."""

from __future__ import annotations

__all__ = ["CodeError", "MachineError", "StateError"]


class MachineError(Exception):
    """Anything that goes wrong in the machine; ``hint`` names the next step."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class CodeError(MachineError):
    """The machine's native code cannot be generated, compiled or loaded."""


class StateError(MachineError):
    """A saved state is damaged, incomplete or of another version."""
