"""The guarantee, against both pure machines: thousands of histories with lost messages and crashes anywhere.

At every instant at most one copy runs; and when everything can talk again, the guest runs somewhere unless
the very agent that held its only copy was killed.
"""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, field

import pytest

from serai.errors import MigrationError, UnavailableError
from serai.migration import destination as dst
from serai.migration import source as src
from serai.migration.convergence import Limits, Round
from serai.migration.ownership import interpret, may_give_back
from serai.v1 import migration_pb2

S, D = "alpha/a1", "beta/b1"
GOOD, BAD = b"good digest", b"bad digest"
HISTORIES = 4000


class LostError(Exception):
    """No answer: the request or the reply was lost, or the other side is down."""


@dataclass
class Record:
    """What survives a crash of the agent."""

    epoch: int = 0
    owned: bool = False
    peer: str = ""


@dataclass
class World:
    """Two agents, their disks, and the link between them."""

    chance: random.Random
    source: src.Source | None = field(default_factory=lambda: src.Source(Limits()))
    arrival: dst.Destination | None = None
    source_record: Record = field(default_factory=lambda: Record(1, True))
    destination_record: Record = field(default_factory=Record)
    destination_runs: bool = False
    destination_complete: bool = False
    """Whether the destination once ran the guest; a crash then ends that copy."""
    trouble: bool = True
    source_crashed: bool = False
    destination_crashed: bool = False
    copy_was_gone: bool = False
    late: list[dst.Event] = field(default_factory=list)
    """Requests that their sender has given up and that are still on their way."""
    story: list[str] = field(default_factory=list)

    def check(self) -> None:
        if self.source is not None:
            self.source.check()
            self.copy_was_gone |= self.source.copy is src.Copy.GONE
        if self.arrival is not None:
            self.arrival.check()
        here = self.source is not None and self.source.copy is src.Copy.RUNNING
        assert not (here and self.destination_runs), "two copies run"

    def unlucky(self, probability: float) -> bool:
        return self.trouble and self.chance.random() < probability

    # Crashes.

    def crash_source(self) -> None:
        self.story.append("source crashes")
        self.source = None
        self.source_crashed = True

    def crash_destination(self) -> None:
        self.story.append("destination crashes")
        self.arrival = None
        self.destination_runs = False
        self.destination_crashed = True

    def perhaps_crash(self) -> None:
        if self.unlucky(0.02):
            self.crash_destination()
        if self.unlucky(0.02):
            self.crash_source()
            raise LostError

    # The destination's agent.

    def tell_destination(self, event: dst.Event) -> list[dst.Action]:
        """A request. It, or its answer, may be lost; it may come much later; what it leads to comes back."""
        if self.unlucky(0.1):
            if self.chance.random() < 0.5:
                self.late.append(event)
            raise LostError
        replies = self.obey(event)
        self.perhaps_crash()
        if self.unlucky(0.1):
            raise LostError
        return replies

    def obey(self, event: dst.Event) -> list[dst.Action]:
        replies: list[dst.Action] = []
        pending = [event]
        while pending:
            if self.arrival is None:
                raise LostError
            event = pending.pop(0)
            self.story.append(f"  destination: {type(event).__name__}")
            for action in self.arrival.handle(event):
                replies.append(action)
                pending += self.perform_there(action)
                self.check()
                if self.unlucky(0.03):
                    self.crash_destination()
                    raise LostError
        return replies

    def perform_there(self, action: dst.Action) -> list[dst.Event]:  # noqa: PLR0911
        match action:
            case dst.Verify():
                return [dst.Failed(MigrationError("damaged")) if self.unlucky(0.05) else dst.Matched()]
            case dst.RecordOwnership():
                if self.unlucky(0.05):
                    return [dst.Failed(UnavailableError("disk full"))]
                assert self.arrival is not None and self.destination_record.epoch < self.arrival.epoch
                self.destination_record = Record(self.arrival.epoch, True, S)
                return [dst.OwnershipRecorded()]
            case dst.Resume():
                if self.unlucky(0.05):
                    return [dst.Failed(MigrationError("does not run"))]
                self.destination_runs = True
                return [dst.Running()]
            case dst.Forget() | dst.GiveUpGuest():
                self.arrival = None
            case dst.AskSource():
                if not self.unlucky(0.3):
                    record = self.source_record
                    assert self.arrival is not None
                    handed = not record.owned and record.epoch == self.arrival.epoch and record.peer == D
                    return [dst.SourceSays(handed)]
        return []

    def query(self, reclaim: int) -> migration_pb2.Ownership:
        """`Arrivals.query` on this model's record."""
        if self.unlucky(0.2):
            raise LostError
        if self.arrival is not None and self.arrival.arriving:
            return migration_pb2.Ownership(arriving=True)
        record = self.destination_record
        if may_give_back(
            owned=record.owned,
            epoch=record.epoch,
            origin=record.peer,
            alive=self.destination_runs,
            reclaim_epoch=reclaim,
            asker=S,
        ):
            record = self.destination_record = Record(reclaim, False, S)
        if self.unlucky(0.2):
            raise LostError
        handed_to = record.peer if not record.owned else ""
        return migration_pb2.Ownership(epoch=record.epoch, owned_here=record.owned, handed_to=handed_to)

    # The source's agent.

    def run_source(self) -> None:
        event: src.Event | None = src.Begun()
        while event is not None and self.source is not None:
            self.check()
            self.story.append(f"source: {type(event).__name__}")
            if self.source.cancellable and self.unlucky(0.02):
                event = src.Cancelled(MigrationError("cancelled"))
            actions = self.source.handle(event)
            event = None
            for action in actions:
                self.check()
                try:
                    self.perhaps_crash()
                    event = self.perform_here(action)
                except LostError:
                    event = self.lost(action)
                if self.source is None:
                    return
        self.check()

    def lost(self, action: src.Action) -> src.Event | None:
        if isinstance(action, src.Commit | src.AskHolder):
            return src.Unanswered("no answer")
        if isinstance(action, src.Abort | src.Thaw | src.Finish):
            return None
        return src.Failed(UnavailableError("no answer"))

    def perform_here(self, action: src.Action) -> src.Event | None:  # noqa: PLR0911, PLR0912
        assert self.source is not None
        match action:
            case src.Prepare():
                if self.unlucky(0.05):
                    raise LostError
                self.arrival = dst.Destination(2)
                return src.Prepared()
            case src.SendRound(number):
                if self.arrival is None or self.unlucky(0.05):
                    raise LostError
                return src.RoundSent(Round(number, 1000, 0, 4 << 20, 0.1, self.chance.choice([10, 5000])))
            case src.Freeze():
                return src.Frozen()
            case src.SendRest():
                return src.RestSent(GOOD)
            case src.Verify():
                replies = self.tell_destination(dst.VerifyAsked())
                if not any(isinstance(reply, dst.SayReady) for reply in replies):
                    return src.Failed(MigrationError("refused"))
                return src.Verified(BAD if self.unlucky(0.05) else GOOD)
            case src.RecordHandOver():
                if self.unlucky(0.05):
                    return src.Failed(UnavailableError("disk full"))
                self.source_record = Record(2, False, D)
                return src.HandOverRecorded()
            case src.Commit():
                replies = self.tell_destination(dst.CommitAsked(2))
                acknowledged = any(isinstance(reply, dst.Acknowledge) for reply in replies)
                return src.Acknowledged() if acknowledged else src.Unanswered("refused")
            case src.AskHolder():
                self.destination_by_itself()
                return src.Answered(interpret(self.query(3), 2, S))
            case src.RecordReclaim():
                if self.unlucky(0.2):
                    return src.Failed(UnavailableError("disk full"))
                self.source_record = Record(3, True)
                self.deliver_late()
                return src.ReclaimRecorded()
            case src.Abort():
                self.tell_destination(dst.AbortAsked("failed"))
            case src.Drain():
                return src.Drained()
            case src.Release():
                return src.Released()
        return None

    def deliver_late(self) -> None:
        while self.late and self.chance.random() < 0.5:
            with contextlib.suppress(LostError):
                self.obey(self.late.pop())

    def destination_by_itself(self) -> None:
        """Its watch over a silent source."""
        self.deliver_late()
        if self.arrival is not None and self.chance.random() < 0.5:
            with contextlib.suppress(LostError):
                self.obey(dst.Silence())

    def heal(self) -> None:
        """Everything is up and can talk; each side does what it does after a restart or a silence."""
        self.trouble = False
        for _ in range(20):
            if self.source is None and not self.source_record.owned:
                match interpret(self.query(3), 2, S):
                    case src.Holder.ARRIVING:
                        self.obey(dst.CommitAsked(2))
                    case src.Holder.NOBODY:
                        self.source_record = Record(3, True)
            if self.arrival is not None:
                with contextlib.suppress(LostError):
                    self.obey(dst.Silence())
            self.deliver_late()
            self.check()


@pytest.mark.parametrize("part", range(8))
def test_no_history_breaks_the_guarantee(part: int) -> None:
    ends: dict[str, int] = {}
    for seed in range(part, HISTORIES, 8):
        world = World(random.Random(seed))
        try:
            world.run_source()
            world.heal()
            end = judge(world)
        except BaseException as error:
            error.add_note(f"seed {seed}: {world.story}")
            raise
        ends[end] = ends.get(end, 0) + 1
    # The histories are worth something only when they end in every way.
    assert {"source", "destination", "lost with its agent"} <= ends.keys(), ends


def judge(world: World) -> str:
    """Where the guest is in the end; AssertionError when it is lost without need."""
    if world.destination_runs:
        assert world.destination_record.owned
        return "destination"
    if world.source is not None and world.source.copy is src.Copy.RUNNING:
        assert world.source_record.owned
        return "source"
    assert world.source is None or world.source.copy is src.Copy.GONE, "frozen for ever"
    # A guest ends with its agent; that is no loss of the migration's when it was the only copy.
    if world.source_crashed and not world.destination_crashed:
        assert world.source_record.owned or not world.destination_record.owned, "both disown it"
        assert world.source_record.epoch != 2 or world.source_record.owned, "handed over, and nobody has it"
        return "lost with its agent"
    assert world.destination_crashed, "lost without a crash"
    assert world.source_crashed or world.copy_was_gone, "lost although the source had it"
    return "lost with its agent"
