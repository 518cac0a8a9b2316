"""How fast one source may send: what is over its rate is refused whole, and says when to come again."""

from __future__ import annotations

import pytest

from agent import rates
from agent.problems import headers
from agent.rates import SourceRates
from mesh.errors import RateLimited
from mesh.event import Draft


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """Now."""
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """At zero."""
    return Clock()


def drafts(*sources: str) -> list[Draft]:
    """One event of each."""
    return [Draft({"source": source}) for source in sources]


def refused(limits: SourceRates, *sources: str) -> float:
    """Seconds that whoever sends these is asked to wait."""
    with pytest.raises(RateLimited) as caught:
        limits.take(drafts(*sources))
    assert caught.value.status == 429
    assert "/" not in caught.value.message
    wait_s = caught.value.details["retry_after_s"]
    assert headers(caught.value, retry_after_s=99)["Retry-After"] == str(max(1, wait_s))
    return float(wait_s)


def test_without_a_rate_all_goes_through(clock: Clock) -> None:
    """The default."""
    limits = SourceRates(0, 1, clock_s=clock)
    for _ in range(100):
        limits.take(drafts("/a", "/a"))


def test_a_source_keeps_to_its_rate(clock: Clock) -> None:
    """A burst at once, then so many a second; another source is not its concern."""
    limits = SourceRates(2, 4, clock_s=clock)
    limits.take(drafts(*["/a"] * 4))
    assert refused(limits, "/a") == 1
    limits.take(drafts("/b"))
    clock.now_s = 0.5
    limits.take(drafts("/a"))
    assert refused(limits, "/a", "/a") == 1


def test_a_batch_is_taken_whole_or_not(clock: Clock) -> None:
    """One source over its rate refuses all, and the others have lost nothing by it."""
    limits = SourceRates(1, 2, clock_s=clock)
    limits.take(drafts("/b", "/b"))
    assert refused(limits, "/a", "/a", "/b") == 1
    limits.take(drafts("/a", "/a"))


def test_a_batch_above_the_burst_is_late_and_not_impossible(clock: Clock) -> None:
    """It goes where the source was silent, which then waits for the rest."""
    limits = SourceRates(10, 5, clock_s=clock)
    limits.take(drafts(*["/a"] * 25))
    assert refused(limits, "/a") == 3  # 20 owed, and one more, at 10 a second


def test_what_is_given_back_may_come_again(clock: Clock) -> None:
    """A batch that was refused elsewhere owes nothing, whatever its size; a source of before is not made up."""
    limits = SourceRates(10, 5, clock_s=clock)
    batch = drafts(*["/a"] * 25, "/b")
    for _ in range(3):
        limits.take(batch)
        limits.give_back(batch)
    limits.take(drafts(*["/a"] * 5))
    assert refused(limits, "/a") == 1
    limits.give_back(drafts("/c"))
    SourceRates(0, 1).give_back(batch)


def test_only_so_many_sources_are_remembered(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name for every customer fills no memory; who was silent longest begins anew."""
    monkeypatch.setattr(rates, "MAX_SOURCES", 2)
    limits = SourceRates(1, 1, clock_s=clock)
    for source in ("/a", "/b", "/c"):
        limits.take(drafts(source))
    assert refused(limits, "/c") == 1
    limits.take(drafts("/a"))
