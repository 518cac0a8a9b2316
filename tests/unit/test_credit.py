"""The puller's account: never more asked for and unsettled than the limit, and no credit lost for good."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.jetstream.credit import GRACE_S, Credit

EXPIRES_S = 30.0


def _credit(limit: int = 100, batch: int = 2000) -> Credit:
    return Credit(limit, batch=batch, expires_s=EXPIRES_S)


def test_the_first_pull_asks_for_everything() -> None:
    """All credit is asked for at once, and then there is none."""
    credit = _credit()
    assert credit.is_free(0)
    assert credit.next_pull(0, 0.0) == 100
    assert not credit.is_free(0, all_of_it=True)


def test_a_pull_is_no_larger_than_a_batch() -> None:
    """Large credit is asked for in overlapping pulls."""
    credit = _credit(limit=5000)
    assert [credit.next_pull(0, 0.0) for _ in range(3)] == [2000, 2000, 1000]


@pytest.mark.parametrize(("settled", "free"), [(24, False), (25, True), (100, True)])
def test_credit_is_asked_for_in_quarters(settled: int, *, free: bool) -> None:
    """While pulls or events are about, credit waits until it is worth a pull."""
    credit = _credit()
    credit.next_pull(0, 0.0)
    for _ in range(100):
        credit.delivered()
    assert credit.is_free(100 - settled) is free


def test_a_rest_is_asked_for_when_nothing_else_is() -> None:
    """One free place beside 99 slow events is used, after a moment."""
    credit = _credit()
    credit.next_pull(0, 0.0)
    for _ in range(100):
        credit.delivered()
    assert not credit.is_free(99)
    assert credit.is_free(99, all_of_it=True)
    assert credit.next_pull(99, 1.0) == 1


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_small_limits_work(limit: int) -> None:
    """A limit below four asks one by one."""
    credit = _credit(limit=limit)
    assert credit.next_pull(0, 0.0) == limit
    for _ in range(limit):
        credit.delivered()
    assert not credit.is_free(limit, all_of_it=True)
    assert credit.is_free(limit - 1)


def test_the_end_of_a_pull_gives_its_rest_back() -> None:
    """What a pull did not deliver may be asked for again."""
    credit = _credit()
    credit.next_pull(0, 0.0)
    credit.delivered()
    credit.ended(99)
    assert credit.asked == 0


def test_lost_pulls_are_forgotten() -> None:
    """After a new connection everything may be asked for again."""
    credit = _credit()
    credit.next_pull(0, 0.0)
    credit.lose_pulls()
    assert credit.next_pull(10, 1.0) == 90


def test_credit_that_drifted_comes_back() -> None:
    """Events that were asked for and never came count no longer than their pull can be open."""
    credit = _credit()
    credit.next_pull(0, 0.0)
    for _ in range(90):
        credit.delivered()
    assert credit.asked == 10
    assert credit.next_pull(0, EXPIRES_S + GRACE_S) == 100


@given(st.lists(st.sampled_from(["deliver", "settle", "pull", "end", "lose"]), max_size=200), st.integers(1, 60))
def test_the_limit_holds(moves: list[str], limit: int) -> None:
    """Whatever happens in whatever order, asked for plus unsettled stays within the limit."""
    credit = _credit(limit=limit, batch=16)
    unsettled, now, on_the_way = 0, 0.0, 0
    for move in moves:
        now += 0.5
        match move:
            case "deliver" if on_the_way:
                on_the_way -= 1
                unsettled += 1
                credit.delivered()
            case "settle" if unsettled:
                unsettled -= 1
            case "pull" if credit.is_free(unsettled, all_of_it=True):
                on_the_way += credit.next_pull(unsettled, now)
            case "end":
                credit.ended(on_the_way)
                on_the_way = 0
            case "lose":
                credit.lose_pulls()
                on_the_way = 0
            case _:
                pass
        assert credit.asked >= 0
        assert on_the_way + unsettled <= limit
