"""Numbers every copy that sets out, and marks in the audit trail how far it has counted, so that a missing one shows.

`stamp` is called where copies leave for their lanes or the spool, with no await in between: so along each stream the
numbers rise, and a request that is refused takes none. `duplicate` and `given_up` are told of the few copies that may
not stand under their number. A mark goes out soon after a number became void; else every minute in an epoch's first
hour, later more seldom: the audit trail keeps every record for good, and what is not marked yet shows all the same once
the next mark is there.

Nothing here waits for anybody: marks queue in the audit log, and without a key to sign them they wait for one.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

from agent.counting import Counting
from mesh import audit, logs, sequences
from mesh.base64url import b64u
from mesh.errors import MeshError
from mesh.marks import Mark
from mesh.sequences import CHANCE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.identity import Signer
    from mesh.jetstream.acks import PubAck
    from mesh.jetstream.outgoing import Outgoing

MARK_S = 60.0  # between marks, and how long a void number waits for one at most
MARK_SHARE = 1 / 60  # of the epoch's age: an hour's epoch is marked every minute, a day's every 15 minutes
MAX_MARK_S = 900.0  # 96 records of some 600 bytes a day
MAX_MARKS_AT_ONCE = 64  # a moment's work; the rest follows a `MARK_S` later, and all of it when the epoch ends
MAX_ENDED = 8  # epochs that were left because they were full, and have marks to come

log = logs.get("agent")


class Sequences:
    """What one agent process counts.

    Args:
        signer: Gives the event key; raises a `MeshError` where there is none.
        record: `AuditLog.write`.
        clock_ms: Unix milliseconds, the clock that events are signed by.
        waiting: How many copies the agent's spool holds.
        clock_s: Seconds that never go back.
        chance: Random bytes.
    """

    def __init__(
        self,
        signer: Callable[[], Signer],
        record: Callable[..., None],
        *,
        clock_ms: Callable[[], int],
        waiting: Callable[[], int] = lambda: 0,
        clock_s: Callable[[], float] = time.monotonic,
        chance: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._signer = signer
        self._record = record
        self._clock_ms = clock_ms
        self._waiting = waiting
        self._clock_s = clock_s
        self._chance = chance
        self._ended: list[_Epoch] = []
        self._now = self._begin()

    @property
    def epoch(self) -> str:
        """The epoch that is counted in."""
        return self._now.counting.epoch

    # --- told by others ----------------------------------------------------------------------------------------------

    def stamp(self, copies: list[Outgoing]) -> None:
        """Number *copies*, which have none, in the order they will be sent in; all have to be sent."""
        at = 0
        while at < len(copies):
            source, view = copies[at].source, copies[at].view
            if self._now.counting.full(source, view):
                self._turn()
            counter = self._now.counting.counter(source, view)
            first, at = at, sequences.numbered(copies, at, self._now.member, counter.last + 1)
            counter.last += at - first

    def duplicate(self, outgoing: Outgoing, ack: PubAck) -> None:
        """The stream said that it has the event of this copy already, as the message that *ack* names."""
        self._void(outgoing, ack.stream, ack.sequence)

    def given_up(self, outgoing: Outgoing) -> None:
        """This copy will not be sent any more, and its stream may lack it: refused, expired, given up."""
        self._void(outgoing, "", 0)

    def void(self, outgoing: Outgoing, ack: PubAck | None) -> None:
        """`duplicate` where there is an *ack*, else `given_up`."""
        self._void(outgoing, *(("", 0) if ack is None else (ack.stream, ack.sequence)))

    def _void(self, outgoing: Outgoing, stream: str, at: int) -> None:
        try:
            number = sequences.number_of(outgoing.body)
        except MeshError as error:
            log.error("number_not_read", code=error.code, id=outgoing.event_id)
            return
        if number is None:
            return  # made by a version that did not count
        view = outgoing.subject.split(".", 3)[2]
        event = sequences.event_name(outgoing.event_id) if stream else ""
        self._now.counting.void(number, outgoing.source, view, stream=stream, at=at, event=event)

    # --- marks -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Mark when marks are due, until cancelled."""
        while True:
            await asyncio.sleep(MARK_S)
            self.mark()

    def mark(self) -> None:
        """Write the marks that are due."""
        for epoch in (*self._ended, self._now):
            ended = epoch is not self._now
            if ended or self._due(epoch):
                self._write(epoch, ends=ended, limit=MAX_MARKS_AT_ONCE)
        self._ended = [epoch for epoch in self._ended if not epoch.over]

    def finish(self) -> None:
        """End the epoch: everything that was stamped is durable, here or in the stream, or was `given_up`.

        Call it once nothing is stamped any more, while the audit log still runs.
        """
        for epoch in (*self._ended, self._now):
            self._write(epoch, ends=True, limit=0)
        self._now = self._begin()  # whatever comes all the same is counted apart

    def _due(self, epoch: _Epoch) -> bool:
        if epoch.counting.voided:
            return True
        now_s = self._clock_s()
        pause_s = min(MAX_MARK_S, max(MARK_S, (now_s - epoch.began_s) * MARK_SHARE))
        return now_s - epoch.marked_s >= pause_s and epoch.counting.moved

    def _write(self, epoch: _Epoch, *, ends: bool, limit: int) -> None:
        """Write marks of *epoch*, at most *limit* of them (0: all); the last one says where it *ends*."""
        try:
            signer = self._signer()
        except MeshError:
            return  # not enrolled, or the certificate ended; what there is to say waits
        written = 0
        while not epoch.over and (not limit or written < limit):
            rows = epoch.counting.rows()
            last = ends and not epoch.counting.moved
            if not rows and not (last and epoch.index):
                epoch.over = epoch.over or last  # an epoch that counted nothing needs no mark
                return
            epoch.index += 1
            mark = Mark(
                epoch=epoch.counting.epoch,
                index=epoch.index,
                rows=tuple(rows),
                waiting=self._waiting(),
                ends=last,
                kid=signer.kid,
                signed_ms=self._clock_ms(),
            )
            signature = b64u(signer.sign(mark.signed(signer.spiffe_id)))
            self._record(audit.SEQUENCE_MARK, **mark.facts(), signature=signature)
            epoch.marked_s = self._clock_s()
            epoch.over = last
            written += 1

    # --- epochs ------------------------------------------------------------------------------------------------------

    def _begin(self) -> _Epoch:
        name = sequences.new_epoch(self._clock_ms(), self._chance(CHANCE_BYTES))
        return _Epoch(Counting(name), self._clock_s())

    def _turn(self) -> None:
        """Begin another epoch, for this one counts too many sources."""
        self._ended.append(self._now)
        if len(self._ended) > MAX_ENDED:  # nobody could sign for a long time: what they counted stays without a mark
            del self._ended[0]
        self._now = self._begin()
        log.info("sequence_epoch_full", epoch=self.epoch)


class _Epoch:
    """An epoch of this process, and where its marks stand."""

    __slots__ = ("began_s", "counting", "index", "marked_s", "member", "over")

    def __init__(self, counting: Counting, now_s: float) -> None:
        self.counting = counting
        self.member = sequences.member_of(counting.epoch)
        self.began_s = now_s
        self.marked_s = now_s
        self.index = 0
        self.over = False
