"""Grants that end: taken out of NATS at their second, and the subjects that nobody reads since then a little later."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from mesh import logs
from mesh.control.reconcile import now_ms
from mesh.errors import MeshError
from mesh.policy.model import Access
from mesh.policy.texts import instant_ms

if TYPE_CHECKING:
    from mesh.control.drain import Drain
    from mesh.control.enforce import Enforcer
    from mesh.policy.compile import Plans

LOOK_S = 30.0  # no longer between two looks at the clock: it may be set
SETTLE_S = 30.0  # agents end an expired grant by their own clocks, and need no notice
RETRY_S = 1.0  # after NATS did not take an ended grant away

log = logs.get("control")


class Expiry:
    """Ends the grants of the policies in force.

    Args:
        enforcer: Of the tenant.
        drain: Of the tenant.
        lock: Held while rights change; whoever applies holds it too.
    """

    def __init__(self, enforcer: Enforcer, drain: Drain, lock: anyio.Lock) -> None:
        self._enforcer = enforcer
        self._drain = drain
        self._lock = lock
        self._plans: Plans | None = None
        self._enforced_ms = 0  # grants that ended before are gone from NATS
        self._settle_ms: int | None = None
        self._changed = anyio.Event()

    def follow(self, plans: Plans, at_ms: int) -> None:
        """From now on *plans* are in force; NATS enforces them as of *at_ms*."""
        self._plans, self._enforced_ms, self._settle_ms = plans, at_ms, None
        self._changed.set()

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            self._changed = anyio.Event()
            at_ms = self._next()
            left_s = LOOK_S if at_ms is None else (at_ms - now_ms()) / 1000
            if left_s > 0:
                with anyio.move_on_after(min(LOOK_S, left_s)):
                    await self._changed.wait()
                continue
            try:
                await self._end()
            except MeshError as error:
                log.error("grant_not_ended", code=error.code, error=str(error))
                await anyio.sleep(RETRY_S)

    async def _end(self) -> None:
        async with self._lock:
            now, plans = now_ms(), self._plans
            if plans is None:
                return
            grants = plans.grants(now_ms=now)
            if self._settle_ms is not None and now >= self._settle_ms:
                await self._enforcer.settle(grants)
                self._settle_ms = None
                return
            await self._enforcer.withdraw(plans, grants)
            await self._enforcer.narrow(grants)  # no revision is to be stored first: what has ended does not come back
            await self._drain.begin(grants)
            self._enforced_ms, self._settle_ms = now, now + int(SETTLE_S * 1000)
            log.info("grants_ended", tenant=plans.bundle.tenant)

    def _next(self) -> int | None:
        """When there is something to do."""
        if self._plans is None:
            return None
        lines = (line for d in self._plans.bundle.policies if isinstance(d, Access) for line in d.spec.allow)
        ends = [instant_ms(line.expires) for line in lines if line.expires is not None]
        times = [end for end in ends if end > self._enforced_ms]
        return min([*times, self._settle_ms] if self._settle_ms is not None else times, default=None)
