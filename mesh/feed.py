"""From a durable to a handler: pull, verify, admit, deduplicate. What comes out of a feed may be handled.

One feed serves one subscription, which has one durable per stream (`pullers.py`). Verification runs where the bytes
arrive, without a task or a queue per event; an event whose key we do not know yet, or that older policies have to
judge, waits, and everything behind it waits too, so that fetching a certificate or an old bundle never reorders.

What is ready and not taken yet is judged again when what it was judged by changes: the bundle, the revocations, and
whether the trust statement is fresh enough to rely on.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

import anyio

from mesh import logs
from mesh.delivery import Claim, DuplicateWindow, Waits, place
from mesh.errors import MeshError, PublisherNotAllowed, RevisionNeeded, StaleTrust, UnknownKey, VerificationError
from mesh.event import decode
from mesh.fetching import Fetcher
from mesh.inbound import Admitted, Reading, Withheld
from mesh.pullers import Pullers
from mesh.reliance import Reliance
from mesh.signing import Verifier
from mesh.staleness import Ruling
from mesh.telemetry import counter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from anyio.abc import TaskGroup

    from mesh.delivery import Key
    from mesh.jetstream.connection import Connection
    from mesh.jetstream.puller import Puller
    from mesh.policy.compile import Plans
    from mesh.pullers import Place
    from mesh.signing import Received
    from mesh.trust_watch import TrustWatch
    from mesh.watch import BundleWatch

UNKNOWN_KEY_RETRY_S = 1.0  # replicas of the trust bucket may lag, for `fetching.PATIENCE_S`
BEHIND_RETRY_S = 0.5  # our bundle is older than the event: a notice was lost, or is on its way
PATIENCE_DELIVERIES = 60  # times that an event may come before "unknown key" or "not allowed" is the last word
PAST_RETRY_S = 5.0  # the stored bundle of an older revision is missing or wrong: only the control plane can help
NO_BUNDLE_RETRY_S = 1.0
STALE_RETRY_S = 5.0  # longer each time, for what is delivered again and again while trust is stale: minutes, or hours
STALE_RETRY_MAX_S = 30.0
TRUST_CHECK_S = 1.0  # how late what waits here notices that trust has become stale; what arrives notices at once
IN_FLIGHT_RETRY_S = 5.0  # gone by then, where the handler has succeeded: its ack ends this delivery too

VERIFIED = counter("mesh.inbound.verified", unit="{event}", watch="flat while the stream grows: nothing is consumed")
_verified = VERIFIED.at()
REJECTED = counter(
    "mesh.inbound.rejected",
    unit="{event}",
    watch="with code=unknown-key: agents run an old bundle; stale-trust: no trust statements arrive; else: an attack",
)
WITHHELD = counter("mesh.inbound.withheld", unit="{event}", watch="rising after an apply: a grant was narrowed")
DUPLICATES = counter("mesh.inbound.duplicates", unit="{event}", watch="rising: handlers are slower than ack_wait")
STALE = counter(
    "mesh.inbound.stale_trust", unit="{event}", watch="above 0: handled without knowing whose keys are revoked since"
)

_NEW = Claim.NEW
_DELIVER, _PAUSE = Ruling.DELIVER, Ruling.PAUSE

log = logs.get("feed")


class Pulled:
    """An admitted event, what it is deduplicated by, and the way back to its durable."""

    __slots__ = ("event", "key", "puller", "received")

    def __init__(self, event: Admitted, key: Key, received: Received, puller: Puller) -> None:
        self.event = event
        self.key = key
        self.received = received
        self.puller = puller


class Feed:
    """Admitted events of one subscription, in the order of each stream."""

    def __init__(
        self,
        connection: Connection,
        *,
        team: str,
        subscription: str | None = None,
        durables: Sequence[Place],
        bundle: BundleWatch,
        trust: TrustWatch,
        max_in_flight: int,
        window_size: int = 100_000,
    ) -> None:
        self._team = team
        self._subscription = subscription
        self._bundle = bundle
        self._reading: Reading | None = None
        self._fetcher = Fetcher(bundle, trust)
        self.on_rejected: Callable[[Received, Puller, VerificationError], Awaitable[None]] = _hand_back
        self.on_unmask: Callable[[Admitted], None] = lambda _: None  # what a grant that expires hands over
        self._keyring = trust.keyring
        self._revision = trust.keyring.revision  # of the revocations that what is ready was judged by
        self._reliance = Reliance(trust.keyring, self._trust_turned, team=team, subscription=subscription)
        self._verifier = Verifier(trust.keyring, self._may_publish, might_publish=bundle.might_publish)
        self.window = DuplicateWindow(window_size)
        self.waits = Waits()
        self._parked: deque[tuple[Received, Puller]] = deque()
        self._ready: deque[Pulled] = deque()
        self._waiting: deque[anyio.Event] = deque()
        self._stopped = False
        self._tasks: TaskGroup | None = None
        self._pullers = Pullers(connection, on_event=self._on_event, max_in_flight=max_in_flight)
        self._pullers.follow(durables)

    @property
    def pending(self) -> int:
        """Events pulled and not settled."""
        return self._pullers.in_flight

    async def run(self) -> None:
        """Pull until cancelled."""
        async with anyio.create_task_group() as self._tasks:
            self._pullers.start(self._tasks)
            await self._follow_trust()  # for ever: a bundle may take the last stream away, and the next bring it back

    def follow(self, durables: Sequence[Place]) -> None:
        """From now on pull from exactly these *durables* (stream and name): begin with the new, leave the others."""
        new, left = self._pullers.follow(durables)
        for stream in new:
            log.info("stream_added", team=self._team, subscription=self._subscription, stream=stream)
        for stream in left:
            log.info("stream_left", team=self._team, subscription=self._subscription, stream=stream)

    async def stop(self) -> None:
        """Pull nothing more, and hand back at once what nobody has taken; what was taken can still be settled."""
        await self._pullers.stop()
        self._stopped = self._fetcher.stopped = True  # from here on nothing becomes ready
        while self._ready:
            self.hand_back(self._ready.popleft())
        while self._parked:
            received, puller = self._parked.popleft()
            puller.nak(received)

    async def flush(self) -> None:
        """Wait until the server has what was settled and handed back; not for long."""
        await self._pullers.flush()

    def hand_back(self, pulled: Pulled) -> None:
        """Have *pulled* delivered again, at once, to whoever pulls."""
        self.window.forget(pulled.key)
        pulled.puller.nak(pulled.received)

    def take(self) -> Pulled | None:
        """The next event that may be handled, if one is there: what `next` would return without waiting."""
        return self._hand_over()

    async def next(self) -> Pulled:
        """The next event that may be handled; waits for one. Any number may wait, the first comes first."""
        while (pulled := self._hand_over()) is None:
            woken = anyio.Event()
            self._waiting.append(woken)
            try:
                await woken.wait()
            except BaseException:
                if woken.is_set():
                    self._wake()  # somebody else's turn, or the event lies there while others wait
                else:
                    self._waiting.remove(woken)
                raise
        return pulled

    def _hand_over(self) -> Pulled | None:
        """The next event that may be handled now: what came since it was admitted counts."""
        while self._ready:
            reading = self._reading
            moved = reading is not None and reading.plans is not self._bundle.plans
            if moved or self._revision != self._keyring.revision:
                self._judge_again()
                continue
            pulled = self._ready.popleft()
            if reading is None or not reading.expiring or (rule := pulled.event.rule) not in reading.expiring:
                return pulled
            if _now_ms() < reading.expiring[rule]:
                self.on_unmask(pulled.event)
                return pulled
            self.window.forget(pulled.key)
            self._on_event(pulled.received, pulled.puller)
        return None

    def _judge_again(self) -> None:
        """What is ready was admitted by what holds no longer: take it again, before what is parked."""
        self._reading = None
        self._revision = self._keyring.revision
        ready, self._ready = self._ready, deque()
        again = [(pulled.received, pulled.puller) for pulled in ready]
        for pulled in ready:
            self.window.forget(pulled.key)
        if self._parked:
            self._parked.extendleft(reversed(again))  # a fetch is under way, and takes them all in order
            return
        for received, puller in again:
            self._on_event(received, puller)

    def progress(self) -> None:
        """Start the redelivery clock of what nobody has taken yet again: it is in hand, and its turn will come."""
        for pulled in self._ready:
            pulled.puller.progress(pulled.received)
        for received, puller in self._parked:
            puller.progress(received)

    def _wake(self) -> None:
        if self._waiting:
            self._waiting.popleft().set()

    def _trust_turned(self) -> None:
        """What is ready was ruled on otherwise."""
        if self._ready:
            self._revision = -1

    async def _follow_trust(self) -> None:
        """Ask anew as time goes by: events that wait for handlers while none arrives are ruled on too."""
        while True:
            plans = self._bundle.plans
            if plans is not None:
                self._reliance.ask(plans.staleness, _now_ms())
            await anyio.sleep(TRUST_CHECK_S)

    def _may_publish(self, spiffe_id: str, type_: str, source: str) -> bool:
        plans = self._bundle.plans
        return plans is not None and plans.may_publish(spiffe_id, type_, source)

    def _read_by(self, plans: Plans) -> Reading:
        """How our subscription reads under *plans*, once for each bundle."""
        self._reading = Reading(plans, self._team, self._subscription, past=self._bundle.past)
        return self._reading

    def _on_event(self, received: Received, puller: Puller) -> None:
        if self._parked:
            self._parked.append((received, puller))
            return
        plans = self._bundle.plans
        if plans is None:
            self._later(received, puller, NO_BUNDLE_RETRY_S)
            REJECTED.add(1, code="no-valid-bundle")
            return
        self._take(received, puller, plans)

    def _take(self, received: Received, puller: Puller, plans: Plans) -> None:
        reading = self._reading
        if reading is None or reading.plans is not plans:
            if self._ready:  # admitted by the bundle before, and first in line
                self._judge_again()
                self._on_event(received, puller)
                return
            reading = self._read_by(plans)
        now_ms = _now_ms()
        reliance = self._reliance
        ruling = _DELIVER if now_ms <= reliance.fresh_until_ms else reliance.ask(plans.staleness, now_ms)
        if ruling is _PAUSE:
            self._pause(received, puller)
            return
        try:
            verified = self._verifier.verify(received)
            outcome = reading.admit(verified, now_ms=now_ms)
        except UnknownKey:
            if self._fetcher.missed(_key_id(received)):
                self._unknown(received, puller)
                return
            self._parked.appendleft((received, puller))
            self._spawn(self._fetch_and_resume)
            return
        except RevisionNeeded as error:
            self._parked.appendleft((received, puller))
            revision = error.details["revision"]
            self._spawn(lambda: self._fetch_past_and_resume(revision))
            return
        except VerificationError as error:
            if isinstance(error, PublisherNotAllowed) and self._behind(received, puller, decode(received.body), plans):
                return
            self._reject(received, puller, error)
            return
        _verified.value += 1
        if not isinstance(outcome, Admitted):
            self._withhold(received, puller, outcome, verified.fields, plans)
            return
        key = outcome.key
        claim = self.window.claim(key)
        if claim is _NEW:
            if ruling is not _DELIVER:
                outcome.stale_trust = True
                STALE.add(1)
            self._ready.append(Pulled(outcome, key, received, puller))
            if self._waiting:
                self._wake()
            return
        DUPLICATES.add(1)
        if claim is Claim.HANDLED:
            self._done(received, puller)
        else:  # a handler of ours has it: neither start another nor ack for it
            puller.nak(received, IN_FLIGHT_RETRY_S)

    def _later(self, received: Received, puller: Puller, delay_s: float) -> None:
        """Have it delivered again: something is lacking to judge it. No handler saw it, and `waits` remembers that."""
        self.waits.add(place(received), received.deliveries)
        puller.nak(received, delay_s)

    def _pause(self, received: Received, puller: Puller) -> None:
        REJECTED.add(1, code=StaleTrust.code)
        self._later(received, puller, min(STALE_RETRY_S * received.deliveries, STALE_RETRY_MAX_S))

    def _done(self, received: Received, puller: Puller) -> None:
        self.waits.forget(place(received))
        puller.ack(received)

    def _withhold(
        self, received: Received, puller: Puller, outcome: Withheld, fields: dict[str, Any], plans: Plans
    ) -> None:
        if not self._behind(received, puller, fields, plans):
            WITHHELD.add(1, code=outcome.reason)
            self._done(received, puller)

    def _behind(self, received: Received, puller: Puller, fields: dict[str, Any], plans: Plans) -> bool:
        """Whether the event was decided by a newer bundle than ours; then we look for that one before we judge.

        The revision is only what the event says, so it buys time and nothing else.
        """
        revision = fields.get("policyrevision")
        newer = isinstance(revision, int) and revision > plans.bundle.revision
        if not newer or received.deliveries > PATIENCE_DELIVERIES:
            return False
        self._bundle.wake()
        self._later(received, puller, BEHIND_RETRY_S)
        return True

    def _reject(self, received: Received, puller: Puller, error: VerificationError) -> None:
        REJECTED.add(1, code=error.code)
        log.error(
            "event_rejected", code=error.code, step=error.step, stream=received.stream, sequence=received.sequence
        )

        self._spawn(lambda: self.on_rejected(received, puller, error))

    def _unknown(self, received: Received, puller: Puller) -> None:
        """The bucket has no certificate for its key: have it delivered again, until that is the last word."""
        if self._fetcher.given_up(_key_id(received)) or received.deliveries > PATIENCE_DELIVERIES:
            self._reject(received, puller, UnknownKey("no certificate for this key id", next="was it ever issued?"))
            return
        REJECTED.add(1, code=UnknownKey.code)
        self._later(received, puller, UNKNOWN_KEY_RETRY_S)

    async def _fetch_and_resume(self) -> None:
        """Fetch the certificates that the first parked events name, then take the parked ones in order."""
        received, puller = self._parked[0]
        found = await self._fetcher.certificates(each for each, _ in self._parked)
        if self._stopped:
            return
        if not found and self._unpark(received):
            self._unknown(received, puller)
        self._resume()

    async def _fetch_past_and_resume(self, revision: int) -> None:
        """Fetch the older bundle that the first parked event needs, then take the parked ones in order."""
        received, puller = self._parked[0]
        found = await self._fetcher.revision(revision)
        if self._stopped:
            return
        if not found and self._unpark(received):
            REJECTED.add(1, code=RevisionNeeded.code)
            self._later(received, puller, PAST_RETRY_S)
        self._resume()

    def _unpark(self, received: Received) -> bool:
        """Take one event out of the line; False where it is no longer in it."""
        for index, (waiting, _) in enumerate(self._parked):
            if waiting is received:
                del self._parked[index]
                return True
        return False

    def _resume(self) -> None:
        plans = self._bundle.plans
        parked, self._parked = self._parked, deque()
        while parked:
            received, puller = parked.popleft()
            if plans is None:
                self._later(received, puller, NO_BUNDLE_RETRY_S)
                continue
            self._take(received, puller, plans)
            if self._parked:  # something else is lacking for it, and a fetch of that has begun
                self._parked.extend(parked)
                return

    def _spawn(self, work: Callable[[], Awaitable[None]]) -> None:
        async def guarded() -> None:
            try:
                await work()
            except MeshError as error:  # not settled, so the durable delivers it again
                log.warning("feed_work_failed", code=error.code, error=str(error))

        if self._tasks is not None:
            self._tasks.start_soon(guarded)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def _hand_back(received: Received, puller: Puller, _error: VerificationError) -> None:
    puller.nak(received, UNKNOWN_KEY_RETRY_S)


def _key_id(received: Received) -> str:
    """The key id that a signature of good form names; callers come here only after V1 and V2."""
    return (received.signature or "").split(".")[1]
