"""Stored events judged as their readers do: V1 to V9 by the trust in force, and what a subscription may be handed now.

The control plane buries for plain clients only what somebody vouches for, and redrives only what will be handed over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from mesh.errors import Disconnected, EventExpired, MeshError, NoBundle, RevisionNeeded, Unavailable, UnknownKey
from mesh.expiry import expired
from mesh.inbound import Reading, Withheld
from mesh.signing import Verifier

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.signing import Received, Verified
    from mesh.trust_watch import TrustWatch
    from mesh.watch import BundleWatch

MAX_FETCHES = 3  # for one event: a certificate, the policies at stream time, those the copy was made under

_T = TypeVar("_T")


class Judge:
    """Judges by what is in force when `refresh` was called last.

    Args:
        bundle: Of the tenant; not running, `refresh` reads it.
        trust: Likewise.
    """

    def __init__(self, bundle: BundleWatch, trust: TrustWatch) -> None:
        self._bundle = bundle
        self._trust = trust
        self._verifier = Verifier(trust.keyring, self._may_publish, might_publish=bundle.might_publish)
        self._readings: dict[tuple[str, str], Reading] = {}

    async def refresh(self) -> None:
        """Take up the bundle and the trust statement in force.

        Raises:
            MeshError: They cannot be read, or do not hold up.
            NoBundle: Nothing was applied yet.
        """
        await self._trust.refresh()
        await self._bundle.refresh()
        if self._bundle.plans is None:
            raise NoBundle("no policies are in force", expected="a bundle", next="run `mesh policy apply`")
        self._readings.clear()

    async def verify(self, received: Received) -> Verified:
        """V1 to V9, fetching the certificate or the older policies where they are not here yet.

        Raises:
            VerificationError: The step that failed.
            Unavailable: What is lacking cannot be fetched now.
            MeshError: It cannot be fetched at all.
        """
        return await self._with_what_it_needs(lambda: self._verifier.verify(received), received)

    async def refused(self, received: Received, *, team: str, subscription: str, now_ms: int) -> MeshError | str:
        """Why a subscription would not hand *received* to its handler now; empty where it would.

        Returns:
            The failed step of verification, or the code by which it would be withheld or passed over.

        Raises:
            Unavailable: What is lacking to judge it cannot be fetched now.
        """
        try:
            verified = await self.verify(received)
            reading = self._reading(team, subscription)
            outcome = await self._with_what_it_needs(lambda: reading.admit(verified, now_ms=now_ms), received)
        except (Disconnected, Unavailable):
            raise
        except MeshError as error:
            return error
        if isinstance(outcome, Withheld):
            return outcome.reason
        return EventExpired.code if expired(outcome.fields, now_ms) else ""

    def _may_publish(self, spiffe_id: str, type_: str, source: str) -> bool:
        plans = self._bundle.plans
        return plans is not None and plans.may_publish(spiffe_id, type_, source)

    def _reading(self, team: str, subscription: str) -> Reading:
        plans = self._bundle.plans
        if plans is None:
            raise NoBundle("no policies are in force", expected="a bundle", next="run `mesh policy apply`")
        found = self._readings.get((team, subscription))
        if found is None or found.plans is not plans:
            found = self._readings[team, subscription] = Reading(plans, team, subscription, past=self._bundle.past)
        return found

    async def _with_what_it_needs(self, judge: Callable[[], _T], received: Received) -> _T:
        for _ in range(MAX_FETCHES):
            try:
                return judge()
            except RevisionNeeded as error:
                await self._bundle.fetch_past(error.details["revision"])
            except UnknownKey:
                if await self._trust.certificate((received.signature or "").split(".")[1]) is None:
                    raise
        return judge()
