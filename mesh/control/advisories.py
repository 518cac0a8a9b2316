"""What plain NATS clients give up becomes a dead letter: the server says of it in stream `ADVISORY`.

    MAX_DELIVERIES    the last delivery of an event was not acked: the server delivers it no more
    MSG_TERMINATED    somebody ended its deliveries with `+TERM`

Our library buries first and then ends the delivery, naming the letter (`deadletters.term_reason`), so what it has
buried is never buried twice. The rest is fetched by its sequence, verified like any event, and stored under the message
id that the library would have used; one that does not verify leaves its body out, but a redriven one, which was in its
letter before. An advisory leaves its stream once its letter is stored; a control plane that ended
in between finds that letter by its id. So each event becomes one letter, whoever ended when.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

import anyio
import msgspec

from mesh import deadletters, logs
from mesh.control import stored_messages
from mesh.control.reconcile import now_ms
from mesh.deadletters import Cause, History
from mesh.errors import Disconnected, MeshError, RequestFailed, StreamUnavailable, Unavailable, VerificationError
from mesh.jetstream.durables import REDRIVE_STREAM, subscription_of
from mesh.jetstream.manage import NO_CONSUMER, api, consumer_info
from mesh.redriven import Redriven, unwrap
from mesh.signing import Received
from mesh.telemetry import counter

if TYPE_CHECKING:
    from mesh.control.deadletters_judge import Judge
    from mesh.control.stored_messages import Message
    from mesh.deadletters import DeadLetterRecord
    from mesh.jetstream.connection import Connection

STREAM = "ADVISORY"
HEARD = "$JS.EVENT.ADVISORY.CONSUMER.*.>"
SOON_S = (0.1, 0.5, 2.0)  # after something was heard: the stream may store it a moment later
LOOK_S = 10.0  # where nothing was heard: an advisory may be stored while the connection is down
RETRY_S = 2.0
MAX_KNOWN = 100_000  # message ids of letters written last; 15 MB
MAX_DELIVERIES = "max-deliveries"  # the reason of what the server gave up
TERMINATED = "terminated"  # the reason of what a client ended without one
EVENT_GONE = "event-gone"  # the class of what was given up, and is not in its stream any more
NO_STREAM = 10059  # err_code
_FOUND = (NO_STREAM, NO_CONSUMER)

WRITTEN = counter("mesh.control.letters_written", unit="{event}", watch="rising: a plain client keeps failing")

log = logs.get("advisories")


class _Advisory(msgspec.Struct):
    """What the server says (JetStream wire API: consumer advisories)."""

    type: str
    stream: str
    consumer: str
    stream_seq: int
    deliveries: int = 1
    reason: str = ""

    @property
    def terminated(self) -> bool:
        return self.type.endswith(".terminated")

    @property
    def durable(self) -> str:
        """`<team>--<subscription>`; empty where it is no subscription's."""
        name = subscription_of(self.consumer)
        return name if "--" in name else ""


class _Given(NamedTuple):
    """What was given up: as delivered, or None where it is gone; why nobody vouches for it, where so."""

    received: Received
    verified: bool
    error: MeshError | None


class Advisories:
    """Of one tenant.

    Args:
        connection: The control plane's, in the tenant account.
        judge: Verifies what is to be buried.
    """

    def __init__(self, connection: Connection, judge: Judge) -> None:
        self._connection = connection
        self._judge = judge
        self._known: OrderedDict[str, None] = OrderedDict()  # message ids of letters
        self._looked_back = False
        self._heard = anyio.Event()

    async def run(self) -> None:
        """Bury what is given up, until cancelled."""
        listener = self._connection.listen(HEARD, lambda *_: self._heard.set())
        forget = self._connection.on_connect(self._wake)
        try:
            soon = iter(SOON_S)
            while True:
                self._heard = anyio.Event()
                wait_s = next(soon, LOOK_S)
                try:
                    await self._work()
                except Disconnected:
                    pass  # the connection says so itself, and wakes us
                except MeshError as error:
                    log.warning("advisories_wait", code=error.code, error=str(error))
                    wait_s = RETRY_S
                with anyio.move_on_after(wait_s) as waiting:
                    await self._heard.wait()
                if not waiting.cancelled_caught:
                    soon = iter(SOON_S)
        finally:
            forget()
            listener.close()

    def _wake(self) -> None:
        self._heard.set()

    async def _work(self) -> None:
        """Take the advisories in their order; each leaves its stream once its letter is stored."""
        refreshed = False
        async for message in stored_messages.stored(self._connection, STREAM):
            if not refreshed:
                await self._judge.refresh()
                await self._look_back(message.stored_ms)
                refreshed = True
            await self._take(message)
            await api(self._connection, f"STREAM.PURGE.{STREAM}", {"seq": message.sequence + 1})

    async def _look_back(self, from_ms: int) -> None:
        """Learn, once, which letters were written since the oldest advisory: one of them may be its own."""
        if self._looked_back:
            return
        async for message in stored_messages.stored(self._connection, deadletters.STREAM, since_ms=from_ms):
            for id_ in message.received(deadletters.STREAM).msg_ids:
                self._remember(id_)
        self._looked_back = True

    def _remember(self, id_: str) -> None:
        self._known[id_] = None
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    async def _take(self, message: Message) -> None:
        try:
            advisory = msgspec.json.decode(message.body, type=_Advisory)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            log.error("advisory_unreadable", subject=message.subject, sequence=message.sequence)
            return
        if not advisory.durable:
            return
        given = await self._given_up(advisory)
        if await self._buried(advisory, given.received):
            return
        id_ = deadletters.message_id(advisory.durable, given.received)
        if id_ in self._known:
            return
        record = _record(advisory, given, message.stored_ms)
        await self._store(record, id_)
        self._remember(id_)
        WRITTEN.add(1)
        log.warning(
            "letter_written_for_client",
            durable=advisory.consumer,
            reason=record.reason,
            stream=record.stream,
            sequence=record.sequence,
        )

    async def _buried(self, advisory: _Advisory, received: Received) -> bool:
        """Whether whoever ended the deliveries has stored the letter before, as the reason says.

        A letter of that number that is gone was redriven or discarded; one of another event was never this one's.
        """
        number = deadletters.letter_of(advisory.reason) if advisory.terminated else 0
        if not number or number > await stored_messages.last_sequence(self._connection, deadletters.STREAM):
            return False
        found = await stored_messages.message(self._connection, deadletters.STREAM, number)
        if found is None:
            return True
        try:
            record = deadletters.read(found.body)
        except ValueError:
            return False
        team, _, subscription = advisory.durable.partition("--")
        if found.subject != deadletters.subject(team, subscription):
            return False
        if received.stream == REDRIVE_STREAM:  # what was redriven is gone, so nobody can say which event it was
            return bool(record.redrive)
        return (record.stream, record.sequence, record.redrive) == (
            received.stream,
            received.sequence,
            received.redrive,
        )

    # --- the event ---------------------------------------------------------------------------------------------------

    async def _given_up(self, advisory: _Advisory) -> _Given:
        found = await self._message(advisory)
        if found is None:
            gone = Received("", b"null", (), None, advisory.stream, advisory.stream_seq, 0, advisory.deliveries, "")
            return _Given(gone, verified=False, error=None)
        received = found.received(advisory.stream, deliveries=advisory.deliveries)
        try:
            if advisory.stream == REDRIVE_STREAM:
                received = unwrap(received)
            else:
                received = msgspec.structs.replace(received, replay=await self._replay(advisory))
            await self._judge.verify(received)
        except VerificationError as error:
            return _Given(received, verified=False, error=error)
        except Unavailable:
            raise
        except MeshError as error:  # what is lacking to verify it cannot be had: nobody vouches for it
            return _Given(received, verified=False, error=error)
        return _Given(received, verified=True, error=None)

    async def _message(self, advisory: _Advisory) -> Message | None:
        try:
            return await stored_messages.message(self._connection, advisory.stream, advisory.stream_seq)
        except RequestFailed as error:
            if error.details.get("err_code") == NO_STREAM:
                return None
            raise

    async def _replay(self, advisory: _Advisory) -> str:
        """The run of `mesh replay` that a durable delivers for; empty for one that delivers live events."""
        if not advisory.consumer.endswith("--replay"):
            return ""
        try:
            info = await consumer_info(self._connection, advisory.stream, advisory.consumer)
        except RequestFailed as error:
            if error.details.get("err_code") in _FOUND:
                return "ended"
            raise
        return str((info["config"].get("metadata") or {}).get("run", "ended"))

    # --- its letter --------------------------------------------------------------------------------------------------

    async def _store(self, record: DeadLetterRecord, id_: str) -> None:
        reply = await self._connection.request(
            deadletters.subject(record.team, record.subscription),
            record.encode(),
            headers={"Nats-Msg-Id": id_, "Content-Type": "application/json"},
        )
        if not deadletters.stored_as(reply.data):
            raise StreamUnavailable(
                "the dead letter stream did not take the record", expected="an acknowledgement of DLQ", next="check DLQ"
            )


def _record(advisory: _Advisory, given: _Given, dead_ms: int) -> DeadLetterRecord:
    team, _, subscription = advisory.durable.partition("--")
    reason = (advisory.reason or TERMINATED) if advisory.terminated else MAX_DELIVERIES
    cause = Cause(reason)
    if given.error is not None:
        cause = Cause(given.error.code, type(given.error).__name__, given.error.message)
    elif not given.verified:
        cause = Cause(reason, EVENT_GONE, "the event is not in its stream any more")
    received = given.received
    history = History(received.former, received.letter) if isinstance(received, Redriven) else History()
    return deadletters.record(
        received,
        cause,
        history,
        owner=(team, subscription),
        dead_ms=dead_ms or now_ms(),
        verified=given.verified or isinstance(received, Redriven),
    )
