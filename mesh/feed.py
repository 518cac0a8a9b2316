"""From a durable to a handler: pull, verify, admit, deduplicate. What comes out of a feed may be handled.

One feed serves one subscription, which has one durable per stream. Verification runs where the bytes arrive, without a
task or a queue per event; an event whose key we do not know yet waits, and everything behind it waits too, so that
fetching a certificate never reorders.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio

from mesh import logs
from mesh.delivery import Claim, DuplicateWindow
from mesh.errors import IdentityError, MeshError, Unavailable, UnknownKey, VerificationError
from mesh.jetstream.puller import Puller
from mesh.journey import Admitted, inbound
from mesh.signing import Verifier
from mesh.telemetry import counter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from anyio.abc import TaskGroup

    from mesh.jetstream.connection import Connection
    from mesh.policy.compile import Plans
    from mesh.signing import Received
    from mesh.watch import BundleWatch, TrustWatch

UNKNOWN_KEY_RETRY_S = 1.0  # replicas of the trust bucket may lag; the durable's attempts bound how often
NO_BUNDLE_RETRY_S = 1.0
IN_FLIGHT_RETRY_S = 5.0  # gone by then, where the handler has succeeded: its ack ends this delivery too

VERIFIED = counter("mesh.inbound.verified", unit="{event}", watch="flat while the stream grows: nothing is consumed")
REJECTED = counter(
    "mesh.inbound.rejected",
    unit="{event}",
    watch="rising with code=unknown_key: agents run an old bundle; else: an attack",
)
WITHHELD = counter("mesh.inbound.withheld", unit="{event}", watch="rising after an apply: a grant was narrowed")
DUPLICATES = counter("mesh.inbound.duplicates", unit="{event}", watch="rising: handlers are slower than ack_wait")

log = logs.get("feed")


class Pulled:
    """An admitted event and the way back to its durable."""

    __slots__ = ("event", "puller", "received")

    def __init__(self, event: Admitted, received: Received, puller: Puller) -> None:
        self.event = event
        self.received = received
        self.puller = puller


class Feed:
    """Admitted events of one subscription, in the order of each stream."""

    def __init__(
        self,
        connection: Connection,
        *,
        team: str,
        durables: Sequence[tuple[str, str]],
        bundle: BundleWatch,
        trust: TrustWatch,
        max_in_flight: int,
        window_size: int = 100_000,
    ) -> None:
        self._team = team
        self._bundle = bundle
        self._trust = trust
        self.on_rejected: Callable[[Received, Puller, VerificationError], Awaitable[None]] = _hand_back
        self._verifier = Verifier(trust.keyring, self._may_publish)
        self.window = DuplicateWindow(window_size)
        self._parked: deque[tuple[Received, Puller]] = deque()
        self._ready: deque[Pulled] = deque()
        self._waiting: deque[anyio.Event] = deque()
        self._stopped = False
        self._tasks: TaskGroup | None = None
        self._pullers = [
            self._puller(connection, stream, durable, max(1, max_in_flight // len(durables)))
            for stream, durable in durables
        ]

    def _puller(self, connection: Connection, stream: str, durable: str, max_in_flight: int) -> Puller:
        puller = Puller(
            connection,
            stream=stream,
            durable=durable,
            on_event=lambda received: self._on_event(received, puller),
            max_in_flight=max_in_flight,
        )
        return puller

    @property
    def pending(self) -> int:
        """Events pulled and not settled."""
        return sum(puller.in_flight for puller in self._pullers)

    async def run(self) -> None:
        """Pull until cancelled."""
        async with anyio.create_task_group() as self._tasks:
            for puller in self._pullers:
                self._tasks.start_soon(puller.run)

    async def stop(self) -> None:
        """Pull nothing more, and hand back at once what nobody has taken; what was taken can still be settled."""
        for puller in self._pullers:
            await puller.stop()
        self._stopped = True  # from here on nothing becomes ready
        while self._ready:
            self.hand_back(self._ready.popleft())
        while self._parked:
            received, puller = self._parked.popleft()
            puller.nak(received)

    async def flush(self) -> None:
        """Wait until the server has what was settled and handed back; not for long."""
        for puller in self._pullers:
            with suppress(Unavailable):  # no connection, or a slow one: the server delivers again after ack_wait
                await puller.flush()

    def hand_back(self, pulled: Pulled) -> None:
        """Have *pulled* delivered again, at once, to whoever pulls."""
        self.window.forget(pulled.event.key)
        pulled.puller.nak(pulled.received)

    async def next(self) -> Pulled:
        """The next event that may be handled; waits for one. Any number may wait, the first comes first."""
        while not self._ready:
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
        return self._ready.popleft()

    def progress(self) -> None:
        """Start the redelivery clock of what nobody has taken yet again: it is in hand, and its turn will come."""
        for pulled in self._ready:
            pulled.puller.progress(pulled.received)
        for received, puller in self._parked:
            puller.progress(received)

    def _wake(self) -> None:
        if self._waiting:
            self._waiting.popleft().set()

    def _may_publish(self, spiffe_id: str, type_: str, source: str) -> bool:
        plans = self._bundle.plans
        return plans is not None and plans.may_publish(spiffe_id, type_, source)

    def _on_event(self, received: Received, puller: Puller) -> None:
        if self._parked:
            self._parked.append((received, puller))
            return
        plans = self._bundle.plans
        if plans is None:
            puller.nak(received, NO_BUNDLE_RETRY_S)
            REJECTED.add(1, code="no-valid-bundle")
            return
        self._take(received, puller, plans)

    def _take(self, received: Received, puller: Puller, plans: Plans) -> None:
        try:
            verified = self._verifier.verify(received)
        except UnknownKey:
            self._parked.appendleft((received, puller))
            self._spawn(self._fetch_and_resume)
            return
        except VerificationError as error:
            self._reject(received, puller, error)
            return
        VERIFIED.add(1)
        outcome = inbound(verified, plans, self._team, now_ms=time.time_ns() // 1_000_000)
        if not isinstance(outcome, Admitted):
            WITHHELD.add(1, code=outcome.reason)
            puller.ack(received)
            return
        match self.window.claim(outcome.key):
            case Claim.HANDLED:
                DUPLICATES.add(1)
                puller.ack(received)
                return
            case Claim.IN_FLIGHT:  # a handler of ours has it: neither start another nor ack for it
                DUPLICATES.add(1)
                puller.nak(received, IN_FLIGHT_RETRY_S)
                return
            case Claim.NEW:
                pass
        self._ready.append(Pulled(outcome, received, puller))
        self._wake()

    def _reject(self, received: Received, puller: Puller, error: VerificationError) -> None:
        REJECTED.add(1, code=error.code)
        log.error(
            "event_rejected", code=error.code, step=error.step, stream=received.stream, sequence=received.sequence
        )

        self._spawn(lambda: self.on_rejected(received, puller, error))

    async def _fetch_and_resume(self) -> None:
        """Fetch the certificate the first parked event names, then take the parked ones in order."""
        received, puller = self._parked[0]
        try:
            found = await self._trust.certificate(_key_id(received))
        except IdentityError as error:
            log.error("certificate_refused", code=error.code, kid=_key_id(received))
            found = None
        except MeshError as error:  # whatever it is: behind this event all others wait
            log.warning("certificate_unavailable", code=error.code, kid=_key_id(received))
            found = None
        if self._stopped:
            return
        if found is None:
            self._parked.popleft()
            REJECTED.add(1, code=UnknownKey.code)
            puller.nak(received, UNKNOWN_KEY_RETRY_S)
        self._resume()

    def _resume(self) -> None:
        plans = self._bundle.plans
        parked, self._parked = self._parked, deque()
        while parked:
            received, puller = parked.popleft()
            if plans is None:
                puller.nak(received, NO_BUNDLE_RETRY_S)
                continue
            self._take(received, puller, plans)
            if self._parked:  # its key is unknown too, and a fetch for it has begun
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


async def _hand_back(received: Received, puller: Puller, _error: VerificationError) -> None:
    puller.nak(received, UNKNOWN_KEY_RETRY_S)


def _key_id(received: Received) -> str:
    """The key id that a signature of good form names; callers come here only after V1 and V2."""
    return (received.signature or "").split(".")[1]
