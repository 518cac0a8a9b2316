"""How long an old trust statement is relied on: by the tenant's word, and by the clock that is handed in."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mesh.identity import TRUST_MAX_AGE_S, Keyring
from mesh.reliance import Reliance
from mesh.staleness import FRESH_S, GRACE_S, Ruling, Staleness, fresh_until_ms
from tests.unit.policy_world import BASE, plans

NOW_MS = 1_900_000_000_000
GRACE, STRICT = Staleness(), Staleness(strict=True)
SHORT = Staleness(grace_s=120)
DELIVER, MARK, PAUSE = Ruling


@pytest.mark.parametrize(
    ("staleness", "age_ms", "expected"),
    [
        (GRACE, 0, DELIVER),
        (GRACE, 60_000, DELIVER),
        (GRACE, 60_001, MARK),
        (GRACE, 3_600_000, MARK),
        (GRACE, 3_600_001, PAUSE),
        (SHORT, 120_000, MARK),
        (SHORT, 120_001, PAUSE),
        (STRICT, 60_000, DELIVER),
        (STRICT, 60_001, PAUSE),
        (STRICT, 3_600_001, PAUSE),
        (Staleness(grace_s=1), 60_000, DELIVER),  # shorter than fresh is as strict
        (Staleness(grace_s=1), 60_001, PAUSE),
        (GRACE, -10_000, DELIVER),  # the control plane's clock is ahead of ours
        (STRICT, -10_000, DELIVER),
    ],
)
def test_age_and_mode_rule(staleness: Staleness, age_ms: int, expected: Ruling) -> None:
    """To the millisecond, in either mode."""
    assert staleness.ruling(NOW_MS - age_ms, NOW_MS) is expected


@pytest.mark.parametrize("staleness", [GRACE, STRICT])
def test_before_the_first_statement_nothing_is_delivered(staleness: Staleness) -> None:
    """Nothing is known of anybody yet."""
    assert staleness.ruling(None, NOW_MS) is PAUSE


def test_fresh_means_the_same_everywhere() -> None:
    """What `mesh status` calls stale pauses a strict reader, and the last fresh millisecond is delivered."""
    assert FRESH_S == TRUST_MAX_AGE_S
    until_ms = fresh_until_ms(NOW_MS)
    assert [STRICT.ruling(NOW_MS, until_ms + more) for more in (0, 1)] == [DELIVER, PAUSE]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("", Staleness(strict=False, grace_s=GRACE_S)),
        ("  trust: {}\n", GRACE),
        ("  trust: {staleness: grace, grace: 30m}\n", Staleness(grace_s=1800)),
        ("  trust: {staleness: strict}\n", STRICT),
    ],
)
def test_the_tenant_says_it(written: str, expected: Staleness) -> None:
    """`spec.trust` of the Tenant document, an hour of grace where it says nothing."""
    assert plans(base=BASE | {"tenant.yaml": BASE["tenant.yaml"] + written}).staleness == expected


class Turning:
    """A reliance over a statement that the test sets."""

    def __init__(self) -> None:
        self.turns = 0
        self.keyring = SimpleNamespace(statement=None)
        self.reliance = Reliance(cast("Keyring", self.keyring), self._turned, team="support")

    def _turned(self) -> None:
        self.turns += 1

    def issued(self, at_ms: int) -> None:
        """A statement arrives."""
        self.keyring.statement = SimpleNamespace(issued_ms=at_ms)

    def ask(self, now_ms: int, staleness: Staleness = GRACE) -> tuple[Ruling, int, int]:
        """The ruling, how long nobody needs to ask, and how often it has turned."""
        return self.reliance.ask(staleness, now_ms), self.reliance.fresh_until_ms, self.turns


def test_only_while_it_delivers_nobody_needs_to_ask() -> None:
    """`fresh_until_ms` is the fast path of every event: it ends with the statement's freshness, and is 0 then."""
    turning = Turning()
    assert turning.ask(NOW_MS) == (PAUSE, 0, 1)
    turning.issued(NOW_MS)
    assert turning.ask(NOW_MS + 5) == (DELIVER, NOW_MS + 60_000, 2)
    assert turning.ask(NOW_MS + 60_001) == (MARK, 0, 3)
    assert turning.ask(NOW_MS + 60_002) == (MARK, 0, 3)
    assert turning.ask(NOW_MS + 60_003, STRICT) == (PAUSE, 0, 4)
    turning.issued(NOW_MS + 60_000)
    assert turning.ask(NOW_MS + 60_004, STRICT) == (DELIVER, NOW_MS + 120_000, 5)


def test_each_turn_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """An operator gets one alarm when trust becomes stale, one when delivery pauses, and the end of it."""
    turning = Turning()
    turning.issued(NOW_MS)
    with caplog.at_level(logging.INFO):
        for late_ms in (0, 1, 60_001, 70_000, 3_600_001, 3_700_000):
            turning.ask(NOW_MS + late_ms)
        turning.issued(NOW_MS + 3_700_000)
        turning.ask(NOW_MS + 3_700_001)
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == [("ERROR", "trust_stale"), ("ERROR", "delivery_paused"), ("INFO", "trust_fresh_again")]
    facts: list[dict[str, Any]] = [vars(record)["mesh_fields"] for record in caplog.records]
    assert facts[0] == {"code": "stale-trust", "team": "support", "age_s": 60, "limit_s": 3600.0}
