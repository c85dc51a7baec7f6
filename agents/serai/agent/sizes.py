"""Sizes of guests: how far one can go, and what is said when it does not come that far."""

from __future__ import annotations

from serai.agent.capacity import Demand
from serai.errors import CapacityError
from serai.v1 import guest_pb2

_MIB = 1 << 20


def note_size(spec: guest_pb2.GuestSpec, size: Demand) -> None:
    """Enter the size that a guest has from now on; what it could grow to before, it can again."""
    limits = limit_of(spec)
    spec.vcpus, spec.memory_bytes = size.vcpus, size.memory_bytes
    spec.maximum_vcpus = max(limits.vcpus, size.vcpus)
    spec.maximum_memory_bytes = max(limits.memory_bytes, size.memory_bytes)


def limit_of(spec: guest_pb2.GuestSpec) -> Demand:
    """How far a guest can go while it runs."""
    return Demand(max(spec.maximum_vcpus, spec.vcpus), max(spec.maximum_memory_bytes, spec.memory_bytes))


def same_but_size(left: guest_pb2.GuestSpec, right: guest_pb2.GuestSpec) -> bool:
    """Whether two specs ask for the same guest, its size aside, which changes while it runs."""
    copy = guest_pb2.GuestSpec()
    copy.CopyFrom(left)
    copy.vcpus, copy.memory_bytes = right.vcpus, right.memory_bytes
    copy.maximum_vcpus, copy.maximum_memory_bytes = right.maximum_vcpus, right.maximum_memory_bytes
    return copy == right


def check_growth(name: str, spec: guest_pb2.GuestSpec, wanted: Demand) -> None:
    """CapacityError when a running guest cannot become that large."""
    limits = limit_of(spec)
    for resource, asked, limit in (
        ("vCPUs", wanted.vcpus, limits.vcpus),
        ("bytes of memory", wanted.memory_bytes, limits.memory_bytes),
    ):
        if asked > limit:
            raise CapacityError(
                f"{name} can have up to {limit} {resource} while it runs, {asked} were asked for",
                hint="stop it first: it then starts with the new size",
                reason="RESIZE_LIMIT",
                resource=resource,
                asked=asked,
                limit=limit,
            )


def refusal(name: str, wanted: Demand, vcpus: int, memory_bytes: int, seconds: float) -> CapacityError:
    """What to say when the guest has not done it in time."""
    short = []
    if vcpus != wanted.vcpus:
        short.append(f"{vcpus} vCPUs of {wanted.vcpus}")
    if memory_bytes != wanted.memory_bytes:
        short.append(f"{memory_bytes // _MIB} MiB of memory, {wanted.memory_bytes // _MIB} MiB wanted")
    what = " and ".join(short) or "no word from it"
    return CapacityError(
        f"{name} did not get there in {seconds:g} s: {what}; it keeps the size it had",
        hint="a guest gives back only memory that it can spare: see what it uses, or ask for less",
        reason="GUEST_DID_NOT_RESIZE",
        guest=name,
    )
