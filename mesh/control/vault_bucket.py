"""The bucket of lease and state, in an account that nobody but the control plane has a user in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from mesh import logs
from mesh.control.vault import BUCKET, STREAM
from mesh.errors import Disconnected, RequestFailed, Unavailable
from mesh.jetstream.manage import api
from mesh.jetstream.topology import MIB, StreamSpec

if TYPE_CHECKING:
    from mesh.jetstream.connection import Connection

MAX_BYTES = 256 * MIB  # a state of a thousand agents has 3 MiB, and is there twice while it is written
STREAM_NOT_FOUND = 10059  # err_code
RETRY_S = 0.2

log = logs.get("control")


async def ensure_bucket(connection: Connection, replicas: int) -> None:
    """Have the bucket, as soon as the servers can.

    Args:
        connection: Of the control account.
        replicas: Of the stream.
    """
    said = ""
    while True:
        try:
            await _ensure(connection, replicas)
        except (RequestFailed, Unavailable) as error:  # servers that start, or have not found each other yet
            if error.code != said and not isinstance(error, Disconnected):  # that is said elsewhere
                log.warning("control_bucket_missing", code=error.code, error=error.message)
            said = error.code
            await anyio.sleep(RETRY_S)
        else:
            return


async def _ensure(connection: Connection, replicas: int) -> None:
    spec = StreamSpec(STREAM, (f"$KV.{BUCKET}.>",), MAX_BYTES, max_per_subject=1, replicas=replicas)
    try:
        info = await api(connection, f"STREAM.INFO.{STREAM}")
    except RequestFailed as error:
        if error.details.get("err_code") != STREAM_NOT_FOUND:
            raise
        await api(connection, f"STREAM.CREATE.{STREAM}", spec.config())
        return
    if info["config"]["num_replicas"] != replicas:
        await api(connection, f"STREAM.UPDATE.{STREAM}", {**info["config"], "num_replicas": replicas})
