"""The control plane's connection, for commands that need nothing else: no bundle in force, no trust."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from mesh.context import Context
from mesh.control.datadir import DataDirectory
from mesh.errors import ConfigError
from mesh.jetstream.connection import Connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CONNECT_TIMEOUT_S = 3.0  # somebody waits at a terminal; a server that restarts is back within one


@asynccontextmanager
async def operator_connection(
    path: str | None, *, tenant: str | None = None, team: str | None = None
) -> AsyncIterator[tuple[Context, Connection]]:
    """Connect with the control plane's credentials from the context's data directory.

    Raises:
        ConfigError: No such mesh, or its administration is not ours to read.
        Disconnected: The mesh does not run.
    """
    context = Context.load(path, tenant=tenant, team=team)
    data = DataDirectory(context.data)
    file = data.admin_creds(context.tenant, sorted(context.mesh.tenants))
    connection = await Connection.open(
        context.mesh.nats_url,
        name="operator",
        creds=partial(_read, file),
        tls=context.tls(str(data.admin / "tls.crt"), str(data.admin / "tls.key")),
        connect_timeout_s=CONNECT_TIMEOUT_S,
    )
    try:
        yield context, connection
    finally:
        await connection.close()


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be read: {error.strerror}",
            expected="the control plane's credentials",
            next="run this where the mesh runs, as the user who started it",
        ) from error
