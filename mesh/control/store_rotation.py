"""Another encryption key for the server's store, asked for over that server: it restarts meanwhile.

So the request is answered before, and whoever asked comes back for the outcome when there is a connection again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from mesh import logs
from mesh.errors import ConfigError, MeshError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mesh.jetstream.connection import Connection

FLUSH_S = 2.0  # for the answer to be on its way before the server goes

State = Literal["none", "running", "done", "failed"]

log = logs.get("control")


class StoreRotation:
    """The last rotation of the store's key that was asked for here.

    Args:
        connection: The control plane's, in the tenant account.
        renew: Stops the server, gives its store another key, starts it; None where the store is not encrypted.
    """

    def __init__(self, connection: Connection, renew: Callable[[], Awaitable[None]] | None) -> None:
        self._connection = connection
        self._renew = renew
        self._task: asyncio.Task[None] | None = None
        self._state: State = "none"
        self._error: dict[str, Any] | None = None

    def check(self) -> None:
        """Whether one could begin now.

        Raises:
            ConfigError: The store is not encrypted.
            Unavailable: One is under way.
        """
        if self._renew is None:
            raise ConfigError("the store of this mesh is not encrypted", next="start it with `mesh up --encrypt`")
        if self._state == "running":
            raise Unavailable("the store is being given another key already", next="wait until that is done")

    def begin(self, done: Callable[[], None]) -> None:
        """Begin once what is written in this turn of the loop is on its way: the door writes the answer at once.

        Args:
            done: Called when the store has another key.

        Raises:
            ConfigError, Unavailable: See `check`.
        """
        self.check()
        self._state, self._error = "running", None
        self._task = asyncio.create_task(self._run(done), name="store-rotation")

    def status(self) -> dict[str, Any]:
        """`state`, and the `error` of one that failed."""
        return {"state": self._state, "error": self._error}

    async def _run(self, done: Callable[[], None]) -> None:
        try:
            await self._connection.flush(FLUSH_S)
            if self._renew is not None:
                await self._renew()
        except MeshError as error:
            log.error("store_key_not_renewed", code=error.code, error=error.message)
            self._state, self._error = "failed", error.as_dict()
        except Exception as error:
            log.exception("store_key_not_renewed", error)  # noqa: PLE1205, TRY401 - ours takes the error
            self._state = "failed"
            self._error = MeshError("the control plane failed", next="read its log").as_dict()
        else:
            self._state = "done"
            done()
