"""Where signed bundles lie: in the tenant's KV bucket, and a copy of the one in force beside the control plane's keys.

    bundle        the envelope in force
    bundle.<n>    the envelope of each revision that some stored copy may still name

The copy of our own is what makes the store's word checkable: a store that was lost, altered, or restored from an old
backup is put right from it, loudly, before anybody starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh import logs
from mesh.control.datadir import write_private
from mesh.errors import BadBundle, NotFound
from mesh.jetstream.store import Entry, KeyValue
from mesh.policy.envelope import follows, open_bundle
from mesh.watch import BUNDLE_KEY, POLICY_BUCKET

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from mesh.control.trust import Authority
    from mesh.jetstream.connection import Connection
    from mesh.policy.bundle import Bundle

log = logs.get("control")


class BundleStore:
    """The bundles of one tenant.

    Args:
        connection: The control plane's, in the tenant account.
        authority: Seals, and has the public key that opens.
        keep: Our own copy of the envelope in force.
    """

    def __init__(self, connection: Connection, authority: Authority, keep: Path) -> None:
        self._store = KeyValue(connection, POLICY_BUCKET)
        self._authority = authority
        self._keep = keep

    async def in_force(self) -> Bundle | None:
        """The bundle in force, verified; None before the first. Puts the store right where our copy knows better.

        Raises:
            RequestFailed, Unavailable: The store does not answer.
        """
        ours = self._kept()
        entry = await self._store.get(BUNDLE_KEY)
        theirs = self._opened(entry)
        if ours is None:
            if theirs is not None and entry is not None:
                write_private(self._keep, entry.value)
            return theirs
        if theirs is not None and entry is not None:
            try:
                follows(theirs, ours)
            except BadBundle as error:
                log.error("bundle_refused", code=error.code, revision=theirs.revision, current=ours.revision)
            else:
                write_private(self._keep, entry.value)
                return theirs
        log.error("bundle_put_back", tenant=ours.tenant, revision=ours.revision, found=entry is not None)
        sealed = self._keep.read_bytes()
        await self._store.put(f"{BUNDLE_KEY}.{ours.revision}", sealed)
        await self._store.put(BUNDLE_KEY, sealed)
        return ours

    async def entry(self) -> Entry | None:
        """The store's entry of the bundle in force: its sequence, and since when, by the server's clock."""
        return await self._store.get(BUNDLE_KEY)

    async def put(self, bundle: Bundle, expected: int) -> None:
        """Hand *bundle* out: by its number, then as the one in force, then to our own copy.

        Args:
            bundle: The next one.
            expected: The sequence of the entry it takes the place of; 0 before the first.

        Raises:
            BadBundle: It is too large.
            RequestFailed: Somebody else put one meanwhile (`WRONG_LAST_SEQUENCE`), or the server refused.
            Unavailable: The store does not answer.
        """
        sealed = self._authority.seal(bundle)
        await self._store.put(f"{BUNDLE_KEY}.{bundle.revision}", sealed)
        await self._store.put(BUNDLE_KEY, sealed, expected)
        write_private(self._keep, sealed)

    async def past(self, current: Bundle, revision: int) -> Bundle:
        """The bundle *revision* that *current* names among those before it, or *current* itself.

        Raises:
            NotFound: It is too old, is still to come, or is not in the store.
            BadBundle: What lies there is not that bundle.
        """
        if revision == current.revision:
            return current
        digest = next((past.digest for past in current.lineage if past.revision == revision), None)
        entry = None if digest is None else await self._store.get(f"{BUNDLE_KEY}.{revision}")
        if digest is None or entry is None:
            first = current.lineage[0].revision if current.lineage else current.revision
            raise NotFound(
                f"there is no bundle of revision {revision}",
                expected=f"{first} to {current.revision}",
                got=str(revision),
                next="`mesh policy history` lists them",
            )
        bundle = open_bundle(entry.value, self._authority.policy_public)
        if bundle.digest != digest:
            raise BadBundle(
                f"the stored bundle {revision} is not the one that was in force",
                expected=f"digest {digest[:12]}",
                got=f"digest {bundle.digest[:12]}",
                next="apply the policies from your files instead",
            )
        return bundle

    async def forget(self, revisions: Iterable[int]) -> None:
        """Delete bundles that no bundle names any more."""
        for revision in revisions:
            await self._store.delete(f"{BUNDLE_KEY}.{revision}")

    def _opened(self, entry: Entry | None) -> Bundle | None:
        if entry is None:
            return None
        try:
            return open_bundle(entry.value, self._authority.policy_public)
        except BadBundle as error:
            log.error("bundle_refused", code=error.code, error=str(error))
            return None

    def _kept(self) -> Bundle | None:
        try:
            return open_bundle(self._keep.read_bytes(), self._authority.policy_public)
        except FileNotFoundError:
            return None
        except BadBundle as error:
            log.error("kept_bundle_refused", code=error.code, error=str(error))
            return None
