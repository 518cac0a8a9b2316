"""Streams and consumers on the server: read what is, make the changes of a plan. For the control plane alone.

Raw JSON of the JetStream API, so that a field we do not know passes through an update untouched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from mesh.errors import RequestFailed
from mesh.jetstream.changes import Actual

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesh.jetstream.changes import Change
    from mesh.jetstream.connection import Connection
    from mesh.jetstream.topology import Config

API_TIMEOUT_S = 10.0  # a stream of many blocks is created or read while the disk is busy
NO_CONSUMER = 10014  # err_code: no such consumer on the stream


async def read_actual(connection: Connection) -> Actual:
    """Every stream and consumer of the account, as configured.

    Raises:
        RequestFailed: The server refused.
        Unavailable: Nobody answered.
    """
    streams: dict[str, Config] = {}
    consumers: dict[tuple[str, str], Config] = {}
    for info in await _pages(connection, "STREAM.LIST", "streams"):
        name = info["config"]["name"]
        streams[name] = info["config"]
        if info["state"]["consumer_count"]:
            for consumer in await _pages(connection, f"CONSUMER.LIST.{name}", "consumers"):
                consumers[name, consumer["name"]] = consumer["config"]
    return Actual(streams, consumers)


async def apply(connection: Connection, changes: Iterable[Change]) -> list[Change]:
    """Make *changes* in their order, but not the refused ones.

    Returns:
        Those made. After a failure, reading and planning again shows what is left.

    Raises:
        RequestFailed: The server refused one; those before it stand.
        Unavailable: Nobody answered.
    """
    made = []
    for change in changes:
        if not change.refused:
            await api(connection, *_request(change))
            made.append(change)
    return made


async def consumer_info(connection: Connection, stream: str, durable: str) -> dict[str, Any]:
    """The server's view of one durable: `config`, `delivered`, `ack_floor`, `num_ack_pending`, `num_pending`.

    Its lag is `num_pending + num_ack_pending`: the floor sticks at an event that used up its deliveries.
    """
    return await api(connection, f"CONSUMER.INFO.{stream}.{durable}")


async def stream_info(connection: Connection, stream: str) -> dict[str, Any]:
    """The server's view of one stream: `config` and `state`."""
    return await api(connection, f"STREAM.INFO.{stream}")


async def api(connection: Connection, verb: str, body: Config | None = None) -> dict[str, Any]:
    """One call of the JetStream API.

    Args:
        connection: Of the control plane.
        verb: What follows `$JS.API.`.
        body: Sent as JSON.

    Raises:
        RequestFailed: With the server's `err_code` and its description.
        Unavailable: Nobody answered.
    """
    payload = msgspec.json.encode(body) if body is not None else b""
    reply = await connection.request(f"$JS.API.{verb}", payload, timeout_s=API_TIMEOUT_S)
    answer: dict[str, Any] = msgspec.json.decode(reply.data)
    if error := answer.get("error"):
        message = f"JetStream refused {verb}: {error.get('description', 'no reason given')}"
        raise RequestFailed(message, err_code=error.get("err_code", 0), got=str(error.get("code", "")))
    return answer


def _request(change: Change) -> tuple[str, Config | None]:
    if not change.consumer:
        return f"STREAM.{change.action.upper()}.{change.stream}", change.config or None
    if change.action == "delete":
        return f"CONSUMER.DELETE.{change.stream}.{change.consumer}", None
    # The unscoped subject: several filters do not fit a scoped one. `action` makes a lost race an error.
    body = {"stream_name": change.stream, "config": change.config, "action": change.action}
    return f"CONSUMER.CREATE.{change.stream}.{change.consumer}", body


async def _pages(connection: Connection, verb: str, key: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        page = await api(connection, verb, {"offset": len(found)})
        items = page.get(key) or []
        found += items
        if not items or len(found) >= page["total"]:
            return found
