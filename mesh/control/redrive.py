"""Letters on their way back to the subscriptions that buried them.

A copy of the letter goes to `redrive.<team>.<subscription>`; the subscription pulls it by a durable beside its own, of
which notices tell it for as long as there is something to pull. The letter stays in `DLQ` until that copy is settled:
handled, or buried anew as another letter. So whatever ends in between, an event is in `DLQ`, in `REDRIVE`, or in both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio
import msgspec

from mesh import logs, redriven
from mesh.control import stored_messages
from mesh.control.reconcile import now_ms
from mesh.control.redrive_lanes import Lanes
from mesh.deadletters import STREAM as DLQ
from mesh.deadletters import message_id
from mesh.errors import Disconnected, MeshError, StreamUnavailable, Unavailable, VerificationError
from mesh.jetstream.durables import REDRIVE_STREAM
from mesh.telemetry import counter, gauge

if TYPE_CHECKING:
    from mesh.control.deadletters import Letter
    from mesh.control.deadletters_judge import Judge
    from mesh.jetstream.connection import Connection
    from mesh.policy.grants import Grants, SubscriptionGrant
    from mesh.signing import Received

LOOK_S = 2.0  # between two looks at what was settled, and two notices
UNDER_WAY = "under-way"  # why a letter is not redriven: it is being so

REDRIVEN = counter("mesh.control.redriven", unit="{event}", watch="rising again and again: what fails was not mended")
UNSETTLED = gauge("mesh.control.redriving", unit="{event}", watch="never back to 0: nobody pulls that subscription")

log = logs.get("redrive")


class Refused(Exception):
    """A letter that cannot be redriven; `code` and a sentence say why."""

    def __init__(self, code: str, because: str) -> None:
        super().__init__(because)
        self.code = code
        self.because = because


class Redrives:
    """Of one tenant.

    Args:
        connection: The control plane's, in the tenant account.
        tenant: Its name.
        grants: Those in force.
        judge: Says whether a subscription would be handed an event now.
    """

    def __init__(self, connection: Connection, tenant: str, grants: Callable[[], Grants], judge: Judge) -> None:
        self._connection = connection
        self._tenant = tenant
        self._grants = grants
        self._judge = judge
        self._lanes = Lanes(connection, grants)
        self._lock = anyio.Lock()

    async def run(self) -> None:
        """Tell subscriptions what waits for them, and take what is settled out of `DLQ`, until cancelled."""
        while True:
            more = False
            try:
                async with self._lock:
                    more = await self._lanes.look()
                UNSETTLED.set(sum(len(lane.sent) for lane in self._lanes.by_owner.values()), tenant=self._tenant)
            except Disconnected:
                pass  # the connection says so itself
            except MeshError as error:
                log.warning("redrives_not_looked_at", code=error.code, error=str(error))
            await anyio.sleep(0 if more else LOOK_S)

    async def under_way(self) -> dict[int, str]:
        """The letters that are on their way: the run that sent each, by number.

        Raises:
            RequestFailed, Unavailable: NATS refused or did not answer.
        """
        async with self._lock:
            await self._lanes.begin()
            return {sent.letter: sent.run for lane in self._lanes.by_owner.values() for sent in lane.sent.values()}

    async def check(self, found: Letter) -> Received:
        """The delivery that a letter becomes.

        Raises:
            Refused: It cannot be redriven.
            Unavailable: It cannot be judged now.
        """
        if found.record is None:
            raise Refused("unreadable", "it is no dead letter")
        if not found.record.has_event:
            raise Refused("no-event", "the event is not in it: nobody vouched for it")
        self._grant(found)
        wrapped = redriven.wrap("check", found.number, found.body)
        there = stored_messages.Message(redriven.subject(found.team, found.subscription), 1, 0, None, wrapped)
        try:
            received = redriven.unwrap(there.received(REDRIVE_STREAM))
        except VerificationError as error:
            raise Refused(error.code, error.message) from error
        why = await self._judge.refused(received, team=found.team, subscription=found.subscription, now_ms=now_ms())
        if isinstance(why, MeshError):
            raise Refused(why.code, why.message)
        if why:
            raise Refused(why, "it would not be handed over: the policies of now withhold it, or its time is past")
        return received

    async def send(self, found: Letter, run: str) -> bool:
        """Send a letter; False where the same event is on its way in this run already, and it was one too many.

        Raises:
            Refused: See `check`; or it is on its way already.
            StreamUnavailable: `REDRIVE` is full.
            RequestFailed, Unavailable: NATS refused or did not answer; asking again is safe.
        """
        received = await self.check(found)
        async with self._lock:
            await self._lanes.begin()
            lane = self._lanes.lane(found.team, found.subscription)
            if found.number in lane.letters:
                raise Refused(UNDER_WAY, f"it is on its way already, in run {lane.run_of(found.number)}")
            if not lane.sent:
                await self._lanes.durable(self._grant(found))
            marked = msgspec.structs.replace(received, redrive=run)
            ack = await self._publish(found, run, message_id(f"{found.team}--{found.subscription}", marked))
            if ack.duplicate and ack.seq in lane.sent:  # two letters of one event
                await stored_messages.delete(self._connection, DLQ, found.number)
                return False
            lane.add(ack.seq, found.number, run)
        REDRIVEN.add(1)
        return True

    async def tell(self) -> None:
        """Say at once what waits for whom."""
        async with self._lock:
            for owner, lane in self._lanes.by_owner.items():
                if lane.sent:
                    await self._lanes.notice(owner, lane)

    async def take_back(self, number: int) -> bool:
        """Take a letter's copy out of `REDRIVE`, so that nobody pulls it any more; False where none is on its way.

        Raises:
            RequestFailed, Unavailable: NATS refused or did not answer.
        """
        async with self._lock:
            await self._lanes.begin()
            for lane in self._lanes.by_owner.values():
                if number in lane.letters:
                    await stored_messages.delete(self._connection, REDRIVE_STREAM, lane.letters[number])
                    lane.drop(lane.letters[number])
                    return True
        return False

    def _grant(self, found: Letter) -> SubscriptionGrant:
        grant = self._grants().subscriptions.get((found.team, found.subscription))
        if grant is None:
            raise Refused("subscription-gone", f"{found.team} has no subscription {found.subscription}")
        if not grant.active:
            raise Refused("subscription-inactive", grant.reason)
        return grant

    async def _publish(self, found: Letter, run: str, id_: str) -> _Ack:
        subject, body = redriven.subject(found.team, found.subscription), redriven.wrap(run, found.number, found.body)
        headers = {"Nats-Msg-Id": id_, "Content-Type": "application/json"}
        try:
            reply = await self._connection.request(subject, body, headers=headers)
        except Unavailable:
            self._lanes.doubt()
            raise
        try:
            ack = msgspec.json.decode(reply.data, type=_Ack)
        except msgspec.DecodeError:
            ack = _Ack()
        if ack.error is not None or ack.stream != REDRIVE_STREAM:
            raise StreamUnavailable(
                f"{REDRIVE_STREAM} did not take a letter",
                expected="an acknowledgement",
                next="wait until the subscriptions have handled what is under way; then ask again, which is safe",
            )
        return ack


class _Ack(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: msgspec.Raw | None = None
