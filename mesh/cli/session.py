"""What the operator's commands have in common: the context, the control plane's connection, the policies in force."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from mesh.anchors import open_keyring
from mesh.bundles import policy_key
from mesh.cli.operator import operator_connection
from mesh.context import Context
from mesh.errors import NoBundle, RevisionNeeded, UnknownKey
from mesh.inbound import Admitted, Reading, Withheld
from mesh.signing import Verifier
from mesh.trust_watch import TrustWatch
from mesh.watch import BundleWatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mesh.cli.operator import OperatorConnection
    from mesh.policy.compile import Plans
    from mesh.signing import Received, Verified

MAX_FETCHES = 3  # for one event: a certificate, the policies at stream time, those the copy was made under


_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Session:
    """An operator at work in one tenant."""

    context: Context
    connection: OperatorConnection
    plans: Plans
    bundle: BundleWatch
    trust: TrustWatch
    verifier: Verifier

    async def verify(self, received: Received) -> Verified:
        """V1 to V9, fetching the certificate or the older policies where they are not here yet.

        Raises:
            VerificationError: The step that failed.
            MeshError: What is lacking cannot be fetched.
        """
        return await self._with_what_it_needs(lambda: self.verifier.verify(received), received)

    async def admit(self, verified: Verified, reading: Reading, *, now_ms: int) -> Admitted | Withheld:
        """What *reading* makes of a copy, fetching the older policies where they are not here yet.

        Raises:
            MeshError: They cannot be fetched.
        """
        return await self._with_what_it_needs(lambda: reading.admit(verified, now_ms=now_ms), verified.received)

    def reading(self, team: str) -> Reading:
        """What *team* may be shown of stored events, by all its grants."""
        return Reading(self.plans, team, past=self.bundle.past)

    async def _with_what_it_needs(self, judge: Callable[[], _T], received: Received) -> _T:
        for _ in range(MAX_FETCHES):
            try:
                return judge()
            except RevisionNeeded as error:
                await self.bundle.fetch_past(error.details["revision"])
            except UnknownKey:
                if await self.trust.certificate((received.signature or "").split(".")[1]) is None:
                    raise
        return judge()


@asynccontextmanager
async def operator_session(
    path: str | None, *, tenant: str | None = None, team: str | None = None
) -> AsyncIterator[Session]:
    """Connect with the control plane's credentials from the context's data directory.

    Raises:
        ConfigError: No such mesh, or its administration is not ours to read.
        Disconnected: The mesh does not run.
    """
    async with operator_connection(path, tenant=tenant, team=team) as (context, connection):
        trust_dir = context.data / "trust"
        bundle = BundleWatch(connection, policy_key(trust_dir), tenant=context.tenant)
        trust = TrustWatch(connection, open_keyring(trust_dir, tenant=context.tenant))
        await trust.refresh()
        await bundle.refresh()
        if bundle.plans is None:
            refused = bundle.state.refused
            raise NoBundle(
                "no policy bundle is in force",
                expected="one from the control plane",
                got="none" if refused is None else f"one that is refused: {refused.code}",
                next="run `mesh up`",
            )
        plans = bundle.plans
        verifier = Verifier(trust.keyring, plans.may_publish, might_publish=bundle.might_publish)
        yield Session(context, connection, plans, bundle, trust, verifier)
