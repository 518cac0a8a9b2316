"""The load on a door, in its own process (`python -m benchmarks.http_load`): a job a line in, its outcome a line out.

It is lean, because it shares the machine with what it measures: requests are bytes made beforehand, a connection is one
protocol, and of an answer it reads no more than status, length, and how many events are durable in the stream.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from random import Random
from subprocess import PIPE
from typing import Literal

import msgspec
import nats
import uvloop

from benchmarks.machine import ROOT
from benchmarks.meshes import event
from benchmarks.validity import InvalidRun

_ACCEPTED = b"HTTP/1.1 202 "
_LENGTH = b"content-length: "
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
        connections: How many are kept open.
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

    `latencies_s` is by request, from the moment it was meant to begin.
    """

    took_s: float
    latencies_s: list[float]


class _Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self, answered: Callable[[_Connection, bytes], None]) -> None:
        self._answered = answered
        self._buffer = b""
        self._end = 0
        self.intended_s = 0.0
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's own class is no subclass of it

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer = self._buffer + data
        if not self._end:
            head = buffer.find(b"\r\n\r\n")
            if head < 0:
                return
            start = buffer.lower().index(_LENGTH) + len(_LENGTH)
            self._end = head + 4 + int(buffer[start : buffer.index(b"\r", start)])
        if len(buffer) >= self._end:
            self._buffer, self._end = b"", 0
            self._answered(self, buffer)


class _Load:
    """Requests that are ready, the connections they go over, and what is still to come."""

    def __init__(self, job: Job) -> None:
        self._durable = job.size or 1
        self._requests = _requests(job)
        self._left = -(-job.events // self._durable)
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.latencies_s: list[float] = []

    def answered(self, connection: _Connection, answer: bytes) -> None:
        """Count one answer. Anything but 202 and all of it durable ends the job."""
        self.latencies_s.append(time.perf_counter() - connection.intended_s)
        if not answer.startswith(_ACCEPTED) or answer.count(_DURABLE) != self._durable:
            self._fail(InvalidRun(f"not accepted, or not in the stream: {answer[:2000].decode(errors='replace')}"))
            return
        self._left -= 1
        if not self._left and not self._done.done():
            self._done.set_result(None)

    def _fail(self, error: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(error)

    def send(self, connection: _Connection, intended_s: float) -> bool:
        """Send the next request over a connection that is free; False where there is none."""
        request = next(self._requests, None)
        if request is None:
            return False
        connection.intended_s = intended_s
        connection.transport.write(request)
        return True

    async def wait(self) -> None:
        """Until every request has its answer.

        Raises:
            InvalidRun: An event was not accepted.
        """
        await self._done


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


@asynccontextmanager
async def _connected(job: Job, load: _Load) -> AsyncIterator[list[_Connection]]:
    loop = asyncio.get_running_loop()
    connections = []
    for _ in range(job.connections):
        if job.url.startswith("unix:"):
            made = await loop.create_unix_connection(lambda: _Connection(load.answered), job.url.removeprefix("unix:"))
        else:
            host, _, port = job.url.removeprefix("http://").rpartition(":")
            made = await loop.create_connection(lambda: _Connection(load.answered), host, int(port))
            made[0].get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connections.append(made[1])
    try:
        yield connections
    finally:
        for connection in connections:
            connection.transport.close()


async def closed(job: Job) -> Outcome:
    """As fast as the door answers."""

    class Closed(_Load):
        def answered(self, connection: _Connection, answer: bytes) -> None:
            super().answered(connection, answer)
            self.send(connection, time.perf_counter())

    load = Closed(job)
    async with _connected(job, load) as connections:
        began = time.perf_counter()
        for connection in connections:
            load.send(connection, began)
        await load.wait()
        return Outcome(time.perf_counter() - began, load.latencies_s)


async def opened(job: Job) -> Outcome:
    """As fast as *job* says, over whichever connection is free; a request that finds none waits, and that counts."""
    free: deque[_Connection] = deque()
    late: deque[float] = deque()

    class Open(_Load):
        def answered(self, connection: _Connection, answer: bytes) -> None:
            if connection in free:  # 408: it was not needed for so long that the door gave it up
                free.remove(connection)
                return
            super().answered(connection, answer)
            if late:
                self.send(connection, late.popleft())
            else:
                free.append(connection)

    load = Open(job)
    async with _connected(job, load) as connections:
        free.extend(connections)
        began = time.perf_counter()
        async for intended_s in _moments(job):
            if free:
                load.send(free.pop(), intended_s)  # the one used last, as pools of connections do
            else:
                late.append(intended_s)
        async with asyncio.timeout(_LATE_S):
            await load.wait()
        return Outcome(time.perf_counter() - began, load.latencies_s)


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
        return Outcome(time.perf_counter() - began, latencies_s)
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
