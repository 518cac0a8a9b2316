"""An application beside an agent: it sends, and sends the same again until it is told 202.

An id says everything that the count needs: `<adapter>-<worker>-<key>-<number>`, where the numbers of a key rise by one
and a worker sends nothing of a key before everything earlier of it has its 202.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import msgspec

WORKERS = 8  # each sends its next request once the last one was answered
KEYS = 32  # of each worker
BATCH = 10  # events; every third request is a batch, so that a request has 4 events on average
MEAN = (2 + BATCH) / 3
ANSWER_S = 15.0  # above the agent's `give_up_s`; then an adapter sends the same again
AGAIN_S = 0.1
BEHIND_S = 2.0  # of its pace; what an outage cost beyond that is not made up for
CLEAR = "@clear.example"  # in what no masked copy may show


class Adapter:
    """Sends to one agent."""

    def __init__(self, *, name: str, source: str, type: str, socket: str, token: str, log: str, per_s: float) -> None:
        self._name, self._source, self._type = name, source, type
        self._socket, self._token = socket, token
        self._pause_s = MEAN * WORKERS / per_s
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._answers = Path(log).with_suffix(".answers")
        self._counted: Counter[str] = Counter()
        self._running = True

    async def run(self) -> None:
        """Send until SIGTERM, and then until the last request has its 202."""
        headers = {"Authorization": f"Bearer {self._token}"}
        connector = aiohttp.UnixConnector(self._socket, limit=0)
        timeout = aiohttp.ClientTimeout(total=ANSWER_S)
        async with (
            aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as http,
            anyio.create_task_group() as group,
        ):
            for worker in range(WORKERS):
                group.start_soon(self._work, http, worker)
            with anyio.open_signal_receiver(signal.SIGTERM) as signals:
                await anext(aiter(signals))
            self._running = False
        self._answers.write_bytes(msgspec.json.encode(self._counted))

    async def _work(self, http: aiohttp.ClientSession, worker: int) -> None:
        events = self._events(worker)
        due = time.monotonic()
        for number in itertools.count(worker):
            if not self._running:
                return
            due = max(due + self._pause_s, time.monotonic() - BEHIND_S)
            await self._until_accepted(http, [next(events) for _ in range(1 if number % 3 else BATCH)])
            await anyio.sleep(max(0.0, due - time.monotonic()))

    def _events(self, worker: int) -> Iterator[dict[str, Any]]:
        """Key after key, but each third event is of the key before: batches have several of one key."""
        numbers: Counter[int] = Counter()
        for step in itertools.count():
            key = (step // 3 * 2 + min(step % 3, 1)) % KEYS
            numbers[key] += 1
            event_id = f"{self._name}-{worker}-{key}-{numbers[key]}"
            yield {
                "specversion": "1.0",
                "id": event_id,
                "source": self._source,
                "type": self._type,
                "partitionkey": f"{self._name}-{worker}-{key}",
                "data": {"id": event_id, "email": f"{event_id}{CLEAR}"},
            }

    async def _until_accepted(self, http: aiohttp.ClientSession, events: list[dict[str, Any]]) -> None:
        single = len(events) == 1
        kind = "application/cloudevents+json" if single else "application/cloudevents-batch+json"
        while True:
            receipts = await self._answer(http, msgspec.json.encode(events[0] if single else events), kind)
            if receipts is not None:
                break
            await anyio.sleep(AGAIN_S)
        os.write(self._log, b"".join(_line(receipt) for receipt in receipts))

    async def _answer(self, http: aiohttp.ClientSession, body: bytes, kind: str) -> list[dict[str, Any]] | None:
        """The receipts of a 202; None where the same has to be sent again."""
        try:
            async with http.post("http://localhost/v1/events", data=body, headers={"Content-Type": kind}) as response:
                answer = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._counted[f"unanswered {type(error).__name__}"] += 1
            return None
        if response.status == 202:
            self._counted["202"] += 1
            return list(answer["events"]) if "events" in answer else [answer]
        self._count(response.status, answer)
        return None

    def _count(self, status: int, answer: dict[str, Any]) -> None:
        """Count what was no 202; the first of each kind is written out, for whoever wonders."""
        name = f"{status} {answer.get('code')}"
        self._counted[name] += 1
        if self._counted[name] == 1:
            print(name, answer, file=sys.stderr, flush=True)


def _line(receipt: dict[str, Any]) -> bytes:
    """A receipt as it is noted: `<id> <stream or spool> <view>=<stream>:<sequence> ...`."""
    copies = [f"{copy['view']}={copy['stream']}:{copy['seq']}" for copy in receipt["copies"]]
    return " ".join([receipt["id"], receipt["durable"], *copies]).encode() + b"\n"


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser()
    for name in ("name", "source", "type", "socket", "token-file", "log"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--per-s", type=float, required=True)
    given = parser.parse_args()
    adapter = Adapter(
        name=given.name,
        source=given.source,
        type=given.type,
        socket=given.socket,
        token=Path(given.token_file).read_text().strip(),
        log=given.log,
        per_s=given.per_s,
    )
    anyio.run(adapter.run)
