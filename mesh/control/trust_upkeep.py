"""A trust store kept up while the control plane runs: statements stay young and are heard of; what ended goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import anyio
import anyio.to_thread

from mesh import logs
from mesh.control.reconcile import notice, now_ms
from mesh.errors import MeshError

if TYPE_CHECKING:
    from mesh.control.accounts import Accounts
    from mesh.control.renewal import Renewal
    from mesh.jetstream.connection import Connection

STATEMENT_EVERY_S = 10.0  # design section 6; a statement older than 60 s is stale
NOTICE_AGAIN_S = (0.1, 0.3)  # after a change, one after the other: the cut lies 1 s ahead, and a notice may be lost
PRUNE_EVERY_S = 3600.0  # certificates live for a day, and are kept for a month

USERS_EVERY_S = 10.0  # between two looks for users whose overlap is over: of a quarter of an hour

log = logs.get("control")


class Kept(Protocol):
    """What is kept up: see `TrustStore`."""

    tenant: str

    @property
    def epoch(self) -> int:
        """Of the last statement."""
        ...

    async def changed(self) -> None:
        """Wait until a statement has gone out that revokes other keys."""

    async def statement(self) -> None:
        """Issue the statement again."""

    async def prune(self, at_ms: int) -> int:
        """Drop what nothing that is still stored can need."""
        ...


async def run(store: Kept, connection: Connection) -> None:
    """Issue the statement every `STATEMENT_EVERY_S` and at each connect, repeat notices, and prune, until cancelled.

    What fails is logged, and tried again at the next turn.
    """
    async with anyio.create_task_group() as group:
        group.start_soon(_reissue, store, connection)
        group.start_soon(_notice_again, store, connection)
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


async def _notice_again(store: Kept, connection: Connection) -> None:
    """Whoever missed the notice of a revocation hears of it before the cut, and not at the next poll."""
    while True:
        await store.changed()
        for pause_s in NOTICE_AGAIN_S:
            await anyio.sleep(pause_s)
            try:
                await notice(connection, "trust", store.epoch)
            except MeshError as error:
                log.warning("trust_notice_failed", tenant=store.tenant, code=error.code, error=error.message)


async def _prune(store: Kept) -> None:
    while True:
        try:
            await store.prune(now_ms())
        except MeshError as error:
            log.warning("trust_not_pruned", tenant=store.tenant, code=error.code, error=error.message)
        await anyio.sleep(PRUNE_EVERY_S)


async def end_users(renewal: Renewal, accounts: Accounts) -> None:
    """Revoke NATS users that were replaced, each when its time is over, until cancelled.

    What fails is logged, and tried again at the next turn.
    """
    left: set[str] = set()
    while True:
        try:
            left.update(await anyio.to_thread.run_sync(renewal.end, now_ms() / 1000))
            for workload in sorted(left):
                await accounts.refresh(workload)
                left.discard(workload)
                log.info("replaced_user_ended", workload=workload)
        except MeshError as error:
            log.error("replaced_user_not_ended", code=error.code, error=error.message)
        await anyio.sleep(USERS_EVERY_S)
