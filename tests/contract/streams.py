"""Streams and durables for the tests of the door: made by raw JSON, read back as they are stored."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from mesh.jetstream import wire
from mesh.jetstream.connection import Connection

DEADLINE_S = 20.0
STREAM = "EV_local_crm"


async def until(condition: Callable[[], object]) -> None:
    """Poll until *condition* holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.005)


async def api(connection: Connection, verb: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """One call of the JetStream API that has to succeed."""
    payload = json.dumps(body).encode() if body else b""
    reply = await connection.request(f"$JS.API.{verb}", payload, timeout_s=DEADLINE_S)
    answer: dict[str, Any] = json.loads(reply.data)
    assert "error" not in answer, answer
    return answer


async def make_stream(connection: Connection, name: str = STREAM, **config: Any) -> None:
    """A stream like a domain's."""
    domain = name.rpartition("_")[2]
    await api(
        connection,
        f"STREAM.CREATE.{name}",
        {"name": name, "subjects": [f"ev.local.*.*.{domain}.>"], "discard": "new"} | config,
    )


async def make_durable(connection: Connection, name: str = "team--sub", stream: str = STREAM, **config: Any) -> None:
    """A durable with explicit acks; *config* as in the API, durations in seconds."""
    wanted: dict[str, Any] = {"durable_name": name, "name": name, "ack_policy": "explicit", "max_ack_pending": 20_000}
    wanted |= {key: value if key != "ack_wait" else int(value * 1e9) for key, value in config.items()}
    await api(connection, f"CONSUMER.CREATE.{stream}.{name}", {"stream_name": stream, "config": wanted})


async def consumer(connection: Connection, name: str = "team--sub", stream: str = STREAM) -> dict[str, Any]:
    """What the server says about a durable."""
    return await api(connection, f"CONSUMER.INFO.{stream}.{name}")


async def until_settled(connection: Connection, sequence: int, name: str = "team--sub") -> dict[str, Any]:
    """Wait until all up to *sequence* is settled and nothing is pending; acks are processed in their own time."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            info = await consumer(connection, name)
            if info["ack_floor"]["stream_seq"] >= sequence and info["num_ack_pending"] == 0:
                return info
            await asyncio.sleep(0.01)


class Stored(NamedTuple):
    """A message as the stream holds it."""

    subject: str
    headers: dict[str, str]
    body: bytes


async def stored(connection: Connection, stream: str = STREAM) -> list[Stored]:
    """Everything in *stream*, in order."""
    state = (await api(connection, f"STREAM.INFO.{stream}"))["state"]
    found: list[Stored] = []
    if not state["messages"]:
        return found
    done = asyncio.Event()

    def on_message(subject: str, _reply: str, headers: bytes | None, data: bytes) -> None:
        found.append(Stored(subject, wire.parse_headers(headers), data))
        if len(found) == state["messages"]:
            done.set()

    inbox = connection.new_inbox()
    listener = connection.listen(inbox, on_message)
    config = {"name": "all", "ack_policy": "none", "deliver_policy": "all", "mem_storage": True}
    await api(connection, f"CONSUMER.CREATE.{stream}.all", {"stream_name": stream, "config": config})
    ask = json.dumps({"batch": state["messages"], "expires": int(DEADLINE_S * 1e9)}).encode()
    await connection.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.all", ask, reply=inbox)
    async with asyncio.timeout(DEADLINE_S):
        await done.wait()
    listener.close()
    await api(connection, f"CONSUMER.DELETE.{stream}.all")
    return found
