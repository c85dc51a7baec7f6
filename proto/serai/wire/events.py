"""Events: what changed, in a versioned envelope, and the MQTT topics they go to.

The manual is ``docs/events.md``.

Events inform; nothing in Serai depends on one arriving. What must be known exactly is asked for over gRPC.
"""

from __future__ import annotations

import datetime
import re
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)

from serai.errors import InvalidInputError
from serai.wire.identity import Identity

VERSION = 1
TOPIC_ROOT = "serai/v1"
MAX_EVENT_BYTES = 64 * 1024
"""Longest event that is read; longer messages are somebody else's."""

_SUBJECT = re.compile(r"[^\x00-\x20+#/\x7f]+(/[^\x00-\x20+#/\x7f]+)*")


class Payload(BaseModel):
    """What a type of event says.

    Fields may be added within a version; unknown ones are ignored by readers.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    type: ClassVar[str] = ""


class GuestStateChanged(Payload):
    """A guest entered another state, or became ready."""

    type: ClassVar[str] = "guest.state"
    guest_uid: str = Field(description="unique for ever, unchanged by migration")
    node: str = Field(description="the node it is on, PROVIDER/NODE")
    state: str = Field(description="as in serai.v1.Guest.State: DEFINED, RUNNING, PAUSED ...")
    ready: bool = Field(default=False, description="start-up is complete, as the guest itself reported")
    reason: str = Field(default="", description="why, for people: the signal, the fault, powered off")
    epoch: int = Field(default=0, ge=0, description="fencing epoch; who holds the highest one owns the guest")


class NodeStateChanged(Payload):
    """A node joined, left, or missed its heartbeat deadline."""

    type: ClassVar[str] = "node.state"
    node: str = Field(description="PROVIDER/NODE")
    state: str = Field(description="as in serai.v1.Node.State: READY, STOPPING, UNREACHABLE")
    reason: str = Field(default="", description="why, for people")
    guest_count: int = Field(default=0, ge=0, description="guests on it")


class MigrationProgress(Payload):
    """A live migration moved on by a phase or a round."""

    type: ClassVar[str] = "migration.progress"
    migration: str = Field(description="the migration's resource name")
    guest_uid: str = Field(description="the guest that moves")
    source_node: str = Field(description="PROVIDER/NODE it leaves")
    destination_node: str = Field(description="PROVIDER/NODE it goes to")
    mode: str = Field(default="PRE_COPY", description="PRE_COPY, POST_COPY or HYBRID")
    phase: str = Field(
        description="prepare, stream, freeze, hand_over, resume, drain, release, done or failed"
    )
    round: int = Field(default=0, ge=0, description="pre-copy round, from 1")
    bytes_sent: int = Field(default=0, ge=0, description="over the bulk channel so far")
    pages_remaining: int = Field(default=0, ge=0, description="pages still to send in this round")
    total_ms: float = Field(default=0.0, ge=0, description="since the migration began")
    downtime_ms: float = Field(
        default=0.0, ge=0, description="last instruction there to first one here; 0 before"
    )
    error: str = Field(default="", description="why it failed")


class OperationProgress(Payload):
    """A step of a long-running operation (provisioning, deletion ...) changed, or the operation ended."""

    type: ClassVar[str] = "operation.progress"
    operation: str = Field(description="the operation's resource name")
    verb: str = Field(description="what is being done: CreateVnet, MigrateNode ...")
    target: str = Field(description="the resource it is done to")
    step: str = Field(default="", description="match, split, embed, allocate, provision, configure ...")
    state: str = Field(description="as in serai.v1.Step.State: PENDING, RUNNING, DONE, FAILED, SKIPPED")
    progress: float = Field(default=0.0, ge=0, le=1, description="of the step")
    message: str = Field(default="", description="for people: what exactly, or why it failed")
    done: bool = Field(default=False, description="the whole operation has ended")


class VnetStateChanged(Payload):
    """A VNet entered another state."""

    type: ClassVar[str] = "vnet.state"
    vnet: str = Field(description="the VNet's resource name")
    state: str = Field(description="as in serai.v1.Vnet.State: CREATING, RUNNING, DEGRADED ...")
    reason: str = Field(default="", description="why, for people")


class OtherPayload(Payload):
    """Of a type that this version does not know; everything is kept."""

    model_config = ConfigDict(frozen=True, extra="allow")


PAYLOADS: Mapping[str, type[Payload]] = {
    cls.type: cls
    for cls in (GuestStateChanged, NodeStateChanged, MigrationProgress, OperationProgress, VnetStateChanged)
}
"""Every type of event of this version."""


class Event(BaseModel):
    """The envelope.

    `sequence` counts a source's events from 0 since its start: a gap shows that some were lost.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    version: Literal[1] = Field(default=1, description="of the envelope and all types")
    id: str = Field(description="UUID; the same event may arrive twice")
    time: datetime.datetime = Field(description="UTC, RFC 3339")
    source: str = Field(description="identity of who says so, serai://ROLE/OWNER")
    sequence: int = Field(ge=0, description="counts the source's events since it started; a gap means loss")
    type: str = Field(pattern=r"^[a-z]+\.[a-z]+$", description="one of those below")
    subject: str = Field(max_length=256, description="resource name of what changed")
    data: SerializeAsAny[Payload] = Field(description="depends on the type")

    @classmethod
    def create(cls, source: Identity, sequence: int, subject: str, data: Payload) -> Self:
        """An event of now. Raises pydantic's ValidationError for a subject that cannot be in a topic."""
        now = datetime.datetime.now(datetime.UTC)
        return cls(
            id=str(uuid.uuid4()),
            time=now,
            source=source.uri,
            sequence=sequence,
            type=data.type,
            subject=subject,
            data=data,
        )

    @model_validator(mode="before")
    @classmethod
    def _choose_payload(cls, values: Any) -> Any:
        """The type decides which model reads the data."""
        if isinstance(values, dict) and isinstance(values.get("data"), dict):
            model = PAYLOADS.get(str(values.get("type")), OtherPayload)
            values = {**values, "data": model.model_validate(values["data"])}
        return values

    @field_validator("source")
    @classmethod
    def _check_source(cls, value: str) -> str:
        try:
            return Identity.parse(value).uri
        except InvalidInputError as error:
            raise ValueError(error.message) from error

    @field_validator("subject")
    @classmethod
    def _check_subject(cls, value: str) -> str:
        if not _SUBJECT.fullmatch(value):
            raise ValueError("a subject is a resource name: no spaces, no '+', no '#', no empty parts")
        return value

    @property
    def topic(self) -> str:
        """``serai/v1/NOUN/ASPECT/ROLE/OWNER.../SUBJECT...``."""
        source = self.source.removeprefix("serai://")
        return "/".join((TOPIC_ROOT, self.type.replace(".", "/"), source, self.subject))

    def to_json(self) -> bytes:
        """As it goes over the wire: JSON, UTF-8."""
        return self.model_dump_json().encode()

    @classmethod
    def from_json(cls, content: bytes | bytearray) -> Self:
        """Read an event from anybody; InvalidInputError when it is none."""
        if len(content) > MAX_EVENT_BYTES:
            raise InvalidInputError(f"an event has at most {MAX_EVENT_BYTES} bytes, not {len(content)}")
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InvalidInputError(f"not an event of version {VERSION}: {where}: {first['msg']}") from error


def topic_matches(topic: str, pattern: str) -> bool:
    """MQTT topic filters (MQTT 3.1.1, 4.7): ``+`` is one level, a final ``#`` is any number of them."""
    levels, wanted = topic.split("/"), pattern.split("/")
    for index, part in enumerate(wanted):
        if part == "#":
            return True
        if index >= len(levels) or part not in ("+", levels[index]):
            return False
    return len(levels) == len(wanted)
