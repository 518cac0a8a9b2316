"""Old views on durables: their filters stay until what was stored under them is settled, then they go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from mesh import logs
from mesh.errors import MeshError

if TYPE_CHECKING:
    from mesh.control.enforce import Enforcer
    from mesh.jetstream.topology import ConsumerSpec
    from mesh.policy.grants import Grants

LOOK_EVERY_S = 1.0

log = logs.get("control")


class Drain:
    """Watches the durables that still deliver an old view, and narrows each once it is done with it.

    Nothing is remembered across a restart: the server's own filters say which durables are meant, and everything stored
    by then counts as old, which is more than needed and never less.

    Args:
        enforcer: Of the tenant.
        lock: Held while a durable changes; whoever applies holds it too.
    """

    def __init__(self, enforcer: Enforcer, lock: anyio.Lock) -> None:
        self._enforcer = enforcer
        self._lock = lock
        self._waiting: dict[tuple[str, str], tuple[ConsumerSpec, int]] = {}
        self._woken = anyio.Event()

    @property
    def durables(self) -> list[str]:
        """`<durable> on <stream>` of those that are not drained yet."""
        return [f"{name} on {stream}" for stream, name in sorted(self._waiting)]

    def forget(self) -> None:
        """The rights change: what has to be drained is to be said anew."""
        self._waiting.clear()

    async def begin(self, grants: Grants) -> None:
        """From now on nobody writes under old views any more: what is stored up to now is what has to drain.

        Raises:
            RequestFailed, Unavailable: NATS refused or did not answer.
        """
        specs = await self._enforcer.undrained(grants)
        last = {stream: await self._enforcer.last_sequence(stream) for stream in {stream for stream, _ in specs}}
        self._waiting = {key: (spec, last[key[0]]) for key, spec in specs.items()}
        self._woken.set()

    async def look(self) -> None:
        """Narrow what is drained by now.

        Raises:
            RequestFailed, Unavailable: NATS refused or did not answer.
        """
        async with self._lock:
            for key, (spec, last) in list(self._waiting.items()):
                if await self._enforcer.drained(spec, last):
                    del self._waiting[key]
                    log.info("durable_drained", stream=spec.stream, durable=spec.name)

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            self._woken = anyio.Event()
            try:
                await self.look()
            except MeshError as error:
                log.warning("drain_failed", code=error.code, error=str(error))
            if self._waiting:
                await anyio.sleep(LOOK_EVERY_S)
            else:
                await self._woken.wait()
