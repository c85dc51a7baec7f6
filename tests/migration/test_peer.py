"""A destination against a source of any kind: only the order of the protocol gets a guest to run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from tests.agent.harness import Client, Site, make_spec
from tests.migration.move import Side, eventually

from serai.errors import (
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    HypervisorError,
    IntegrityError,
    NotFoundError,
)
from serai.hypervisor.driver import GuestConfig, InterfaceConfig
from serai.hypervisor.fake import FakeDriver, FakeGuest
from serai.migration.stream import MAX_RECORD, PageSender
from serai.v1 import guest_pb2, migration_pb2
from serai.wire.identity import Role
from serai.wire.records import ChannelSecret
from serai.wire.streams import RecordStream

Guest = guest_pb2.Guest
UID, MIGRATION = "6f1c", "migrations/m"


@dataclass(frozen=True)
class Stranger:
    """A source of our own making: a paused guest, and a client with an agent's certificate."""

    client: Client
    guest: FakeGuest
    destination: Side

    async def permit(self) -> bytes:
        answer = await self.destination.client.migrations.PermitArrival(
            migration_pb2.PermitArrivalRequest(
                guest_uid=UID, source_node="alpha/a1", spec=make_spec(), guest_id="g"
            )
        )
        return answer.permit

    def request(self, permit: bytes, **changes: Any) -> migration_pb2.PrepareArrivalRequest:
        values: dict[str, Any] = {
            "permit": permit,
            "migration": MIGRATION,
            "guest_uid": UID,
            "spec": make_spec(),
            "epoch": 2,
            "stream_version": 2,
            "snapshot_version": 1,
            **changes,
        }
        return migration_pb2.PrepareArrivalRequest(**values)

    async def prepare(self, **changes: Any) -> migration_pb2.PrepareArrivalResponse:
        return await self.client.peer.PrepareArrival(self.request(await self.permit(), **changes))

    async def stream(
        self, prepared: migration_pb2.PrepareArrivalResponse
    ) -> migration_pb2.VerifyArrivalRequest:
        """Send all of RAM; what then is to be verified."""
        state = await self.guest.save_state()

        def send() -> bytes:
            secret = ChannelSecret(prepared.channel_id, prepared.key)
            with RecordStream.dial(prepared.data_address, secret, maximum=MAX_RECORD) as stream:
                sender = PageSender(stream, self.guest.ram)
                sender.send_round(1, np.arange(sender.page_count, dtype=np.uint32), last=True)
                sender.confirm_last(1)
                return sender.digests.root(state)

        digest = await asyncio.to_thread(send)
        return migration_pb2.VerifyArrivalRequest(migration=MIGRATION, state=state, digest=digest)

    async def verify(self) -> migration_pb2.VerifyArrivalResponse:
        return await self.client.peer.VerifyArrival(await self.stream(await self.prepare()))

    async def commit(self, epoch: int = 2) -> migration_pb2.CommitArrivalResponse:
        request = migration_pb2.CommitArrivalRequest(migration=MIGRATION, epoch=epoch, frozen_ns=1000)
        return await self.client.peer.CommitArrival(request)

    async def query(self, reclaim_epoch: int = 0) -> migration_pb2.Ownership:
        request = migration_pb2.QueryOwnershipRequest(guest_uid=UID, reclaim_epoch=reclaim_epoch)
        return await self.client.peer.QueryOwnership(request)

    async def expect_forgotten(self) -> None:
        await eventually(lambda: not self.destination.here.inventory.find(UID), "the arrival is forgotten")
        assert self.destination.driver is not None and self.destination.driver.guests == {}
        assert self.destination.here.capacity.allocated.vcpus == 0


@pytest.fixture
async def stranger(site: Site, destination: Side) -> AsyncIterator[Stranger]:
    spec = make_spec()
    interfaces = tuple(InterfaceConfig(item.name, item.mac) for item in spec.interfaces)
    guest = await FakeDriver().create(GuestConfig(UID, spec.memory_bytes, interfaces=interfaces))
    await guest.start()
    guest.run(20)
    await guest.pause()
    async with site.connect(destination.here, Role.AGENT, "alpha/a1") as client:
        yield Stranger(client, guest, destination)


async def other_agent(site: Site, stranger: Stranger) -> Client:
    return site.connect(stranger.destination.here, Role.AGENT, "gamma/c1")


async def test_the_whole_order_gets_the_guest_to_run(stranger: Stranger) -> None:
    await stranger.verify()
    assert (await stranger.destination.client.get()).state == Guest.INCOMING
    assert stranger.destination.guest.steps == 20 and stranger.destination.guest.elapsed_ns == 0
    assert (await stranger.query()).arriving
    await stranger.commit()
    now = await stranger.destination.client.get()
    assert (now.state, now.epoch, now.uid) == (Guest.RUNNING, 2, UID)
    assert stranger.destination.guest.elapsed_ns >= 1000
    assert (await stranger.query()).owned_here


async def test_a_commit_that_comes_twice_has_one_effect(stranger: Stranger) -> None:
    await stranger.verify()
    first, second = await asyncio.gather(stranger.commit(), stranger.commit())
    assert first == second == await stranger.commit()
    elapsed = stranger.destination.guest.elapsed_ns
    await stranger.commit()
    assert stranger.destination.guest.elapsed_ns == elapsed


async def test_no_step_can_be_left_out_or_repeated(stranger: Stranger) -> None:
    with pytest.raises(NotFoundError):
        await stranger.commit()
    prepared = await stranger.prepare()
    with pytest.raises(ConflictError, match="cannot be committed: it is receiving"):
        await stranger.commit()
    request = await stranger.stream(prepared)
    await stranger.client.peer.VerifyArrival(request)
    with pytest.raises(ConflictError, match="verified again"):
        await stranger.client.peer.VerifyArrival(request)
    with pytest.raises(ConflictError, match="epoch 3"):
        await stranger.commit(3)
    await stranger.commit()
    abort = migration_pb2.AbortArrivalRequest(migration=MIGRATION, reason="changed my mind")
    with pytest.raises(ConflictError, match="cannot be aborted"):
        await stranger.client.peer.AbortArrival(abort)
    assert (await stranger.destination.client.get()).state == Guest.RUNNING


async def test_a_wrong_digest_or_state_is_refused_and_forgotten(stranger: Stranger) -> None:
    request = await stranger.stream(await stranger.prepare())
    request.digest = bytes(32)
    with pytest.raises(IntegrityError, match="what arrived has the digest"):
        await stranger.client.peer.VerifyArrival(request)
    await stranger.expect_forgotten()
    with pytest.raises(NotFoundError):
        await stranger.commit()
    assert (await stranger.query()).epoch == 0


async def test_a_damaged_state_names_its_section(stranger: Stranger) -> None:
    damaged = replace(stranger, guest=DamagedGuest(stranger.guest))  # type: ignore[arg-type]
    with pytest.raises(HypervisorError, match="section 'fake' is damaged"):
        await damaged.verify()
    await stranger.expect_forgotten()


class DamagedGuest:
    """Saves a state with one bit flipped; the digest fits it."""

    def __init__(self, guest: FakeGuest) -> None:
        self.ram = guest.ram
        self._guest = guest

    async def save_state(self) -> bytes:
        state = bytearray(await self._guest.save_state())
        state[-1] ^= 1
        return bytes(state)


async def test_another_node_has_no_say(site: Site, stranger: Stranger) -> None:
    token = await stranger.permit()
    async with await other_agent(site, stranger) as other:
        with pytest.raises(ForbiddenError, match="gamma/c1 has no permit"):
            await other.peer.PrepareArrival(stranger.request(token))
        request = await stranger.stream(await stranger.client.peer.PrepareArrival(stranger.request(token)))
        with pytest.raises(NotFoundError):
            await other.peer.VerifyArrival(request)
        await stranger.client.peer.VerifyArrival(request)
        with pytest.raises(NotFoundError):
            await other.peer.VerifyArrival(request)
        with pytest.raises(NotFoundError):
            await other.peer.CommitArrival(migration_pb2.CommitArrivalRequest(migration=MIGRATION, epoch=2))
        await other.peer.AbortArrival(migration_pb2.AbortArrivalRequest(migration=MIGRATION))
        await stranger.commit()
    assert (await stranger.destination.client.get()).state == Guest.RUNNING


async def test_only_the_origin_gets_a_lost_guest_back(site: Site, stranger: Stranger) -> None:
    await stranger.verify()
    assert stranger.destination.driver is not None
    stranger.destination.driver.fail("resume", HypervisorError("no vCPU"))
    with pytest.raises(HypervisorError, match="no vCPU"):
        await stranger.commit()
    question = migration_pb2.QueryOwnershipRequest(guest_uid=UID, reclaim_epoch=3)
    async with await other_agent(site, stranger) as other:
        assert (await other.peer.QueryOwnership(question)).owned_here
    assert (await stranger.query(reclaim_epoch=2)).owned_here, "not under an epoch that is over"
    given = await stranger.query(reclaim_epoch=3)
    assert (given.owned_here, given.epoch, given.handed_to) == (False, 3, "alpha/a1")
    await stranger.expect_forgotten()


async def test_a_guest_that_lives_is_never_given_back(stranger: Stranger) -> None:
    await stranger.verify()
    await stranger.commit()
    answer = await stranger.query(reclaim_epoch=3)
    assert (answer.owned_here, answer.epoch) == (True, 2)
    request = guest_pb2.DeleteGuestRequest(name="guests/g")
    await stranger.destination.client.guests.DeleteGuest(request)
    ended = await stranger.query(reclaim_epoch=3)
    assert (ended.owned_here, ended.epoch) == (True, 2), "ended on purpose: nobody may revive it"


async def test_an_epoch_that_is_over_is_refused(stranger: Stranger) -> None:
    await stranger.verify()
    await stranger.commit()
    request = guest_pb2.DeleteGuestRequest(name="guests/g")
    await stranger.destination.client.guests.DeleteGuest(request)
    for epoch in (0, 1, 2):
        with pytest.raises(ConflictError, match="is over: 2 is recorded"):
            await stranger.prepare(epoch=epoch, migration="migrations/again")
    assert (await stranger.prepare(epoch=3, migration="migrations/again")).data_address


async def test_a_migration_name_serves_once_at_a_time(stranger: Stranger) -> None:
    await stranger.prepare()
    answer = await stranger.destination.client.migrations.PermitArrival(
        migration_pb2.PermitArrivalRequest(
            guest_uid="other", source_node="alpha/a1", spec=make_spec(), guest_id="h"
        )
    )
    with pytest.raises(AlreadyExistsError, match="has been prepared"):
        await stranger.client.peer.PrepareArrival(stranger.request(answer.permit, guest_uid="other"))
