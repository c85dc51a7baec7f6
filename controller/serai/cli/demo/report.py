"""The demo's report: what was measured, and whether all of it held."""

from __future__ import annotations

from pydantic import BaseModel


class VnetReport(BaseModel):
    """The provisioned VNet; `longest_path_hops` counts substrate links below one virtual link."""

    nodes: int
    links: int
    providers: int
    longest_path_hops: int
    request_to_running_s: float


class GuestReport(BaseModel):
    """One guest: where it is in the end, what it boots, what it has executed."""

    name: str
    node: str
    kernel: str
    boot_s: float
    instructions: int


class PingReport(BaseModel):
    """Echo requests end to end, 20 a second; `max_gap_ms` is the longest time between two replies."""

    sent: int
    received: int
    max_gap_ms: float


class TransferReport(BaseModel):
    """A TCP transfer between guests; the digests are what each side computed itself."""

    bytes: int
    seconds: float
    sha256_sent: str
    sha256_received: str
    spans_migration: bool


class IsolationReport(BaseModel):
    """Frames seen at the ports of the second VNet, which uses the same addresses.

    Foreign is a frame with a source MAC address that is not of that VNet.
    """

    own_frames: int
    foreign_frames: int


class MigrationResult(BaseModel):
    """The live migration, as the agents measured it."""

    vm: str
    from_: str
    to: str
    mode: str
    rounds: int
    bytes_sent: int
    total_ms: float
    downtime_ms: float
    digest_source: str
    digest_destination: str


class Residue(BaseModel):
    """What was left after the VNets had been deleted, counted at every agent."""

    guests: int
    allocated_memory_bytes: int

    @property
    def any(self) -> bool:
        """Whether anything was left."""
        return bool(self.guests or self.allocated_memory_bytes)


class DemoReport(BaseModel):
    """The whole run; `failures` says in words what did not hold."""

    ok: bool = False
    failures: list[str] = []
    seconds: float = 0.0
    vnet: VnetReport | None = None
    guests: list[GuestReport] = []
    ping: PingReport | None = None
    transfer: TransferReport | None = None
    isolation: IsolationReport | None = None
    migration: MigrationResult | None = None
    residue: Residue | None = None

    def as_json(self) -> str:
        """The report as written to the file (`from_` is spelled "from", which Python reserves)."""
        return self.model_dump_json(indent=2).replace('"from_"', '"from"') + "\n"

    def judge(self) -> None:
        """Fill `failures` and `ok` from the figures."""
        self.failures = [*self.failures, *self._missing(), *self._broken()]
        self.ok = not self.failures

    def _missing(self) -> list[str]:
        parts = ("vnet", "ping", "transfer", "isolation", "migration", "residue")
        return [f"{part} was not reached" for part in parts if getattr(self, part) is None]

    def _broken(self) -> list[str]:
        checks: list[tuple[bool, str]] = []
        if self.vnet:
            checks.append((self.vnet.providers >= 2, "the VNet does not cross providers"))
            checks.append((self.vnet.longest_path_hops > 1, "no link has more than one substrate hop"))
        if self.ping:
            lost = self.ping.sent - self.ping.received
            checks.append(
                (lost == 0 and self.ping.received > 0, f"{lost} of {self.ping.sent} pings were lost")
            )
        if self.transfer:
            same = self.transfer.sha256_sent == self.transfer.sha256_received != ""
            checks.append((same, "the transferred bytes differ"))
            checks.append((self.transfer.spans_migration, "the transfer was over before the migration"))
        if self.isolation:
            foreign = self.isolation.foreign_frames
            checks.append((foreign == 0, f"{foreign} frames of the other VNet were seen"))
            checks.append((self.isolation.own_frames > 0, "the second VNet saw no frames at all"))
        if self.migration:
            same = self.migration.digest_source == self.migration.digest_destination != ""
            checks.append((same, "the digests of source and destination differ"))
        if self.residue:
            checks.append((not self.residue.any, "guests or reservations were left behind"))
        return [problem for held, problem in checks if not held]
