"""What every driver's guest shares: its state machine, its listeners and the console scrollback."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from serai.errors import StateError
from serai.hypervisor.driver import Guest, GuestConfig, GuestState

SCROLLBACK_BYTES = 64 * 1024
"""How much console output is kept for those who attach late."""

_log = logging.getLogger(__name__)
_Listener = TypeVar("_Listener")

_TRANSITIONS: dict[GuestState, frozenset[GuestState]] = {
    GuestState.DEFINED: frozenset(
        {GuestState.RUNNING, GuestState.PAUSED, GuestState.STOPPED, GuestState.FAILED}
    ),
    GuestState.RUNNING: frozenset({GuestState.PAUSED, GuestState.STOPPED, GuestState.FAILED}),
    GuestState.PAUSED: frozenset({GuestState.RUNNING, GuestState.STOPPED, GuestState.FAILED}),
    GuestState.STOPPED: frozenset(),
    GuestState.FAILED: frozenset(),
}


class BaseGuest(Guest):
    """State, listeners and scrollback; the drivers add the machine."""

    def __init__(self, config: GuestConfig) -> None:
        self.uid = config.uid
        self.config = config
        self.state = GuestState.DEFINED
        self.failure = ""
        self._scrollback = bytearray()
        self._listeners: list[Callable[[Guest], None]] = []
        self._console_listeners: list[Callable[[bytes], None]] = []

    def subscribe(self, listener: Callable[[Guest], None]) -> Callable[[], None]:
        """See `Guest.subscribe`."""
        return _subscribe(self._listeners, listener)

    def subscribe_console(self, listener: Callable[[bytes], None]) -> Callable[[], None]:
        """See `Guest.subscribe_console`."""
        return _subscribe(self._console_listeners, listener)

    def read_scrollback(self) -> bytes:
        """See `Guest.read_scrollback`."""
        return bytes(self._scrollback)

    def _expect(self, doing: str, *allowed: GuestState) -> None:
        """Raise StateError unless the guest is in one of `allowed`."""
        if self.state not in allowed:
            expected = " or ".join(state.value for state in allowed)
            reason = f" ({self.failure})" if self.failure else ""
            raise StateError(
                f"guest {self.uid}: cannot {doing} while it is {self.state.value}{reason}",
                hint=f"it has to be {expected}",
                guest=self.uid,
                state=self.state.value,
            )

    def _set_state(self, state: GuestState, failure: str = "") -> None:
        """Move on if the state machine allows it; a late death of a stopped guest changes nothing."""
        if state is self.state or state not in _TRANSITIONS[self.state]:
            return
        self.state = state
        self.failure = failure
        self._notify()

    def _notify(self) -> None:
        for listener in list(self._listeners):
            try:
                listener(self)
            except Exception:
                _log.exception("guest %s: a state listener failed", self.uid)

    def _console_output(self, data: bytes) -> None:
        self._scrollback += data
        del self._scrollback[:-SCROLLBACK_BYTES]
        for listener in list(self._console_listeners):
            try:
                listener(data)
            except Exception:
                _log.exception("guest %s: a console listener failed", self.uid)


def _subscribe(listeners: list[_Listener], listener: _Listener) -> Callable[[], None]:
    """Add; the returned function removes exactly this subscription and may be called twice."""
    listeners.append(listener)
    active = True

    def unsubscribe() -> None:
        nonlocal active
        if active:
            active = False
            listeners.remove(listener)

    return unsubscribe
