"""A team that reads and takes the time, in a process of its own: `python -m benchmarks.timed_reader --data DIR ...`.

It acks each event when it has noted how long ago its moment was (see `open_loop`), and says every so often what it saw.
Given `{"expect": N}` it goes on until it has events 0 to N - 1, or nothing new comes, and says what is missing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import anyio
import msgspec

from benchmarks.steady import percentiles
from benchmarks.workers import jobs, say
from mesh.client import connect
from mesh.judging import VERIFIED
from mesh.subscription import Subscription

SILENCE_S = 15.0  # without a new event, after which what is missing will not come


class Notes:
    """What was seen: which numbers, and how late each was.

    Args:
        events: How many there can be. Room for all is taken at once, so that memory says nothing of us.
    """

    def __init__(self, events: int) -> None:
        self._seen = bytearray(events)
        self.count = 0
        self.repeated = 0
        self.phases: dict[str, list[float]] = {}

    def note(self, id_: str, now_ns: int) -> None:
        """An event was handed over: `<phase>.<ns>-<number>`."""
        phase, _, rest = id_.partition(".")
        moment_ns, _, number = rest.partition("-")
        if self._seen[int(number)]:
            self.repeated += 1
            return
        self._seen[int(number)] = 1
        self.count += 1
        self.phases.setdefault(phase, []).append((now_ns - int(moment_ns)) / 1e6)

    def missing(self, expected: int) -> int:
        """How many of the first *expected* were not seen."""
        return expected - sum(self._seen[:expected])

    def take(self) -> dict[str, dict[str, float]]:
        """Percentiles by phase of what came since the last time."""
        taken = {phase: percentiles(ms) for phase, ms in self.phases.items()}
        self.phases.clear()
        return taken


async def read(subscription: Subscription, notes: Notes) -> None:
    """Ack and note, until cancelled."""
    while True:
        delivery = await subscription.next()
        notes.note(delivery.event.id, time.time_ns())
        delivery.ack()


async def report(notes: Notes, every_s: float) -> None:
    """Say what was seen, every *every_s* seconds."""
    while True:
        await anyio.sleep(every_s)
        say({"count": notes.count, "ms": notes.take()})


async def finish(notes: Notes, expected: int) -> dict[str, object]:
    """Wait for the rest, and say what came of all of it."""
    before, since = -1, time.monotonic()
    while notes.missing(expected) and time.monotonic() - since < SILENCE_S:
        if notes.count != before:
            before, since = notes.count, time.monotonic()
        await anyio.sleep(0.05)
    missing = notes.missing(expected)
    figures = {"missing": missing, "repeated": notes.repeated, "verified": VERIFIED.total()}
    return {"final": True, "count": notes.count, "ms": notes.take(), **figures}


async def main() -> None:
    """Read until told how much there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the mesh's data directory")
    parser.add_argument("--name", required=True, help="the subscription of the reading team")
    parser.add_argument("--events", type=int, required=True, help="how many there can be")
    parser.add_argument("--every", type=float, default=0.0, help="seconds between reports; 0 for none")
    arguments = parser.parse_args()
    notes = Notes(arguments.events)
    async with (
        connect(arguments.data, team="reader") as mesh,
        mesh.subscription(arguments.name) as subscription,
        anyio.create_task_group() as group,
    ):
        group.start_soon(read, subscription, notes)
        say({"ready": True})
        if arguments.every:
            group.start_soon(report, notes, arguments.every)
        async for line in jobs():
            say(await finish(notes, msgspec.json.decode(line)["expect"]))
        group.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, backend_options={"use_uvloop": True})
