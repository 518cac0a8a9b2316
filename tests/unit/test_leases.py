"""Who has what, until when; and what a request to the pull door may ask for."""

from __future__ import annotations

import pytest

from agent.pull import asking
from agent.pull.asking import Fetch
from agent.pull.leases import Leases
from agent.settings import load
from mesh.errors import InputError, MeshError, NotJson, TooLarge

SETTINGS = load('name = "desk"\ntenant = "acme"').settings


def leases(limit: int = 10) -> Leases[str]:
    """None open."""
    return Leases(limit)


def test_a_lease_is_ended_once() -> None:
    """Whoever names its token gets what it is for; the second time it is gone."""
    held = leases()
    held.grant("event", "t", lease_s=30, now_s=0)
    assert held.end("t", now_s=1) == "event"
    assert held.end("t", now_s=1) is None
    assert held.end("forged", now_s=1) is None


def test_a_lease_is_gone_from_its_deadline_on() -> None:
    """Whether or not it was cleared away: neither ended nor extended any more, and cleared away once."""
    held = leases()
    held.grant("event", "t", lease_s=30, now_s=0)
    assert held.expired(now_s=29.9) == []
    assert held.end("t", now_s=30) is None
    assert held.extend("t", lease_s=None, now_s=30) is None
    assert held.expired(now_s=30) == ["event"]
    assert held.expired(now_s=31) == []
    assert len(held) == 0


def test_an_extended_lease_runs_from_now() -> None:
    """For the seconds it is given, else for those it was given last; the old deadline counts no more."""
    held = leases()
    held.grant("event", "t", lease_s=30, now_s=0)
    assert held.extend("t", lease_s=5, now_s=29) == 5
    assert held.expired(now_s=33) == []
    assert held.extend("t", lease_s=None, now_s=33) == 5
    assert held.expired(now_s=37.9) == []
    assert held.expired(now_s=38) == ["event"]


def test_a_lease_may_be_cut_short() -> None:
    """Extended by less than it had left, it ends earlier."""
    held = leases()
    held.grant("event", "t", lease_s=30, now_s=0)
    held.extend("t", lease_s=1, now_s=0)
    assert held.next_s() == 1
    assert held.expired(now_s=1) == ["event"]


def test_room_is_what_the_limit_leaves() -> None:
    """Each lease takes one, each ended or expired one gives it back."""
    held = leases(2)
    held.grant("one", "1", lease_s=10, now_s=0)
    held.grant("two", "2", lease_s=20, now_s=0)
    assert held.room == 0
    held.end("1", now_s=1)
    assert held.room == 1
    held.expired(now_s=20)
    assert held.room == 2


def test_nothing_wakes_before_the_first_deadline() -> None:
    """`next_s` is never after the earliest deadline, and None where nothing is open."""
    held = leases()
    assert held.next_s() is None
    held.grant("one", "1", lease_s=10, now_s=0)
    held.grant("two", "2", lease_s=5, now_s=0)
    assert held.next_s() == 5
    held.expired(now_s=5)
    assert held.next_s() == 10


def test_endless_extending_takes_no_memory() -> None:
    """A consumer that extends one lease again and again leaves a bounded number of deadlines behind."""
    held = leases()
    held.grant("event", "t", lease_s=1, now_s=0)
    for number in range(10_000):
        held.extend("t", lease_s=1, now_s=number / 20_000)
    assert len(held._deadlines) < 100
    assert held.expired(now_s=1.4) == []
    assert held.expired(now_s=1.5) == ["event"]


def test_clearing_gives_everything_back() -> None:
    """What was open is returned, and nothing is open any more."""
    held = leases()
    held.grant("one", "1", lease_s=10, now_s=0)
    held.grant("two", "2", lease_s=5, now_s=0)
    assert sorted(held.clear()) == ["one", "two"]
    assert (len(held), held.next_s()) == (0, None)


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        ([], Fetch(100, 10.0, None, auto_ack=False)),
        ([("max", "1"), ("wait_s", "0"), ("lease_s", "0.5")], Fetch(1, 0.0, 0.5, auto_ack=False)),
        ([("max", "1000"), ("wait_s", "30"), ("ack", "auto")], Fetch(1000, 30.0, None, auto_ack=True)),
        ([("wait_s", "0.5e-300")], Fetch(100, 0.5e-300, None, auto_ack=False)),
        ([("lease_s", "1e-1")], Fetch(100, 10.0, 0.1, auto_ack=False)),
    ],
)
def test_a_query_is_read(query: list[tuple[str, str]], asked: Fetch) -> None:
    """Each value within its bounds is taken as it is."""
    assert asking.fetch(query, SETTINGS) == asked


@pytest.mark.parametrize(
    "query",
    [
        [("max", "0")],
        [("max", "1001")],
        [("max", "-1")],
        [("max", "1.5")],
        [("max", "٣")],
        [("max", "")],
        [("wait_s", "30.1")],
        [("wait_s", "nan")],
        [("wait_s", "1e99")],
        [("wait_s", "1e999")],
        [("wait_s", "0x1")],
        [("wait_s", "1_0")],
        [("lease_s", "0")],
        [("lease_s", "3601")],
        [("ack", "manual")],
        [("limit", "1")],
        [("max", "1"), ("max", "1")],
    ],
)
def test_a_query_outside_its_bounds_is_refused(query: list[tuple[str, str]]) -> None:
    """Nothing is cut down in silence, and no name is ignored."""
    with pytest.raises(InputError):
        asking.fetch(query, SETTINGS)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", NotJson),
        (b"{", NotJson),
        (b'{"leases":["\xff"]}', NotJson),
        (b"[]", InputError),
        (b"{}", InputError),
        (b'{"leases":[]}', InputError),
        (b'{"leases":[1]}', InputError),
        (b'{"leases":"t"}', InputError),
        (b'{"leases":["t"],"delay_s":-1}', InputError),
        (b'{"leases":["t"],"delay_s":1e999}', InputError),
        (b'{"leases":["t"],"delay_s":true}', InputError),
        (b'{"leases":["t"],"delay_s":NaN}', NotJson),
        (b'{"leases":["t"],"lease_s":0}', InputError),
        (b'{"leases":["t"],"reason":"' + b"r" * 201 + b'"}', InputError),
        (b'{"leases":["' + b"t" * 65 + b'"]}', InputError),
        (b'{"leases":[' + b'"t",' * 1000 + b'"t"]}', TooLarge),
    ],
)
def test_a_body_of_another_shape_is_refused(body: bytes, error: type[MeshError]) -> None:
    """By a problem that says the place, and quotes nothing of it."""
    with pytest.raises(error) as caught:
        asking.settle(body, SETTINGS)
    assert type(caught.value) is error
