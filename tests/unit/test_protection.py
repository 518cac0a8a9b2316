"""Rate, breaker and cap on dead letters: each by its numbers, then together as one subscription has them."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import protection as protecting
from mesh.breaker import MAX_OPEN_FACTOR, Breaker, State
from mesh.delivery import Ack, DeadLetter, Outcome, Reject, Retry, RetryLater
from mesh.limits import BreakerPolicy, PoisonPolicy, RateLimit
from mesh.poison import FIRST_PAUSE_S, MAX_PAUSE_S, Flow, PoisonCap
from mesh.policy.grants import SubscriptionGrant
from mesh.protection import Pass, Protection
from mesh.rates import Bucket

DEADLINE_S = 20
METRICS = (protecting.BREAKER, protecting.POISONED)

# --- rate ------------------------------------------------------------------------------------------------------------


def test_a_bucket_lets_a_burst_through_and_then_its_rate() -> None:
    """Ten at once, then one each 0.1 s; who comes too early is told how long to wait."""
    bucket = Bucket(RateLimit(per_s=10, burst=10), 0.0)
    assert [bucket.take(0.0) for _ in range(10)] == [0.0] * 10
    assert bucket.take(0.0) == pytest.approx(0.1)
    assert bucket.take(0.04) == pytest.approx(0.06)
    assert bucket.take(0.1) == 0.0
    assert bucket.take(0.1) > 0


@given(
    per_s=st.floats(0.01, 1e5),
    burst=st.integers(1, 1000),
    steps=st.lists(st.tuples(st.floats(0, 10), st.integers(1, 50)), max_size=100),
)
def test_a_bucket_never_lets_more_through_than_its_rate(
    per_s: float, burst: int, steps: list[tuple[float, int]]
) -> None:
    """Whatever is asked and when: at most burst + rate x time, and one larger demand that is owed."""
    bucket, now_s, taken, largest = Bucket(RateLimit(per_s, burst), 0.0), 0.0, 0, 0
    for step_s, tokens in steps:
        now_s += step_s
        if bucket.take(now_s, tokens) == 0.0:
            taken, largest = taken + tokens, max(largest, tokens)
        assert taken <= (burst + per_s * now_s + max(0, largest - burst)) * (1 + 1e-6) + 1e-6


@given(per_s=st.floats(0.01, 1e5), burst=st.integers(1, 1000), tokens=st.integers(1, 3000), at_s=st.floats(0, 1e9))
def test_who_waits_as_long_as_told_gets_through(per_s: float, burst: int, tokens: int, at_s: float) -> None:
    """The wait is enough, also for what is larger than the burst."""
    bucket = Bucket(RateLimit(per_s, burst), at_s)
    assert bucket.take(at_s, tokens) == 0.0
    wait_s = bucket.take(at_s, tokens)
    assert wait_s == 0.0 or bucket.take(at_s + wait_s + 1e-6 + at_s * 1e-12, tokens) == 0.0


def test_a_clock_that_goes_back_gives_nothing() -> None:
    """An earlier time than before counts as that one."""
    bucket = Bucket(RateLimit(1, 1), 100.0)
    assert bucket.take(100.0) == 0.0
    assert bucket.take(50.0) == pytest.approx(1.0)
    assert bucket.take(101.0) == 0.0


def test_a_bucket_gives_back_changes_and_is_forgotten() -> None:
    """What did not happen does not count; another rate holds from then on; a full bucket is as good as a fresh one."""
    bucket = Bucket(RateLimit(1, 2), 0.0)
    assert bucket.take(0.0) == 0.0
    assert not bucket.full(0.0)
    bucket.give_back()
    bucket.give_back()
    assert bucket.full(0.0)
    bucket.change(RateLimit(100, 1), 0.0)
    assert (bucket.limit, bucket.take(0.0)) == (RateLimit(100, 1), 0.0)
    assert bucket.take(0.0) == pytest.approx(0.01)


# --- breaker ---------------------------------------------------------------------------------------------------------


def fail(breaker: Breaker, times: int, now_s: float = 0.0) -> None:
    """Calls that fail one after another."""
    for _ in range(times):
        era = breaker.begin(now_s)
        assert era is not None
        breaker.failed(era, now_s)


def test_a_breaker_opens_after_failures_in_a_row() -> None:
    """A success in between begins the count anew; 0 failures never opens."""
    breaker, never = Breaker(BreakerPolicy(3, 10)), Breaker(BreakerPolicy(0, 10))
    fail(breaker, 2)
    breaker.succeeded(breaker.era)
    fail(breaker, 2)
    assert breaker.state is State.CLOSED
    fail(breaker, 1)
    assert (breaker.state, breaker.begin(9.9), breaker.wait_s(4)) == (State.OPEN, None, 6)
    fail(never, 1000)
    assert never.state is State.CLOSED


def test_one_probe_decides() -> None:
    """After the wait one call passes and no second; its success closes the breaker."""
    breaker = Breaker(BreakerPolicy(1, 10))
    fail(breaker, 1)
    probe = breaker.begin(10)
    assert probe is not None
    assert (breaker.state, breaker.begin(10), breaker.wait_s(99)) == (State.HALF_OPEN, None, None)
    breaker.succeeded(probe)
    assert (breaker.state, breaker.wait_s(10)) == (State.CLOSED, 0.0)


def test_a_probe_that_fails_doubles_the_wait_up_to_a_bound() -> None:
    """10, 20, 40, 80, 100 s; a success sets it back to 10."""
    breaker, now_s, waits = Breaker(BreakerPolicy(1, 10)), 0.0, []
    for _ in range(6):
        fail(breaker, 1, now_s)
        wait_s = breaker.wait_s(now_s)
        assert wait_s is not None
        waits.append(wait_s)
        now_s += wait_s
    assert waits == [10, 20, 40, 80, 100, 10 * MAX_OPEN_FACTOR]
    era = breaker.begin(now_s)
    assert era is not None
    breaker.succeeded(era)
    fail(breaker, 1, now_s)
    assert breaker.wait_s(now_s) == 10


def test_what_began_before_the_breaker_turned_changes_nothing() -> None:
    """Late failures do not lengthen the wait, and a late success does not end it, nor stand for the probe."""
    breaker = Breaker(BreakerPolicy(2, 10))
    late = [breaker.begin(0) for _ in range(5)]
    fail(breaker, 2)
    for era in late:
        assert era is not None
        breaker.failed(era, 5)
    assert breaker.wait_s(5) == 5
    assert breaker.begin(10) is not None
    breaker.succeeded(late[0] or 0)
    assert breaker.state is State.HALF_OPEN


def test_a_probe_that_is_dropped_may_begin_again() -> None:
    """A probe that was given up says nothing, and holds up nobody."""
    breaker = Breaker(BreakerPolicy(1, 10))
    fail(breaker, 1)
    probe = breaker.begin(10)
    assert probe is not None
    breaker.dropped(probe)
    assert breaker.begin(10) == probe


# --- dead letters ----------------------------------------------------------------------------------------------------


def settle(cap: PoisonCap, verdicts: str, now_s: float = 0.0) -> None:
    """Settle one event for each letter: `.` handled, `x` buried, `r` tried again."""
    for verdict in verdicts:
        era = cap.begin(now_s)
        assert era is not None, (verdict, cap.flow)
        match verdict:
            case ".":
                cap.succeeded(era)
            case "x":
                cap.buried(era, now_s)
            case _:
                cap.failed(era, now_s)


@pytest.mark.parametrize(
    ("share", "of", "verdicts", "flow"),
    [
        (0.5, 4, "xxx", Flow.FLOWING),  # too few were settled
        (0.5, 4, "xxxx", Flow.PAUSED),
        (0.5, 4, "xx..xx..", Flow.FLOWING),  # exactly the share
        (0.5, 4, "....xx.x", Flow.PAUSED),
        (0.5, 4, "xxx.", Flow.FLOWING),  # it is a burial that pauses, not a success
        (0.5, 4, "xrrrrrrrx", Flow.FLOWING),  # to be tried again is no verdict
        (0.0, 1, "x", Flow.PAUSED),
        (1.0, 3, "xxxxxxxx", Flow.FLOWING),  # never
    ],
)
def test_a_cap_pauses_when_too_many_were_buried(share: float, of: int, verdicts: str, flow: Flow) -> None:
    """Only a share above the cap, of enough events, and only a burial pauses."""
    cap = PoisonCap(PoisonPolicy(share, of))
    settle(cap, verdicts)
    assert cap.flow is flow


@pytest.mark.parametrize("verdict", ["x", "r"])
def test_a_pause_tries_one_event_at_growing_intervals(verdict: str) -> None:
    """Each probe that is buried, or to be tried again, doubles the pause, up to five minutes."""
    cap, now_s, waits = PoisonCap(PoisonPolicy(0.5, 2)), 0.0, []
    settle(cap, "xx")
    for _ in range(9):
        wait_s = cap.wait_s(now_s)
        assert wait_s is not None
        assert cap.begin(now_s + wait_s - 0.1) is None
        waits.append(wait_s)
        now_s += wait_s
        probe = cap.begin(now_s)
        assert probe is not None
        assert (cap.begin(now_s), cap.wait_s(now_s)) == (None, None)
        (cap.buried if verdict == "x" else cap.failed)(probe, now_s)
    assert waits[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert waits[-1] == MAX_PAUSE_S


def test_what_passes_after_a_pause_is_on_trial() -> None:
    """One more burial pauses again, for longer, until the share has fallen to the cap; then all is forgotten."""
    cap = PoisonCap(PoisonPolicy(0.5, 4))
    settle(cap, "xxxx")
    settle(cap, ".", 5)
    assert cap.flow.value == "on-trial"
    settle(cap, "x", 5)
    assert (cap.flow, cap.wait_s(5)) == (Flow.PAUSED, 10)
    settle(cap, "..", 15)
    assert cap.flow is Flow.FLOWING
    settle(cap, "xxx", 15)
    assert (cap.flow, cap.wait_s(15)) == (Flow.PAUSED, FIRST_PAUSE_S)


def test_what_was_in_hand_when_it_paused_is_no_probe() -> None:
    """A late burial neither ends a probe nor a trial, and late successes do not keep a probe from ending."""
    cap = PoisonCap(PoisonPolicy(0.5, 4))
    late = cap.begin(0)
    assert late is not None
    settle(cap, "xxxx")
    probe = cap.begin(FIRST_PAUSE_S)
    assert probe is not None
    cap.buried(late, FIRST_PAUSE_S)
    assert cap.flow is Flow.PROBING
    for _ in range(4):
        cap.succeeded(late)
    assert cap.share == 0
    cap.buried(probe, FIRST_PAUSE_S)
    assert cap.wait_s(FIRST_PAUSE_S) == 2 * FIRST_PAUSE_S
    settle(cap, "x", 1000)
    settle(cap, "x", 2000)
    settle(cap, ".", 3000)
    cap.buried(late, 3000)
    assert cap.flow.value == "on-trial"


def test_a_storm_costs_few_dead_letters() -> None:
    """Of ten thousand poison events in an hour, with sixteen in hand at once, only about a hundred are buried."""
    cap, now_s, buried = PoisonCap(PoisonPolicy(0.5, 100)), 0.0, 0
    while now_s < 3600:
        hand = [era for _ in range(16) if (era := cap.begin(now_s)) is not None]
        for era in hand:
            cap.buried(era, now_s)
        buried += len(hand)
        now_s += 0.1
    assert buried < 140


def test_a_policy_that_never_pauses_ends_a_pause() -> None:
    """A change of policy counts at once, and what was settled before only as far as it reaches."""
    cap = PoisonCap(PoisonPolicy(0.5, 4))
    settle(cap, "xxxx")
    cap.change(PoisonPolicy(1.0, 2))
    assert cap.flow is Flow.FLOWING
    cap.change(PoisonPolicy(0.5, 2))
    settle(cap, ".x")
    assert cap.share == 0.5
    breaker = Breaker(BreakerPolicy(1, 10))
    fail(breaker, 1)
    breaker.change(BreakerPolicy(0, 10))
    assert breaker.begin(0) is not None


# --- together --------------------------------------------------------------------------------------------------------


class Clock:
    """A clock that is set."""

    now_s = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now_s


def grant(**limits: object) -> SubscriptionGrant:
    """A subscription's."""
    return SubscriptionGrant("support", "contacts", "service", (), **limits)  # type: ignore[arg-type]  # rows of tests


def one(protection: Protection, error: Exception | None, outcome: Outcome) -> None:
    """Let one event through."""
    leave = protection.admit()
    assert leave is not None
    protection.answered(leave, error)
    protection.settled(leave, outcome)


def test_without_limits_all_is_calm() -> None:
    """A subscription whose handler works never waits."""
    protection = Protection(grant(), clock=Clock())
    for _ in range(1000):
        one(protection, None, Ack())
    assert (protection.calm, protection.state, protection.admit()) == (True, "running", protection.current)


@pytest.mark.parametrize(
    ("error", "state"),
    [(LookupError(), "open"), (RetryLater(1), "open"), (Reject("no"), "running"), (None, "running")],
)
def test_a_handler_that_raises_opens_the_breaker(error: Exception | None, state: str) -> None:
    """Errors and `RetryLater` count; `Reject` is an answer, whose handler works."""
    protection = Protection(grant(breaker=BreakerPolicy(3, 10)), clock=Clock())
    for _ in range(3):
        one(protection, error, Retry(1))
    assert protection.state == state
    level = {"open": 2, "running": 0}[state]
    assert protecting.BREAKER.value(team="support", subscription="contacts") == level


def test_dead_letters_pause_it_and_a_probe_resumes_it() -> None:
    """The state, the metric and the probe, on a clock."""
    clock = Clock()
    protection = Protection(grant(poison=PoisonPolicy(0.5, 4)), clock=clock)
    for _ in range(4):
        one(protection, Reject("no"), DeadLetter("no", "Reject"))
    assert (protection.state, protection.calm, protection.admit()) == ("paused", False, None)
    assert protecting.POISONED.value(team="support", subscription="contacts") == 1
    clock.now_s = FIRST_PAUSE_S
    probe = protection.admit()
    assert probe is not None
    assert (protection.state, protection.admit()) == ("probing", None)
    protection.dropped(probe)
    assert protection.state == "paused"
    one(protection, None, Ack())
    assert (protection.state, protection.calm) == ("running", False)  # on trial
    one(protection, None, Ack())
    assert protection.calm
    assert protecting.POISONED.value(team="support", subscription="contacts") == 0


def test_what_was_worn_out_is_a_dead_letter_and_no_handling() -> None:
    """It counts for the cap alone: the breaker stays where it was, and the rate is not used up."""
    protection = Protection(
        grant(poison=PoisonPolicy(0.5, 4), breaker=BreakerPolicy(1), rate=RateLimit(0.001, 1)), clock=Clock()
    )
    for _ in range(4):
        leave = protection.admit()
        assert leave is not None
        protection.worn_out(leave)
    assert (protection.state, protection.admit()) == ("paused", None)


def test_the_metrics_of_a_subscription_that_was_left_say_nothing_bad() -> None:
    """What nobody runs here any more neither fails nor pauses."""
    protection = Protection(grant(breaker=BreakerPolicy(1), poison=PoisonPolicy(0, 1)), clock=Clock())
    one(protection, LookupError(), DeadLetter("attempts-exhausted", "LookupError"))
    assert [metric.value(team="support", subscription="contacts") for metric in METRICS] == [2, 1]
    protection.close()
    assert [metric.value(team="support", subscription="contacts") for metric in METRICS] == [0, 0]


def test_a_pass_of_before_says_nothing_about_now() -> None:
    """What was in hand when it paused ends without effect on the pause."""
    protection = Protection(grant(poison=PoisonPolicy(0.5, 2), breaker=BreakerPolicy(0)), clock=Clock())
    early = protection.current
    for _ in range(2):
        one(protection, Reject("no"), DeadLetter("no", "Reject"))
    protection.settled(early, Ack())
    assert protection.state == "paused"


@pytest.mark.anyio
async def test_who_waits_goes_on_when_the_rate_lets_it() -> None:
    """`ready` returns when there is a token; of those that wait together one gets it."""
    protection = Protection(grant(rate=RateLimit(200, 1)))
    passed: list[Pass] = []

    async def work() -> None:
        while len(passed) < 20:
            await protection.ready()
            if leave := protection.admit():
                passed.append(leave)

    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(work)
    assert not protection.calm
    assert 20 <= len(passed) <= 23


@pytest.mark.anyio
async def test_who_waits_for_a_probe_goes_on_when_it_ends() -> None:
    """While a probe is under way others wait for its end, however long, and not for a clock."""
    clock = Clock()
    protection = Protection(grant(breaker=BreakerPolicy(1, 10)), clock=clock)
    one(protection, LookupError(), Retry(1))
    clock.now_s = 10
    probe = protection.admit()
    assert probe is not None
    assert protection.state == "half-open"
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as group:
            group.start_soon(protection.ready)
            await anyio.wait_all_tasks_blocked()
            protection.answered(probe)
    assert protection.state == "running"


@pytest.mark.anyio
async def test_a_new_grant_frees_who_waits() -> None:
    """A policy change takes a limit away, and whoever waits goes on at once; another brings one."""
    protection = Protection(grant(rate=RateLimit(0.001, 1), breaker=BreakerPolicy(1, 1e6)))
    one(protection, LookupError(), Retry(1))
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as group:
            group.start_soon(protection.ready)
            await anyio.wait_all_tasks_blocked()
            protection.follow(grant(breaker=BreakerPolicy(0)))
    assert protection.calm
    protection.follow(grant(rate=RateLimit(0.001, 1)))
    protection.follow(grant(rate=RateLimit(0.001, 2)))
    assert protection.admit() is not None
    assert protection.admit() is None
