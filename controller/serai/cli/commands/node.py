"""``serai node``: the substrate nodes, as their providers' administrators see them."""

from __future__ import annotations

import asyncio

from serai.cli.app import CLUSTER, Cluster, Output, asynchronous, group
from serai.cli.context import Context
from serai.cli.output import Column, Format, age, binary_size, show
from serai.cli.paging import collect
from serai.v1.infrastructure_pb2 import ListNodesRequest
from serai.v1.infrastructure_pb2_grpc import InfrastructureServiceStub
from serai.v1.node_pb2 import Node, NodeResources

app = group("Substrate nodes: one agent each.")

_COLUMNS = (
    Column[Node]("NAME", lambda node: node.name.removeprefix("nodes/")),
    Column[Node]("PROVIDER", lambda node: node.provider),
    Column[Node]("STATE", lambda node: Node.State.Name(node.state)),
    Column[Node]("GUESTS", lambda node: node.guest_count, right=True),
    Column[Node]("VCPUS", lambda node: f"{node.allocated.vcpus}/{node.capacity.vcpus}", right=True),
    Column[Node]("MEMORY", lambda node: _used(node.allocated, node.capacity), right=True),
    Column[Node]("AGE", lambda node: age(node.start_time), right=True),
)


@app.command("list")
@asynchronous
async def list_nodes(output: Output = Format.TABLE, cluster: Cluster = CLUSTER) -> None:
    """List the nodes of all providers."""
    context = Context.named(cluster)
    lists = await asyncio.gather(*(nodes_of(context, provider) for provider in context.state().providers))
    show([node for nodes in lists for node in nodes], _COLUMNS, output)


async def nodes_of(context: Context, provider: str) -> list[Node]:
    """All nodes of one provider."""
    async with context.provider(provider) as channel:
        stub = InfrastructureServiceStub(channel)
        return await collect(
            lambda token: stub.ListNodes(ListNodesRequest(page_token=token)), lambda page: page.nodes
        )


def _used(allocated: NodeResources, capacity: NodeResources) -> str:
    return f"{binary_size(allocated.memory_bytes)}/{binary_size(capacity.memory_bytes)}".replace(" ", "")
