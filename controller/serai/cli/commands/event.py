"""``serai event``: what happens, as it happens."""

from __future__ import annotations

from serai.cli.app import CLUSTER, Cluster, Output, asynchronous, group
from serai.cli.context import Context
from serai.cli.output import Format

app = group("Events of agents and roles, from the MQTT broker.")
