"""The trust statement and the certificates, as one process holds them: read from `mesh_trust`, kept on disk.

The bucket's broker is not trusted. It can lie about neither, since both are signed; it can bring an older statement,
which the epoch shows, after a restart too; and it can withhold newer ones, which their age shows (`mesh.staleness`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio

from mesh import logs
from mesh.errors import BadCertificate, IdentityError, MeshError, TrustRollback
from mesh.jetstream.store import KeyValue
from mesh.telemetry import counter, gauge
from mesh.trust_files import STATEMENT, TrustFiles, chain_file
from mesh.watch import TRUST_BUCKET, TRUST_KEY, Watch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mesh.identity import Certificate, Keyring, TrustStatement
    from mesh.jetstream.connection import Connection
    from mesh.jetstream.store import Entry

KEPT_EVERY_MS = 60_000  # a statement that revokes nothing new is written this often; reissued every 10 s

AGE = gauge(
    "mesh.trust.age", "s", "above 60: trust statements do not arrive; is the control plane running, is a broker silent?"
)
REFUSED = counter("mesh.trust.refused", "{statement}", "above 0: somebody else writes mesh_trust, or it was set back")

log = logs.get("trust")


class TrustWatch:
    """Keeps the trust statement in a keyring, and fetches certificates by key id when an event names one.

    Args:
        connection: With the right to read `mesh_trust`.
        keyring: Gets what holds up.
        directory: Where statement and certificates are kept; None for nowhere.
        on_change: Called whenever other revocations have come into force; not by `load`.

    Attributes:
        keyring: As given.
        on_change: As given.
    """

    def __init__(
        self,
        connection: Connection,
        keyring: Keyring,
        *,
        directory: Path | None = None,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self._store = KeyValue(connection, TRUST_BUCKET)
        self._watch = Watch(connection, self.look, name="trust")
        self._files = None if directory is None else TrustFiles(directory)
        self._unwritten: dict[str, bytes] = {}
        self._written_ms = 0  # when the statement on disk was issued
        self._news = anyio.Event()
        self._started_ms = _now_ms()
        self.keyring = keyring
        self.on_change = on_change

    def load(self) -> TrustStatement | None:
        """Begin with the statement on disk, if there is one that still holds up; certificates are read when needed."""
        sealed = None if self._files is None else self._files.statement()
        if sealed is not None:
            try:
                statement = self.keyring.apply(sealed)
            except IdentityError as error:
                log.error("kept_trust_refused", code=error.code, error=error.message)
            else:
                self._written_ms = statement.issued_ms
                log.info("kept_trust_loaded", epoch=statement.epoch, revoked=len(statement.revoked))
        return self.keyring.statement

    async def refresh(self) -> None:
        """Read the trust statement once. Before the first one was issued there is none to adopt.

        Raises:
            MeshError: It cannot be read, is not signed by the trust key, or is older than the one we hold, or gone.
        """
        entry = await self._store.get(TRUST_KEY)
        before = self.keyring.revision
        try:
            statement = self._adopt(entry)
        except IdentityError as error:
            REFUSED.add(1, code=error.code)
            raise
        if entry is None or statement is None:
            return
        changed = self.keyring.revision != before
        if changed or statement.issued_ms - self._written_ms >= KEPT_EVERY_MS:
            self._written_ms = statement.issued_ms
            self._keep(STATEMENT, entry.value)
        if changed:
            log.info("revocations_adopted", epoch=statement.epoch, revoked=len(statement.revoked))
            if self.on_change is not None:
                self.on_change()

    def _adopt(self, entry: Entry | None) -> TrustStatement | None:
        if entry is not None:
            return self.keyring.apply(entry.value)
        held = self.keyring.statement
        if held is not None:
            raise TrustRollback("the trust statement is gone", expected=f"epoch {held.epoch} or more", got="none")
        return None

    async def look(self) -> None:
        """Read the trust statement once, as `refresh`; one that is refused is an alarm, and the one we hold stays.

        Raises:
            MeshError: It cannot be read.
        """
        try:
            await self.refresh()
        except IdentityError as error:
            held = self.keyring.statement
            log.error("trust_refused", code=error.code, error=error.message, epoch=None if held is None else held.epoch)

    async def certificate(self, kid: str) -> Certificate | None:
        """Get the certificate of *kid* into the keyring, from disk or from the mesh; None where neither has one (yet).

        Raises:
            MeshError: It cannot be read, a root we trust did not issue it, or it is another key's.
        """
        kept = await self._kept(kid)
        if kept is not None and _now_ms() <= kept.not_after_ms:
            return kept
        try:
            fresh = await self._fetch(kid)
        except MeshError as error:
            if kept is None:
                raise
            log.warning("kept_certificate_used", code=error.code, kid=kid)
            return kept
        return fresh or kept

    async def _kept(self, kid: str) -> Certificate | None:
        if self._files is None:
            return None
        chain = await anyio.to_thread.run_sync(self._files.chain, kid)
        try:
            return None if chain is None else self._add(kid, chain)
        except IdentityError as error:
            log.warning("kept_certificate_refused", code=error.code, kid=kid)
            return None

    async def _fetch(self, kid: str) -> Certificate | None:
        entry = await self._store.get(f"cert.{kid}")
        if entry is None:
            return None
        certificate = self._add(kid, entry.value)
        self._keep(chain_file(kid), entry.value)
        return certificate

    def _add(self, kid: str, chain: bytes) -> Certificate:
        certificate = self.keyring.add(chain)
        if certificate.kid != kid:
            raise BadCertificate("stored under one key's id is another key's certificate", expected=kid)
        return certificate

    def wake(self) -> None:
        """Look for a newer statement soon."""
        self._watch.wake()

    async def run(self) -> None:
        """Run until cancelled."""
        forget = AGE.read(self._age_s)
        try:
            async with anyio.create_task_group() as group:
                if self._files is not None:
                    group.start_soon(self._write, self._files)
                await self._watch.run()
        finally:
            forget()

    def _age_s(self) -> float:
        """Since the statement we hold was issued; since our own beginning, where there is none."""
        held = self.keyring.statement
        return max(0.0, (_now_ms() - (self._started_ms if held is None else held.issued_ms)) / 1000)

    def _keep(self, name: str, content: bytes) -> None:
        if self._files is not None:
            self._unwritten[name] = content
            self._news.set()

    async def _write(self, files: TrustFiles) -> None:
        """Write what is to be kept, in a thread; what comes meanwhile is written together, after that."""
        try:
            await anyio.to_thread.run_sync(files.prune, _now_ms())
            while True:
                await self._news.wait()
                await self._write_out(files)
        finally:
            await self._write_out(files)

    async def _write_out(self, files: TrustFiles) -> None:
        """A process that ends remembers the last epoch it has seen: no cancellation comes between."""
        self._news = anyio.Event()
        contents, self._unwritten = self._unwritten, {}
        if contents:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(files.write, contents)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
