"""Publishers whose seal, clock and end of each event a test has in its hands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from mesh.control.nats_server import plain_config
from mesh.errors import MeshError
from mesh.jetstream.connection import Connection
from mesh.jetstream.publisher import Outgoing, PubAck, Publisher
from tests.contract.streams import until

SUBJECT = "ev.local.clear.s00.crm.contact.v1"
OTHER = "ev.local.clear.s00.crm.order.v1"
START_MS = 1_795_300_000_000


class Desk:
    """A publisher with a fake seal, a clock of its own, and a record of how each event ended."""

    def __init__(self, connection: Connection, **options: Any) -> None:
        self.now_ms = START_MS
        self.batches = 0
        self.kid = "k1"
        self.made = 0
        self.results: dict[Outgoing, PubAck | MeshError] = {}
        self.order: list[Outgoing] = []
        self.publisher = Publisher(
            connection,
            seal=self._seal,
            message_id=lambda item: f"{item.event_id}.{item.generation}",
            clock_ms=lambda: self.now_ms,
            **options,
        )

    def _seal(self, items: Sequence[tuple[str, str, bytes]]) -> list[str]:
        self.batches += 1
        return [f"1.{self.kid}.{self.now_ms}.{self.batches}.{i}" for i in range(len(items))]

    def event(self, subject: str = SUBJECT, event_id: str = "", **fields: Any) -> Outgoing:
        """The next event; its body is its number."""
        self.made += 1
        return Outgoing(
            subject=subject,
            stream=f"EV_local_{subject.split('.')[4]}",
            body=fields.pop("body", b"%d" % self.made),
            source="/crm",
            event_id=event_id or str(self.made),
            on_done=self._done,
            **fields,
        )

    def _done(self, item: Outgoing, result: PubAck | MeshError) -> None:
        assert item not in self.results, "an event is done once"
        self.results[item] = result
        self.order.append(item)

    def submit(self, count: int = 1, subject: str = SUBJECT) -> list[Outgoing]:
        """One batch."""
        items = [self.event(subject) for _ in range(count)]
        self.publisher.submit(items)
        return items

    async def finished(self, *items: Outgoing) -> list[PubAck | MeshError]:
        """How they ended, once they have."""
        await until(lambda: all(item in self.results for item in items))
        return [self.results[item] for item in items]


@asynccontextmanager
async def desk_at(url: str, **options: Any) -> AsyncIterator[Desk]:
    """A desk with its own connection and running publisher."""
    connection = await Connection.open(url, name="crm-adapter")
    desk = Desk(connection, **options)
    running = asyncio.create_task(desk.publisher.run())
    try:
        yield desk
    finally:
        running.cancel()
        await asyncio.wait([running])
        desk.publisher.close()
        await connection.close()
        assert desk.publisher.in_flight == 0


def give_up_after(desk: Desk, seconds: float) -> None:
    """Events that are submitted from now on are given up after so long."""
    sends = desk.publisher._sending
    sends.rules = sends.rules._replace(give_up_s=seconds)
    for lane in sends.lanes.values():
        lane._rules = sends.rules


@contextmanager
def vanishing(desk: Desk) -> Iterator[None]:
    """What is written meanwhile is lost without a word, as by a server that forwards to a leader that has left."""
    write = desk.publisher._connection.write
    desk.publisher._connection.write = lambda frames: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        desk.publisher._connection.write = write  # type: ignore[method-assign]


def pass_time(desk: Desk, seconds: float) -> None:
    """Let the publisher believe that so much more time has passed, and do what is due."""
    now = desk.publisher._sending.now
    desk.publisher._sending.now = lambda: now() + seconds
    desk.publisher._sending._wake.set()


@contextmanager
def stopped(desk: Desk, at: float | None = None) -> Iterator[None]:
    """The publisher's time stands still."""
    now = desk.publisher._sending.now
    moment = now() if at is None else at
    desk.publisher._sending.now = lambda: moment
    try:
        yield
    finally:
        desk.publisher._sending.now = now


async def under_load(desk: Desk, stop: asyncio.Event) -> list[Outgoing]:
    """Batches of 64, as many as there is room for, until *stop*; all of them."""
    items: list[Outgoing] = []
    while not stop.is_set():
        await desk.publisher.wait_for_room(64)
        items += desk.submit(64)
        await asyncio.sleep(0.001)
    return items


async def more_acks(desk: Desk, count: int) -> None:
    """Wait until so many more have ended."""
    acked = len(desk.results)
    await until(lambda: len(desk.results) > acked + count)


def two_accounts(directory: Path) -> str:
    """An account with the streams, and one of a workload that may publish one of the two subjects."""
    return f"""{plain_config(directory / "store")}
        accounts {{
          MESH {{ jetstream: enabled, users: [ {{user: mesh, password: mesh}} ], exports: [ {{service: "ev.>"}} ] }}
          CRM {{
            users: [ {{user: crm, password: crm}} ]
            imports: [ {{service: {{account: MESH, subject: "{SUBJECT}"}} }} ]
          }}
        }}"""
