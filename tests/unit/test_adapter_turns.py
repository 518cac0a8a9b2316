"""An adapter's turns: what it does when the service or the agent says no, and who polls where there are several."""

from __future__ import annotations

import gc
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import anyio
import msgspec
import pytest
from typer.testing import CliRunner

from agent.adapter import Adapter, Item, Page, SlowDown, StartOver, adapter, database, pace, watching
from agent.adapter.cli import app
from mesh.errors import Denied, MeshError, Overloaded, TooLarge
from mesh.retry import RetryPolicy
from tests.contract.outboxes import DEADLINE_S, StandIn

pytestmark = pytest.mark.anyio

SECRET = "ada@example.org"


class Service:
    """Answers with what it is given, one page a poll, or never (None); in the end with nothing new."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[Any] = []

    async def poll(self, cursor: Any) -> Page:
        """What the developer writes."""
        self.asked.append(cursor)
        answer = self.answers.pop(0) if self.answers else Page([], cursor)
        if answer is None:
            await anyio.sleep_forever()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def until(self, count: int) -> None:
        """Wait until it was asked so often."""
        await until(lambda: len(self.asked) >= count)


class Together:
    """An agent that takes batches."""

    def __init__(self, *errors: MeshError) -> None:
        self.errors = list(errors)
        self.batches: list[list[Any]] = []

    async def publish_many(self, events: Sequence[Mapping[str, Any]]) -> None:
        """A batch."""
        self.batches.append([event["data"] for event in events])
        await anyio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)


async def until(condition: Callable[[], bool]) -> None:
    """Poll until it holds."""
    with anyio.fail_after(DEADLINE_S):
        while not condition():
            await anyio.sleep(0.005)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody waits; how long they were told to, at least."""
    asked: list[float] = []
    plain = pace.Pace.failed

    def failed(self: pace.Pace, now_s: float, *, jitter: float, at_least_s: float = 0.0) -> float:
        asked.append(at_least_s)
        return plain(self, now_s, jitter=jitter)

    monkeypatch.setattr(pace.Pace, "failed", failed)
    monkeypatch.setattr(pace, "BACKOFF", RetryPolicy(backoff_s=(0.0,)))
    monkeypatch.setattr(database, "STANDBY_S", 0.01)
    return asked


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Where the state is."""
    return tmp_path / "contacts.db"


def made(service: Service, publish: Any, state: Path, **settings: Any) -> Adapter:
    """An adapter whose items are (key, data)."""
    given: dict[str, Any] = {"source": "/crm", "type": "crm.contact.{change}.v1", "interval_s": 0.0} | settings
    return Adapter(service.poll, lambda raw: Item(*raw), publish=publish, state=state, **given)


@asynccontextmanager
async def running(*adapters: Adapter) -> AsyncIterator[None]:
    """Run them for the length of the block, then stop them."""
    async with anyio.create_task_group() as group:
        for each in adapters:
            group.start_soon(each.run)
        yield
        for each in adapters:
            each.stop()


def page(*values: Any, cursor: Any = "next") -> Page:
    """A page of items, each with a key of its own."""
    return Page([(f"c-{value}", value) for value in values], cursor)


def parked(state: Path) -> list[dict[str, Any]]:
    """What the command line lists."""
    said = CliRunner().invoke(app, ["parked", str(state), "--json"])
    assert said.exit_code == 0, said.output
    return list(msgspec.json.decode(said.output))


# --- the agent says no -----------------------------------------------------------------------------------------------


async def test_a_refused_event_is_parked_and_the_others_go_on(state: Path, waits: list[float]) -> None:
    """Its reason is kept, the cursor moves, and nothing waits for it."""
    agent = StandIn(lambda event: 403 if event["data"] == 2 else 202)
    service = Service(page(1, 2, 3))
    async with running(made(service, agent.publish, state)):
        await service.until(2)
    assert [event["data"] for event in agent.taken] == [1, 3]
    assert service.asked[:2] == [None, "next"]
    (refused,) = parked(state)
    assert (refused["key"], refused["problem"]["rule"]) == ("c-2", "no-hr")
    assert waits == []


async def test_a_parked_event_is_retried_on_demand(state: Path, waits: list[float]) -> None:
    """By the command line while the adapter runs, under the id it had."""
    open_ = False
    agent = StandIn(lambda _: 202 if open_ else 403)
    service = Service(page(1, 2))
    async with running(made(service, agent.publish, state)):
        await service.until(2)
        (first, _) = parked(state)
        open_ = True
        said = CliRunner().invoke(app, ["retry", str(state), str(first["seq"])])
        assert said.output == "1 are tried again\n"
        await agent.until(1)
        assert CliRunner().invoke(app, ["retry", str(state)]).output == "1 are tried again\n"
        await agent.until(2)
        await until(lambda: not parked(state))
    assert [event["data"] for event in agent.taken] == [1, 2]
    assert agent.ids[0] == first["id"]


async def test_a_batch_goes_on_without_the_one_that_is_at_fault(state: Path, waits: list[float]) -> None:
    """An embedded agent takes none of a batch with a denied event, and says which one that is."""
    agent = Together(Denied("no", index=1), Denied("no", index=1))
    service = Service(page(1, 2, 3, 4))
    async with running(made(service, agent, state)):
        await service.until(2)
    assert agent.batches == [[1, 2, 3, 4], [1, 3, 4], [1, 4]]
    assert [refused["key"] for refused in parked(state)] == ["c-2", "c-3"]


async def test_a_batch_that_is_too_large_goes_one_by_one(state: Path, waits: list[float]) -> None:
    """Nobody is at fault until it is refused alone."""
    agent = Together(TooLarge("4 MiB"), TooLarge("256 KiB"))
    service = Service(page(1, 2))
    async with running(made(service, agent, state)):
        await service.until(2)
    assert agent.batches == [[1, 2], [1], [2]]
    assert [refused["key"] for refused in parked(state)] == ["c-1"]


@pytest.mark.parametrize("together", [False, True])
async def test_an_agent_that_is_away_is_waited_for(state: Path, waits: list[float], together: bool) -> None:
    """For as long as it says; then the same ids again, and nothing new is asked for before that."""
    errors: list[MeshError] = [Overloaded("full", retry_after_s=7), Overloaded("full")]
    batches = Together(*errors)

    async def publish(event: Mapping[str, Any]) -> None:
        await batches.publish_many([event])

    service = Service(page(1), page(2, cursor="last"))
    async with running(made(service, batches if together else publish, state)):
        await service.until(3)
    assert batches.batches == [[1], [1], [1], [2]]
    assert waits == [7, 0]
    assert service.asked[:3] == [None, "next", "last"]


async def test_too_many_refusals_stop_the_polling(
    state: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy that denies everything does not fill the disk; once somebody looked, it goes on."""
    monkeypatch.setattr(adapter, "MAX_PARKED", 1)
    agent = StandIn(lambda event: 403 if event["data"] < 3 else 202)
    service = Service(page(1, 2), page(3))
    async with running(made(service, agent.publish, state)):
        await until(lambda: len(waits) > 1)
        assert len(service.asked) == 1
        assert CliRunner().invoke(app, ["drop", str(state), "1"]).output == "1 dropped\n"
        await agent.until(1)


# --- the service says no ---------------------------------------------------------------------------------------------


async def test_retry_after_is_honoured(state: Path, waits: list[float]) -> None:
    """The service is asked for the same again, once it was left alone for as long as it wants."""
    agent, service = StandIn(), Service(page(1), SlowDown(17), page(2))
    async with running(made(service, agent.publish, state)):
        await agent.until(2)
    assert waits == [17]
    assert service.asked[:3] == [None, "next", "next"]


async def test_a_cursor_that_is_taken_no_more_begins_again(state: Path, waits: list[float]) -> None:
    """What was told before is not told again."""
    agent, service = StandIn(), Service(page(1), StartOver(), page(1, 2))
    async with running(made(service, agent.publish, state)):
        await agent.until(2)
    assert [event["data"] for event in agent.taken] == [1, 2]
    assert service.asked[:3] == [None, "next", None]


async def test_a_poll_that_fails_is_repeated_and_named(
    state: Path, waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """The log says what kind of error and where it was raised; its text may quote a value, and is nowhere."""
    caplog.set_level(logging.INFO)
    agent, service = StandIn(), Service(KeyError(SECRET), Page([("c-1", 1)], None, more=True), {}, page(1))
    async with running(made(service, agent.publish, state)):
        await agent.until(1)
    told = [(record.getMessage(), getattr(record, "mesh_fields", {})) for record in caplog.records]
    assert len(waits) == 3
    assert "KeyError" in str(told)
    assert "not where" in str(told)
    assert "no Page" in str(told)
    assert SECRET not in str(told)


async def test_a_poll_that_hangs_is_given_up(state: Path, waits: list[float]) -> None:
    """After `timeout_s`; the next one goes on."""
    agent, service = StandIn(), Service(None, page(1))
    async with running(made(service, agent.publish, state, timeout_s=0.01)):
        await agent.until(1)
    assert service.asked[:2] == [None, None]


async def test_an_item_that_cannot_be_mapped_does_not_stop_the_others(
    state: Path, waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """It is parked with the class of the error, and its values are nowhere."""
    agent = StandIn()
    service = Service(Page([("c-1", 1), (SECRET,), ("c-3", 3)], "next"))

    def item(raw: Any) -> Item:
        return Item(raw[0], raw[1])

    each = Adapter(service.poll, item, publish=agent.publish, state=state, source="/crm", type="crm.x.{change}.v1")
    async with running(each):
        await agent.until(2)
    (bad,) = parked(state)
    assert bad["problem"]["message"].endswith("IndexError")
    assert SECRET not in str([(record.getMessage(), vars(record)) for record in caplog.records]) + str(bad)


async def test_what_is_of_no_interest_is_skipped(state: Path, waits: list[float]) -> None:
    """`item` says None, and nothing is remembered."""
    agent, service = StandIn(), Service(page(1, 2))
    each = Adapter(
        service.poll, lambda raw: None if raw[1] == 1 else Item(*raw), publish=agent.publish, state=state,
        source="/crm", type="crm.x.{change}.v1",
    )  # fmt: skip
    async with running(each):
        await agent.until(1)
    assert [event["data"] for event in agent.taken] == [2]


# --- life ------------------------------------------------------------------------------------------------------------


async def test_one_of_several_replicas_polls(state: Path, waits: list[float]) -> None:
    """The other stands by until the first has ended, then goes on where that stopped; one that waits can be stopped."""
    agent = StandIn()
    services = [Service(page(1)), Service(page(2)), Service(page(3))]
    first, second, third = (made(service, agent.publish, state) for service in services)
    async with running(first):
        await agent.until(1)
        async with running(second):
            await services[0].until(len(services[0].asked) + 20)
            assert services[1].asked == []
            async with running(third):
                pass  # ends although it never led
            first.stop()
            await agent.until(2)
    assert services[1].asked[0] == "next"
    assert services[2].asked == []


async def test_stop_ends_a_long_wait(state: Path) -> None:
    """An adapter that waits for its next poll ends at once."""
    agent, service = StandIn(), Service(page(1))
    async with running(made(service, agent.publish, state, interval_s=86_400.0)):
        await agent.until(1)
    assert len(service.asked) == 1


class Data(dict[str, int]):
    """An item's data, counted for as long as somebody holds it."""

    held: ClassVar[set[int]] = set()

    def __init__(self, n: int) -> None:
        super().__init__(n=n)
        self.held.add(id(self))

    def __del__(self) -> None:
        self.held.discard(id(self))


async def test_a_large_listing_is_held_a_page_at_a_time(
    state: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One page and one batch, however many pages there are and however often they are listed."""
    monkeypatch.setattr(database, "PRAGMAS", ("journal_mode = WAL", "synchronous = OFF"))
    listings = itertools.count()
    agent = Together()
    held: list[int] = []

    async def poll(cursor: int | None) -> Page:
        at = cursor or 0
        if cursor is None and next(listings) == 1:
            each.stop()  # after this page
        if len(Data.held) > 40:
            gc.collect()  # what is still there then is held, and not only left lying
        held.append(len(Data.held))
        rows = [(f"c-{n}", Data(n)) for n in range(at, at + 20)]
        return Page(rows, None if at == 380 else at + 20, more=at < 380, complete=at == 380)

    each = made(Service(), agent, state)
    monkeypatch.setattr(each, "_poll", poll)
    await each.run()
    assert len(held) == 21
    assert max(held) <= 2 * 20  # a thread may hold what it did last
    assert {len(batch) for batch in agent.batches} == {20}


async def test_what_waits_shows_while_the_agent_is_away(
    state: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is when somebody looks."""
    monkeypatch.setattr(watching, "LEVEL_S", 0.0)
    async with running(made(Service(page(1, 2)), StandIn(lambda _: 503).publish, state, name="away")):
        await until(lambda: watching.WAITING.value(adapter="away") == 2)


async def test_the_figures(state: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls, changes, published, refused and parked events, known items and the lag, under the adapter's name."""
    monkeypatch.setattr(watching, "LEVEL_S", 0.0)
    agent = StandIn(lambda event: 403 if event["data"] == 2 else 202)
    service = Service(page(1, 2), SlowDown(), page(1, 2, 3))
    async with running(made(service, agent.publish, state, name="figures")):
        await service.until(5)
        assert [lag for names, lag in watching.LAG.series() if names == {"adapter": "figures"}] != []
    assert watching.POLLS.value(adapter="figures", outcome="slow") == 1
    assert watching.POLLS.value(adapter="figures", outcome="ok") >= 2
    assert watching.CHANGES.value(adapter="figures", change="created") == 3
    assert watching.CHANGES.value(adapter="figures", change="same") == 2
    assert watching.PUBLISHED.value(adapter="figures") == 2
    assert watching.REFUSED.value(adapter="figures", code="denied") == 1
    assert (watching.PARKED.value(adapter="figures"), watching.KNOWN.value(adapter="figures")) == (1, 3)
    assert [names for names, _ in watching.LAG.series() if names == {"adapter": "figures"}] == []


def test_a_wrong_name_is_no_state(tmp_path: Path) -> None:
    """The command line says so and makes no file."""
    said = CliRunner().invoke(app, ["parked", str(tmp_path / "nothing.db")])
    assert said.exit_code != 0
    assert "there is no state" in str(said.exception)
    assert list(tmp_path.iterdir()) == []
