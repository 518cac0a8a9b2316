"""The load on a door, in its own process (`python -m benchmarks.http_load`): a job a line in, its outcome a line out.

It is lean, because it shares the machine with what it measures: requests are bytes made beforehand, a connection is one
protocol (`http_pool`), and of an answer it reads no more than status, length, and how many events are durable in the
stream.
"""

from __future__ import annotations

import asyncio
import selectors
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from random import Random
from subprocess import PIPE
from typing import Literal

import msgspec
import nats
import uvloop

from benchmarks.http_pool import Exchange, Pool
from benchmarks.machine import ROOT
from benchmarks.meshes import event
from benchmarks.validity import InvalidRun

_ACCEPTED = b"HTTP/1.1 202 "
_DURABLE = b'"durable":"stream"'
_LATE_S = 60.0  # for the last answer, once all is sent


class Job(msgspec.Struct, kw_only=True, frozen=True):
    """What to send.

    Args:
        how: `closed`: each connection sends its next request when it has the answer to the last one. `open`: requests
            begin at moments chosen before, whatever became of earlier ones. `publish`: the same by nats-py, without an
            agent.
        run: The events are `<run>-<number>`.
        events: How many, over all.
        url: Of the door; `unix:` and a path for a socket. For `publish` that of NATS.
        secret: The door's token; for `publish` the file of the agent's credentials.
        connections: How many are open at most; `closed` has that many requests under way.
        size: Events in a request; 0 for one event by itself, not in a batch.
        per_s: Requests a second, for `open` and `publish`.
        subject: For `publish`.
        body: For `publish`: the bytes of every message.
    """

    how: Literal["closed", "open", "publish"]
    run: str
    events: int
    url: str
    secret: str
    connections: int = 1
    size: int = 0
    per_s: float = 0.0
    subject: str = ""
    body: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """What came of it: everything was accepted and is durable in the stream, or there is no outcome.

    `latencies_s` is by request, from the moment it was meant to begin. `repeated` are requests that went out again on
    another connection (see `http_pool`): the time until then counts too.
    """

    took_s: float
    latencies_s: list[float]
    repeated: int


class _Load:
    """Requests that are ready, the pool they go through, and what is still to come of them."""

    def __init__(self, job: Job) -> None:
        self._durable = job.size or 1
        self._requests = _requests(job)
        self._left = -(-job.events // self._durable)
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.latencies_s: list[float] = []
        self.pool = Pool(job.url, limit=job.connections, answered=self.answered, failed=self._fail)

    def answered(self, exchange: Exchange, answer: bytes) -> None:
        """Count one answer. Anything but 202 and all of it durable ends the job."""
        self.latencies_s.append(time.perf_counter() - exchange.intended_s)
        if not answer.startswith(_ACCEPTED) or answer.count(_DURABLE) != self._durable:
            self._fail(InvalidRun(f"not accepted, or not in the stream: {answer[:2000].decode(errors='replace')}"))
            return
        self._left -= 1
        if not self._left and not self._done.done():
            self._done.set_result(None)

    def send(self, intended_s: float) -> None:
        """Send the next request, if there is one."""
        if request := next(self._requests, None):
            self.pool.send(Exchange(request, intended_s))

    async def outcome(self, began_s: float) -> Outcome:
        """What came of it, once every request has its answer.

        Raises:
            InvalidRun: An event was not accepted.
        """
        await self._done
        return Outcome(time.perf_counter() - began_s, self.latencies_s, self.pool.repeated)

    def _fail(self, error: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(error)


def _requests(job: Job) -> Iterator[bytes]:
    """The requests of *job*, made now."""
    made = []
    kind = "-batch" if job.size else ""
    host = "localhost" if job.url.startswith("unix:") else job.url.removeprefix("http://")
    head = (
        f"POST /v1/events HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {job.secret}\r\n"
        f"Content-Type: application/cloudevents{kind}+json\r\nContent-Length: %d\r\n\r\n"
    )
    for start in range(0, job.events, job.size or 1):
        events = [event(number, job.run) for number in range(start, start + (job.size or 1))]
        body = b"[" + b",".join(events) + b"]" if job.size else events[0]
        made.append((head % len(body)).encode() + body)
    return iter(made)


async def closed(job: Job) -> Outcome:
    """As fast as the door answers."""

    class Closed(_Load):
        def answered(self, exchange: Exchange, answer: bytes) -> None:
            super().answered(exchange, answer)
            self.send(time.perf_counter())

    load = Closed(job)
    async with load.pool as pool:
        await pool.fill()
        began_s = time.perf_counter()
        for _ in range(job.connections):
            load.send(began_s)
        return await load.outcome(began_s)


async def opened(job: Job) -> Outcome:
    """As fast as *job* says; a request that finds no free connection waits for one, and that counts."""
    load = _Load(job)
    async with load.pool:
        began_s = time.perf_counter()
        async for intended_s in _moments(job):
            load.send(intended_s)
        async with asyncio.timeout(_LATE_S):
            return await load.outcome(began_s)


async def publish(job: Job) -> Outcome:
    """The same moments, and a nats-py `publish` at each: one message, its acknowledgement awaited."""
    client = await nats.connect(job.url, user_credentials=job.secret, inbox_prefix=b"_INBOX_shop")
    js, body, latencies_s = client.jetstream(), job.body.encode(), []

    async def one(intended_s: float) -> None:
        await js.publish(job.subject, body, timeout=_LATE_S)
        latencies_s.append(time.perf_counter() - intended_s)

    try:
        await client.flush()
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            async for intended_s in _moments(job):
                group.create_task(one(intended_s))
        return Outcome(time.perf_counter() - began, latencies_s, 0)
    finally:
        await client.close()


async def _moments(job: Job) -> AsyncIterator[float]:
    """When each request is meant to begin, once it is then: as independent senders would, with the same mean rate."""
    chance = Random(1)
    at = time.perf_counter() + 0.05
    for _ in range(job.events):
        at += chance.expovariate(job.per_s)
        while (left := at - time.perf_counter()) > 0:
            await asyncio.sleep(left)
        yield at


HOW = {"closed": closed, "open": opened, "publish": publish}


def _loop(job: Job) -> asyncio.AbstractEventLoop:
    """The fastest loop; where moments count `select`, which alone waits in microseconds, not milliseconds."""
    return uvloop.new_event_loop() if job.how == "closed" else asyncio.SelectorEventLoop(selectors.SelectSelector())


def main() -> None:
    """Entry point of the process."""
    for line in sys.stdin:
        job = msgspec.json.decode(line, type=Job)
        with asyncio.Runner(loop_factory=lambda job=job: _loop(job)) as runner:  # type: ignore[misc]
            outcome = runner.run(HOW[job.how](job))
        sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")
        sys.stdout.buffer.flush()


class Generator:
    """The process, from the other side."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def run(self, job: Job) -> Outcome:
        """Do *job*.

        Raises:
            InvalidRun: An event was not accepted.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(msgspec.json.encode(job) + b"\n")
        await stdin.drain()
        line = await stdout.readline()
        if not line:
            raise InvalidRun("the load ended: what it said is above")
        return msgspec.json.decode(line, type=Outcome)


@asynccontextmanager
async def generator() -> AsyncIterator[Generator]:
    """A process for the length of the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.http_load", cwd=ROOT, stdin=PIPE, stdout=PIPE, limit=64 << 20
    )
    try:
        yield Generator(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


if __name__ == "__main__":
    main()
