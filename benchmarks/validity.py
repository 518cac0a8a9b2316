"""A run that was not valid has no figures: what it lost, did not verify or did not mask would make it faster.

`require` is what every question asks of its own run; the runner prints why and exits 2.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path

from mesh.jetstream.connection import Connection
from mesh.jetstream.manage import stream_info


class InvalidRun(Exception):
    """What was measured is not what the figure's name says."""


def require(holds: object, why: str) -> None:
    """Refuse the run unless *holds*.

    Raises:
        InvalidRun: With *why* it is not valid.
    """
    if not holds:
        raise InvalidRun(why)


def require_durable(config: dict[str, object], *, replicas: int = 1) -> None:
    """Refuse figures of a stream that is easier to write to than the one that was promised.

    Args:
        config: The stream's, as the server says it is.
        replicas: How many servers have to hold each event.

    Raises:
        InvalidRun: It is in memory, on fewer servers, written behind the ack, or not acknowledged at all.
    """
    require(config.get("storage") == "file", f"wrong durability: stored in {config.get('storage')}, not in a file")
    require(config.get("num_replicas", 1) == replicas, f"wrong durability: {config.get('num_replicas')} replicas")
    require(config.get("persist_mode", "default") in {"", "default"}, "wrong durability: acks come before the write")
    require(not config.get("no_ack"), "wrong durability: the stream does not acknowledge")


async def require_stored(connection: Connection, stream: str, count: int) -> None:
    """Refuse a run whose *stream* does not hold *count* events, all of them on disk.

    Raises:
        InvalidRun: It lost events, has some twice, or keeps them in another way.
    """
    info = await stream_info(connection, stream)
    require_durable(info["config"])
    stored = info["state"]["messages"]
    require(stored == count, f"events lost or stored twice: {stored:,} stored, {count:,} published")


def why_invalid(error: BaseException) -> str | None:
    """Why a run ended by *error* is not valid, in a line; None where the error is of another kind.

    A failed `assert` of a question is such a reason too, and so is what did not come in time. A group of errors has the
    reason of the first that has one.
    """
    for one in _leaves(error):
        if isinstance(one, InvalidRun):
            return str(one)
        if isinstance(one, AssertionError):
            return str(one) or _line(one)
        if isinstance(one, TimeoutError):
            return f"out of time: {str(one) or _line(one)}"
    return None


def _line(error: BaseException) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(where.filename).name}:{where.lineno}: {where.line}"


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error
