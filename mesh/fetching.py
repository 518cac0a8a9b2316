"""What judging an event may lack, fetched: a certificate, or the policies of an older revision.

However long the bucket is away: an event nobody could judge is not judged. `False` says that it was reached and what it
has does not help.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import anyio

from mesh import logs
from mesh.errors import BadBundle, IdentityError, MeshError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mesh.trust_watch import TrustWatch
    from mesh.watch import BundleWatch

RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)  # between two tries to reach a bucket; the last one repeats

log = logs.get("feed")


class Fetcher:
    """Fetches for one feed, until `stop`."""

    def __init__(self, bundle: BundleWatch, trust: TrustWatch) -> None:
        self._bundle = bundle
        self._trust = trust
        self.stopped = False

    async def certificate(self, kid: str) -> bool:
        """Whether the keyring has a certificate for *kid* now."""

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
