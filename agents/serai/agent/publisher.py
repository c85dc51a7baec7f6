"""What the agent says on the event bus."""

from __future__ import annotations

from serai.agent.inventory import Inventory
from serai.migration.progress import Progress
from serai.v1 import guest_pb2, migration_pb2, node_pb2
from serai.wire.bus import EventBus
from serai.wire.events import GuestStateChanged, MigrationProgress, NodeStateChanged


class Publisher:
    """Turns changes into events; never blocks, never fails for want of a broker."""

    def __init__(self, bus: EventBus, node: str) -> None:
        self._bus = bus
        self._node = node
        self._shown: dict[str, tuple[object, ...]] = {}

    async def follow_guests(self, inventory: Inventory) -> None:
        """Publish each change of state, readiness or owner, for ever."""
        async for change in inventory.watch():
            guest = change.guest
            if change.deleted:
                self._shown.pop(guest.uid, None)
            elif guest.uid:
                self._publish_guest(guest)

    def _publish_guest(self, guest: guest_pb2.Guest) -> None:
        state = guest_pb2.Guest.State.Name(guest.state)
        shown = (state, guest.ready, guest.epoch)
        if self._shown.get(guest.uid) != shown:
            self._shown[guest.uid] = shown
            data = GuestStateChanged(
                guest_uid=guest.uid,
                node=self._node,
                state=state,
                ready=guest.ready,
                reason=guest.status_message,
                epoch=guest.epoch,
            )
            self._bus.publish(guest.name, data)

    def node(self, name: str, state: node_pb2.Node.State, guest_count: int) -> None:
        """The node serves, or stops."""
        data = NodeStateChanged(
            node=self._node, state=node_pb2.Node.State.Name(state), guest_count=guest_count
        )
        self._bus.publish(name, data)

    def migration(self, progress: Progress, guest_uid: str) -> None:
        """A migration moved on."""
        resource = progress.resource
        phase = progress.phase.value
        if progress.finished:
            phase = "done" if resource.state == migration_pb2.Migration.SUCCEEDED else "failed"
        data = MigrationProgress(
            migration=resource.name,
            guest_uid=guest_uid,
            source_node=resource.report.source_node,
            destination_node=resource.report.destination_node,
            phase=phase.replace("-", "_"),
            round=resource.report.rounds,
            bytes_sent=resource.report.bytes_sent,
            total_ms=resource.report.total_ms,
            downtime_ms=resource.report.downtime_ms,
            error=resource.failure.message,
        )
        self._bus.publish(resource.name, data)
