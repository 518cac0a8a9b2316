"""From when to when a replay goes: times and sequences as positions in each stream, and how many copies lie between.

The server answers both for the asking: a consumer that is made and delivers nothing knows where it would begin, and how
much matches from there on.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mesh.control.replay_runs import Part
from mesh.errors import BadAttribute
from mesh.jetstream.manage import api, stream_info
from mesh.policy.texts import instant_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mesh.jetstream.connection import Connection
    from mesh.jetstream.durables import Durable

LOOK_IDLE_NS = 5_000_000_000  # the server removes the consumer so long after, where we cannot
MAX_MS = 253_402_300_799_999  # the last of the year 9999: RFC 3339 knows no later one


@dataclass(frozen=True, slots=True)
class Point:
    """A place in the streams: a sequence, or a time in Unix milliseconds; neither is the beginning, or now."""

    seq: int | None = None
    ms: int | None = None


async def reach(
    connection: Connection, durables: Sequence[Durable], begin: Point, end: Point, *, bound_ms: int
) -> dict[str, Part]:
    """What a replay takes of each stream; streams of which it takes nothing are left out.

    What is stored while this counts may make a count too high, never too low.

    Args:
        connection: The control plane's.
        durables: With the filters of the replay.
        begin: The first that it takes, at the earliest.
        end: The last, at the latest: stored before that time, or of that sequence. What is stored now is the limit.
        bound_ms: Nothing that was stored before is open to the team.

    Raises:
        BadAttribute: A sequence, and the subscription reads several streams.
        RequestFailed, Unavailable: NATS refused or did not answer.
    """
    if (begin.seq, end.seq) != (None, None) and len(durables) > 1:
        raise BadAttribute(
            "a sequence says nothing where there are several streams",
            expected="a time, or types of one domain",
            got=", ".join(durable.stream for durable in durables),
            next="name a time, or narrow it with `--type`",
        )
    found = {}
    for durable in durables:
        last = int((await stream_info(connection, durable.stream))["state"]["last_seq"])
        if end.seq is not None:
            last = min(last, end.seq)
        elif end.ms is not None:
            last = min(last, await _first_at(connection, durable, end.ms) - 1)
        first = begin.seq or 1
        for at_ms in (begin.ms, bound_ms):
            if at_ms:
                first = max(first, await _first_at(connection, durable, at_ms))
        behind = await _matching(connection, durable, last + 1)  # asked first: what is stored meanwhile hides nothing
        count = min(await _matching(connection, durable, first) - behind, last - first + 1)
        if count > 0:
            found[durable.stream] = Part(first, last, count)
    return found


async def _first_at(connection: Connection, durable: Durable, at_ms: int) -> int:
    """The sequence of the first message that was stored at *at_ms* or later."""
    start = {"deliver_policy": "by_start_time", "opt_start_time": instant_text(min(at_ms, MAX_MS))}
    info = await _look(connection, durable.stream, durable.filters, start)
    return int(info["delivered"]["stream_seq"]) + 1


async def _matching(connection: Connection, durable: Durable, first: int) -> int:
    """How many stored messages match from the sequence *first* on."""
    start = {"deliver_policy": "by_start_sequence", "opt_start_seq": max(first, 1)}
    return int((await _look(connection, durable.stream, durable.filters, start))["num_pending"])


async def _look(connection: Connection, stream: str, filters: Iterable[str], start: dict[str, Any]) -> dict[str, Any]:
    """What the server says of a consumer that begins there; it is gone again."""
    name = f"read-{secrets.token_hex(8)}"
    config = {
        "name": name,
        "ack_policy": "explicit",
        "filter_subjects": list(filters),
        "inactive_threshold": LOOK_IDLE_NS,
        "mem_storage": True,
        "num_replicas": 1,
        **start,
    }
    body = {"stream_name": stream, "config": config, "action": "create"}
    info = await api(connection, f"CONSUMER.CREATE.{stream}.{name}", body)
    await api(connection, f"CONSUMER.DELETE.{stream}.{name}")
    return info
