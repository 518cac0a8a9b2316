"""After the handler: which answer becomes which outcome, and which events count as handled."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from mesh.delivery import (
    ATTEMPTS_EXHAUSTED,
    MAX_REASON_CHARS,
    Ack,
    Claim,
    DeadLetter,
    DuplicateWindow,
    Outcome,
    Reject,
    Retry,
    RetryLater,
    Waits,
    place,
    settle,
    worn_out,
)
from mesh.errors import ConfigError
from mesh.retry import MAX_DELAY_S, RetryPolicy
from mesh.signing import Received

POLICY = RetryPolicy(attempts=5, backoff_s=(1.0, 10.0), ack_wait_s=30.0)
MIDDLE = 0.5  # the jitter that leaves a delay as it is


class OrderMissingError(Exception):
    """A handler's own error."""


@pytest.mark.parametrize(
    ("error", "attempt", "jitter", "outcome"),
    [
        (None, 1, MIDDLE, Ack()),
        (None, 99, MIDDLE, Ack()),
        (OrderMissingError("x"), 1, MIDDLE, Retry(1.0)),
        (OrderMissingError("x"), 2, MIDDLE, Retry(10.0)),
        (OrderMissingError("x"), 4, MIDDLE, Retry(10.0)),
        (OrderMissingError("x"), 5, MIDDLE, DeadLetter(ATTEMPTS_EXHAUSTED, "OrderMissingError")),
        (OrderMissingError("x"), 6, MIDDLE, DeadLetter(ATTEMPTS_EXHAUSTED, "OrderMissingError")),
        (OrderMissingError("x"), 2, 0.0, Retry(8.0)),
        (OrderMissingError("x"), 2, 1.0, Retry(12.0)),
        (OrderMissingError("x"), 0, MIDDLE, Retry(1.0)),
        (RetryLater(7.5), 1, 0.0, Retry(7.5)),
        (RetryLater(7.5), 4, 1.0, Retry(7.5)),
        (RetryLater(7.5), 5, MIDDLE, DeadLetter(ATTEMPTS_EXHAUSTED, "RetryLater")),
        (Reject("no-such-account"), 1, MIDDLE, DeadLetter("no-such-account", "Reject")),
        (Reject("no-such-account"), 5, MIDDLE, DeadLetter("no-such-account", "Reject")),
        (Reject(), 1, MIDDLE, DeadLetter("rejected", "Reject")),
    ],
)
def test_each_answer_has_its_outcome(error: Exception | None, attempt: int, jitter: float, outcome: Outcome) -> None:
    """The handler's answer, the attempt and the policy decide; the last backoff repeats."""
    assert settle(error, attempt=attempt, policy=POLICY, jitter=jitter) == outcome


def test_subclasses_of_reject_reject() -> None:
    """A team's own subclass of `Reject` is a dead letter under its own class name."""

    class NoSuchAccountError(Reject):
        pass

    outcome = settle(NoSuchAccountError("gone"), attempt=1, policy=POLICY, jitter=MIDDLE)
    assert outcome == DeadLetter("gone", "NoSuchAccountError")


@given(st.integers(-3, 12), st.floats(0, 1), st.lists(st.floats(0, MAX_DELAY_S), min_size=1, max_size=5))
def test_a_delay_stays_within_a_fifth_of_the_backoff(attempt: int, jitter: float, backoff: list[float]) -> None:
    """Whatever the jitter, the delay is the backoff of that attempt, +-20 %."""
    policy = RetryPolicy(attempts=100, backoff_s=tuple(backoff))
    outcome = settle(OrderMissingError(), attempt=attempt, policy=policy, jitter=jitter)
    assert isinstance(outcome, Retry)
    base = backoff[min(max(attempt, 1), len(backoff)) - 1]
    assert base * 0.8 - 1e-9 <= outcome.delay_s <= base * 1.2 + 1e-9


@given(st.integers(1, 20))
def test_each_event_ends(attempts: int) -> None:
    """A handler that always fails is called exactly `attempts` times, then the event is a dead letter."""
    policy = RetryPolicy(attempts=attempts, backoff_s=(0.0,))
    outcomes = [settle(OrderMissingError(), attempt=n + 1, policy=policy, jitter=MIDDLE) for n in range(attempts)]
    assert [type(outcome) for outcome in outcomes] == [Retry] * (attempts - 1) + [DeadLetter]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("x" * 1_000_000, "x" * MAX_REASON_CHARS),
        ("two\nlines\r\n\tand\x00 NUL\x1b[31m", "two lines and NUL [31m"),
        ("", "rejected"),
        (" \n ", "rejected"),
        ("unbekannt: \u00e4", "unbekannt: \u00e4"),
    ],
)
def test_a_reason_is_one_short_line(said: str, reason: str) -> None:
    """A reason is bounded and printable, so it can stand in a list or a log line."""
    assert Reject(said).reason == str(Reject(said)) == reason


@pytest.mark.parametrize(
    ("asked", "delay_s"), [(-1, 0.0), (0, 0.0), (3, 3.0), (1e9, MAX_DELAY_S), (math.inf, MAX_DELAY_S), (math.nan, 0.0)]
)
def test_retry_later_is_bounded(asked: float, delay_s: float) -> None:
    """A handler may ask for any delay between none and a day."""
    assert RetryLater(asked).delay_s == delay_s


@pytest.mark.parametrize(
    "changes",
    [
        {"attempts": 0},
        {"backoff_s": ()},
        {"backoff_s": (-1.0,)},
        {"backoff_s": (math.nan,)},
        {"backoff_s": (MAX_DELAY_S + 1,)},
        {"ack_wait_s": 0.0},
        {"ack_wait_s": math.nan},
        {"ack_wait_s": math.inf},
    ],
)
def test_a_policy_outside_its_limits_is_refused(changes: dict[str, object]) -> None:
    """No attempts, no backoff, or a delay that is negative or over a day cannot be configured."""
    with pytest.raises(ConfigError):
        RetryPolicy(**changes)  # type: ignore[arg-type]  # rows differ in their types


# --- the duplicate window --------------------------------------------------------------------------------------------

KEY = ("/crm", "1")


def test_an_event_is_remembered_once_handled() -> None:
    """Claimed is not handled: only after `add` is a second copy a duplicate."""
    window = DuplicateWindow(10)
    assert window.claim(KEY) is Claim.NEW
    assert not window.seen(KEY)
    window.add(KEY)
    assert window.seen(KEY)
    assert window.claim(KEY) is Claim.HANDLED
    assert (len(window), window.in_flight) == (1, 0)


def test_a_second_copy_in_flight_is_noticed() -> None:
    """While a handler has the event, another copy is neither new nor handled."""
    window = DuplicateWindow(10)
    window.claim(KEY)
    assert window.claim(KEY) is Claim.IN_FLIGHT
    assert not window.seen(KEY)
    assert window.in_flight == 1


def test_a_failed_event_is_new_again() -> None:
    """After `forget` the next copy is handed to a handler; a handled event is not forgotten."""
    window = DuplicateWindow(10)
    window.claim(KEY)
    window.forget(KEY)
    assert window.claim(KEY) is Claim.NEW
    window.add(KEY)
    window.forget(KEY)
    assert window.seen(KEY)


def test_source_and_id_together_name_an_event() -> None:
    """Two sources may use one id, and no joining of the two confuses them."""
    window = DuplicateWindow(10)
    window.add(("/crm", "1"))
    assert not window.seen(("/billing", "1"))
    window.add(("a", "bc"))
    assert not window.seen(("ab", "c"))


def test_the_window_is_bounded_and_drops_the_oldest() -> None:
    """The oldest handled event goes first; one handled again is young again."""
    window = DuplicateWindow(2)
    for event_id in ("1", "2", "1", "3"):
        window.add(("/crm", event_id))
    assert [window.seen(("/crm", event_id)) for event_id in ("1", "2", "3")] == [True, False, True]
    assert len(window) == 2


def test_a_window_has_room() -> None:
    """A window of no events is a mistake in the settings."""
    with pytest.raises(ConfigError):
        DuplicateWindow(0)


class Window(RuleBasedStateMachine):
    """Any order of claims, successes and failures against plain lists."""

    keys = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self.window = DuplicateWindow(3)
        self.handled: list[tuple[str, str]] = []
        self.busy: set[tuple[str, str]] = set()

    @initialize(target=keys, size=st.just(5))
    def some_keys(self, size: int) -> tuple[str, str]:
        """One key to begin with."""
        return ("/crm", str(size))

    @rule(target=keys, event_id=st.sampled_from("1234"))
    def key(self, event_id: str) -> tuple[str, str]:
        """Another key."""
        return ("/crm", event_id)

    @rule(key=keys)
    def claim(self, key: tuple[str, str]) -> None:
        """A copy arrives."""
        expected = Claim.HANDLED if key in self.handled else Claim.IN_FLIGHT if key in self.busy else Claim.NEW
        assert self.window.claim(key) is expected
        if expected is Claim.NEW:
            self.busy.add(key)

    @rule(key=keys)
    def add(self, key: tuple[str, str]) -> None:
        """Its handler succeeds."""
        self.window.add(key)
        self.busy.discard(key)
        self.handled = [*[k for k in self.handled if k != key], key][-3:]

    @rule(key=keys)
    def forget(self, key: tuple[str, str]) -> None:
        """Its handler fails."""
        self.window.forget(key)
        self.busy.discard(key)

    @invariant()
    def agrees(self) -> None:
        """The window knows what the lists know."""
        assert (len(self.window), self.window.in_flight) == (len(self.handled), len(self.busy))
        assert all(self.window.seen(key) for key in self.handled)


TestWindow = Window.TestCase
TestWindow.__doc__ = "The duplicate window agrees with plain lists, whatever happens in whatever order."


# --- deliveries that no handler saw ----------------------------------------------------------------------------------

PLACE = ("EV_local_crm", 7)


def test_only_deliveries_after_the_last_wait_count() -> None:
    """Those up to the last time an event had to wait are left out, whoever had them; without a wait all count."""
    waits = Waits()
    assert waits.since(PLACE, 80) == 80
    waits.add(PLACE, 3)
    waits.add(PLACE, 70)
    assert waits.since(PLACE, 71) == 1
    assert waits.since(("EV_local_hr", 7), 71) == 71


def test_a_settled_event_is_forgotten() -> None:
    """What is settled takes no room, and the next event in that place begins anew."""
    waits = Waits()
    waits.add(PLACE, 3)
    waits.forget(PLACE)
    waits.forget(PLACE)
    assert (len(waits), waits.since(PLACE, 4)) == (0, 4)


def test_waits_are_bounded_and_drop_the_one_of_longest_ago() -> None:
    """However many events wait, so many are remembered; one that waits again is young again."""
    waits = Waits(2)
    for sequence in (1, 2, 1, 3):
        waits.add(("S", sequence), 10)
    assert [waits.since(("S", sequence), 11) for sequence in (1, 2, 3)] == [1, 11, 1]
    assert len(waits) == 2


@pytest.mark.parametrize(
    ("attempts", "deliveries", "ends"), [(1, 10, False), (1, 11, True), (5, 50, False), (5, 51, True)]
)
def test_an_event_that_ends_its_processes_is_worn_out(attempts: int, deliveries: int, *, ends: bool) -> None:
    """Ten deliveries for each allowed attempt, and not one more."""
    assert worn_out(deliveries, RetryPolicy(attempts=attempts)) is ends


def test_an_event_is_where_its_stream_has_it() -> None:
    """Stream and sequence name it, whichever delivery it is."""
    received = Received("ev.x", b"{}", (), None, PLACE[0], PLACE[1], 0, 9, "reply")
    assert place(received) == PLACE
