"""What judging an event may lack, fetched: a certificate, or the policies of an older revision.

However long the bucket is away: an event nobody could judge is not judged. `False` says that it was reached and what it
has does not help.

A certificate is stored before anybody holds its key, so one that is not there is either on its way to the replica that
we ask, or nowhere. While that is being found out, the bucket is asked for it once a second and not once an event, and
for many keys at a time: whoever seals with keys that nobody certified must not keep everybody else's events waiting.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

import anyio

from mesh import logs
from mesh.errors import BadBundle, IdentityError, MeshError
from mesh.statements import Header

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from mesh.signing import Received
    from mesh.trust_watch import TrustWatch
    from mesh.watch import BundleWatch

RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)  # between two tries to reach a bucket; the last one repeats
ASK_AGAIN_S = 0.9  # a bucket that had no certificate is not asked again sooner; below `judging.UNKNOWN_KEY_RETRY_S`
PATIENCE_S = 5.0  # that replicas of the trust bucket may lag: missing for that long, a certificate is nowhere
SIDE_BY_SIDE = 64  # events in line whose certificates are asked for at a time
MAX_MISSING = 10_000  # key ids remembered, the one first missed the longest ago goes first; about 2 MB

log = logs.get("feed")


class Fetcher:
    """Fetches for one feed, until `stop`."""

    def __init__(self, bundle: BundleWatch, trust: TrustWatch) -> None:
        self._bundle = bundle
        self._trust = trust
        self._missing: dict[str, tuple[float, float]] = {}  # by key id: first missed, and last
        self.stopped = False

    def missed(self, kid: str) -> bool:
        """Whether the bucket was asked for the certificate of *kid* a moment ago, and had none."""
        return kid in self._missing and time.monotonic() - self._missing[kid][1] < ASK_AGAIN_S

    def given_up(self, kid: str) -> bool:
        """Whether the certificate of *kid* has been missing for longer than a replica lags."""
        first, last = self._missing.get(kid, (0.0, 0.0))
        return last - first >= PATIENCE_S

    async def certificates(self, line: Iterable[Received]) -> bool:
        """Fetch what the first events of a *line* lack; whether the very first now has what it needs.

        Args:
            line: Events that wait to be judged; the first one lacks its certificate.
        """
        named = (_key_id(received) for received in itertools.islice(line, SIDE_BY_SIDE))
        first, *others = dict.fromkeys(kid for kid in named if kid)
        held = self._trust.keyring
        async with anyio.create_task_group() as group:
            for kid in (first, *others):
                if held.find(kid) is None and not self.missed(kid):
                    group.start_soon(self.certificate, kid)
        return held.find(first) is not None

    async def certificate(self, kid: str) -> bool:
        """Whether the keyring has a certificate for *kid* now; where not, that is remembered."""
        found = await self._certificate(kid)
        if found:
            self._missing.pop(kid, None)
        elif not self.stopped:
            now = time.monotonic()
            first, _ = self._missing.get(kid, (now, now))
            self._missing[kid] = first, now
            if len(self._missing) > MAX_MISSING:
                del self._missing[next(iter(self._missing))]
        return found

    async def _certificate(self, kid: str) -> bool:

        async def read() -> bool:
            try:
                return await self._trust.certificate(kid) is not None
            except IdentityError as error:
                log.error("certificate_refused", code=error.code, kid=kid)
                return False

        return await self._until_reached(read, what="certificate", kid=kid)

    async def revision(self, revision: int) -> bool:
        """Whether the plans of an older *revision* are at hand now."""

        async def read() -> bool:
            try:
                await self._bundle.fetch_past(revision)
            except BadBundle as error:
                log.error("past_bundle_refused", code=error.code, error=error.message, revision=revision)
                return False
            return True

        return await self._until_reached(read, what="bundle", revision=revision)

    async def _until_reached(self, read: Callable[[], Awaitable[bool]], **facts: object) -> bool:
        for number in itertools.count():
            try:
                return await read()
            except MeshError as error:
                log.warning("bucket_unavailable", code=error.code, **facts)
            if self.stopped:
                break
            await anyio.sleep(RETRY_S[min(number, len(RETRY_S) - 1)])
        return False


def _key_id(received: Received) -> str:
    """The key id that its signature names; empty where that is of no good form."""
    try:
        return Header.parse(received.signature or "").kid
    except ValueError:
        return ""
