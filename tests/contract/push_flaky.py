"""A slow, flaky application, and what reached it: 5 % answer 500, 5 % never answer, and now and then it wants a rest.

    python -m tests.contract.push_flaky --events 10000

Prints how often it was asked, how many effects there were, and how long it took; exit 1 where an event is missing, was
counted twice, or came before an earlier one of its key. The application notes effects through `SqliteInbox`. A part of
what it fails it has handled before: it commits, and answers 500 or nothing, as a process does that is killed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from aiohttp import web

from mesh.inbound import Admitted
from mesh.inbox import SqliteInbox
from tests.contract.agent_mesh import POLICIES
from tests.contract.ordered_mesh import Handled, OrderedSource, disorder
from tests.contract.push_mesh import App, Posted, pushing, status

SUBSCRIPTION = """---
apiVersion: mesh/v1
kind: Subscription
metadata: {name: contacts, tenant: acme, team: support}
spec:
  types: ["crm.contact.>"]
  start: all
  order_by: partitionkey
  max_in_flight: 400
  breaker: {failures: 50, open: 1s}
  retry: {attempts: 20, backoff: [50ms, 200ms], ack_wait: 10s}
"""
TIMEOUT_S = 3.0  # far above the time an answer takes, on a machine that is busy too
CONCURRENCY = 32
BURST = 0.0005  # of requests: it takes nothing for a tenth of a second after one
STATE_EVERY = 50  # looks at the server: a new trust statement every 10 s, as a control plane issues it


@dataclass
class Flaky:
    """What the application does with a request."""

    database: Path
    chance: random.Random
    slow_s: float = 0.01
    answers: Counter[str] = field(default_factory=Counter)
    calls: list[Handled] = field(default_factory=list)
    rest_until: float = 0.0
    rests: int = 0

    def __post_init__(self) -> None:
        """Open the database of the application."""
        self._db = sqlite3.connect(self.database)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("CREATE TABLE effects (key TEXT, number INTEGER)")
        self._db.commit()
        self._inbox = SqliteInbox("contacts")

    async def answer(self, posted: Posted) -> web.StreamResponse:
        """Slowly, and not always."""
        now = time.monotonic()
        if now < self.rest_until:
            return self._say("429", status(429, retry_after="1" if self.chance.random() < 0.5 else "0"))
        if self.chance.random() < BURST:  # a burst of 429: for a tenth of a second it takes nothing
            self.rests += 1
            self.rest_until = now + 0.1
        await asyncio.sleep(self.chance.uniform(0, 2 * self.slow_s))
        roll = self.chance.random()
        if roll >= 0.1 or roll < 0.05:  # half of what fails has had its effect all the same
            self._handle(posted)
        if roll < 0.025 or 0.05 <= roll < 0.075:
            return self._say("500", status(500))
        if roll < 0.1:
            self.answers["timeout"] += 1
            await asyncio.sleep(TIMEOUT_S * 2)
        return self._say("204", status(204))

    def effects(self) -> list[tuple[str, int]]:
        """Those that are committed."""
        return [(key, number) for key, number in self._db.execute("SELECT key, number FROM effects ORDER BY rowid")]

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def _say(self, what: str, answer: web.Response) -> web.Response:
        self.answers[what] += 1
        return answer

    def _handle(self, posted: Posted) -> None:
        fields = posted.event
        key, number = fields["partitionkey"], int(fields["data"]["country"])
        self.calls.append(Handled("app", key, number))
        event = Admitted(fields, "", "", "", 0, 0, 1, None, replay=posted.headers.get("Mesh-Replay", ""))
        with self._db:
            if self._inbox.first(self._db, event):
                self._db.execute("INSERT INTO effects VALUES (?, ?)", (key, number))


@dataclass(frozen=True)
class Outcome:
    """Of one run."""

    events: int
    effects: int
    calls: int
    answers: dict[str, int]
    missing: int
    twice: int
    disorder: list[str]
    buried: int
    connections: int
    rests: int
    seconds: float

    @property
    def good(self) -> bool:
        """Each at least once, its effect once, in order per key, and no dead letter."""
        return not (self.missing or self.twice or self.disorder or self.buried)


async def run(directory: Path, *, events: int, keys: int, seed: int) -> Outcome:
    """Push *events* of *keys* keys to the application, until all are settled."""
    policies = POLICIES + SUBSCRIPTION
    numbers: Counter[str] = Counter()
    sent = []
    chance = random.Random(seed)
    for _ in range(events):
        key = f"k{chance.randrange(keys)}"
        numbers[key] += 1
        sent.append((key, numbers[key]))
    flaky = Flaky(directory / "app.db", chance)
    options = f"concurrency = {CONCURRENCY}\ntimeout_s = {TIMEOUT_S}"
    async with OrderedSource.ordered(directory / "mesh", policies) as source, App.running(flaky.answer) as app:
        await source.publish_keys(sent)
        started = time.monotonic()
        async with pushing(source, directory / "agent", app.url, options):
            while await source.outstanding():
                await asyncio.sleep(0.2)
            seconds = time.monotonic() - started
        buried = await source.streams.stored("DLQ")
    effects = flaky.effects()
    flaky.close()
    return Outcome(
        events=events,
        effects=len(effects),
        calls=len(app.posted),
        answers=dict(flaky.answers),
        missing=len(set(sent) - set(effects)),
        twice=len(effects) - len(set(effects)),
        disorder=disorder(flaky.calls) + disorder(Handled("effect", *effect) for effect in effects),
        buried=buried,
        connections=app.connections,
        rests=flaky.rests,
        seconds=round(seconds, 1),
    )


def main() -> int:
    """Run it and print what happened."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--keys", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        outcome = uvloop.run(run(Path(directory), events=given.events, keys=given.keys, seed=given.seed))
    print(outcome)
    print("good" if outcome.good else "NOT good")
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
