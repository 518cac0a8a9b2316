"""What a feed does beside judging: it fetches and settles in tasks, and nothing of that is lost without a word."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import anyio
import msgspec
import pytest

import mesh.together
from mesh.errors import BadSignature, RevisionNeeded, Unavailable, UnknownKey
from mesh.inbound import Admitted, Reading
from mesh.jetstream.puller import Puller
from mesh.judging import Judge
from mesh.signing import Received, Verifier
from mesh.staleness import FRESH_S, Ruling, Staleness
from mesh.trust_watch import TrustWatch
from mesh.unhandled import Unhandled
from mesh.watch import BundleWatch

if TYPE_CHECKING:
    from mesh.identity import Keyring

pytestmark = pytest.mark.anyio

EVENT = Received("ev.local.clear.s00.crm.contact.v1", b"{}", ("id",), "v1.kid.x", "EV", 7, 0, 1, "reply", redrive="r1")


class Handing:
    """A puller that writes down what it was given back."""

    def __init__(self) -> None:
        self.back: list[Received] = []

    def nak(self, received: Received, _delay_s: float = 0.0) -> None:
        """See `Puller`."""
        self.back.append(received)


@pytest.fixture
def handing() -> Handing:
    """Where what is judged came from."""
    return Handing()


@pytest.fixture
def puller(handing: Handing) -> Puller:
    """The same."""
    return cast("Puller", handing)


@pytest.fixture
def unhandled() -> Unhandled:
    """What ends events that no handler gets, for a feed that does not run yet."""
    return Unhandled()


@pytest.fixture
def judge(unhandled: Unhandled) -> Judge:
    """One that has nothing to judge by."""
    return Judge(
        cast("BundleWatch", SimpleNamespace(plans=None, might_publish=None)),
        cast("TrustWatch", SimpleNamespace(keyring=None)),
        team="support",
        subscription="contacts",
        admitted=lambda *_: None,
        withdraw=list,
        turned=lambda: None,
        unhandled=unhandled,
        now_ms=lambda: 0,
    )


async def test_what_is_asked_for_before_the_feed_runs_is_done_once_it_does(
    unhandled: Unhandled, puller: Puller
) -> None:
    """A feed that takes over gets events before its tasks are there."""
    letters: list[str] = []

    async def put_back(_received: Received, _puller: Puller, code: str) -> None:
        letters.append(code)

    unhandled.on_unhandled = put_back
    unhandled.pass_over(EVENT, puller, "event-expired")
    await run(unhandled)
    assert letters == ["event-expired"]


async def test_what_cannot_be_settled_is_handed_back(unhandled: Unhandled, puller: Puller, handing: Handing) -> None:
    """Left alone it would be signalled for as in hand by an ordered feed, and its key would stand still."""

    async def quarantine(*_: object) -> None:
        raise Unavailable("no stream", next="wait")

    unhandled.on_rejected = quarantine
    unhandled.reject(EVENT, puller, BadSignature("forged"))
    await run(unhandled)
    assert handing.back == [EVENT]


async def run(unhandled: Unhandled) -> None:
    """Until all that it has to do is done."""
    async with anyio.create_task_group() as group:
        unhandled.start(group)


FETCHES = pytest.mark.parametrize("what", ["certificates", "revision"])


def fetch(judge: Judge, what: str) -> None:
    """Have it fetch for the first in line."""
    judge._unhandled.spawn(
        judge._fetch_and_resume if what == "certificates" else lambda: judge._fetch_past_and_resume(1)
    )


@FETCHES
async def test_a_fetch_that_fails_for_good_ends_the_feed(
    judge: Judge, unhandled: Unhandled, puller: Puller, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Else what waits for it, and everything behind that, would wait for ever and nobody would know."""

    async def fail(_: object) -> bool:
        raise Unavailable("no bucket", next="wait")

    monkeypatch.setattr(judge._fetcher, what, fail)
    judge.parked.append((EVENT, puller))
    fetch(judge, what)
    with pytest.raises(BaseExceptionGroup) as caught:
        await run(unhandled)
    assert caught.group_contains(Unavailable)


@FETCHES
async def test_a_fetch_that_begins_after_the_end_does_nothing(
    judge: Judge, unhandled: Unhandled, puller: Puller, handing: Handing, what: str
) -> None:
    """What waited for it was handed back by then."""
    judge.parked.append((EVENT, puller))
    fetch(judge, what)
    judge.stop()
    await run(unhandled)
    assert handing.back == [EVENT]


class Together:
    """One that stands for events that came together: by their number, what is to become of them."""

    def __init__(self, judge: Judge, **fates: str) -> None:
        self._fates = fates
        self.admitted: list[int] = []
        plans = SimpleNamespace(staleness=None)
        judge._bundle = cast("BundleWatch", SimpleNamespace(plans=plans))
        judge.reading = cast("Reading", SimpleNamespace(plans=plans, admit=self._admit))
        judge._reliance.fresh_until_ms = 1
        judge._together = cast("mesh.together.Together", self)
        judge._verifier = cast("Verifier", SimpleNamespace(verify=self._alone))
        judge._admitted = lambda _event, received, _puller, _stale: self.admitted.append(received.sequence)

    def _fate(self, received: Received) -> str | None:
        return self._fates.get(f"e{received.sequence}")

    def verify(self, events: list[Received]) -> list[Received | None]:
        """See `mesh.together`."""
        if self._fates.get("all") == "broken":
            raise RuntimeError
        return [None if self._fate(event) in {"alone", "unknown"} else event for event in events]

    def _alone(self, received: Received) -> Received:
        if self._fate(received) == "unknown":
            raise UnknownKey("no certificate")
        return received

    def _admit(self, verified: Received, *, now_ms: int) -> Admitted:
        if self._fate(verified) == "broken":
            raise RuntimeError
        if self._fate(verified) == "older":
            raise RevisionNeeded("an older bundle", revision=1)
        return Admitted({}, "clear", "spiffe://x/y", "EV", verified.sequence, now_ms, 1, None)


@pytest.mark.parametrize(
    ("fates", "admitted", "parked"),
    [
        ({}, [1, 2, 3, 4], []),
        ({"e2": "alone"}, [1, 2, 3, 4], []),
        ({"e2": "broken"}, [1, 3, 4], []),
        ({"all": "broken"}, [1, 2, 3, 4], []),
        ({"e2": "unknown"}, [1], [2, 3, 4]),
        ({"e2": "older"}, [1], [2, 3, 4]),
        ({"e4": "unknown"}, [1, 2, 3], [4]),
    ],
)
def test_events_that_came_together_keep_their_order(
    judge: Judge, puller: Puller, fates: dict[str, str], admitted: list[int], parked: list[int]
) -> None:
    """One that has to wait holds up those behind it; one that breaks something of ours harms no other."""
    together = Together(judge, **fates)
    events = [msgspec.structs.replace(EVENT, sequence=number, signature="1.kid.x") for number in (1, 2, 3, 4)]
    judge.take_all(events, puller)
    assert together.admitted == admitted
    assert [received.sequence for received, _ in judge.parked] == parked


@pytest.mark.parametrize(
    ("ruling", "admitted"),
    [(Ruling.MARK, [(1, False), (2, True), (3, True)]), (Ruling.PAUSE, [(1, False)])],
)
def test_what_stands_behind_the_turn_of_trust_is_not_taken_for_fresh(
    judge: Judge, puller: Puller, handing: Handing, ruling: Ruling, admitted: list[tuple[int, bool]]
) -> None:
    """Time goes by while a read is judged: what was ready at the turn is judged again, and nothing else would be."""
    Together(judge, e2="alone")
    clock, found = iter((1, 2, 2)), []
    held = SimpleNamespace(issued_ms=1 - int(FRESH_S * 1000))  # fresh until 1
    plans = SimpleNamespace(staleness=Staleness(strict=ruling is Ruling.PAUSE))
    judge._bundle = cast("BundleWatch", SimpleNamespace(plans=plans))
    cast("SimpleNamespace", judge.reading).plans = plans
    judge._reliance._keyring = cast("Keyring", SimpleNamespace(statement=held))
    judge._now_ms = lambda: next(clock)
    judge._admitted = lambda _event, received, _puller, stale: found.append((received.sequence, stale))
    judge.take_all([msgspec.structs.replace(EVENT, sequence=number) for number in (1, 2, 3)], puller)
    assert found == admitted
    assert [received.sequence for received in handing.back] == ([] if ruling is Ruling.MARK else [2, 3])


def test_events_that_come_while_others_wait_wait_too(judge: Judge, puller: Puller) -> None:
    """Else they would overtake them."""
    together = Together(judge)
    judge.parked.append((EVENT, puller))
    judge.take_all([msgspec.structs.replace(EVENT, sequence=8)], puller)
    assert together.admitted == []
    assert [received.sequence for received, _ in judge.parked] == [7, 8]
