"""What a test does with a mesh: publish as an agent, expect as a team, run a handler, look at dead letters.

Its methods may be awaited on any asyncio loop; a test without one calls them through `call`. Handlers run on the loop
of whoever calls `run`.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import anyio
import anyio.to_thread

from mesh.client import connect
from mesh.errors import ConfigError, NotFound
from mesh.handlers import caller
from mesh.reading import beside
from mesh.retry import RetryPolicy
from mesh.testing import looking
from mesh.testing.box import Box
from mesh.testing.faults import DEADLINE_S, POLL_S
from mesh.testing.host import MeshHost
from mesh.testing.publishing import Publishing
from mesh.testing.told import Unmet, told

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from mesh.client import Mesh
    from mesh.control.deadletters import Letter
    from mesh.handlers import Handler
    from mesh.inbound import Admitted
    from mesh.subscription import Subscription
    from mesh.testing.host import Policies

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class Ran:
    """What a handler was given in one `run`.

    Attributes:
        handled: Events that it returned from, in that order.
        failed: Events and what it raised.
    """

    handled: list[Admitted] = field(default_factory=list)
    failed: list[tuple[Admitted, Exception]] = field(default_factory=list)


class LocalMesh(Publishing):
    """A mesh in a test's hands. Several may share one host: each begins with empty streams.

    Args:
        host: The mesh; it runs.
    """

    def __init__(self, host: MeshHost) -> None:
        super().__init__(host)
        self.path = str(host.path)
        self._boxes: dict[tuple[str, str], Box] = {}
        self._audited = 0

    def call(self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Await one of our methods from a test that has no loop: `call(local_mesh.expect, "support", "contacts")`."""
        return self.host.portal.call(partial(function, *args, **kwargs))

    async def reset(self) -> None:
        """Begin anew: nothing is stored, nothing waits, and there are no dead letters. Policies stay as they are."""
        self._boxes.clear()
        self.sent.clear()
        await self.host.on_its_loop(looking.back, self.host.tenant, DEADLINE_S)
        self._audited = await self.host.on_its_loop(looking.empty, self.host.tenant)

    # --- looking -----------------------------------------------------------------------------------------------------

    async def expect(
        self,
        team: str,
        subscription: str,
        *,
        type: str = ">",
        where: Callable[[Admitted], bool] = lambda _: True,
        count: int = 1,
        timeout_s: float = DEADLINE_S,
    ) -> list[Admitted]:
        """Wait until *team* was handed *count* events that fit, and take them.

        It pulls as the team does, and acks. What does not fit is kept for the next `expect`.

        Args:
            team: Who is expected to get them.
            subscription: By which.
            type: A pattern.
            where: What else has to be so of each.
            count: How many.
            timeout_s: Seconds.

        Raises:
            Unmet: They did not come; says what did, and why, as far as the mesh knows.
        """
        fits = partial(looking.fits, looking.pattern(type), where)
        box = self._box(team, subscription)
        if not box.has(fits, count):
            await self._until(team, subscription, partial(box.holds, fits, count), timeout_s)
        found = box.take(fits, count)
        if len(found) < count:
            what = f"{count} events of {type} for {team}/{subscription} within {timeout_s:g} s, {len(found)} came"
            raise Unmet(await self.explain(team, subscription, what=f"expected {what}"))
        return found

    async def nothing(
        self,
        team: str,
        subscription: str,
        *,
        type: str = ">",
        where: Callable[[Admitted], bool] = lambda _: True,
        timeout_s: float = DEADLINE_S,
    ) -> None:
        """Make sure that *team* is handed no event that fits: all that is stored for it is pulled and looked at.

        Raises:
            Unmet: One came; or not everything could be pulled, because somebody else has it.
        """
        settled = partial(looking.settled, self.host.tenant, team, subscription)
        done = await self._until(team, subscription, settled, timeout_s)
        fits = partial(looking.fits, looking.pattern(type), where)
        found = [event for event in self._box(team, subscription).events if fits(event)]
        if found or not done:
            what = f"expected no event of {type} for {team}/{subscription}, {len(found)} came"
            what += "" if done else f", and not everything was looked at within {timeout_s:g} s"
            raise Unmet(await self.explain(team, subscription, what=what))

    async def dead_letters(
        self, team: str, subscription: str, *, count: int = 0, timeout_s: float = DEADLINE_S
    ) -> list[Letter]:
        """The dead letters of a subscription, oldest first; waits until there are *count* of them.

        Raises:
            Unmet: There are fewer.
        """
        read = partial(self.host.on_its_loop, looking.buried, self.host.tenant, team, subscription)
        found = await read()
        with anyio.move_on_after(timeout_s):
            while len(found) < count:
                await anyio.sleep(POLL_S)
                found = await read()
        if len(found) < count:
            what = f"expected {count} dead letters of {team}/{subscription} within {timeout_s:g} s, found {len(found)}"
            raise Unmet(await self.explain(team, subscription, what=what))
        return found

    async def explain(self, team: str, subscription: str, *, what: str = "this is what happened") -> str:
        """What a subscription was handed, its dead letters, and what policies say of all that was published."""
        came = self._box(team, subscription).events
        facts = await self.host.on_its_loop(
            looking.facts, self.host.tenant, team, subscription, came, self.sent, self._audited
        )
        return told(what, facts)

    # --- handling ----------------------------------------------------------------------------------------------------

    async def run(
        self, team: str, subscription: str, handler: Handler, *, timeout_s: float = DEADLINE_S, concurrency: int = 1
    ) -> Ran:
        """Run *handler* until everything that is stored for the subscription is settled.

        As in production, but that a retry comes at once: no test waits for a backoff. `RetryLater` waits.

        Args:
            team: Whose.
            subscription: Which.
            handler: As for `Subscription.run`: a function or `Handlers`.
            timeout_s: Seconds.
            concurrency: Handlers at once.

        Raises:
            Unmet: It is not settled in time.
        """
        ran, call = Ran(), caller(handler)

        async def noting(event: Admitted) -> None:
            try:
                await call(event)
            except Exception as error:
                ran.failed.append((event, error))
                raise
            ran.handled.append(event)

        settled = partial(self.host.on_its_loop, looking.settled, self.host.tenant, team, subscription)
        async with self.connect(team=team) as m, self._opened(m, team, subscription) as opened:
            _at_once(opened)
            async with beside(partial(opened.run, noting, concurrency=concurrency)):
                done = await _polled(settled, timeout_s)
            state = opened.state
        if not done:
            what = f"{team}/{subscription} was not settled within {timeout_s:g} s; it is {state}, its handler had "
            what += f"{len(ran.handled)} events and failed {len(ran.failed)} times"
            raise Unmet(await self.explain(team, subscription, what=what))
        return ran

    @asynccontextmanager
    async def connect(self, *, team: str | None = None, agent: str | None = None) -> AsyncIterator[Mesh]:
        """A connection of your own, on your loop, as a team, through an agent, or both."""
        if agent is not None:
            await self.start_agent(agent)
        async with connect(self.host.context(team=team, agent=agent)) as m:
            yield m

    # --- parts -------------------------------------------------------------------------------------------------------

    def _box(self, team: str, subscription: str) -> Box:
        return self._boxes.setdefault((team, subscription), Box())

    async def _until(
        self, team: str, subscription: str, enough: Callable[[], Awaitable[bool]], timeout_s: float
    ) -> bool:
        """Pull into the box, on the mesh's loop, until *enough* says so; False where it did not in time."""
        m = await anyio.to_thread.run_sync(partial(self.host.mesh, team=team))
        return await self.host.on_its_loop(self._pull_until, m, team, subscription, enough, timeout_s)

    async def _pull_until(
        self, m: Mesh, team: str, subscription: str, enough: Callable[[], Awaitable[bool]], timeout_s: float
    ) -> bool:
        box = self._box(team, subscription)

        async def pull() -> None:
            while True:
                delivery = await opened.next()
                box.put(delivery.event)
                delivery.ack()

        async with self._opened(m, team, subscription) as opened, beside(pull):
            return await _polled(enough, timeout_s)

    @asynccontextmanager
    async def _opened(self, m: Mesh, team: str, subscription: str) -> AsyncIterator[Subscription]:
        try:
            opened = m.subscription(subscription)
        except (ConfigError, NotFound) as error:
            what = f"{team} cannot pull from {subscription}"
            raise Unmet(await self.explain(team, subscription, what=what)) from error
        async with opened:
            yield opened


@asynccontextmanager
async def local_mesh(policies: Policies, **options: Any) -> AsyncIterator[LocalMesh]:
    """A mesh for the length of the block.

    Args:
        policies: A directory of YAML, or the documents by file name.
        options: As for `MeshHost`: `tenant`, `agents` to start at once, `data`, `tls`, `encrypt`.

    Raises:
        PolicyError: The policies do not load, or their own tests fail.
        ConfigError: A process does not start.
    """
    host = MeshHost(policies, **options)
    await anyio.to_thread.run_sync(host.__enter__)
    try:
        yield LocalMesh(host)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(host.__exit__, None, None, None)


async def _polled(enough: Callable[[], Awaitable[bool]], timeout_s: float) -> bool:
    with anyio.move_on_after(timeout_s):
        while not await enough():  # noqa: ASYNC110 - the server says so when asked, not by itself
            await anyio.sleep(POLL_S)
        return True
    return False


def _at_once(opened: Subscription) -> None:
    """Retry without backoff."""
    attempts = opened.settler.policy.attempts
    opened.settler.follow(RetryPolicy(attempts=attempts, backoff_s=(0.0,)))
