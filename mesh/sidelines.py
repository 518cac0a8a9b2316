"""What somebody asked to have again, beside what is live: a replay of the stream, and dead letters that are redriven.

The control plane makes a second durable for each and says so in a notice, every `REPEATED_S` while the run is open.
Each replica that hears it pulls from there too; silence ends that. Events of a run carry its id (`Received.replay`,
`Received.redrive`), pass every check that live ones pass, and are settled with their own durable.

The replays of a subscription follow each other on durables of one name. Which of them an event belongs to is a matter
of order, not of time: a run is announced, with nothing to pull, before its durables are made, and what comes over one
connection comes in order; so it is the run that was heard of last. Whoever lost the connection may have missed one: it
knows of none, and pulls nothing, until it hears again. (Between servers of a cluster a notice takes one hop and a new
durable a vote; a notice that is lost there, and only there, is made good by the next, `REPEATED_S` later.)
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

import anyio
import msgspec

from mesh import logs
from mesh.jetstream.durables import REDRIVE, REDRIVE_STREAM, REPLAY
from mesh.redriven import unwrap
from mesh.watch import NOTICE_SUBJECT

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.jetstream.connection import Connection
    from mesh.pullers import Place
    from mesh.signing import Received

REPEATED_S = 2.0
OVER_S = 3.5 * REPEATED_S  # three notices may be lost
LOOK_S = 0.5
PAST = 16  # replays that others followed: what somebody says of them still, late, is not heard

log = logs.get("sidelines")


class Notice(msgspec.Struct):
    """What the control plane says of a run.

    Attributes:
        to: By stream, the last sequence that belongs to it.
        stream: Where there is something to pull.
    """

    kind: str = ""
    team: str = ""
    subscription: str = ""
    run: str = ""
    to: dict[str, int] = {}
    stream: list[str] = []


class Sidelines:
    """The runs of one subscription; `run` has to run.

    Args:
        connection: The team's.
        team: Whose subscription.
        subscription: Its name.
        on_change: Called when `places` is another than before.
    """

    def __init__(self, connection: Connection, team: str, subscription: str, on_change: Callable[[], None]) -> None:
        self._connection = connection
        self._names = team, subscription
        self._durable = f"{team}--{subscription}"
        self._on_change = on_change
        self._known: dict[str, Notice] = {}  # by kind, what was said last over this connection
        self._heard_at: dict[str, float] = {}  # by kind, those that are open
        self._past: deque[str] = deque(maxlen=PAST)
        self._places: dict[str, list[Place]] = {}

    @property
    def replays(self) -> list[Place]:
        """Where a replay is to be pulled from."""
        return self._places.get(REPLAY, [])

    @property
    def redrives(self) -> list[Place]:
        """Where a redrive is to be pulled from."""
        return self._places.get(REDRIVE, [])

    def opened(self, received: Received) -> Received | None:
        """The event that a run's durable brought, marked with the run; None where it came after a replay's end.

        Raises:
            VerificationError: A message of a redrive carries none.
        """
        return unwrap(received) if received.stream == REDRIVE_STREAM else self.replayed(received)

    def replayed(self, received: Received) -> Received | None:
        """An event as it came from a replay's durable, marked; None where it came after the run had been asked for."""
        notice = self._known.get(REPLAY, Notice())
        if received.sequence > notice.to.get(received.stream, received.sequence):
            return None
        return msgspec.structs.replace(received, replay=notice.run or "ended")

    async def run(self) -> None:
        """Listen until cancelled."""
        listener = self._connection.listen(NOTICE_SUBJECT, self._noticed)
        undo = self._connection.on_disconnect(self._forget)
        try:
            while True:
                await anyio.sleep(LOOK_S)
                self._forget_the_over()
        finally:
            undo()
            listener.close()

    def _noticed(self, _subject: str, _reply: str, _headers: bytes | None, data: bytes) -> None:
        try:
            notice = msgspec.json.decode(data, type=Notice)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return  # of another kind: it may be anything
        if notice.kind not in {REPLAY, REDRIVE} or (notice.team, notice.subscription) != self._names:
            return
        before = self._known.get(notice.kind, Notice())
        if before.run != notice.run:
            if notice.kind == REPLAY:
                if notice.run in self._past:
                    return
                self._past.append(before.run)
            log.info("run_joined", kind=notice.kind, run=notice.run, subscription=self._names[1])
        self._known[notice.kind] = notice
        self._heard_at[notice.kind] = time.monotonic()
        self._changed()

    def _forget(self) -> None:
        """Who can hear nothing knows nothing."""
        self._known.clear()
        self._heard_at.clear()
        self._changed()

    def _forget_the_over(self) -> None:
        """Pull no more for a run that nobody speaks of; what still arrives is marked with it."""
        for kind, at in tuple(self._heard_at.items()):
            if time.monotonic() - at > OVER_S:
                del self._heard_at[kind]
                log.info("run_over", kind=kind, run=self._known[kind].run, subscription=self._names[1])
        self._changed()

    def _changed(self) -> None:
        places = {
            kind: [
                (stream, f"{self._durable}--{kind}")
                for stream in self._known[kind].stream
                if (stream == REDRIVE_STREAM) == (kind == REDRIVE)
            ]
            for kind in self._heard_at
        }
        if places != self._places:
            self._places = places
            self._on_change()
