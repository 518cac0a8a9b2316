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
from typing import TYPE_CHECKING

import anyio
import msgspec

from mesh import logs
from mesh.delivery import Claim, DuplicateWindow
from mesh.errors import (
    Closed,
    EventExpired,
    VerificationError,
)
from mesh.event import expired
from mesh.inbound import Admitted
from mesh.judging import Judge
from mesh.pullers import Pullers
from mesh.sidelines import Sidelines
from mesh.telemetry import counter
from mesh.unhandled import Unhandled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from anyio.abc import TaskGroup

    from mesh.delivery import Key
    from mesh.jetstream.connection import Connection
    from mesh.jetstream.puller import Puller
    from mesh.pullers import Place, Source
    from mesh.signing import Received
    from mesh.trust_watch import TrustWatch
    from mesh.watch import BundleWatch

BESIDE_PART = 4  # of what may be in flight live, one part may be of a replay or a redrive beside it
TRUST_CHECK_S = 1.0  # how late what waits here notices that trust has become stale; what arrives notices at once
IN_FLIGHT_RETRY_S = 5.0  # gone by then, where the handler has succeeded: its ack ends this delivery too

DUPLICATES = counter("mesh.inbound.duplicates", unit="{event}", watch="rising: handlers are slower than ack_wait")
EXPIRED = counter("mesh.inbound.expired", unit="{event}", watch="rising: events come too late to be of use")
STALE = counter(
    "mesh.inbound.stale_trust", unit="{event}", watch="above 0: handled without knowing whose keys are revoked since"
)

_NEW = Claim.NEW

log = logs.get("feed")


class Pulled(msgspec.Struct, eq=False):
    """An admitted event, what it is deduplicated by, and the way back to its durable."""

    event: Admitted
    key: Key
    received: Received
    puller: Puller


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
        self._unhandled = Unhandled()
        self._judge = Judge(
            bundle,
            trust,
            team=team,
            subscription=subscription,
            admitted=self._admitted,
            withdraw=self._withdrawn,
            turned=self._trust_turned,
            unhandled=self._unhandled,
            now_ms=lambda: _now_ms(),  # noqa: PLW0108 - looked up anew, so that a test can set the clock
        )
        self.on_unmask: Callable[[Admitted], None] = lambda _: None  # what a grant that expires hands over
        self._keyring = trust.keyring
        self._revision = trust.keyring.revision  # of the revocations that what is ready was judged by
        self.window = DuplicateWindow(window_size)
        self.waits = self._unhandled.waits
        self._ready: deque[Pulled] = deque()
        self._waiting: deque[anyio.Event] = deque()
        self._stopped = False
        self._tasks: TaskGroup | None = None
        self._sidelines = Sidelines(connection, team, subscription or "", self._follow_sidelines)
        self._beside = Pullers(connection, on_event=self._on_beside, max_in_flight=max(1, max_in_flight // BESIDE_PART))
        self._pullers = self._pull(connection, max_in_flight)
        self._pullers.follow(durables)

    def _pull(self, connection: Connection, max_in_flight: int) -> Source:
        """What our events come from."""
        judge = self._judge
        return Pullers(connection, on_event=judge.take, on_run=judge.take_all, max_in_flight=max_in_flight)

    @property
    def pending(self) -> int:
        """Events pulled and not settled."""
        return self._pullers.in_flight + self._beside.in_flight

    @property
    def silent_s(self) -> float:
        """The longest that the server has not answered a pull of ours; it beats every few seconds."""
        return self._pullers.silent_s

    async def run(self) -> None:
        """Pull until cancelled."""
        async with anyio.create_task_group() as self._tasks:
            self._unhandled.start(self._tasks)
            self._pullers.start(self._tasks)
            self._beside.start(self._tasks)
            self._tasks.start_soon(self._sidelines.run)
            await self._follow_trust()  # for ever: a bundle may take the last stream away, and the next bring it back

    def reject_by(
        self,
        quarantine: Callable[[Received, Puller, VerificationError], Awaitable[None]],
        put_back: Callable[[Received, Puller, str], Awaitable[None]],
    ) -> None:
        """Have *quarantine* end what failed verification, and *put_back* what was redriven and nobody is handed.

        Until then both are handed back.
        """
        self._unhandled.on_rejected, self._unhandled.on_unhandled = quarantine, put_back

    def follow(self, durables: Sequence[Place]) -> None:
        """From now on pull from exactly these *durables* (stream and name): begin with the new, leave the others."""
        new, left = self._pullers.follow(durables)
        for stream in new:
            log.info("stream_added", team=self._team, subscription=self._subscription, stream=stream)
        for stream in left:
            log.info("stream_left", team=self._team, subscription=self._subscription, stream=stream)

    async def stop(self) -> None:
        """Pull nothing more, and hand back at once what nobody has taken; what was taken can still be settled."""
        await self._beside.stop()
        await self._pullers.stop()
        self._stopped = True
        while self._ready:
            self.hand_back(self._ready.popleft())
        while self._waiting:
            self._wake()
        self._judge.stop()

    async def flush(self) -> None:
        """Wait until the server has what was settled and handed back; not for long."""
        await self._beside.flush()
        await self._pullers.flush()

    def take_over(self, before: Feed) -> None:
        """Go on for a feed that is about to stop: what it knows of handled events, and whom it tells, is ours too."""
        self.window, self.on_unmask = before.window, before.on_unmask
        self.waits = self._unhandled.waits = before.waits
        self.reject_by(before._unhandled.on_rejected, before._unhandled.on_unhandled)

    def end(self) -> None:
        """After `stop` and `flush`: let `run` return."""
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()

    def hand_back(self, pulled: Pulled) -> None:
        """Have *pulled* delivered again, at once, to whoever pulls."""
        self.window.forget(pulled.key)
        pulled.puller.nak(pulled.received)

    def put_back(self, pulled: Pulled) -> None:
        """It was taken and is not handled yet: it is the next again, and judged again where something has changed."""
        if self._stopped:
            self.hand_back(pulled)
            return
        self._ready.appendleft(pulled)
        self._wake()

    def take(self) -> Pulled | None:
        """The next event that may be handled, if one is there; what came since it was admitted counts."""
        while self._ready:
            reading = self._judge.reading
            moved = reading is not None and reading.plans is not self._bundle.plans
            if moved or self._revision != self._keyring.revision:
                self._judge.take_again(self._withdrawn())
                continue
            pulled = self._ready.popleft()
            if "expirytime" in pulled.event.fields and self._over(pulled):
                continue
            if reading is None or not reading.expiring or (rule := pulled.event.rule) not in reading.expiring:
                return pulled
            if _now_ms() < reading.expiring[rule]:
                self.on_unmask(pulled.event)
                return pulled
            self.window.forget(pulled.key)
            self._judge.take(pulled.received, pulled.puller)
        return None

    async def next(self) -> Pulled:
        """The next event that may be handled; waits for one. Any number may wait, the first comes first.

        Raises:
            Closed: The feed was stopped.
        """
        while (pulled := self.take()) is None:
            if self._stopped:
                raise Closed("the subscription hands out nothing more", next="use it inside `async with`")
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

    def _over(self, pulled: Pulled) -> bool:
        """Whether its `expirytime` is past: then it is done, and nobody is handed it."""
        if not expired(pulled.event.fields, _now_ms()):
            return False
        EXPIRED.add(1)
        self.window.forget(pulled.key)
        self._unhandled.pass_over(pulled.received, pulled.puller, EventExpired.code)
        return True

    def _withdrawn(self) -> list[tuple[Received, Puller]]:
        """What is ready, taken back in order to be judged again."""
        self._revision = self._keyring.revision
        ready, self._ready = self._ready, deque()
        for pulled in ready:
            self.window.forget(pulled.key)
        return [(pulled.received, pulled.puller) for pulled in ready]

    def progress(self) -> None:
        """Start the redelivery clock of what nobody has taken yet again: it is in hand, and its turn will come."""
        for pulled in self._ready:
            pulled.puller.progress(pulled.received)
        for received, puller in self._judge.parked:
            puller.progress(received)

    def _wake(self) -> None:
        if self._waiting:
            self._waiting.popleft().set()

    def _trust_turned(self) -> None:
        """What is ready was ruled on otherwise."""
        if self._ready:
            self._revision = -1

    async def _follow_trust(self) -> None:
        while True:
            self._judge.look_at_trust()
            await anyio.sleep(TRUST_CHECK_S)

    def _follow_sidelines(self) -> None:
        """A run began or ended."""
        self._beside.follow([*self._sidelines.replays, *self._sidelines.redrives])

    def _on_beside(self, received: Received, puller: Puller) -> None:
        """What a run brings: marked with it, and from then on as what is live."""
        try:
            event = self._sidelines.opened(received)
        except VerificationError as error:
            self._unhandled.reject(received, puller, error)
            return
        if event is None:
            puller.ack(received)
        else:
            self._judge.take(event, puller)

    def _admitted(self, event: Admitted, received: Received, puller: Puller, stale: bool) -> None:
        """It may be handed out; a copy of what a handler has, or had, may not."""
        fields = event.fields
        key = fields["source"], fields["id"]  # `event.key`
        claim = self.window.claim(key)
        if claim is not _NEW and (received.replay or received.redrive):
            claim = self.window.claim_again(key)
        if claim is _NEW:
            if stale:
                event.stale_trust = True
                STALE.add(1)
            self._ready.append(Pulled(event, key, received, puller))
            if self._waiting:
                self._wake()
            return
        DUPLICATES.add(1)
        if claim is Claim.HANDLED:
            self._unhandled.done(received, puller)
        else:  # a handler of ours has it: neither start another nor ack for it
            puller.nak(received, IN_FLIGHT_RETRY_S)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
