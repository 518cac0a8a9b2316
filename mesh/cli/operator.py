"""The control plane's connection, for commands that need nothing else: no bundle in force, no trust."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shlex
import time
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from mesh.context import Context
from mesh.control.datadir import DataDirectory
from mesh.control.proof import HEADER, KEY_FILE, NONCE_BYTES, prove
from mesh.errors import ConfigError, Disconnected
from mesh.jetstream.connection import Connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

CONNECT_TIMEOUT_S = 3.0  # somebody waits at a terminal; a server that restarts is back within one


class OperatorConnection(Connection):
    """The connection of an operator: what he asks the control plane shows that it comes from one.

    Attributes:
        context: Which mesh, and which tenant of it.
    """

    context: Context

    def proof(self, subject: str, body: bytes) -> dict[str, str]:
        """The header of one request, good for a minute, once.

        Raises:
            ConfigError: The mesh's administration is not ours to read.
        """
        file = self.context.data / "admin" / KEY_FILE
        try:
            key = bytes.fromhex(_read(file).decode().strip())
        except ValueError as error:
            raise ConfigError(f"{file} is not a key", expected="hexadecimal characters", next="restore it") from error
        at_ms, nonce = time.time_ns() // 1_000_000, secrets.token_bytes(NONCE_BYTES)
        tenant = self.context.tenant
        return {HEADER: prove(key, tenant=tenant, subject=subject, body=body, at_ms=at_ms, nonce=nonce)}


@asynccontextmanager
async def operator_connection(
    path: str | None, *, tenant: str | None = None, team: str | None = None
) -> AsyncIterator[tuple[Context, OperatorConnection]]:
    """Connect with the control plane's credentials from the context's data directory.

    Raises:
        ConfigError: No such mesh, or its administration is not ours to read.
        Disconnected: The mesh does not run.
    """
    context = Context.load(path, tenant=tenant, team=team)
    data = DataDirectory(context.data)
    file = data.admin_creds(context.tenant, sorted(context.mesh.tenants))
    cert = context.mesh.operator_cert_file or str(data.admin / "tls.crt")
    key = context.mesh.operator_key_file or str(data.admin / "tls.key")
    with _quiet():
        try:
            connection = await OperatorConnection.open(
                context.mesh.nats_url,
                name="operator",
                creds=partial(_read, file),
                tls=context.tls(cert, key),
                connect_timeout_s=CONNECT_TIMEOUT_S,
            )
        except Disconnected as error:
            if not _stopped(data):
                raise
            start = f"mesh up --data {shlex.quote(str(data.root))}"
            raise Disconnected(
                "this mesh is not running", expected=f"one that runs on {data.root}", got=error.got, next=start
            ) from None
        connection.context = context
        try:
            yield context, connection
        finally:
            await connection.close()


@contextmanager
def _quiet() -> Iterator[None]:
    """Commands say themselves that a server is away, or nothing where they wait until it is back."""
    logger = logging.getLogger("mesh.nats")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _stopped(data: DataDirectory) -> bool:
    """Whether nobody holds the lock that a mesh holds while it runs; False where we cannot tell."""
    try:
        descriptor = os.open(data.lock_file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)  # and lets go


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be read: {error.strerror}",
            expected="what the control plane and its operators share",
            next=_way_out(file, error),
        ) from error


def _way_out(file: Path, error: OSError) -> str:
    """What helps against *error*, which came of reading *file*."""
    match error:
        case FileNotFoundError() if file.parent.is_dir():
            return "restart `mesh up`: it writes it again"
        case FileNotFoundError():
            return "run this where the mesh runs"
        case PermissionError():
            return "run this where the mesh runs, as the user who started it"
        case _:
            return "look at the file system it lies on"
