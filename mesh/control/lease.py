"""Who leads: of the replicas of a control plane one at a time, by a record in JetStream that it renews.

    lease    {"holder": "cp-1", "term": 1790000000000, "released": false}       in the bucket `mesh_control`

The leader writes the record every 3 s, each time over the revision it wrote last. Whoever waits takes it over the
revision that has not changed for 10 s, or at once where it says that it was released. The leader counts itself as one
for 7 s from when it began the last write that was confirmed. So there are 3 s in which nobody leads, and never two, as
long as the servers keep what they have confirmed. Where they come back with an older store, two may count themselves as
leaders: each looks whose record stands before it renews it, and the one with the lower term ends, after a renewal or
two.

Each counts with a clock of its own that no one sets and that goes on while the process or the machine is stopped: what
the wall clocks say decides nothing here. But a leader whose wall clock is wrong would issue trust statements that
nobody believes, so whoever finds its clock far from the server's leaves the lead to others.

The term is a number that rises with each leader, and follows the clock: no two leaders have the same one, also where
the second does not find the first one's record. Account JWTs and the state carry it: see `accounts_push` and `vault`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import anyio
import msgspec

from mesh import logs
from mesh.errors import Deposed, RequestFailed, Unavailable
from mesh.jetstream.store import WRONG_LAST_SEQUENCE
from mesh.telemetry import gauge

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mesh.jetstream.store import Entry, KeyValue

KEY = "lease"
TTL_S = 10.0  # of a record that nobody renews
HOLD_S = 7.0  # from the start of the last renewal; the rest of the TTL is for two clocks that do not run alike
RENEW_S = 3.0  # so that one renewal may fail
AGAIN_S = 0.5  # after a renewal that nobody answered
LOOK_S = 1.0  # between two looks of a replica that waits
MAX_SKEW_S = 20.0  # of our wall clock from the server's; a statement of 60 s ago is stale, and agents may be off too

_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # the former counts a suspended machine's sleep

LEADS = gauge("mesh.control.leads", unit="{replica}", watch="0 on every replica for more than 15 s: nobody leads")

LEADS.at()  # a replica that waits says so

log = logs.get("control")


def uptime_s() -> float:
    """Seconds on a clock that nobody sets, and that goes on while the process or the machine is stopped."""
    return time.clock_gettime(_CLOCK)


class Record(msgspec.Struct, frozen=True):
    """What stands under `lease`: who leads or led last, in which term, and whether it gave the lead back."""

    holder: str
    term: int
    released: bool = False


class _Written(NamedTuple):
    """A record that is stored: its revision, when the write began (seconds of `uptime_s`), how far our clock is off."""

    revision: int
    began_s: float
    skew_s: float


class Lease:
    """Our part in the lease.

    Args:
        store: The bucket, over a connection that may write at any time.
        holder: Our name, for people.
        uptime: See `uptime_s`.
        wall: Unix seconds.
    """

    def __init__(
        self,
        store: KeyValue,
        holder: str,
        *,
        uptime: Callable[[], float] = uptime_s,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._uptime = uptime
        self._wall = wall
        self.holder = holder
        self.term = 0
        self._revision = 0
        self._until_s = -1.0
        self._seen = (-1, 0.0)  # a revision, and since when we know it
        self._doubted = False  # that record is older than one that we saw: whoever wrote that one may lead

    def valid(self) -> bool:
        """Whether we lead, as far as our clock can say without asking anybody."""
        return self._uptime() < self._until_s

    def guard(self, term: int) -> None:
        """Nothing, while we lead in *term*.

        Raises:
            Deposed: We do not, or cannot know.
        """
        if term != self.term or not self.valid():
            raise Deposed(
                "this replica does not lead",
                expected=f"a lease renewed within {HOLD_S:.0f} s",
                got=f"what was begun in term {term}",
                next="ask again: another replica leads, or will within 15 s",
            )

    # --- waiting -----------------------------------------------------------------------------------------------------

    async def acquire(self, meanwhile: Callable[[], Awaitable[object]]) -> int:
        """Wait until we lead; returns the term.

        Args:
            meanwhile: Called at each look while another one leads.
        """
        said = ""
        while True:
            try:
                if await self._try():
                    LEADS.set(1)
                    return self.term
                await meanwhile()
                said = ""
            except (RequestFailed, Unavailable) as error:
                if error.details.get("err_code") != WRONG_LAST_SEQUENCE and error.code != said:
                    said = error.code  # each second is too often
                    log.warning("lease_not_read", code=error.code, error=error.message, next=error.next)
            await anyio.sleep(LOOK_S)

    async def _try(self) -> bool:
        entry = await self._store.get(KEY)
        revision = 0 if entry is None else entry.revision
        if self._seen[0] != revision:
            self._doubted = revision < self._seen[0]
            self._seen = (revision, self._uptime())
        held = None if entry is None else read_record(entry)
        free = (held is None or held.released) and not self._doubted
        if not free and self._uptime() - self._seen[1] < TTL_S:
            return False
        term = max(int(self._wall() * 1000), self.term + 1, 0 if held is None else held.term + 1)
        written = await self._write(Record(self.holder, term), revision)
        self._revision = written.revision
        if abs(written.skew_s) > MAX_SKEW_S:
            log.error("clock_wrong", skew_s=round(written.skew_s, 1), limit_s=MAX_SKEW_S, next="set this host's clock")
            await self._write(Record(self.holder, term, released=True), self._revision)
            await anyio.sleep(TTL_S)  # others first
            return False
        self.term, self._until_s = term, written.began_s + HOLD_S
        log.info("lead_taken", replica=self.holder, term=term, after=None if held is None else held.holder)
        return self.valid()

    async def _write(self, record: Record, expected: int) -> _Written:
        began_s, wall_s = self._uptime(), self._wall()
        revision = await self._store.put(KEY, msgspec.json.encode(record), expected)
        return _Written(revision, began_s, await self._skew_s(revision, wall_s, self._wall()))

    async def _skew_s(self, revision: int, began_s: float, ended_s: float) -> float:
        """How far our wall clock is ahead of the server's, which stamped a record that we wrote in between.

        A replica that does not have it yet, or does not answer, says nothing: it is asked again at the next renewal.
        """
        try:
            stored = await self._store.get(KEY)
        except Unavailable:
            return 0.0
        if stored is None or stored.revision != revision:
            return 0.0
        at_s = stored.at_ms / 1000
        return began_s - at_s if at_s < began_s else min(0.0, ended_s - at_s)

    # --- leading -----------------------------------------------------------------------------------------------------

    async def hold(self) -> None:
        """Renew the lease until it is lost.

        Raises:
            Deposed: Another one has it, we could not renew it in time, or our clock went wrong.
        """
        pause_s = RENEW_S
        while True:
            await anyio.sleep(pause_s)
            self.guard(self.term)
            pause_s = AGAIN_S
            with anyio.move_on_after(self._until_s - self._uptime()):
                try:
                    written = await self._renew()
                except Unavailable as error:
                    if isinstance(error, Deposed):
                        raise
                    log.warning("lease_not_renewed", term=self.term, code=error.code, error=error.message)
                    continue
                self._take_note(written)
                pause_s = RENEW_S

    def _take_note(self, written: _Written) -> None:
        self._revision = written.revision
        if abs(written.skew_s) > MAX_SKEW_S:
            raise Deposed(
                "our clock is wrong, and the lead is given back",
                expected=f"within {MAX_SKEW_S:.0f} s of the server's",
                got=f"{written.skew_s:.1f} s",
                next="set this host's clock",
            )
        self._until_s = written.began_s + HOLD_S

    async def _renew(self) -> _Written:
        """Write our record over our own, or over an older one that the servers came back with.

        A revision says nothing of whose record it is: servers with an older store count again from there.
        """
        try:
            record, found = Record(self.holder, self.term), await self._found()
            try:
                return await self._write(record, self._revision)
            except RequestFailed as error:
                if error.details.get("err_code") != WRONG_LAST_SEQUENCE:
                    raise
            return await self._write(record, found)  # also over a write of ours of which we got no answer
        except RequestFailed as error:
            raise Unavailable(f"the lease was refused: {error.message}") from error

    async def _found(self) -> int:
        """The revision of the record that stands, 0 where none does. Raises Deposed where it is another leader's."""
        entry = await self._store.get(KEY)
        if entry is None:
            log.error("lease_put_back", term=self.term, found="nothing")
            return 0
        found = read_record(entry)
        if found.term < self.term:
            log.error("lease_put_back", term=self.term, found=found.term)
        elif found != Record(self.holder, self.term):
            self._until_s = -1.0
            raise Deposed("another replica leads", expected=f"term {self.term}", next="nothing: this one waits")
        return entry.revision

    async def release(self) -> None:
        """Give the lead back, so that another one takes it at once. What fails is logged: then it takes 10 s."""
        LEADS.set(0)
        had, self._until_s = self._until_s, -1.0
        if had < 0:
            return
        try:
            await self._store.put(
                KEY, msgspec.json.encode(Record(self.holder, self.term, released=True)), self._revision
            )
            log.info("lead_released", replica=self.holder, term=self.term)
        except (RequestFailed, Unavailable) as error:
            log.warning("lead_not_released", term=self.term, code=error.code)


def read_record(entry: Entry) -> Record:
    """What stands under `lease`.

    Raises:
        RequestFailed: It is no record.
    """
    try:
        return msgspec.json.decode(entry.value, type=Record)
    except msgspec.MsgspecError as error:
        raise RequestFailed(
            "what stands under `lease` is no record", err_code=0, got=f"{len(entry.value)} bytes"
        ) from error
