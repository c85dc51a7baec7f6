"""The destination's side of a migration as a pure state machine: events in, actions out, no clock and no I/O.

It runs the guest only after it has recorded that it owns it, and it records that only when the source has
said *go* - or when, asked after a long silence, the source's own record says so.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

from serai.errors import ConflictError, MigrationError, SeraiError


class Stage(enum.Enum):
    """How far an arrival is."""

    RECEIVING = "receiving"
    VERIFYING = "verifying"
    READY = "ready"
    """All there and checked: from here on only the source decides."""
    RECORDING = "recording"
    RESUMING = "resuming"
    OWNED = "owned"
    FORGOTTEN = "forgotten"


# Events


@dataclass(frozen=True, slots=True)
class VerifyAsked:
    """The source has sent all pages and gives state and digest."""


@dataclass(frozen=True, slots=True)
class Matched:
    """RAM and state are the source's, and the state is loaded."""


@dataclass(frozen=True, slots=True)
class CommitAsked:
    """The source has recorded the hand-over and says *go* (again, perhaps)."""

    epoch: int


@dataclass(frozen=True, slots=True)
class OwnershipRecorded:
    """It is on the disk that this node owns the guest."""


@dataclass(frozen=True, slots=True)
class Running:
    """The guest runs."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The action under way, or the stream, did not succeed."""

    error: SeraiError


@dataclass(frozen=True, slots=True)
class AbortAsked:
    """The source, or this node's provider, wants it forgotten."""

    reason: str


@dataclass(frozen=True, slots=True)
class Silence:
    """Nothing was heard of the source for long."""


@dataclass(frozen=True, slots=True)
class SourceSays:
    """The source's record: whether it gave the guest to this node under this arrival's epoch."""

    handed_over: bool


Event: TypeAlias = (
    VerifyAsked
    | Matched
    | CommitAsked
    | OwnershipRecorded
    | Running
    | Failed
    | AbortAsked
    | Silence
    | SourceSays
)


# Actions


@dataclass(frozen=True, slots=True)
class Verify:
    """Compare the digests, load the state. Ends in Matched or Failed."""


@dataclass(frozen=True, slots=True)
class SayReady:
    """Answer the source's question for verification."""


@dataclass(frozen=True, slots=True)
class RecordOwnership:
    """Write to the disk that this node owns the guest. Ends in OwnershipRecorded or Failed."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Connect the guest's interfaces and run it. Ends in Running or Failed."""


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Answer every commit that waits."""


@dataclass(frozen=True, slots=True)
class AskSource:
    """Ask for the source's record. Ends in SourceSays, or in Silence again."""


@dataclass(frozen=True, slots=True)
class Forget:
    """Free everything; whoever waits for an answer gets `error`."""

    error: SeraiError


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer the request that came with `error`; nothing else changes."""

    error: SeraiError


@dataclass(frozen=True, slots=True)
class GiveUpGuest:
    """The guest is this node's but cannot run here: free it, so that the source can have it back."""

    error: SeraiError


Action: TypeAlias = (
    Verify | SayReady | RecordOwnership | Resume | Acknowledge | AskSource | Forget | Refuse | GiveUpGuest
)


class Destination:
    """One arrival."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.stage = Stage.RECEIVING
        self.recorded = False
        self.running = False
        self.story: list[str] = []

    @property
    def arriving(self) -> bool:
        """Whether a commit would succeed, now or as soon as the one under way has."""
        return self.stage in (Stage.READY, Stage.RECORDING, Stage.RESUMING)

    def handle(self, event: Event) -> list[Action]:  # noqa: PLR0911 - the table of transitions
        """What to do now, in this order."""
        self.story.append(f"{self.stage.value}: {type(event).__name__}")
        match event:
            case CommitAsked(epoch):
                return self._commit(epoch)
            case AbortAsked(reason):
                return self._abort(reason)
            case Failed(error):
                return self._fail(error)
        match self.stage, event:
            case Stage.RECEIVING, VerifyAsked():
                self.stage = Stage.VERIFYING
                return [Verify()]
            case _, VerifyAsked():
                return [Refuse(self._wrong("verified again"))]
            case Stage.VERIFYING, Matched():
                self.stage = Stage.READY
                return [SayReady()]
            case Stage.RECORDING, OwnershipRecorded():
                self.recorded = True
                self.stage = Stage.RESUMING
                return [Resume()]
            case Stage.RESUMING, Running():
                self.running = True
                self.stage = Stage.OWNED
                return [Acknowledge()]
            case ((Stage.RECEIVING | Stage.VERIFYING), Silence()):
                return self._forget(MigrationError("nothing came from the source for long", reason="STALLED"))
            case Stage.READY, Silence():
                return [AskSource()]
            case Stage.READY, SourceSays(handed_over):
                return self._decide(handed_over)
        # Late news of what has been settled meanwhile.
        return []

    def check(self) -> None:
        """Raise AssertionError when the guarantee does not hold here."""
        if self.running:
            assert self.recorded, "runs although it is not recorded whose it is"
        if self.stage in (Stage.RECEIVING, Stage.VERIFYING, Stage.READY, Stage.FORGOTTEN):
            assert not self.running, f"runs although it is {self.stage.value}"
        if self.stage is Stage.OWNED:
            assert self.running and self.recorded

    def _commit(self, epoch: int) -> list[Action]:
        if epoch != self.epoch:
            return [Refuse(self._wrong(f"committed under epoch {epoch}, this arrival is of {self.epoch}"))]
        if self.stage is Stage.READY:
            self.stage = Stage.RECORDING
            return [RecordOwnership()]
        if self.stage in (Stage.RECORDING, Stage.RESUMING):
            return []  # answered together with the first one
        if self.stage is Stage.OWNED:
            return [Acknowledge()]
        return [Refuse(self._wrong("committed"))]

    def _abort(self, reason: str) -> list[Action]:
        if self.stage in (Stage.RECORDING, Stage.RESUMING, Stage.OWNED):
            return [Refuse(self._wrong("aborted"))]
        if self.stage is Stage.FORGOTTEN:
            return []
        return self._forget(MigrationError(f"aborted: {reason}", reason="ABORTED"))

    def _fail(self, error: SeraiError) -> list[Action]:
        if self.stage is Stage.RESUMING:
            self.stage = Stage.FORGOTTEN
            return [GiveUpGuest(error)]
        if self.stage in (Stage.RECEIVING, Stage.VERIFYING, Stage.RECORDING):
            return self._forget(error)
        # READY: the stream's end is no news, everything has come over it. Later: the guest lives.
        return []

    def _decide(self, handed_over: bool) -> list[Action]:
        if handed_over:
            self.stage = Stage.RECORDING
            return [RecordOwnership()]
        return self._forget(
            MigrationError("the source did not hand the guest over", reason="NOT_HANDED_OVER")
        )

    def _forget(self, error: SeraiError) -> list[Action]:
        self.stage = Stage.FORGOTTEN
        return [Forget(error)]

    def _wrong(self, what: str) -> SeraiError:
        return ConflictError(
            f"the arrival cannot be {what}: it is {self.stage.value}",
            reason="WRONG_STAGE",
            stage=self.stage.value,
        )
