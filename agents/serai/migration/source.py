"""The source's side of a migration as a pure state machine: events in, actions out, no clock and no I/O.

The order of the actions is the guarantee: nothing is committed before the hand-over is on the disk, the guest
runs here only while this side's record owns it, and the frozen copy is let go of only when the destination is
known to own the guest. `check` states it as an invariant; tests call it after every step, and run this
machine against `serai.migration.destination` over a lossy link with crashes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

from serai.errors import IntegrityError, MigrationError, SeraiError
from serai.migration.convergence import Convergence, Decision, Limits, Mode, Round


class Phase(enum.StrEnum):
    """The named steps of a migration, in order."""

    PREPARE = "prepare"
    STREAM = "stream"
    FREEZE = "freeze"
    HAND_OVER = "hand-over"
    RESUME = "resume"
    DRAIN = "drain"
    RELEASE = "release"


class Outcome(enum.Enum):
    """How it ended, or that it has not."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Copy(enum.Enum):
    """The guest's copy on this node."""

    RUNNING = "running"
    FROZEN = "frozen"
    GONE = "gone"


class Owner(enum.Enum):
    """Whose the guest is by this node's durable record."""

    HERE = "here"
    DESTINATION = "destination"


# Events


@dataclass(frozen=True, slots=True)
class Begun:
    """Start."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The destination has consented and allocated."""


@dataclass(frozen=True, slots=True)
class RoundSent:
    """A round has been sent and written."""

    round: Round


@dataclass(frozen=True, slots=True)
class Frozen:
    """No vCPU runs any more; frames are held."""


@dataclass(frozen=True, slots=True)
class RestSent:
    """The last pages are there and the state is saved; `digest` is of this node's RAM and state."""

    digest: bytes


@dataclass(frozen=True, slots=True)
class Verified:
    """The destination is ready; `digest` is of its RAM and of the state it loaded."""

    digest: bytes


@dataclass(frozen=True, slots=True)
class HandOverRecorded:
    """It is on the disk that the destination owns the guest."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The destination has recorded that it owns the guest."""


@dataclass(frozen=True, slots=True)
class Unanswered:
    """The commit, or the question after it, had no answer that decides."""

    reason: str


class Holder(enum.Enum):
    """What the destination says when asked."""

    DESTINATION = "destination"
    """It owns the guest, or owned it until it ended."""
    ARRIVING = "arriving"
    """It holds everything and waits for the commit."""
    NOBODY = "nobody"
    """It does not own the guest and never will under this epoch."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The destination has said who holds the guest."""

    holder: Holder


@dataclass(frozen=True, slots=True)
class ReclaimRecorded:
    """It is on the disk that this node owns the guest again, under a higher epoch."""


@dataclass(frozen=True, slots=True)
class Drained:
    """Frames go to the destination, those held first; every page that was to follow is there."""


@dataclass(frozen=True, slots=True)
class TryAgain:
    """It is time to look for the destination again, or somebody asked for it."""


@dataclass(frozen=True, slots=True)
class Released:
    """Nothing of the guest is held here any more."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The action under way did not succeed."""

    error: SeraiError


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody wants it to stop."""

    error: SeraiError


Event: TypeAlias = (
    Begun
    | Prepared
    | RoundSent
    | Frozen
    | RestSent
    | Verified
    | HandOverRecorded
    | Acknowledged
    | Unanswered
    | Answered
    | ReclaimRecorded
    | Drained
    | TryAgain
    | Released
    | Failed
    | Cancelled
)


# Actions. Each ends in an event, except Thaw, Abort and Finish.


@dataclass(frozen=True, slots=True)
class Prepare:
    """Ask the destination for consent and room."""


@dataclass(frozen=True, slots=True)
class SendRound:
    """Send what is dirty; in round 1, everything, with the dirty log on."""

    number: int


@dataclass(frozen=True, slots=True)
class Freeze:
    """Hold the guest's frames and pause it."""


@dataclass(frozen=True, slots=True)
class SendRest:
    """Send the last dirty pages (or, with `later`, only which they are) and save the state."""

    number: int
    later: bool = False


@dataclass(frozen=True, slots=True)
class Verify:
    """Give the destination state and digest."""


@dataclass(frozen=True, slots=True)
class RecordHandOver:
    """Write to the disk that the destination owns the guest under the next epoch."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Say *go*."""


@dataclass(frozen=True, slots=True)
class AskHolder:
    """After a pause, ask the destination who holds the guest."""


@dataclass(frozen=True, slots=True)
class RecordReclaim:
    """Write to the disk that this node owns the guest under an epoch above the one handed over."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Send held frames, and those that still come, to the destination; and the pages that were to follow."""


@dataclass(frozen=True, slots=True)
class AwaitLink:
    """Pages are to follow and the link is lost: wait a while, or until somebody asks. Ends in TryAgain."""

    reason: str


@dataclass(frozen=True, slots=True)
class Release:
    """Let go of the frozen copy."""


@dataclass(frozen=True, slots=True)
class Thaw:
    """Let the guest run here and its frames pass."""


@dataclass(frozen=True, slots=True)
class Abort:
    """Tell the destination to forget the arrival."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finish:
    """It is over."""

    outcome: Outcome
    error: SeraiError | None = None


Action: TypeAlias = (
    Prepare
    | SendRound
    | Freeze
    | SendRest
    | Verify
    | RecordHandOver
    | Commit
    | AskHolder
    | RecordReclaim
    | Drain
    | AwaitLink
    | Release
    | Thaw
    | Abort
    | Finish
)


class Source:
    """One migration away from here."""

    def __init__(self, limits: Limits) -> None:
        self.phase = Phase.PREPARE
        self.outcome = Outcome.RUNNING
        self.copy = Copy.RUNNING
        self.owner = Owner.HERE
        self.undecided = False
        """Handed over, and the destination's acknowledgement is missing."""
        self.committed = False
        self.acknowledged = False
        self._reclaimed = False
        self.later = False
        """Post-copy: pages follow after the guest has moved."""
        self._mode = limits.mode
        self._round = 0
        self._digest = b""
        self._convergence = Convergence(limits)
        self.story: list[str] = []

    @property
    def cancellable(self) -> bool:
        """Before the hand-over is being recorded."""
        return self.outcome is Outcome.RUNNING and self.phase in (Phase.PREPARE, Phase.STREAM, Phase.FREEZE)

    def handle(self, event: Event) -> list[Action]:  # noqa: PLR0911, PLR0912 - the table of transitions
        """What to do now, in this order. An event that does not belong here raises MigrationError."""
        self.story.append(f"{self.phase}: {type(event).__name__}")
        match event:
            case Cancelled(error):
                return self._cancel(error)
            case Failed(error):
                return self._fail(error)
        if self.outcome is not Outcome.RUNNING:
            raise self._unexpected(event)
        match self.phase, event:
            case Phase.PREPARE, Begun():
                return [Prepare()]
            case Phase.PREPARE, Prepared():
                return self._begin()
            case Phase.STREAM, RoundSent(sent):
                return self._after_round(sent)
            case Phase.FREEZE, Frozen() if self.copy is Copy.RUNNING:
                self.copy = Copy.FROZEN
                return [SendRest(self._round + 1, self.later)]
            case Phase.FREEZE, RestSent(digest) if self.copy is Copy.FROZEN:
                self._digest = digest
                return [Verify()]
            case Phase.FREEZE, Verified(digest) if self._digest:
                return self._after_verification(digest)
            case Phase.HAND_OVER, HandOverRecorded():
                self.owner = Owner.DESTINATION
                self.phase = Phase.RESUME
                return self._commit()
            case Phase.RESUME, _:
                return self._resume(event)
            case Phase.DRAIN, TryAgain():
                return [Drain()]
            case Phase.DRAIN, Answered(Holder.NOBODY) if self.later:
                return [RecordReclaim()]
            case Phase.DRAIN, ReclaimRecorded():
                return self._reclaim("the destination lost the guest while pages of it were on their way")
            case Phase.DRAIN, Drained() | Answered(Holder.DESTINATION):
                self.phase = Phase.RELEASE
                self.copy = Copy.GONE
                return [Release()]
            case Phase.RELEASE, Released():
                return self._finish(Outcome.SUCCEEDED)
        raise self._unexpected(event)

    def check(self) -> None:
        """Raise AssertionError when the guarantee does not hold here."""
        if self.copy is Copy.RUNNING:
            assert self.owner is Owner.HERE, "runs here although the record gives it away"
        if self.committed and not self._reclaimed:
            assert self.owner is Owner.DESTINATION, "committed although the hand-over is not recorded"
        if self.copy is Copy.GONE:
            assert self.acknowledged, "released although nobody else is known to have it"
        if self.outcome in (Outcome.FAILED, Outcome.CANCELLED):
            assert self.copy is Copy.RUNNING and self.owner is Owner.HERE, "failed, and does not go on here"
        if self.undecided:
            assert self.copy is Copy.FROZEN, "undecided, and not frozen"

    def _begin(self) -> list[Action]:
        if self._mode not in (Mode.POST_COPY, Mode.OFFLINE):
            self.phase = Phase.STREAM
            return self._next_round()
        self.later = self._mode is Mode.POST_COPY
        self.phase = Phase.FREEZE
        return [Freeze()]

    def _next_round(self) -> list[Action]:
        self._round += 1
        return [SendRound(self._round)]

    def _after_round(self, sent: Round) -> list[Action]:
        decision = self._convergence.judge(sent)
        if decision is Decision.CONTINUE:
            return self._next_round()
        if decision in (Decision.FREEZE, Decision.SWITCH):
            self.later = decision is Decision.SWITCH
            self.phase = Phase.FREEZE
            return [Freeze()]
        return self._fail(
            MigrationError(
                f"pre-copy does not converge: {self._convergence.explain(sent)}",
                hint="allow a longer downtime (max_downtime_ms), or move the guest when it writes less",
                reason="NOT_CONVERGING",
            )
        )

    def _after_verification(self, digest: bytes) -> list[Action]:
        if digest != self._digest:
            return self._fail(
                IntegrityError(
                    f"the destination's digest {digest.hex()[:16]}... is not {self._digest.hex()[:16]}...",
                    hint="the guest goes on at the source; try again and look at both agents' logs",
                    reason="DIGEST_MISMATCH",
                )
            )
        self.phase = Phase.HAND_OVER
        return [RecordHandOver()]

    def _commit(self) -> list[Action]:
        self.committed = True
        return [Commit()]

    def _resume(self, event: Event) -> list[Action]:
        match event:
            case Acknowledged() | Answered(Holder.DESTINATION):
                self.undecided = False
                self.acknowledged = True
                self.phase = Phase.DRAIN
                return [Drain()]
            case Unanswered():
                self.undecided = True
                return [AskHolder()]
            case Answered(Holder.ARRIVING):
                return self._commit()
            case Answered(Holder.NOBODY):
                return [RecordReclaim()]
            case ReclaimRecorded():
                return self._reclaim("the destination lost the guest before it ran there")
        raise self._unexpected(event)

    def _reclaim(self, why: str) -> list[Action]:
        self.owner = Owner.HERE
        self.undecided = False
        self._reclaimed = True
        error = MigrationError(
            f"{why}; it goes on at the source",
            hint="see the destination's log, then try again",
            reason="DESTINATION_LOST",
        )
        return self._go_on_here(Outcome.FAILED, error, [])

    def _cancel(self, error: SeraiError) -> list[Action]:
        if not self.cancellable:
            raise MigrationError(
                f"the migration cannot be cancelled any more: it is at {self.phase}",
                hint="wait until it has ended",
                reason="TOO_LATE",
            )
        return self._go_on_here(Outcome.CANCELLED, error, [Abort(str(error))])

    def _fail(self, error: SeraiError) -> list[Action]:
        if self.outcome is not Outcome.RUNNING:
            raise self._unexpected(Failed(error))
        if self.phase is Phase.DRAIN and self.later:
            # The other half of the guest is here: it is kept until the destination has all of it.
            return [AwaitLink(str(error))]
        if self.phase in (Phase.DRAIN, Phase.RELEASE):
            # The guest lives at the destination; what could not be tidied up here does not change that.
            return self._after_hand_over()
        if self.owner is Owner.DESTINATION:
            self.undecided = True
            return [AskHolder()]
        return self._go_on_here(Outcome.FAILED, error, [Abort(str(error))])

    def _after_hand_over(self) -> list[Action]:
        if self.phase is Phase.DRAIN:
            self.phase = Phase.RELEASE
            self.copy = Copy.GONE
            return [Release()]
        return self._finish(Outcome.SUCCEEDED)

    def _go_on_here(self, outcome: Outcome, error: SeraiError, rest: list[Action]) -> list[Action]:
        """The guest first; everything else can wait."""
        self.copy = Copy.RUNNING
        return [Thaw(), *rest, *self._finish(outcome, error)]

    def _finish(self, outcome: Outcome, error: SeraiError | None = None) -> list[Action]:
        self.outcome = outcome
        return [Finish(outcome, error)]

    def _unexpected(self, event: Event) -> MigrationError:
        return MigrationError(
            f"{type(event).__name__} is not due at {self.phase}, {self.outcome.value}: {self.story[-8:]}",
            reason="PROTOCOL",
        )
