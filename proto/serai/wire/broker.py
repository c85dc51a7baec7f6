"""An MQTT broker for a cluster on one machine: ``python -m serai.wire.broker --listen 127.0.0.1:1883``.

It lets in everybody who reaches it and therefore listens on loopback only. Deployments run Mosquitto or
another full broker. This is a process of its own because amqtt (0.12) shares its event loop with nobody
well: it bounds no queue, and does not enforce keep-alive.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import logging
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from serai.daemon.ready import write_ready_file
from serai.errors import AlreadyExistsError, InvalidInputError, SeraiError, UnavailableError
from serai.wire.streams import split_address


def check_address(address: str) -> None:
    """Raise unless `address` is a free port on loopback.

    InvalidInputError, AlreadyExistsError (taken) or UnavailableError (cannot be bound).
    """
    host, port = split_address(address)
    family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    if not ipaddress.ip_address(target[0]).is_loopback:
        raise InvalidInputError(
            f"{address} is not on loopback",
            hint="run Mosquitto or another broker with access control instead",
        )
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(target)
        except OSError as error:
            if port and error.errno:
                raise AlreadyExistsError(
                    f"cannot listen at {address}: {error.strerror}",
                    hint="stop the process that listens there, or choose another port",
                    reason="ADDRESS_IN_USE",
                ) from error
            raise UnavailableError(f"cannot listen at {address}: {error}") from error


async def serve(address: str, ready_file: Path | None = None) -> None:
    """Run until SIGTERM or SIGINT; the first line on standard output is the address in use.

    So does `ready_file` say, as JSON {"address": "HOST:PORT"}, for a parent that does not read our output.
    """
    from amqtt.broker import Broker  # noqa: PLC0415  (0.3 s, and of no use to a wrong address)

    check_address(address)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": address}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
    )
    await broker.start()
    bound = _bound_address(broker)
    print(bound, flush=True)  # noqa: T201  (the interface to whoever started this process)
    if ready_file is not None:
        write_ready_file(ready_file, json.dumps({"address": bound}))
    await stopping.wait()
    await broker.shutdown()


def _bound_address(broker: Any) -> str:
    """amqtt has no public way to learn which port 0 became."""
    host, port = broker._servers["default"].instance.sockets[0].getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def main() -> int:
    """Exit code 0 after a signal, 1 when the address cannot be used, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(
        prog="python -m serai.wire.broker", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--listen", default="127.0.0.1:1883", metavar="HOST:PORT", help="port 0: any free one"
    )
    parser.add_argument("--ready-file", type=Path, metavar="FILE", help="written once it serves")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        asyncio.run(serve(options.listen, options.ready_file))
    except SeraiError as error:
        print(f"serai.wire.broker: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
