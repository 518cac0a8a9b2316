"""`Adapter`: asks the service, keeps what changed, publishes it, in turns and for ever."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread

from agent.adapter.changes import Words
from agent.adapter.database import connect, leading
from agent.adapter.line import Line
from agent.adapter.pace import Pace, seconds
from agent.adapter.page import Item, Page, SlowDown, StartOver
from agent.adapter.sending import sender
from agent.adapter.state import Bad, State
from agent.adapter.watching import Watching
from mesh import logs
from mesh.errors import ConfigError, MeshError, Overloaded
from mesh.outbox.relay import code_of, retry_after_s
from mesh.outbox.rows import problem_of

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, Sequence

    from agent.adapter.line import Row
    from agent.adapter.sending import Batches, Publish
    from mesh.client import Mesh
    from mesh.limits import RateLimit

    T = TypeVar("T")

BATCH = 100  # events published together: a tenth of what the agent's door takes at once
MAX_PARKED = 10_000  # refused events kept; with more of them nothing new is asked for until somebody looks

log = logs.get("adapter")


class Adapter:
    """Polls one listing or feed of a service and publishes what changed. `await adapter.run()` until `stop()`.

    Args:
        poll: Asks the service once: from a cursor to a `Page`, or to an async iterator of pages.
        item: One of a page's items as an `Item`; None for one that is of no interest.
        publish: An `Agent`, a `mesh.connect(...)`, or a function that publishes one event's fields.
        state: A file for the cursor, the digests and the events under way; its key and its lock lie beside it.
        source: Of the events: a URI reference below `/<team>`, or what the policy adds.
        type: Of the events; `{change}` in it becomes `created`, `updated` or `deleted`.
        gone: The data of an item that a complete listing left out, from its key.
        name: In logs and metrics; the state file's, where there is none.
        interval_s: Seconds between two polls while there is nothing more.
        rate: How often the service may be asked in the long run, and at once; None: no bound.
        timeout_s: Seconds that one call of `poll` may take.
        most_deleted: The share of all items, 0 to 1, that one listing may declare deleted; a service that answers with
            an empty list by mistake is not believed. Twenty are always believed.
    """

    def __init__(
        self,
        poll: Callable[[Any], Awaitable[Page] | AsyncIterator[Page]],
        item: Callable[[Any], Item | None],
        *,
        publish: Batches | Mesh | Publish,
        state: str | os.PathLike[str],
        source: str,
        type: str,
        gone: Callable[[str], Any] = lambda key: {"id": key},
        name: str = "",
        interval_s: float = 60.0,
        rate: RateLimit | None = None,
        timeout_s: float = 60.0,
        most_deleted: float = 0.5,
    ) -> None:
        self._poll = poll
        self._item = item
        self._send = sender(publish)
        self._file = Path(state)
        self._words = Words(source, type, gone)
        self._timeout_s = timeout_s
        self._most_deleted = most_deleted
        self._pace = Pace(interval_s, rate, time.monotonic())
        self._watching = Watching(name or self._file.stem)
        self._pages: AsyncIterator[Page] | None = None
        self._stop = anyio.Event()
        self._one = anyio.CapacityLimiter(1)

    def stop(self) -> None:
        """Have `run` return once what is in hand is in the file; cancelling it loses nothing either."""
        self._stop.set()

    async def run(self) -> None:
        """Wait until no other replica polls with this state, then poll until `stop`.

        Raises:
            ConfigError: The state cannot be opened.
        """
        async with leading(self._file, self._stop) as leads:
            if leads:
                async with self._opened():
                    await self._lead()

    async def _lead(self) -> None:
        log.info("adapter_leads", adapter=self._watching.name)
        with self._watching.lag():
            while not self._stop.is_set():
                await self._sleep(self._pace.wait_s(time.monotonic()))
                if not self._stop.is_set():
                    await self._turn()

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[None]:
        connection, cloak = await self._do(lambda: connect(self._file, make=True))
        with closing(connection):
            self._state = State(connection, cloak, self._words, most_deleted=self._most_deleted)
            self._line = Line(connection, cloak)
            try:
                yield
            finally:
                await self._end_pages()

    async def _turn(self) -> None:
        """Publish what waits, ask once, publish what came of it."""
        try:
            if self._watching.due():
                self._watching.levels(await self._do(self._line.level), await self._do(self._state.known))
            await self._publish()
            await self._ask()
            await self._publish()
        except SlowDown as slow:
            at_least_s = seconds(slow.retry_after_s, time.time())
            log.warning("adapter_slowed_down", **self._wait("slow", at_least_s))
        except StartOver:
            await self._do(self._state.start_over)
            log.warning("adapter_starts_over", **self._wait("failed"))
        except MeshError as error:
            again = self._wait("failed", retry_after_s(error))
            log.warning("adapter_waits", **again, code=code_of(error), why=str(error))
        except sqlite3.Error as error:
            log.warning("adapter_state_failed", **self._wait("failed"), error_class=type(error).__name__)

    def _wait(self, outcome: str, at_least_s: float = 0.0) -> dict[str, Any]:
        """Wait longer each time before the next turn; what the log says of it."""
        wait_s = self._pace.failed(time.monotonic(), jitter=random.random(), at_least_s=at_least_s)  # noqa: S311
        self._watching.failed(outcome)
        return {"adapter": self._watching.name, "again_s": round(wait_s, 1)}

    # --- asking ------------------------------------------------------------------------------------------------------

    async def _ask(self) -> None:
        """Get a page and keep it."""
        parked = (await self._do(self._line.level)).parked
        if parked > MAX_PARKED:
            raise Overloaded(
                f"{parked} events of this adapter were refused and wait for somebody",
                expected=f"at most {MAX_PARKED}",
                next="see why with `mesh-agent adapter parked`, then retry or drop them",
            )
        cursor = await self._do(self._state.cursor)
        first = cursor is None and self._pages is None
        asked_s = time.monotonic()
        self._pace.asked(asked_s)
        page = await self._asked(cursor)
        more = page is not None and (page.more or self._pages is not None)
        if page is not None:
            await self._keep(page, first=first)
        self._pace.answered(time.monotonic(), more=more, jitter=random.random())  # noqa: S311 - when, not a secret
        self._watching.answered(None if more else asked_s)

    async def _asked(self, cursor: Any) -> Page | None:
        """The next page; None where an iterator has ended. What the developer's function raises is a failed poll."""
        try:
            with anyio.fail_after(self._timeout_s):
                page = await self._next(cursor)
        except (SlowDown, StartOver, MeshError):
            await self._end_pages()
            raise
        except Exception as error:
            log.exception("adapter_poll_failed", error, adapter=self._watching.name)  # noqa: PLE1205, TRY401 - ours
            await self._end_pages()
            raise _failed(error) from error
        if page is not None and not isinstance(page, Page):
            raise ConfigError("`poll` returned no Page", expected="a Page", got=type(page).__name__)
        if page is not None and page.more and page.cursor is None and self._pages is None:
            raise ConfigError(
                "`poll` says that there is more, and not where",
                expected="a cursor beside `more`",
                next="return one; None begins again",
            )
        return page

    async def _next(self, cursor: Any) -> Page | None:
        if self._pages is None:
            answer = self._poll(cursor)
            if not isinstance(answer, AsyncIterator):
                return await answer
            self._pages = answer
        try:
            return await anext(self._pages)
        except StopAsyncIteration:
            self._pages = None
            return None

    async def _end_pages(self) -> None:
        pages, self._pages = self._pages, None
        if isinstance(pages, AsyncGenerator):
            await pages.aclose()

    async def _keep(self, page: Page, *, first: bool) -> None:
        items = [told for raw in page.items if (told := self._told(raw)) is not None]
        self._watching.kept(
            await self._do(lambda: self._state.take(items, page.cursor, first=first, complete=page.complete))
        )

    def _told(self, raw: Any) -> Item | Bad | None:
        try:
            item = self._item(raw)
            if item is not None and not isinstance(item, Item):
                raise TypeError("`item` returned no Item")
            return item
        except Exception as error:  # the developer's; parked with its class, and the others go on
            log.exception("adapter_item_failed", error, adapter=self._watching.name)  # noqa: PLE1205, TRY401 - ours
            return Bad(type(error).__name__)

    # --- publishing --------------------------------------------------------------------------------------------------

    async def _publish(self) -> None:
        """Publish all that waits, then what a complete listing left out.

        Raises:
            MeshError: The agent does not take it now.
        """
        while not self._stop.is_set():
            rows = await self._do(lambda: self._line.waiting(BATCH))
            if rows:
                await self._publish_batch(rows)
            elif not await self._do(lambda: self._state.sweep(BATCH)):
                return

    async def _publish_batch(self, rows: Sequence[Row]) -> None:
        outcome = await self._send([row.fields for row in rows])
        taken = rows[: outcome.taken]
        if taken:
            self._watching.published(len(taken), await self._do(lambda: self._line.taken(taken)))
        if outcome.error is None:
            return
        if outcome.refused is None:
            raise outcome.error
        row, problem = rows[outcome.refused], problem_of(outcome.error)
        await self._do(lambda: self._line.park(row, problem))
        self._watching.refused(row, code_of(outcome.error))

    # --- waiting -----------------------------------------------------------------------------------------------------

    async def _sleep(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await self._stop.wait()

    async def _do(self, work: Callable[[], T]) -> T:
        """Use the file: in a thread, one at a time."""
        return await anyio.to_thread.run_sync(work, limiter=self._one)


def _failed(error: Exception) -> MeshError:
    return MeshError(
        f"`poll` raised {type(error).__name__}",
        expected="a Page",
        next="the log names the line; it is asked again",
    )
