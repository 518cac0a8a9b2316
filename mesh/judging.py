"""May what was pulled be handed out now: verify, admit; and what to do where it cannot be said yet.

An event whose key we do not know yet, or that older policies have to judge, waits here, and everything behind it waits
too, so that fetching a certificate or an old bundle never reorders. What nobody can judge for now is handed back.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from mesh.errors import (
    PublisherNotAllowed,
    RevisionNeeded,
    StaleTrust,
    UnknownKey,
    VerificationError,
)
from mesh.event import decode
from mesh.fetching import Fetcher
from mesh.inbound import Admitted, Reading, Withheld
from mesh.jetstream.listeners import callback_failed, guarded
from mesh.reliance import Reliance
from mesh.signing import Verifier
from mesh.staleness import Ruling
from mesh.telemetry import counter
from mesh.together import Together
from mesh.unhandled import REJECTED, Unhandled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mesh.jetstream.puller import Puller
    from mesh.policy.compile import Plans
    from mesh.signing import Received, Verified
    from mesh.trust_watch import TrustWatch
    from mesh.watch import BundleWatch

UNKNOWN_KEY_RETRY_S = 1.0  # replicas of the trust bucket may lag, for `fetching.PATIENCE_S`
BEHIND_RETRY_S = 0.5  # our bundle is older than the event: a notice was lost, or is on its way
PATIENCE_DELIVERIES = 60  # times that an event may come before "unknown key" or "not allowed" is the last word
PAST_RETRY_S = 5.0  # the stored bundle of an older revision is missing or wrong: only the control plane can help
NO_BUNDLE_RETRY_S = 1.0
STALE_RETRY_S = 5.0  # longer each time, for what is delivered again and again while trust is stale: minutes, or hours
STALE_RETRY_MAX_S = 30.0

VERIFIED = counter("mesh.inbound.verified", unit="{event}", watch="flat while the stream grows: nothing is consumed")
_verified = VERIFIED.at()
WITHHELD = counter("mesh.inbound.withheld", unit="{event}", watch="rising after an apply: a grant was narrowed")

_DELIVER, _PAUSE = Ruling.DELIVER, Ruling.PAUSE

Item = tuple["Received", "Puller"]


class Judge:
    """Judges for one feed.

    Args:
        bundle: The policies in force.
        trust: Certificates and revocations.
        team: The reader.
        subscription: Its subscription; None for a look at whatever it may see.
        admitted: Gets what may be handed out now, and whether it relies on trust that is stale.
        withdraw: Takes back what the feed has admitted and nobody took, in order: it is judged again.
        turned: Called when trust has become stale, or fresh again.
        unhandled: Gets what may not be handed out, now or ever.
        now_ms: The clock.

    Attributes:
        reading: How the subscription reads under the bundle that judged last; None where that has to be asked anew.
        parked: Events that wait for something to be fetched, in order.
    """

    def __init__(
        self,
        bundle: BundleWatch,
        trust: TrustWatch,
        *,
        team: str,
        subscription: str | None,
        admitted: Callable[[Admitted, Received, Puller, bool], None],
        withdraw: Callable[[], list[Item]],
        turned: Callable[[], None],
        unhandled: Unhandled,
        now_ms: Callable[[], int],
    ) -> None:
        self._team = team
        self._subscription = subscription
        self._bundle = bundle
        self._admitted = admitted
        self._withdraw = withdraw
        self._now_ms = now_ms
        self._fetcher = Fetcher(bundle, trust)
        self._reliance = Reliance(trust.keyring, turned, team=team, subscription=subscription)
        self._verifier = Verifier(trust.keyring, self._may_publish, might_publish=bundle.might_publish)
        self._together = Together(self._verifier)
        self._stopped = False
        self._unhandled = unhandled
        self._pass_over = unhandled.pass_over  # of each that is withheld: no further away than a method of ours
        self.reading: Reading | None = None
        self.parked: deque[Item] = deque()

    def stop(self) -> None:
        """Judge nothing more, and hand back what waits."""
        self._stopped = self._fetcher.stopped = True
        while self.parked:
            received, puller = self.parked.popleft()
            puller.nak(received)

    def look_at_trust(self) -> None:
        """Ask anew whether trust is fresh, as time goes by: what waits for handlers while nothing arrives counts."""
        plans = self._bundle.plans
        if plans is not None:
            self._reliance.ask(plans.staleness, self._now_ms())

    def _may_publish(self, spiffe_id: str, type_: str, source: str) -> bool:
        plans = self._bundle.plans
        return plans is not None and plans.may_publish(spiffe_id, type_, source)

    def take_again(self, items: Iterable[Item]) -> None:
        """These were admitted by what holds no longer: take them again, before what is parked."""
        self.reading = None
        items = list(items)
        if self.parked:
            self.parked.extendleft(reversed(items))  # a fetch is under way, and takes them all in order
            return
        for received, puller in items:
            self.take(received, puller)

    def take(self, received: Received, puller: Puller) -> None:
        """Judge one event, after those that wait."""
        if self.parked:
            self.parked.append((received, puller))
            return
        plans = self._bundle.plans
        if plans is None:
            self._unhandled.later(received, puller, NO_BUNDLE_RETRY_S)
            REJECTED.add(1, code="no-valid-bundle")
            return
        self._judge(received, puller, plans)

    def take_all(self, events: list[Received], puller: Puller) -> None:
        """Judge events that came together: as `take` one by one, and what they have in common is looked at once."""
        plans, reading, now_ms = self._bundle.plans, self.reading, self._now_ms()
        reliance = self._reliance
        plain = reading is not None and reading.plans is plans and now_ms <= reliance.fresh_until_ms
        verdicts = self._plain(events) if plain and not self.parked else [None] * len(events)
        for received, verified in zip(events, verdicts, strict=True):
            if verified is None or reading is None or plans is None or self.parked or now_ms > reliance.fresh_until_ms:
                guarded(self.take, received, puller)
                continue
            try:
                outcome = reading.admit(verified, now_ms=now_ms)
                _verified.value += 1
                if isinstance(outcome, Admitted):
                    self._admitted(outcome, received, puller, False)  # noqa: FBT003 - stale: see above
                else:
                    self._withhold(received, puller, outcome, verified.fields, plans)
            except RevisionNeeded:
                guarded(self.take, received, puller)
            except Exception as error:  # noqa: BLE001 - a defect of ours, and the others are not to suffer from it
                callback_failed(error)

    def _plain(self, events: list[Received]) -> list[Verified | None]:
        try:
            return self._together.verify(events)
        except Exception as error:  # noqa: BLE001 - a defect of ours: each is looked at by itself
            callback_failed(error)
            return [None] * len(events)

    def _judge(self, received: Received, puller: Puller, plans: Plans) -> None:
        reading = self.reading
        if reading is None or reading.plans is not plans:
            if before := self._withdraw():  # admitted by the bundle before, and first in line
                self.take_again(before)
                self.take(received, puller)
                return
            reading = self.reading = Reading(plans, self._team, self._subscription, past=self._bundle.past)
        now_ms = self._now_ms()
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
            self.parked.appendleft((received, puller))
            self._unhandled.spawn(self._fetch_and_resume)
            return
        except RevisionNeeded as error:
            self.parked.appendleft((received, puller))
            revision = error.details["revision"]
            self._unhandled.spawn(lambda: self._fetch_past_and_resume(revision))
            return
        except VerificationError as error:
            if isinstance(error, PublisherNotAllowed) and self._behind(received, puller, decode(received.body), plans):
                return
            self._unhandled.reject(received, puller, error)
            return
        _verified.value += 1
        if not isinstance(outcome, Admitted):
            self._withhold(received, puller, outcome, verified.fields, plans)
            return
        self._admitted(outcome, received, puller, ruling is not _DELIVER)

    def _pause(self, received: Received, puller: Puller) -> None:
        REJECTED.add(1, code=StaleTrust.code)
        self._unhandled.later(received, puller, min(STALE_RETRY_S * received.deliveries, STALE_RETRY_MAX_S))

    def _withhold(
        self, received: Received, puller: Puller, outcome: Withheld, fields: dict[str, Any], plans: Plans
    ) -> None:
        if not self._behind(received, puller, fields, plans):
            WITHHELD.add(1, code=outcome.reason)
            self._pass_over(received, puller, outcome.reason)

    def _behind(self, received: Received, puller: Puller, fields: dict[str, Any], plans: Plans) -> bool:
        """Whether the event was decided by a newer bundle than ours; then we look for that one before we judge.

        The revision is only what the event says, so it buys time and nothing else.
        """
        revision = fields.get("policyrevision")
        newer = isinstance(revision, int) and revision > plans.bundle.revision
        if not newer or received.deliveries > PATIENCE_DELIVERIES:
            return False
        self._bundle.wake()
        self._unhandled.later(received, puller, BEHIND_RETRY_S)
        return True

    def _unknown(self, received: Received, puller: Puller) -> None:
        """The bucket has no certificate for its key: have it delivered again, until that is the last word."""
        if self._fetcher.given_up(_key_id(received)) or received.deliveries > PATIENCE_DELIVERIES:
            self._unhandled.reject(
                received, puller, UnknownKey("no certificate for this key id", next="was it ever issued?")
            )
            return
        REJECTED.add(1, code=UnknownKey.code)
        self._unhandled.later(received, puller, UNKNOWN_KEY_RETRY_S)

    async def _fetch_and_resume(self) -> None:
        """Fetch the certificates that the first parked events name, then take the parked ones in order."""
        if not self.parked:  # stopped before this began
            return
        received, puller = self.parked[0]
        found = await self._fetcher.certificates(each for each, _ in self.parked)
        if self._stopped:
            return
        if not found and self._unpark(received):
            self._unknown(received, puller)
        self._resume()

    async def _fetch_past_and_resume(self, revision: int) -> None:
        """Fetch the older bundle that the first parked event needs, then take the parked ones in order."""
        if not self.parked:  # stopped before this began
            return
        received, puller = self.parked[0]
        found = await self._fetcher.revision(revision)
        if self._stopped:
            return
        if not found and self._unpark(received):
            REJECTED.add(1, code=RevisionNeeded.code)
            self._unhandled.later(received, puller, PAST_RETRY_S)
        self._resume()

    def _unpark(self, received: Received) -> bool:
        """Take one event out of the line; False where it is no longer in it."""
        for index, (waiting, _) in enumerate(self.parked):
            if waiting is received:
                del self.parked[index]
                return True
        return False

    def _resume(self) -> None:
        plans = self._bundle.plans
        parked, self.parked = self.parked, deque()
        while parked:
            received, puller = parked.popleft()
            if plans is None:
                self._unhandled.later(received, puller, NO_BUNDLE_RETRY_S)
                continue
            self._judge(received, puller, plans)
            if self.parked:  # something else is lacking for it, and a fetch of that has begun
                self.parked.extend(parked)
                return


def _key_id(received: Received) -> str:
    """The key id that a signature of good form names; callers come here only after V1 and V2."""
    return (received.signature or "").split(".")[1]
