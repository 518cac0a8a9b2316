"""The policy side of an agent: the bundle in force, the candidate beside it, what is reported and what is recorded.

Order at the start: the last good bundle from disk is checked, then NATS is waited for, shortly where there is one and
as long as it takes where there is none. With NATS the clock is measured before anything is signed, and a newer bundle
is fetched. Only then is a bundle adopted, and the agent ready. Without NATS the last good one has to do.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from agent.clock import ServerClock
from agent.shadow import ShadowRun
from mesh import audit
from mesh.audit_log import AuditLog
from mesh.errors import MeshError, NoBundle, RevisionNeeded
from mesh.reports import PolicyState, Reporter
from mesh.shadow_watch import ShadowWatch
from mesh.watch import BundleWatch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.settings import AgentSettings
    from agent.tasks import Tasks
    from mesh.jetstream.connection import Connection
    from mesh.policy.compile import Plans

FIRST_CONNECT_S = 2.0  # for NATS, where there is a bundle to begin without it; it is there in milliseconds or away
STOP_S = 1.0  # for the last audit records and the last report


class PolicySide:
    """Everything about policies that one running agent keeps current.

    Args:
        settings: The agent's.
        base: Where its files lie.
        connection: Its own.
        policy_key: The public key that bundles are signed by, 32 bytes.
        clock_ms: Our clock, Unix milliseconds.
        adopt: Called with the plans of each bundle that comes into force.

    Attributes:
        clock: Ours against the server's; measuring it is also how the agent reports.
        audit: Where what has to be accounted for is recorded.
        shadow: The trial of a candidate bundle.
    """

    def __init__(
        self,
        settings: AgentSettings,
        base: Path,
        connection: Connection,
        *,
        policy_key: bytes,
        clock_ms: Callable[[], int],
        adopt: Callable[[Plans], None],
    ) -> None:
        self._connection = connection
        self._clock_ms = clock_ms
        self._adopt = adopt
        self._adopted: Plans | None = None
        self._refused = PolicyState().refused
        name = settings.name
        self.shadow = ShadowRun(name)
        self._reporter = Reporter(
            connection,
            name,
            kind="agent",
            state=lambda: self.state,
            shadow=self.shadow.report,
            clock_ms=clock_ms,
        )
        self.clock = ServerClock(connection, self._reporter, clock_ms)
        self.audit = AuditLog(connection, name, self._reporter.instance)
        self._bundle = BundleWatch(
            connection,
            policy_key,
            tenant=settings.tenant,
            file=base / settings.bundle_file if settings.bundle_file else None,
            on_change=self._change,
            on_news=self._news,
        )
        self._candidate = ShadowWatch(connection, policy_key, on_change=self.shadow.adopt, on_look=self.shadow.looked)
        self.shadow.on_news = self.clock.wake
        self._looked = False
        self._links = 0
        connection.on_disconnect(self._down)

    @property
    def state(self) -> PolicyState:
        """Which bundle is in force, and what was refused since."""
        return self._bundle.state

    def server_ms(self) -> int:
        """The server's time, Unix milliseconds: our clock, less its offset where that has been measured."""
        return self._clock_ms() - (self.clock.offset_ms or 0)

    async def run(self, tasks: Tasks) -> None:
        """Begin, then keep the bundle current until cancelled; what runs beside it is spawned among *tasks*."""
        last_good = self._bundle.load()
        await self._connected(None if last_good is None else FIRST_CONNECT_S)
        if self._connection.connected:
            await self.clock.measure()
            with suppress(MeshError):  # `Watch.run` tries it again, and says what is wrong
                await self._bundle.refresh()
        if self._adopted is None and last_good is not None:
            self._change(last_good)
        tasks.spawn("clock", self.clock.run())
        tasks.spawn("candidate", self._candidate.run())
        await self._bundle.run()

    # --- for what was accepted before --------------------------------------------------------------------------------

    async def today(self) -> Plans:
        """The plans of the bundle in force, looked for since the connection was made.

        Raises:
            NoBundle: There is none yet.
            MeshError: It cannot be read.
        """
        if not self._looked:
            links = self._links
            await self._bundle.refresh()
            self._looked = links == self._links and self._connection.connected
        if self._adopted is None:
            raise NoBundle("no valid policy bundle has arrived yet")
        return self._adopted

    def past(self, revision: int) -> Plans:
        """The plans of an older revision; raises `RevisionNeeded` where `fetch` has to get them first."""
        return self._bundle.past(revision)

    async def fetch(self, revision: int) -> None:
        """Get the plans of another revision: older ones by their number, newer ones by looking for the newest.

        Raises:
            BadBundle: What is stored under its number is not it.
            RevisionNeeded: It is newer than any that is here yet.
            MeshError: It cannot be read.
        """
        if revision < self.state.revision:
            await self._bundle.fetch_past(revision)
            return
        await self._bundle.refresh()
        if revision > self.state.revision:
            raise RevisionNeeded(f"the policies of revision {revision} are not here yet", revision=revision)

    def _down(self) -> None:
        self._looked = False
        self._links += 1

    async def stop(self) -> None:
        """Say good-bye, while the tasks still run: the last audit records, and a report that nobody waits for us."""
        if not self._connection.connected:
            return
        with suppress(TimeoutError, MeshError):
            async with asyncio.timeout(STOP_S):
                if len(self.audit):
                    await self.audit.flush(STOP_S)
                await self._reporter.send(stopped=True)

    async def _connected(self, timeout_s: float | None) -> None:
        if self._connection.connected:
            return
        up = asyncio.Event()
        forget = self._connection.on_connect(up.set)
        try:
            with suppress(TimeoutError):  # then the last good bundle has to do
                async with asyncio.timeout(timeout_s):
                    await up.wait()
        finally:
            forget()

    def _change(self, plans: Plans) -> None:
        self._adopted = plans
        self._adopt(plans)

    def _news(self) -> None:
        refused, self._refused = self._refused, self.state.refused
        if self._refused is not None and self._refused != refused:
            self.audit.write(audit.POLICY_REFUSED, code=self._refused.code, revision=self._refused.revision)
        self.clock.wake()
