"""What a feed remembers of certificates that are missing."""

from __future__ import annotations

from typing import cast

import pytest

from mesh import fetching
from mesh.fetching import ASK_AGAIN_S, PATIENCE_S, Fetcher
from mesh.trust_watch import TrustWatch
from mesh.watch import BundleWatch

pytestmark = pytest.mark.anyio


class Bucket:
    """Certificates by key id, as a replica has them."""

    def __init__(self) -> None:
        self.kids: set[str] = set()

    async def certificate(self, kid: str) -> str | None:
        """See `TrustWatch`."""
        return kid if kid in self.kids else None


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """See `time`."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Of the module."""
    made = Clock()
    monkeypatch.setattr(fetching, "time", made)
    return made


@pytest.fixture
def bucket() -> Bucket:
    """An empty one."""
    return Bucket()


@pytest.fixture
def fetcher(bucket: Bucket) -> Fetcher:
    """One that reads from it."""
    return Fetcher(cast("BundleWatch", None), cast("TrustWatch", bucket))


async def test_what_is_missing_is_asked_for_again_before_it_is_given_up(fetcher: Fetcher, clock: Clock) -> None:
    """Once a second, for several of them: the last word is spoken by a bucket that was asked just now."""
    answers = []
    for _ in range(7):
        assert not fetcher.missed("k")
        assert not await fetcher.certificate("k")
        answers.append(fetcher.given_up("k"))
        assert fetcher.missed("k")
        clock.now += ASK_AGAIN_S / 2
        assert fetcher.missed("k")
        clock.now += 1.0 - ASK_AGAIN_S / 2
    assert answers == [n >= PATIENCE_S for n in range(7)]
    assert not fetcher.missed("other")
    assert not fetcher.given_up("other")


async def test_what_came_late_is_not_held_against_it(fetcher: Fetcher, bucket: Bucket, clock: Clock) -> None:
    """A certificate that is there, and is pruned one day, starts from the beginning."""
    await fetcher.certificate("k")
    bucket.kids.add("k")
    clock.now += PATIENCE_S + 1
    assert await fetcher.certificate("k")
    assert not fetcher.missed("k")
    bucket.kids.clear()
    assert not await fetcher.certificate("k")
    assert not fetcher.given_up("k")


async def test_memory_is_bounded(fetcher: Fetcher, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names another key with each event takes no more than that."""
    monkeypatch.setattr(fetching, "MAX_MISSING", 3)
    for number in range(5):
        clock.now += 0.001
        await fetcher.certificate(f"k{number}")
    assert [fetcher.missed(f"k{number}") for number in range(5)] == [False, False, True, True, True]
