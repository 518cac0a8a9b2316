"""What the agent reads for its application: the team's subscriptions, over a second connection in the team's own name.

The account that an agent publishes with may read no event. So where `team_creds_file` names the team's credentials, a
connection is opened with those, and only once something is consumed: a push target is set, or somebody pulls. Over it
the agent is one more replica of the team: it verifies, decides and deduplicates as `mesh.connect(team=...)` does, with
the same code, and keeps what it knows (bundle, trust statement, certificates) in `team_dir`.

NATS may be away at the start, and the first bundle may be long in coming. What is asked for before that is refused as
`Unavailable`, and push targets wait.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from agent import metrics
from agent.keys import CREDENTIALS, read
from agent.parts import tls_files
from agent.refusals import reason
from agent.tasks import Tasks
from mesh import logs
from mesh.errors import ConfigError, Draining, MeshError, NoBundle, NotFound
from mesh.jetstream.connection import Connection
from mesh.reading import ReadingTeam, TeamReader
from mesh.reports import workload_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from agent.settings import AgentSettings
    from mesh.context import SubscriptionAddress
    from mesh.inbound import Admitted
    from mesh.policy.grants import SubscriptionGrant
    from mesh.subscription import Subscription

log = logs.get("consuming")


class _Opened:
    """One subscription that runs here: a task of its own enters it and leaves it."""

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.running = asyncio.Event()
        self.leave = asyncio.Event()
        self.left = asyncio.Event()
        self.error: Exception | None = None

    async def run(self) -> None:
        try:
            async with self.subscription:
                self.running.set()
                await self.leave.wait()
        except MeshError as error:  # entering: there is no such subscription any more
            if self.running.is_set():
                raise
            self.error = error
        finally:
            self.running.set()
            self.left.set()


class Consuming:
    """The team's reader inside an agent. Made where `team_creds_file` is set.

    Args:
        settings: The agent's.
        base: The directory of `agent.toml`; relative paths start there.

    Raises:
        ConfigError: The agent has no team.
    """

    def __init__(self, settings: AgentSettings, base: Path) -> None:
        self._settings = settings
        self._base = base
        self._tasks = Tasks()
        self._starting = asyncio.Lock()
        self._connection: Connection | None = None
        self._reader: TeamReader | None = None
        self._opened: dict[str, _Opened] = {}
        self._closing = False
        self._gauges: list[Callable[[], None]] = []
        if not settings.team:
            raise ConfigError(
                "team_creds_file is set, and team is not",
                expected="the team whose credentials these are",
                next="set it",
            )
        self._creds = partial(read, base / settings.team_creds_file, CREDENTIALS)

    @property
    def started(self) -> bool:
        """Whether there is a connection, or one is being made."""
        return self._reader is not None

    @property
    def failed(self) -> asyncio.Event:
        """Set once a part of it has died; only a restart of the process helps."""
        return self._tasks.failed

    @property
    def names(self) -> frozenset[str]:
        """The team's active subscriptions in the bundle in force; none before there is one."""
        return frozenset() if self._reader is None else self._reader.names

    def state(self) -> dict[str, object]:
        """Facts for people who look at a probe."""
        connection, reader = self._connection, self._reader
        refusal = None if connection is None else connection.refusal
        return {
            "nats_connected": connection is not None and connection.connected,
            "nats_refused": None if refusal is None else reason(refusal),
            "bundle_revision": 0 if reader is None else reader.bundle.state.revision,
            "subscriptions": self.subscriptions(),
        }

    def subscriptions(self) -> dict[str, str]:
        """What runs here: the state of each subscription by its name, `running` or why it pauses."""
        return {name: one.subscription.state for name, one in self._opened.items() if _runs(one)}

    async def start(self) -> None:
        """Connect in the background and keep the team's bundle and trust current. Returns at once; again: nothing.

        Raises:
            ConfigError: A file to connect with, or of the trust directory, is missing or malformed.
        """
        async with self._starting:
            if self._reader is not None:
                return
            s, base = self._settings, self._base
            files = base / s.team_dir
            with suppress(OSError):  # who cannot be written there says so where they write
                files.mkdir(mode=0o700, exist_ok=True)
            connection = await Connection.open(
                s.nats_url,
                name=workload_of("team", s.team),
                creds=self._creds,
                tls=tls_files(s, base),
                wait=False,
            )
            who = ReadingTeam(s.tenant, s.team, trust=base / s.trust_dir, files=files, ciphers=base / s.ciphers_dir)
            try:
                reader = TeamReader(who, connection)
            except BaseException:
                await connection.close()
                raise
            self._connection, self._reader = connection, reader
            self._gauges = [
                metrics.CONNECTED.read(lambda: self.connected, role="team"),
                metrics.FETCHED.read(self._silent_s),
            ]
        reader.load()
        for name, work in reader.works:
            self._tasks.spawn(f"team-{name}", work())

    def adopted(self) -> Awaitable[None]:
        """To be awaited: the next bundle after this call has come into force. `start` comes before it."""
        return self._started().bundle.adopted.wait()

    async def subscription(self, name: str, *, max_in_flight: int | None = None) -> Subscription:
        """The team's subscription *name*; opened at the first call, and kept until `release` or `close`.

        Args:
            name: One of `names`.
            max_in_flight: Events pulled and not settled, where it is opened by this call; else the subscription's own.

        Raises:
            ConfigError: A file to connect with is missing or malformed.
            Draining: `close` was called.
            NotFound: The team has no such subscription, or it is inactive.
            Unavailable: No bundle has arrived yet.
        """
        await self.start()
        opened = self._opened.get(name)
        if opened is None or opened.left.is_set():
            address = self._address(name)
            subscription = self._started().subscription(name, address, max_in_flight=max_in_flight)
            opened = self._opened[name] = _Opened(subscription)
            self._tasks.spawn(f"subscription-{name}", opened.run())
        await opened.running.wait()
        if opened.error is not None:
            raise opened.error
        return opened.subscription

    async def grant(self, name: str) -> SubscriptionGrant:
        """What the policies say of the team's subscription *name*; raises as `subscription`, which it does not open."""
        await self.start()
        self._address(name)
        plans = self._started().bundle.plans
        assert plans is not None  # noqa: S101 - there is an address
        return plans.subscription(self._settings.team, name, now_ms=time.time_ns() // 1_000_000)

    @property
    def connected(self) -> bool:
        """Whether NATS is there for the team, at this moment."""
        return self._connection is not None and self._connection.connected

    def _silent_s(self) -> float:
        """The longest that the server has not answered a pull of a subscription that runs here."""
        running = [one.subscription.feed for one in self._opened.values() if _runs(one)] if self.connected else []
        return max((feed.silent_s for feed in running), default=0.0)

    async def release(self, name: str) -> None:
        """Leave a subscription: pull nothing more, hand back what is not settled. Nothing where it is not open."""
        opened = self._opened.pop(name, None)
        if opened is not None:
            opened.leave.set()
            await opened.left.wait()

    def reveal(self, event: Admitted) -> Mapping[str, object]:
        """The fields of *event* with every value opened that was encrypted for the team.

        Raises:
            ConfigError: A key file is malformed.
        """
        return self._started().reveal(event.fields)

    async def close(self, timeout_s: float) -> None:
        """Leave every subscription, say good-bye, and close the connection. What is not settled is handed back.

        Args:
            timeout_s: For the subscriptions to be left.
        """
        self._closing = True
        for forget in self._gauges:
            forget()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*(self.release(name) for name in tuple(self._opened)))
        if self._reader is not None:
            await self._reader.stop()
        await self._tasks.cancel()
        if self._connection is not None:
            await self._connection.close()

    def _address(self, name: str) -> SubscriptionAddress:
        if self._closing:
            raise Draining("the agent is shutting down and reads nothing new", expected="a running agent")
        reader = self._started()
        if reader.bundle.plans is None:
            raise NoBundle(
                "no valid policy bundle has arrived yet", expected="one from the control plane", next="ask again"
            )
        address = reader.address(name)
        if address is None:
            raise NotFound(
                f"team {self._settings.team} has no active subscription of that name",
                expected=f"one of {', '.join(sorted(reader.names)) or 'none'}",
                next="`mesh subscription list` shows them all, and why one is inactive",
            )
        return address

    def _started(self) -> TeamReader:
        if self._reader is None:
            raise NoBundle("nothing is consumed here yet", expected="start()", next="start it first")
        return self._reader


def _runs(opened: _Opened) -> bool:
    return opened.running.is_set() and not opened.left.is_set() and opened.error is None
