"""Channel settings that both sides must agree on."""

from __future__ import annotations

from serai.wire.status import MAX_DETAILS_BYTES

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
KEEPALIVE_SECONDS = 10.0
"""A silent peer is pinged this often, with calls under way or without, and given as long to answer."""

_COMMON: list[tuple[str, int]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Errors travel in trailers; the default of 8 KiB is less than a long list of them.
    ("grpc.max_metadata_size", 2 * MAX_DETAILS_BYTES),
    ("grpc.absolute_max_metadata_size", 4 * MAX_DETAILS_BYTES),
    ("grpc.keepalive_time_ms", int(KEEPALIVE_SECONDS * 1000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_SECONDS * 1000)),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]

SERVER_OPTIONS: list[tuple[str, int]] = [
    *_COMMON,
    # Clients ping every KEEPALIVE_SECONDS; anything stricter than half of that would hang up on them.
    ("grpc.http2.min_ping_interval_without_data_ms", int(KEEPALIVE_SECONDS * 500)),
    # On by default on Linux; a second server at the same port would then start and take half the calls.
    ("grpc.so_reuseport", 0),
]

CLIENT_OPTIONS: list[tuple[str, int]] = [
    *_COMMON,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 5000),
    # Connections are per channel: one channel's trouble and identity are not another's.
    ("grpc.use_local_subchannel_pool", 1),
]
