"""A trust store kept up while the control plane runs: statements stay young, and what has ended goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import anyio

from mesh import logs
from mesh.control.reconcile import now_ms
from mesh.errors import MeshError

if TYPE_CHECKING:
    from mesh.jetstream.connection import Connection

STATEMENT_EVERY_S = 10.0  # design section 6; a statement older than 60 s is stale
PRUNE_EVERY_S = 3600.0  # certificates live for a day, and are kept for a month

log = logs.get("control")


class Kept(Protocol):
    """What is kept up: see `TrustStore`."""

    tenant: str

    async def statement(self) -> None:
        """Issue the statement again."""

    async def prune(self, at_ms: int) -> int:
        """Drop what nothing that is still stored can need."""
        ...


async def run(store: Kept, connection: Connection) -> None:
    """Issue the statement every `STATEMENT_EVERY_S` and at each connect, and prune, until cancelled.

    What fails is logged, and tried again at the next turn.
    """
    async with anyio.create_task_group() as group:
        group.start_soon(_reissue, store, connection)
        group.start_soon(_prune, store)


async def _reissue(store: Kept, connection: Connection) -> None:
    woken = anyio.Event()

    def wake() -> None:
        woken.set()

    forget = connection.on_connect(wake)
    try:
        while True:
            with anyio.move_on_after(STATEMENT_EVERY_S):
                await woken.wait()
            woken = anyio.Event()
            try:
                await store.statement()
            except MeshError as error:
                log.error("trust_statement_failed", tenant=store.tenant, code=error.code, error=error.message)
    finally:
        forget()


async def _prune(store: Kept) -> None:
    while True:
        try:
            await store.prune(now_ms())
        except MeshError as error:
            log.warning("trust_not_pruned", tenant=store.tenant, code=error.code, error=error.message)
        await anyio.sleep(PRUNE_EVERY_S)
