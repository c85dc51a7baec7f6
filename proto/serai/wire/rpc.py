"""gRPC as Serai uses it: mutual TLS always, roles checked on every call, errors that keep their class.

Server::

    access = {"/serai.v1.GuestService/CreateGuest": {Role.PIP, Role.ADMIN}}
    services = [(add_GuestServiceServicer_to_server, servicer)]
    server = await create_server(credentials, "127.0.0.1:0", services, access)

Client::

    async with connect(address, credentials, Role.AGENT) as channel:
        guest = await GuestServiceStub(channel).CreateGuest(request)  # raises serai.errors classes
"""

from serai.wire.client import DEFAULT_TIMEOUT, Channel, connect
from serai.wire.server import AccessTable, Server, Service, caller, create_server

__all__ = [
    "DEFAULT_TIMEOUT",
    "AccessTable",
    "Channel",
    "Server",
    "Service",
    "caller",
    "connect",
    "create_server",
]
