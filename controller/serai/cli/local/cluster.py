"""Starting and stopping a local cluster.

Order of start: certificates, broker, agents (side by side), controller. Each later part is told the
addresses that the earlier ones bound, so no port has to be known beforehand. Whatever interrupts the start
ends what had started.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from serai.cli.context import ClusterState, Context
from serai.cli.local import processes
from serai.cli.local.config import ClusterConfig, NodeConfig, ProviderConfig
from serai.cli.local.processes import Daemon, DaemonSpec
from serai.errors import AlreadyExistsError, ConflictError, NotFoundError
from serai.wire.identity import Identity, Role
from serai.wire.tls import CertificateAuthority

_START_SECONDS = 60.0
_STOP_SECONDS = 15.0
OPERATOR, VNET_PROVIDER = "operator", "vnp"

Report = Callable[[str], None]


@dataclass(slots=True)
class LocalCluster:
    """One cluster on this machine, running or about to."""

    context: Context
    config: ClusterConfig
    report: Report
    _started: list[Daemon] = field(default_factory=list)
    _events_url: str = ""
    _agents: dict[str, str] = field(default_factory=dict)

    def up(self) -> ClusterState:
        """Start everything and return where it listens.

        Raises AlreadyExistsError when it runs, UnavailableError when a part does not start; nothing is left.
        """
        with _locked(self.context):
            self._refuse_second()
            end_guests(self.context)
            shutil.rmtree(self.context.directory / "daemons", ignore_errors=True)
            try:
                return self._start_all()
            except BaseException:
                self._undo()
                raise

    def _start_all(self) -> ClusterState:
        self.report("certificates")
        self._issue_credentials()
        self.report("event broker")
        self._events_url = self._start_broker()
        self.report(f"{sum(len(provider.nodes) for provider in self.config.providers)} agents")
        self._start_agents()
        self.report("controller")
        addresses = self._start_controller()
        state = self._state(addresses)
        self._save(state)
        return state

    def _refuse_second(self) -> None:
        with contextlib.suppress(NotFoundError):
            state = self.context.state()
            if any(daemon.alive() for daemon in state.daemons):
                raise AlreadyExistsError(
                    f"cluster {state.name!r} is already running",
                    hint=f"use it, or end it first: serai cluster down --cluster {state.name}",
                )

    def _issue_credentials(self) -> None:
        shutil.rmtree(self.context.credentials_directory, ignore_errors=True)
        issue_credentials(self.config, self.context.credentials_directory)

    def _start_broker(self) -> str:
        if self.config.broker == "none":
            return ""
        if self.config.broker != "embedded":
            return self.config.broker
        spec = self._spec("broker", "serai.wire.broker", ["--listen", f"{self.config.host}:0"])
        self._start(spec)
        ready = processes.wait_ready(spec, self._started[-1], timeout=_START_SECONDS)
        return f"mqtt://{ready['address']}"

    def _start_agents(self) -> None:
        pending = [
            (f"{provider.name}/{node.name}", self._agent_spec(provider, node))
            for provider in self.config.providers
            for node in provider.nodes
        ]
        daemons = [self._start(spec) for _, spec in pending]
        for (name, spec), daemon in zip(pending, daemons, strict=True):
            ready = processes.wait_ready(spec, daemon, timeout=_START_SECONDS)
            self._agents[name] = str(ready["control_address"])
            pin_addresses(self.context, spec.name, ready)

    def _agent_spec(self, provider: ProviderConfig, node: NodeConfig) -> DaemonSpec:
        name = f"agent-{provider.name}-{node.name}"
        settings = {
            "node": f"{provider.name}/{node.name}",
            "listen": f"{self.config.host}:{node.port}",
            "data_listen": f"{self.config.host}:{node.data_port}",
            "vcpus": node.vcpus,
            "memory": node.memory,
            "state_dir": str(self._directory(name) / "state"),
            "credentials": str(self.context.credentials_directory / name),
            "events_url": self._events_url,
        }
        return self._spec(name, "serai.agent.main", self._configure(name, settings))

    def _start_controller(self) -> dict[str, object]:
        name = "controller"
        settings = controller_settings(self.config, self._agents, self.context.credentials_directory)
        settings["state_dir"] = str(self._directory(name) / "state")
        settings["events_url"] = self._events_url
        spec = self._spec(name, "serai.controller.main", self._configure(name, settings))
        ready = processes.wait_ready(spec, self._start(spec), timeout=_START_SECONDS)
        pin_addresses(self.context, name, ready)
        return ready

    def _configure(self, name: str, settings: dict[str, object]) -> list[str]:
        file = config_file(self.context, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(settings, sort_keys=False))
        return ["--config", str(file)]

    def _spec(self, name: str, module: str, arguments: list[str]) -> DaemonSpec:
        return daemon_spec(self.context, name, module, arguments)

    def _start(self, spec: DaemonSpec) -> Daemon:
        daemon = processes.start(spec)
        self._started.append(daemon)
        # Kept from the first process on, so that `cluster down` finds them even if we are killed.
        self._save(self._state({}))
        return daemon

    def _state(self, controller: dict[str, object]) -> ClusterState:
        providers = controller.get("providers", {})
        return ClusterState(
            name=self.config.name,
            daemons=tuple(self._started),
            operator=str(controller.get("operator", "")),
            vnet_provider=str(controller.get("vnet_provider", "")),
            providers=dict(providers) if isinstance(providers, dict) else {},
            agents=self._agents,
            events_url=self._events_url,
        )

    def _save(self, state: ClusterState) -> None:
        save_state(self.context, state)

    def _undo(self) -> None:
        processes.stop(reversed(self._started), grace=_STOP_SECONDS)
        end_guests(self.context)
        self.context.state_file.unlink(missing_ok=True)

    def _directory(self, daemon: str) -> Path:
        return daemon_directory(self.context, daemon)


def repair(context: Context, report: Report) -> list[str]:
    """Start the daemons that are gone, with the settings and addresses they had; their names.

    Raises NotFoundError when no such cluster is known, UnavailableError when one does not start again.
    """
    with _locked(context):
        state = context.state()
        missing = [daemon.name for daemon in state.daemons if not daemon.alive()]
        # Side by side within each step, in the order of `up`.
        for step in ("broker", "agent-", "controller"):
            names = [name for name in missing if name.startswith(step)]
            report(", ".join(names))
            specs = [_spec_again(context, state, name) for name in names]
            started = {spec.name: processes.start(spec) for spec in specs}
            daemons = tuple(started.get(daemon.name, daemon) for daemon in state.daemons)
            state = state.model_copy(update={"daemons": daemons})
            save_state(context, state)
            for spec in specs:
                processes.wait_ready(spec, started[spec.name], timeout=_START_SECONDS)
        return missing


def _spec_again(context: Context, state: ClusterState, name: str) -> DaemonSpec:
    if name == "broker":
        address = state.events_url.removeprefix("mqtt://")
        return daemon_spec(context, name, "serai.wire.broker", ["--listen", address])
    module = "serai.controller.main" if name == "controller" else "serai.agent.main"
    return daemon_spec(context, name, module, ["--config", str(config_file(context, name))])


def pin_addresses(context: Context, name: str, ready: dict[str, object]) -> None:
    """Write where a daemon listens into its settings: started again, it has to be found there."""
    file = config_file(context, name)
    settings = yaml.safe_load(file.read_text())
    if name == "controller":
        settings["vno"]["listen"] = ready["operator"]
        settings["vnp"]["listen"] = ready["vnet_provider"]
        addresses = ready["providers"]
        for provider in settings["pips"]:
            if isinstance(addresses, dict):
                provider["listen"] = addresses[provider["name"]]
    else:
        settings["listen"], settings["data_listen"] = ready["control_address"], ready["data_address"]
    file.write_text(yaml.safe_dump(settings, sort_keys=False))


def daemon_directory(context: Context, name: str) -> Path:
    """Where a daemon's settings, log and state are."""
    return context.directory / "daemons" / name


def config_file(context: Context, name: str) -> Path:
    """A daemon's settings."""
    return daemon_directory(context, name) / "config.yaml"


def daemon_spec(context: Context, name: str, module: str, arguments: list[str]) -> DaemonSpec:
    """How a daemon of a cluster is started."""
    directory = daemon_directory(context, name)
    ready = directory / "ready.json"
    return DaemonSpec(
        name=name,
        argv=(sys.executable, "-m", module, *arguments, "--ready-file", str(ready)),
        ready_file=ready,
        log_file=directory / "log",
        environment={},
    )


def save_state(context: Context, state: ClusterState) -> None:
    """Replace the state file at once."""
    temporary = context.state_file.with_suffix(".new")
    temporary.write_text(state.model_dump_json(indent=2))
    temporary.replace(context.state_file)


def end_guests(context: Context) -> list[str]:
    """End guests that outlived an agent which was killed; their uids.

    An agent notes each guest's process in ``guests/UID.pid`` of its state directory: pid and start time.
    """
    found = []
    for file in (context.directory / "daemons").glob("agent-*/state/guests/*.pid"):
        with contextlib.suppress(OSError, ValueError):
            pid, start = map(int, file.read_text().split())
            found.append(Daemon(name=file.stem, pid=pid, start_ticks=start, log_file=file.with_name("log")))
    left = [guest for guest in found if guest.alive()]
    processes.stop(left, grace=_STOP_SECONDS)
    return [guest.name for guest in left]


def down(context: Context) -> list[str]:
    """Stop a cluster's processes, the controller first; names of those that had to be killed.

    Raises NotFoundError when no such cluster is known.
    """
    with _locked(context):
        state = context.state()
        killed = []
        controllers = [daemon for daemon in state.daemons if daemon.name == "controller"]
        agents = [daemon for daemon in state.daemons if daemon.name.startswith("agent-")]
        rest = [daemon for daemon in state.daemons if daemon not in controllers and daemon not in agents]
        for daemons in (controllers, agents, rest):
            killed += processes.stop(daemons, grace=_STOP_SECONDS)
        end_guests(context)
        context.state_file.unlink(missing_ok=True)
        return killed


def remove(context: Context) -> None:
    """Forget a stopped cluster entirely: state, credentials and logs."""
    shutil.rmtree(context.directory, ignore_errors=True)


def issue_credentials(config: ClusterConfig, directory: Path) -> None:
    """A new authority and the certificates of every party of a cluster, a folder each.

    Raises AlreadyExistsError when `directory` has an authority already.
    """
    authority = CertificateAuthority.create(directory / "authority", name=config.name)
    parties = {
        "admin": Identity(Role.ADMIN, "local"),
        "vno": Identity(Role.VNO, OPERATOR),
        "vnp": Identity(Role.VNP, VNET_PROVIDER),
    }
    for provider in config.providers:
        parties[f"pip-{provider.name}"] = Identity(Role.PIP, provider.name)
        for node in provider.nodes:
            parties[f"agent-{provider.name}-{node.name}"] = Identity(
                Role.AGENT, f"{provider.name}/{node.name}"
            )
    for name, identity in parties.items():
        authority.issue(identity, directory / name)


def controller_settings(
    config: ClusterConfig, agents: dict[str, str], credentials: Path
) -> dict[str, object]:
    """The controller's settings file for this cluster: all roles in one process.

    Callers may choose nodes: on one machine everybody is the administrator.
    """
    return {
        "vno": {
            "name": OPERATOR,
            "listen": f"{config.host}:{config.operator_port}",
            "credentials": str(credentials / "vno"),
            "provider": {"name": VNET_PROVIDER},
        },
        "vnp": {
            "name": VNET_PROVIDER,
            "listen": f"{config.host}:{config.vnet_provider_port}",
            "credentials": str(credentials / "vnp"),
            "infrastructure": [{"name": provider.name} for provider in config.providers],
        },
        "pips": [_provider_settings(config, provider, agents, credentials) for provider in config.providers],
    }


def _provider_settings(
    config: ClusterConfig, provider: ProviderConfig, agents: dict[str, str], credentials: Path
) -> dict[str, object]:
    return {
        "name": provider.name,
        "listen": f"{config.host}:{provider.port}",
        "credentials": str(credentials / f"pip-{provider.name}"),
        "disclose_placement": provider.disclose_placement,
        "accept_placement": True,
        "nodes": [
            {"name": node.name, "address": agents[f"{provider.name}/{node.name}"], "location": node.location}
            for node in provider.nodes
        ],
        "links": [
            {"a": link.a, "b": link.b, "capacity": link.bandwidth, "delay": link.delay / 1e6}
            for link in provider.links
        ],
        "borders": [
            {
                "name": border.name,
                "node": near.partition("/")[2],
                "peer_provider": far.partition("/")[0],
                "capacity": border.bandwidth,
                "delay": border.delay / 1e6,
            }
            for border in config.borders
            for near, far in ((border.a, border.b), (border.b, border.a))
            if near.partition("/")[0] == provider.name
        ],
    }


@contextlib.contextmanager
def _locked(context: Context) -> Iterator[None]:
    """One `up` or `down` of a cluster at a time."""
    context.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(context.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(
                f"cluster {context.directory.name!r} is being started or stopped by another command",
                hint="wait until that one has ended",
            ) from None
        yield
    finally:
        os.close(descriptor)
