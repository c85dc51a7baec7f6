"""``serai migration``: which operations are moves, and what it says of them."""

from __future__ import annotations

from typing import Any

import pytest

from serai.cli.commands import migration as command
from serai.errors import NotFoundError
from serai.v1.operation_pb2 import Failure, ListOperationsResponse, MigrationReport, Operation, Step
from serai.wire.rpc import Channel

MOVED = Operation(
    name="operations/a",
    verb="MigrateVnetNode",
    target="vnets/demo",
    done=True,
    migration=MigrationReport(mode="hybrid", source_node="alpha/a1", destination_node="beta/b1"),
)
RUNNING = Operation(
    name="operations/b", verb="MigrateVnetNode", steps=[Step(name="stream", state=Step.RUNNING)]
)
FAILED = Operation(
    name="operations/c",
    verb="MigrateVnetNode",
    done=True,
    failure=Failure(code=10, message="it writes too fast", reason="NOT_CONVERGING"),
)
OTHER = Operation(name="operations/d", verb="CreateVnet", done=True)


def test_states_say_the_step_and_the_reason() -> None:
    states = [command.state_of(item) for item in (MOVED, RUNNING, FAILED)]
    assert states == ["SUCCEEDED", "RUNNING (stream)", "FAILED (NOT_CONVERGING)"]


class Operations:
    """Stands for the stub; only what the commands call."""

    def __init__(self, channel: Channel) -> None:
        pass

    async def ListOperations(self, request: Any) -> ListOperationsResponse:  # noqa: N802 - the contract's
        return ListOperationsResponse(operations=[MOVED, RUNNING, FAILED, OTHER])


async def test_only_moves_are_listed_and_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "OperationServiceStub", Operations)
    channel: Any = None
    assert {command.short_id(item) for item in await command._all(channel)} == {"a", "b", "c"}
    assert await command._find(channel, "operations/a") == MOVED
    with pytest.raises(NotFoundError):
        await command._find(channel, "d")
