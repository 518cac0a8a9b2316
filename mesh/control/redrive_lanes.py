"""What of `REDRIVE` is on its way to which subscription, and what becomes of it.

`REDRIVE` itself says so: whoever leads next reads it and goes on. What is settled leaves `DLQ`, and `REDRIVE` later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import msgspec

from mesh import logs, redriven
from mesh.control import stored_messages
from mesh.control.deadletters import letter
from mesh.deadletters import STREAM as DLQ
from mesh.errors import Disconnected, MeshError, RequestFailed, Unavailable, VerificationError
from mesh.jetstream.durables import REDRIVE, REDRIVE_STREAM, redrive
from mesh.jetstream.manage import NO_CONSUMER, api, consumer_info, stream_info
from mesh.jetstream.topology import consumer
from mesh.watch import NOTICE_SUBJECT

if TYPE_CHECKING:
    from mesh.jetstream.connection import Connection
    from mesh.policy.grants import Grants, SubscriptionGrant

LINGER_S = 60.0  # a durable stays so long after all of it is settled: an advisory about it may be on its way
MAX_SETTLED = 200  # letters of one subscription a look, under a second: whoever asks meanwhile waits for it

log = logs.get("redrive")

Owner = tuple[str, str]  # team and subscription


class Sent(NamedTuple):
    """One letter on its way, and the run that sent it."""

    letter: int
    run: str


@dataclass(slots=True)
class Lane:
    """What is on its way to one subscription.

    Attributes:
        sent: What each message in `REDRIVE` that is not settled is, by sequence.
        letters: The sequence of each letter.
        run: That sent something last.
        quiet_since_s: When nothing was left, by the loop's clock; None while something is.
    """

    sent: dict[int, Sent] = field(default_factory=dict)
    letters: dict[int, int] = field(default_factory=dict)
    run: str = ""
    quiet_since_s: float | None = None

    def add(self, sequence: int, letter: int, run: str) -> None:
        """A letter was sent."""
        self.sent[sequence], self.letters[letter] = Sent(letter, run), sequence
        self.run, self.quiet_since_s = run, None

    def drop(self, sequence: int) -> Sent:
        """It is settled, or gone; returns what it was."""
        sent = self.sent.pop(sequence)
        self.letters.pop(sent.letter, None)
        return sent

    def run_of(self, letter: int) -> str:
        """The run that sent a letter which is on its way."""
        return self.sent[self.letters[letter]].run


class Lanes:
    """Those of one tenant. Not for use by two at once.

    Args:
        connection: The control plane's, in the tenant account.
        grants: Those in force.

    Attributes:
        by_owner: What is on its way to each subscription; also one that is settled and lingers.
    """

    def __init__(self, connection: Connection, grants: Callable[[], Grants]) -> None:
        self._connection = connection
        self._grants = grants
        self._read = False
        self.by_owner: dict[Owner, Lane] = {}

    def lane(self, team: str, subscription: str) -> Lane:
        """That of one subscription."""
        return self.by_owner.setdefault((team, subscription), Lane())

    def doubt(self) -> None:
        """Nobody knows whether the last letter was taken: read `REDRIVE` again before anything else."""
        self._read = False

    async def begin(self) -> None:
        """Read what is under way, once: somebody else may have led before.

        Raises:
            RequestFailed, Unavailable: NATS refused or did not answer.
        """
        if self._read:
            return
        lanes: dict[Owner, Lane] = {}
        there = int((await stream_info(self._connection, REDRIVE_STREAM))["state"]["messages"])
        found = 0
        async for message in stored_messages.stored(self._connection, REDRIVE_STREAM):
            found += 1
            tokens = message.subject.split(".")
            try:
                sent = redriven.unwrap(message.received(REDRIVE_STREAM))
            except VerificationError as error:  # only the control plane writes there
                log.error("redriven_letter_unreadable", code=error.code, sequence=message.sequence)
                continue
            lane = lanes.setdefault((tokens[1], tokens[2]), Lane())
            lane.add(message.sequence, sent.letter, sent.redrive)
        if found < there:  # a replica answers, and may lag
            raise Unavailable(f"a replica of {REDRIVE_STREAM} has {found} of {there} messages", next="ask again")
        self.by_owner, self._read = lanes, True

    async def look(self) -> bool:
        """See what was settled since the last look, and tell subscriptions what waits for them.

        One subscription that cannot be looked at is passed over until the next look: the others do not wait for it.

        Returns:
            Whether more was settled than one look takes.

        Raises:
            RequestFailed, Unavailable: NATS refused to say what is under way at all, or did not answer.
            Disconnected: No server is there.
        """
        await self.begin()
        more = False
        for owner in list(self.by_owner):
            try:
                more |= await self._look(owner, self.by_owner[owner])
            except Disconnected:
                raise
            except MeshError as error:
                log.warning(
                    "redrive_not_looked_at", team=owner[0], subscription=owner[1], code=error.code, error=str(error)
                )
        return more

    async def _look(self, owner: Owner, lane: Lane) -> bool:
        name = f"{owner[0]}--{owner[1]}--{REDRIVE}"
        try:
            info = await consumer_info(self._connection, REDRIVE_STREAM, name)
        except RequestFailed as error:
            if error.details.get("err_code") != NO_CONSUMER:
                raise
            await self._mend(owner, lane)
            return False
        # a floor stands still at what was given up by the server itself: where nothing is open, all of it is settled
        settled = info["delivered"] if not info["num_ack_pending"] else info["ack_floor"]
        done = sorted(sequence for sequence in lane.sent if sequence <= int(settled["stream_seq"]))
        await self._settle(owner, lane, done[:MAX_SETTLED])
        if lane.sent:
            await self._forget_lost(owner, lane)
            await self.notice(owner, lane)
        else:
            await self._leave(owner, lane, name)
        return len(done) > MAX_SETTLED

    async def _settle(self, owner: Owner, lane: Lane, done: list[int]) -> None:
        """Take letters out of `DLQ` whose copies were settled.

        The server counts what it let go of as delivered too: only what is there still was pulled (measured).
        """
        for sequence in done:
            number, run = lane.sent[sequence]
            found = await letter(self._connection, number)
            if await stored_messages.message(self._connection, REDRIVE_STREAM, sequence) is None:
                self._forget(owner, lane, sequence)
                continue
            if found is not None and (found.team, found.subscription) == owner:
                await stored_messages.delete(self._connection, DLQ, number, erase=False)
            lane.drop(sequence)
            log.info("redriven_letter_settled", team=owner[0], subscription=owner[1], letter=number, run=run)

    async def _forget_lost(self, owner: Owner, lane: Lane) -> None:
        first = int((await stream_info(self._connection, REDRIVE_STREAM))["state"]["first_seq"])
        for sequence in [sequence for sequence in lane.sent if sequence < first]:
            self._forget(owner, lane, sequence)

    def _forget(self, owner: Owner, lane: Lane, sequence: int) -> None:
        """Nobody pulled it for as long as `REDRIVE` keeps it: it is a letter like any other again."""
        number, run = lane.drop(sequence)
        log.warning("redrive_not_pulled", team=owner[0], subscription=owner[1], letter=number, run=run)

    async def _leave(self, owner: Owner, lane: Lane, name: str) -> None:
        """All is settled: once nothing can follow, what was sent and its durable go."""
        if lane.quiet_since_s is None:
            lane.quiet_since_s = anyio.current_time()
        if anyio.current_time() - lane.quiet_since_s < LINGER_S:
            return
        if (await stream_info(self._connection, "ADVISORY"))["state"]["messages"]:
            return  # one of them may be about a message that would go
        await api(self._connection, f"STREAM.PURGE.{REDRIVE_STREAM}", {"filter": redriven.subject(*owner)})
        await api(self._connection, f"CONSUMER.DELETE.{REDRIVE_STREAM}.{name}")
        del self.by_owner[owner]

    async def _mend(self, owner: Owner, lane: Lane) -> None:
        """The durable is gone, and something waits for it: make it again, where the subscription still is."""
        await self._forget_lost(owner, lane)
        grant = self._grants().subscriptions.get(owner)
        if not lane.sent:
            del self.by_owner[owner]
        elif grant is not None and grant.active:
            await self.durable(grant, first=min(lane.sent))

    async def notice(self, owner: Owner, lane: Lane) -> None:
        """Tell the replicas of a subscription that something waits for them."""
        told: dict[str, Any] = {
            "kind": REDRIVE,
            "team": owner[0],
            "subscription": owner[1],
            "run": lane.run,
            "to": {},
            "stream": [REDRIVE_STREAM],
        }
        await self._connection.publish(NOTICE_SUBJECT, msgspec.json.encode(told))

    async def durable(self, grant: SubscriptionGrant, *, first: int = 0) -> None:
        """Make the durable of a subscription where it is not there: whoever pulls binds, and never creates.

        Args:
            grant: Of the subscription.
            first: The sequence to begin with; 0 for what is sent from now on.

        Raises:
            RequestFailed, Unavailable: NATS refused or did not answer.
        """
        place = redrive(grant)
        try:
            await consumer_info(self._connection, place.stream, place.name)
        except RequestFailed as error:
            if error.details.get("err_code") != NO_CONSUMER:
                raise
        else:
            return
        spec = consumer(place, grant, start="new")
        start = {"deliver_policy": "by_start_sequence", "opt_start_seq": first} if first else spec.start_config()
        config = {name: value for name, value in {**spec.config(), **start}.items() if value is not None}
        body = {"stream_name": place.stream, "config": config, "action": "create"}
        await api(self._connection, f"CONSUMER.CREATE.{place.stream}.{place.name}", body)
