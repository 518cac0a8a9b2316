"""What every process of the mesh keeps current: the policy bundle and the trust statement.

Both live in KV buckets that only the control plane writes. A core notice on `ctl.notice` says "look again"; it is a
hint and may be lost, so both are also read every `POLL_S`. What does not hold up is refused loudly and the last good
one stays in force; before the first there is none, and no bundle means nothing is allowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from mesh import logs
from mesh.errors import MeshError
from mesh.jetstream.store import KeyValue
from mesh.policy.bundle import Bundle
from mesh.policy.compile import Plans

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mesh.identity import Certificate, Keyring
    from mesh.jetstream.connection import Connection

NOTICE_SUBJECT = "ctl.notice"
POLICY_BUCKET = "mesh_policy"
TRUST_BUCKET = "mesh_trust"
BUNDLE_KEY = "bundle"
TRUST_KEY = "trust"
POLL_S = 10.0  # the bound on how long a lost notice goes unnoticed
NOTICE_GAP_S = 0.02  # notices are coalesced: a burst of them costs one read

log = logs.get("watch")


class Watch:
    """Calls *read* at the start, at every notice and every `POLL_S`; a failure is logged and tried again."""

    def __init__(self, connection: Connection, read: Callable[[], Awaitable[None]], *, name: str) -> None:
        self._connection = connection
        self._read = read
        self._name = name
        self._woken = anyio.Event()

    def wake(self) -> None:
        """Look again soon."""
        self._woken.set()

    async def run(self) -> None:
        """Run until cancelled."""
        listener = self._connection.listen(NOTICE_SUBJECT, lambda *_: self.wake())
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
    """Keeps the policy bundle in force; `plans` is None until the first valid one has arrived."""

    def __init__(self, connection: Connection, *, on_change: Callable[[Plans], None] | None = None) -> None:
        self._store = KeyValue(connection, POLICY_BUCKET)
        self._watch = Watch(connection, self.refresh, name="bundle")
        self._on_change = on_change
        self.plans: Plans | None = None

    async def refresh(self) -> None:
        """Read the bundle once and adopt it if it is newer.

        Raises:
            MeshError: It cannot be read, or is not a bundle; the one in force stays.
        """
        entry = await self._store.get(BUNDLE_KEY)
        if entry is None:
            return
        bundle = Bundle.decode(entry.value)
        current = self.plans.bundle.revision if self.plans is not None else 0
        if bundle.revision <= current:
            if bundle.revision < current:
                log.error("bundle_refused", code="bundle-rollback", revision=bundle.revision, current=current)
            return
        self.plans = Plans(bundle)
        log.info("bundle_adopted", tenant=bundle.tenant, revision=bundle.revision)
        if self._on_change is not None:
            self._on_change(self.plans)

    def wake(self) -> None:
        """Look for a newer one soon."""
        self._watch.wake()

    async def run(self) -> None:
        """Run until cancelled."""
        await self._watch.run()


class TrustWatch:
    """Keeps the trust statement in a keyring, and fetches certificates by key id when an event names one."""

    def __init__(self, connection: Connection, keyring: Keyring) -> None:
        self._store = KeyValue(connection, TRUST_BUCKET)
        self._watch = Watch(connection, self.refresh, name="trust")
        self.keyring = keyring

    async def refresh(self) -> None:
        """Read the trust statement once.

        Raises:
            MeshError: It cannot be read, is not signed by the trust key, or is older than the one we hold.
        """
        entry = await self._store.get(TRUST_KEY)
        if entry is not None:
            self.keyring.apply(entry.value)

    async def certificate(self, kid: str) -> Certificate | None:
        """Fetch the certificate of *kid* into the keyring; None where the mesh has none (yet).

        Raises:
            MeshError: It cannot be read, or a root we trust did not issue it.
        """
        entry = await self._store.get(f"cert.{kid}")
        return None if entry is None else self.keyring.add(entry.value)

    async def run(self) -> None:
        """Run until cancelled."""
        await self._watch.run()
