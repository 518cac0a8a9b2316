"""An adapter that crashes at every step: what consumers see is what happened, in order, and each event once."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.adapter import Adapter, Item, Page, StartOver, adapter, database, pace
from mesh.errors import Unavailable
from mesh.retry import RetryPolicy

T = TypeVar("T")

KEYS = "abc"
EDITS = st.lists(st.tuples(st.sampled_from(KEYS), st.integers(0, 2) | st.none()), max_size=12)  # None deletes
STEPS = st.lists(st.integers(0, 25), max_size=8)  # steps that each life of the adapter has before it crashes
AWAY = st.lists(st.integers(0, 30), max_size=3)  # calls that find the agent away
GONE = "gone"


class Crash(BaseException):
    """SIGKILL, as far as the adapter can tell."""


class Steps:
    """Crashes where its steps are used up; None: never."""

    def __init__(self, left: int | None = None) -> None:
        self.left = left

    def step(self) -> None:
        """One more."""
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Crash


class Dying(Adapter):
    """An adapter that may crash before and after each use of its file."""

    steps: Steps

    async def _do(self, work: Callable[[], T]) -> T:
        self.steps.step()
        result = await super()._do(work)
        self.steps.step()
        return result


class Mesh:
    """Keeps an event once; may crash before and after it, or be away."""

    def __init__(self, steps: Steps, away: Sequence[int]) -> None:
        self.steps = steps
        self.stop: Callable[[], None] = lambda: None  # ends the adapter that lives now
        self.stored: dict[str, Mapping[str, Any]] = {}
        self._away = set(away)
        self._calls = itertools.count()

    async def publish(self, event: Mapping[str, Any]) -> None:
        """One event."""
        self.steps.step()
        if next(self._calls) in self._away:
            raise Unavailable("the agent is away")
        kept = self.stored.setdefault(event["id"], event)
        assert kept == event, "one id, two events"
        self.steps.step()

    async def publish_many(self, events: Sequence[Mapping[str, Any]]) -> None:
        """A batch; where it fails in the middle, the others may be stored all the same."""
        failed: list[Unavailable] = []
        for event in events:
            try:
                await self.publish(event)
            except Unavailable as error:
                failed.append(error)
        if failed:
            raise failed[0]

    def seen(self, key: str) -> list[Any]:
        """What a consumer that reads from the beginning is told of one item."""
        events = [event for event in self.stored.values() if event["partitionkey"] == key]
        kinds = [event["type"].split(".")[1] for event in events]
        for before, now in itertools.pairwise([GONE, *kinds]):
            assert (now == "created") is (before in {GONE, "deleted"}), kinds
        return [GONE if kind == "deleted" else event["data"] for kind, event in zip(kinds, events, strict=True)]


class Table:
    """A service: three items that change while it is asked."""

    def __init__(self, edits: Sequence[tuple[str, int | None]]) -> None:
        self.log = [(key, GONE if value is None else value) for key, value in edits]

    def truth(self, key: str) -> list[Any]:
        """What happened to one item."""
        happened = [GONE] + [value for other, value in self.log if other == key]
        return [now for before, now in itertools.pairwise(happened) if now != before]

    def now(self, at: int) -> dict[str, Any]:
        """All there is after so many edits."""
        there = dict(self.log[:at])
        return {key: value for key, value in there.items() if value != GONE}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits, neither for a disk: this machine does not fail, and thousands of commits are quick."""
    monkeypatch.setattr(database, "PRAGMAS", ("journal_mode = WAL", "synchronous = OFF"))
    monkeypatch.setattr(adapter, "BATCH", 2)
    monkeypatch.setattr(pace, "BACKOFF", RetryPolicy(backoff_s=(0.0,)))


def item(raw: tuple[str, Any]) -> Item:
    """One of the table."""
    key, value = raw
    return Item(key, None if value == GONE else value, deleted=value == GONE)


def live(poll: Callable[[Any], Any], mesh: Mesh, lives: Sequence[int], *, batches: bool) -> None:
    """Run an adapter that crashes after so many steps, then another one, and in the end one that does not."""
    with tempfile.TemporaryDirectory() as directory:
        for steps in [*lives, None]:
            mesh.steps.left = steps
            dying = Dying(
                poll, item, publish=mesh if batches else mesh.publish, state=Path(directory) / "state", source="/t",
                type="t.{change}.v1", gone=lambda _: GONE, interval_s=0.0,
            )  # fmt: skip
            dying.steps = mesh.steps
            mesh.stop = dying.stop
            try:
                anyio.run(dying.run)
            except Crash:
                assert steps is not None


@given(EDITS, STEPS, AWAY, st.integers(1, 4), st.sampled_from([(a, b) for a in (False, True) for b in (False, True)]))
def test_a_feed_is_told_as_it_happened(
    edits: list[tuple[str, int | None]], lives: list[int], away: list[int], size: int, kind: tuple[bool, bool]
) -> None:
    """Of a service that lists its changes, consumers see exactly these, in their order, and store each once."""
    table, steps = Table(edits), Steps()
    mesh = Mesh(steps, away)
    batches, iterates = kind

    def page(cursor: int | None) -> Page:
        steps.step()
        at = cursor or 0
        if at >= len(table.log):
            mesh.stop()
        upto = min(at + size, len(table.log))
        return Page(table.log[at:upto], upto, more=upto < len(table.log))

    async def poll(cursor: int | None) -> Page:
        return page(cursor)

    async def pages(cursor: int | None) -> AsyncIterator[Page]:
        while True:
            answer = page(cursor)
            yield answer
            cursor = answer.cursor
            if not answer.more:
                return

    live(pages if iterates else poll, mesh, lives, batches=batches)
    assert {key: mesh.seen(key) for key in KEYS} == {key: table.truth(key) for key in KEYS}


@given(EDITS, STEPS, AWAY, st.integers(1, 3), st.integers(0, 6))
def test_a_listing_is_told_as_it_was_seen(
    edits: list[tuple[str, int | None]], lives: list[int], away: list[int], size: int, over: int
) -> None:
    """Of a service that only lists what there is, consumers see some of what happened, in order, and end at its end."""
    table, steps = Table(edits), Steps()
    mesh = Mesh(steps, away)
    at = 0  # edits made so far: one between any two polls
    calls = itertools.count(1)
    still = 0  # complete listings since the last edit

    async def poll(cursor: str | None) -> Page:
        nonlocal at, still
        steps.step()
        if next(calls) == over:
            raise StartOver
        moved = at < len(table.log)
        at += moved
        there = sorted(table.now(at).items())
        rest = [row for row in there if cursor is None or row[0] > cursor]
        last = len(rest) <= size
        still = 0 if moved else still + last
        if still > 2:
            mesh.stop()
        return Page(rest[:size], None if last else rest[size - 1][0], more=not last, complete=last)

    live(poll, mesh, lives, batches=True)
    for key in KEYS:
        truth, seen = table.truth(key), mesh.seen(key)
        assert _is_part(seen, truth), (key, seen, truth)
        assert (seen or [GONE])[-1] == (truth or [GONE])[-1]


def _is_part(seen: Sequence[Any], truth: Sequence[Any]) -> bool:
    """Whether all of *seen* happened, in that order."""
    rest = iter(truth)
    return all(value in rest for value in seen)


def test_the_machine_crashes(tmp_path: Path) -> None:
    """The tests above crash at each step of a round: their crashes are not beside the point."""
    reached = set()
    for steps in range(60):
        left = Steps(steps)
        mesh = Mesh(left, ())
        polls = itertools.count()

        async def poll(cursor: int | None, mesh: Mesh = mesh, polls: Any = polls) -> Page:
            mesh.steps.step()
            if next(polls):
                mesh.stop()
            return Page([("a", 1)], 1)

        dying = Dying(poll, item, publish=mesh, state=tmp_path / f"{steps}", source="/t", type="t.{change}.v1")
        dying._pace = pace.Pace(0.0, None, 0.0)
        dying.steps = left
        mesh.stop = dying.stop
        try:
            anyio.run(dying.run)
        except Crash as crash:
            entry: Any = crash.__traceback__
            names = []
            while entry is not None:
                names.append(entry.tb_frame.f_code.co_name)
                entry = entry.tb_next
            reached.add((bool(mesh.stored), *(n for n in names if n in {"poll", "publish", "_keep", "_publish_batch"})))
        else:
            break
    assert {names[1:] for names in reached} >= {
        (),
        ("poll",),
        ("_keep",),
        ("_publish_batch", "publish"),
        ("_publish_batch",),
    }
    assert {stored for stored, *names in reached if "publish" in names} == {False, True}
