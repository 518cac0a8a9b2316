"""The durables of replays on the server: made, read back, silenced, removed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mesh import logs
from mesh.control.durables import FOR_GOOD
from mesh.control.replay_runs import Run, run_of
from mesh.errors import MeshError, RequestFailed
from mesh.jetstream import manage
from mesh.jetstream.durables import REPLAY, subscription_of
from mesh.jetstream.manage import NO_CONSUMER
from mesh.jetstream.topology import consumer, not_before_ms

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mesh.jetstream.connection import Connection
    from mesh.jetstream.durables import Durable
    from mesh.policy.grants import SubscriptionGrant

log = logs.get("replay")


async def read_open(connection: Connection) -> dict[str, Run]:
    """Every replay that has durables, by their name.

    Raises:
        RequestFailed, Unavailable: NATS refused or did not answer.
    """
    found: dict[str, Run] = {}
    for (stream, name), config in (await manage.read_actual(connection)).consumers.items():
        if not name.endswith(f"--{REPLAY}") or name == subscription_of(name):
            continue
        run = run_of(config)
        if run is None or run.durable != name:
            log.error("replay_unreadable", stream=stream, durable=name)
            continue
        found[name] = run
    return found


async def make(connection: Connection, run: Run, grant: SubscriptionGrant, durables: Mapping[str, Durable]) -> None:
    """Make the durables of *run*, all or none.

    Args:
        connection: The control plane's.
        run: With what it takes of each stream.
        grant: Of its subscription; where that is ordered one replica at a time pulls, so order is kept here too.
        durables: By stream, with the filters of the replay.

    Raises:
        RequestFailed, Unavailable: NATS refused or did not answer.
    """
    try:
        for stream, part in run.parts.items():
            spec = replace(consumer(durables[stream], grant, pinned=grant.ordered), after=part.first - 1)
            stated = {**spec.config(), **spec.start_config(), **run.metadata()}
            config = {key: value for key, value in stated.items() if value is not None}
            body = {"stream_name": stream, "config": config, "action": "create"}
            await manage.api(connection, f"CONSUMER.CREATE.{stream}.{run.durable}", body)
    except MeshError:
        with suppress(MeshError):  # what stays is found without its other parts, and then ended
            await remove(connection, run, run.parts)
        raise


async def remove(connection: Connection, run: Run, streams: Iterable[str]) -> None:
    """Remove the durables of *run*; what is not there any more is well.

    Raises:
        RequestFailed, Unavailable: NATS refused or did not answer; asking again is safe.
    """
    for stream in streams:
        try:
            await manage.api(connection, f"CONSUMER.DELETE.{stream}.{run.durable}")
        except RequestFailed as error:
            if error.details.get("err_code") != NO_CONSUMER:
                raise


async def look(connection: Connection, stream: str, run: Run) -> dict[str, Any] | None:
    """What the server says of one of its durables; None where it is gone.

    Raises:
        RequestFailed, Unavailable: NATS refused or did not answer.
    """
    try:
        return await manage.consumer_info(connection, stream, run.durable)
    except RequestFailed as error:
        if error.details.get("err_code") != NO_CONSUMER:
            raise
        return None


async def silence(connection: Connection, stream: str, run: Run) -> None:
    """Let one of its durables deliver nothing any more.

    Raises:
        RequestFailed, Unavailable: NATS refused or did not answer.
    """
    await manage.api(connection, f"CONSUMER.PAUSE.{stream}.{run.durable}", {"pause_until": FOR_GOOD})


async def skipped_ms(connection: Connection, grant: SubscriptionGrant) -> int:
    """Up to when stored copies were skipped on purpose (`apply --skip-backlog`): Unix milliseconds, 0 where none were.

    Raises:
        RequestFailed, Unavailable: NATS refused or did not answer.
    """
    consumers = (await manage.read_actual(connection)).consumers
    mine = (config for (_, name), config in consumers.items() if subscription_of(name) == grant.durable)
    return max(map(not_before_ms, mine), default=0)
