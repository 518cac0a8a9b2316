"""What every process of the mesh keeps current, and the first of it: the policy bundle (`trust_watch` has the rest).

It lives in KV buckets that only the control plane writes. A core notice on `ctl.notice` says "look again"; it is a hint
and may be lost, so everything is also read every `POLL_S`. What does not hold up is refused loudly and the last good
one stays in force; before the first there is none, and no bundle means nothing is allowed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio
import msgspec

from mesh import logs
from mesh.bundles import Bundles, LastGood
from mesh.errors import BadBundle, BundleChain, MeshError
from mesh.jetstream.store import KeyValue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from mesh.jetstream.connection import Connection
    from mesh.policy.compile import Plans
    from mesh.reports import PolicyState

NOTICE_SUBJECT = "ctl.notice"
POLICY_BUCKET = "mesh_policy"
TRUST_BUCKET = "mesh_trust"
BUNDLE_KEY = "bundle"
TRUST_KEY = "trust"
POLL_S = 10.0  # the bound on how long a lost notice goes unnoticed
KINDS = frozenset({"bundle", "trust", "shadow", "replay", "redrive"})  # of notices: what is watched, and side runs
NOTICE_GAP_S = 0.02  # notices are coalesced: a burst of them costs one read

log = logs.get("watch")


class Notice(msgspec.Struct):
    """What a notice says: what there is to look at again. Of a kind that nobody here knows it may be anything."""

    kind: str = ""


class Watch:
    """Calls *read* at the start, at every notice and every `POLL_S`; a failure is logged and tried again.

    Notices of what other watches read are left to those: of `KINDS`, *name* is ours.
    """

    def __init__(self, connection: Connection, read: Callable[[], Awaitable[None]], *, name: str) -> None:
        self._connection = connection
        self._read = read
        self._name = name
        self._woken = anyio.Event()

    def wake(self) -> None:
        """Look again soon."""
        self._woken.set()

    def _noticed(self, _subject: str, _reply: str, _headers: bytes | None, data: bytes) -> None:
        try:
            kind = msgspec.json.decode(data, type=Notice).kind
        except (msgspec.MsgspecError, UnicodeDecodeError):
            kind = ""
        if kind == self._name or kind not in KINDS:
            self.wake()

    async def run(self) -> None:
        """Run until cancelled."""
        listener = self._connection.listen(NOTICE_SUBJECT, self._noticed)
        self._connection.on_connect(self.wake)
        try:
            while True:
                self._woken = anyio.Event()
                if self._connection.connected:  # else the connection wakes us once there is one
                    try:
                        await self._read()
                    except MeshError as error:
                        log.warning("watch_failed", what=self._name, code=error.code, error=str(error))
                with anyio.move_on_after(POLL_S):
                    await self._woken.wait()
                    await anyio.sleep(NOTICE_GAP_S)
        finally:
            listener.close()


class BundleWatch:
    """Keeps the policy bundle in force.

    Args:
        connection: With the right to read the bundles.
        policy_key: Public key that signs them, 32 bytes.
        tenant: Whose they have to be; None for whichever comes first.
        file: Where the last good one is kept; None for nowhere.
        on_change: Called with the plans of each bundle that comes into force.
        on_news: Called whenever `state` has changed: a bundle was adopted or refused.

    Attributes:
        plans: In force; None until the first valid bundle has come.
        adopted: Set when the next bundle has come into force; then there is a new one.
        past: The plans of an older revision; raises `RevisionNeeded` where `fetch_past` has to get them first.
        might_publish: V5 at stream time, see `Bundles.might_publish`.
    """

    def __init__(
        self,
        connection: Connection,
        policy_key: bytes,
        *,
        tenant: str | None = None,
        file: Path | None = None,
        on_change: Callable[[Plans], None] | None = None,
        on_news: Callable[[], None] | None = None,
    ) -> None:
        self._store = KeyValue(connection, POLICY_BUCKET)
        self._watch = Watch(connection, self.refresh, name="bundle")
        self._bundles = Bundles(policy_key, tenant=tenant)
        self._file = None if file is None else LastGood(file)
        self._seen: tuple[int, int] | None = None
        self.plans: Plans | None = None
        self.adopted = anyio.Event()
        self.on_change = on_change
        self.on_news = on_news
        self.past = self._bundles.past
        self.might_publish = self._bundles.might_publish

    @property
    def state(self) -> PolicyState:
        """What to report."""
        return self._bundles.state

    def load(self) -> Plans | None:
        """Begin with the last good bundle on disk, if there is one that still holds up; `on_change` is not called."""
        envelope = None if self._file is None else self._file.read()
        if envelope is not None:
            try:
                self._bundles.offer(envelope, at_ms=0, now_ms=_now_ms())
            except BadBundle as error:
                log.error("last_bundle_refused", code=error.code, error=error.message)
            else:
                self.plans = self._bundles.plans
                log.info("last_bundle_loaded", revision=self.state.revision)
        return self.plans

    async def refresh(self) -> None:
        """Read the bundle once and adopt it if it is newer; one that is refused is logged, and the last good one stays.

        Raises:
            MeshError: It cannot be read.
        """
        entry = await self._store.get(BUNDLE_KEY)
        if entry is None or (entry.revision, entry.at_ms) == self._seen:
            return
        self._seen = entry.revision, entry.at_ms
        before, adopted = self.state, False
        try:
            adopted = self._bundles.offer(entry.value, at_ms=entry.at_ms, now_ms=_now_ms())
        except BadBundle as error:
            said = error.details["revision"]
            log.error("bundle_refused", code=error.code, error=error.message, revision=said, current=before.revision)
        if adopted and (plans := self._bundles.plans) is not None:
            self.plans = plans
            self.adopted.set()
            self.adopted = anyio.Event()
            log.info("bundle_adopted", tenant=plans.bundle.tenant, revision=self.state.revision)
            if self.on_change is not None:
                self.on_change(plans)
        if self.state != before and self.on_news is not None:
            self.on_news()
        if adopted and self._file is not None:  # last: it waits for the disk
            await anyio.to_thread.run_sync(self._file.write, entry.value)

    async def fetch_past(self, revision: int) -> None:
        """Read an older revision that `past` asked for.

        Raises:
            BadBundle: What is stored under its number is not it, or nothing is.
            MeshError: It cannot be read.
        """
        entry = await self._store.get(f"{BUNDLE_KEY}.{revision}")
        if entry is None:
            raise BundleChain(
                f"the policies of revision {revision} are not stored any more",
                expected=f"the key {BUNDLE_KEY}.{revision} in {POLICY_BUCKET}",
                next="have the control plane restore it; copies made under it wait",
                revision=revision,
            )
        self._bundles.add_past(revision, entry.value)
        log.info("past_bundle_read", revision=revision)

    def wake(self) -> None:
        """Look for a newer one soon."""
        self._watch.wake()

    async def run(self) -> None:
        """Run until cancelled."""
        await self._watch.run()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
