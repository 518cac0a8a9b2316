"""Half an hour of load: does memory stay flat, does latency stay put, is anything lost?

`make soak`, or `python -m benchmarks.soak --minutes 30 --rate 2000`. An agent process takes batches at its HTTP door, a
reading process is handed the events, a server stores them (half an hour takes 5 GB of disk); server and control plane
are as `mesh up` starts them. Exit 0: flat, steady, lost nothing. 1: not. 2: the run was not valid. Runs shorter than
`JUDGED_MINUTES` are judged by losses alone, because a heap that has just been started grows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import anyio
import msgspec

from benchmarks import plots
from benchmarks.machine import surroundings
from benchmarks.meshes import STREAM, make_room, processes, subscription
from benchmarks.open_loop import Job
from benchmarks.policy_sets import POLICIES
from benchmarks.steady import Growth, drifted, growth
from benchmarks.validity import InvalidRun, require, require_stored, why_invalid
from benchmarks.workers import Worker, worker
from mesh.cli.operator import operator_connection
from mesh.context import Context

NAME = "soak"
STORED_BYTES = 2048  # of one event, with headers and signature, and room to spare
SIZE = 10  # events in a request, as an adapter that forwards pages of changes
SAMPLE_S, WINDOW_S = 10.0, 60.0
JUDGED_MINUTES = 10.0
PICTURED_MINUTES = 30.0
JUDGED = ("agent", "consumer")  # the server's index grows with what it stores: its memory is for reading


@dataclass(slots=True)
class Found:
    """What half an hour showed: memory as (seconds, MB) by process, and percentiles (ms) by window."""

    memory: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    windows: list[dict[str, float]] = field(default_factory=list)
    sent: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    repeated: int = 0


class Soak:
    """One run.

    Args:
        minutes: How long.
        rate: Events a second.
        say: Given each line of progress.
    """

    def __init__(self, minutes: float, rate: float, *, say: Any = lambda _: None) -> None:
        self.seconds = minutes * 60
        self.rate = rate
        self.found = Found()
        self._say = say
        self._sample_s = min(SAMPLE_S, self.seconds / 18)
        self._window_s = min(WINDOW_S, self.seconds / 6)

    async def run(self) -> Found:
        """Load it, and count.

        Raises:
            InvalidRun: A process ended, or what is stored is not what was accepted.
        """
        events = int(self.rate * self.seconds / SIZE) * SIZE
        async with processes({"bench.yaml": POLICIES + subscription(NAME)}) as (context, up):
            data, log = context.data, context.data / "workers.log"
            async with operator_connection(str(data)) as (_, control):
                await make_room(control, STREAM, events * STORED_BYTES)
            reading = ["--data", str(data), "--name", NAME, "--events", str(events), "--every", str(self._window_s)]
            async with (
                worker("timed_reader", *reading, log=log) as reader,
                worker("open_loop", "--data", str(data), "--door", log=log) as sender,
            ):
                agent = msgspec.json.decode((data / "agents" / "shop" / "ports.json").read_bytes())["pid"]
                server = up.server.pid
                pids = {"agent": agent, "consumer": reader.pid, "server": server}
                await self._load(pids, sender, reader)
            await self._check(context, events)
        return self.found

    async def _load(self, pids: Mapping[str, int], sender: Worker, reader: Worker) -> None:
        sender.tell(Job(phase=NAME, first=0, per_s=self.rate, seconds=self.seconds, size=SIZE))
        async with anyio.create_task_group() as group:
            group.start_soon(self._sample, pids)
            group.start_soon(self._listen, reader, group.cancel_scope)
            outcome = await sender.hear()
            self.found.sent, self.found.refused = outcome["sent"], outcome["failed"]
            reader.tell({"expect": outcome["sent"]})

    async def _sample(self, pids: Mapping[str, int]) -> None:
        """Each process's memory, every ten seconds."""
        began = time.monotonic()
        while True:
            for name, pid in pids.items():
                self.found.memory.setdefault(name, []).append((time.monotonic() - began, rss_mb(pid)))
            await anyio.sleep(self._sample_s)

    async def _listen(self, reader: Worker, scope: anyio.CancelScope) -> None:
        """What the reader says of each window, until it has said the last of all."""
        while True:
            heard = await reader.hear()
            window = heard["ms"].get(NAME, {})
            if heard.get("final"):
                self.found.lost, self.found.repeated = heard["missing"], heard["repeated"]
                require(heard["verified"] >= heard["count"], "unverified events were handed over")
                scope.cancel()
                return
            if window:
                self.found.windows.append(window)
                self._say(_progress(len(self.found.windows) * self._window_s, heard["count"], window, self.found))

    async def _check(self, context: Context, events: int) -> None:
        async with operator_connection(str(context.data)) as (_, control):
            await require_stored(control, STREAM, events - sum(self.found.refused.values()))


def rss_mb(pid: int) -> float:
    """Megabytes of *pid* that are in memory.

    Raises:
        InvalidRun: It ended.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError as error:
        raise InvalidRun(f"process {pid} ended") from error
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run says. `failed` has a line for each promise that was broken."""

    memory: dict[str, Growth]
    drifted: dict[str, bool]
    failed: list[str]


def judge(found: Found, *, minutes: float) -> Verdict:
    """Memory flat, latency steady, nothing lost or refused; a short run is judged by losses alone."""
    memory = {name: growth(samples) for name, samples in found.memory.items()}
    drifts = {name: drifted([window[name] for window in found.windows]) for name in ("p50", "p99")}
    failed = [f"lost {found.lost} events"] * bool(found.lost)
    failed += [f"refused {found.refused}"] * bool(found.refused)
    if minutes >= JUDGED_MINUTES:
        failed += [
            f"{name} grows by {memory[name].per_hour_mb:.1f} MB an hour" for name in JUDGED if not memory[name].flat
        ]
        failed += [f"latency drifts: {name}" for name, drift in drifts.items() if drift]
    return Verdict(memory, drifts, failed)


def _progress(at_s: float, count: int, window: Mapping[str, float], found: Found) -> str:
    memory = ", ".join(f"{name} {samples[-1][1]:.0f} MB" for name, samples in found.memory.items())
    late = "/".join(f"{window[name]:.1f}" for name in ("p50", "p90", "p99", "p99_9"))
    return f"{at_s / 60:5.1f} min  {count:>9,} events  {late} ms (50/90/99/99.9 %)  {memory}"


def _print(found: Found, verdict: Verdict, *, minutes: float) -> None:
    print(f"sent {found.sent:,}, lost {found.lost}, refused {sum(found.refused.values())}, repeated {found.repeated}")
    for name, one in verdict.memory.items():
        word = "flat" if one.flat else "grows"
        print(f"{name}: {one.mean_mb:.1f} MB, {word}: {one.per_hour_mb:+.2f} MB an hour after the first third")
    for name, drift in verdict.drifted.items():
        first, last = found.windows[0][name], found.windows[-1][name]
        print(f"latency {name}: {'drifts' if drift else 'steady'}, {first:.1f} ms at first, {last:.1f} ms at last")
    if minutes < JUDGED_MINUTES:
        print(f"under {JUDGED_MINUTES:.0f} minutes memory and latency are not judged")
    print(f"FAILED: {'; '.join(verdict.failed)}" if verdict.failed else "passed")


def _draw(found: Found) -> None:
    minutes = [n + 1.0 for n in range(len(found.windows))]
    late = [(name.replace("_", "."), minutes, [window[name] for window in found.windows]) for name in ("p50", "p99")]
    plots.save("soak-latency", "Lateness by the minute", {"xlabel": "minute", "ylabel": "ms", "yscale": "log"}, late)
    memory = [(name, [at / 60 for at, _ in some], [mb for _, mb in some]) for name, some in found.memory.items()]
    axes = {"xlabel": "minute", "ylabel": "MB resident", "ylim": (0, None)}
    plots.save("soak-memory", "Memory under load", axes, memory)


def main(given: Sequence[str] | None = None) -> int:
    """Run it, and say what it showed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description="Load for a long time, and look.")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long; 1 to try it")
    parser.add_argument("--rate", type=float, default=2000.0, help="events a second")
    parser.add_argument("--json", action="store_true", help="for machines; progress goes to stderr")
    arguments = parser.parse_args(given)
    around = surroundings()
    soak = Soak(arguments.minutes, arguments.rate, say=lambda line: print(line, file=sys.stderr, flush=True))
    try:
        found = anyio.run(soak.run, backend_options={"use_uvloop": True})
    except (Exception, BaseExceptionGroup) as error:
        if (why := why_invalid(error)) is None:
            raise
        print(f"no verdict, the run is not valid: {why}", file=sys.stderr)
        return 2
    verdict = judge(found, minutes=arguments.minutes)
    if arguments.json:
        run = {"minutes": arguments.minutes, "rate": arguments.rate, "passed": not verdict.failed}
        print(json.dumps({**around, **run, **asdict(found), "verdict": asdict(verdict)}, indent=2))
    else:
        _print(found, verdict, minutes=arguments.minutes)
    if arguments.minutes >= PICTURED_MINUTES:
        _draw(found)
    return int(bool(verdict.failed))


if __name__ == "__main__":
    sys.exit(main())
