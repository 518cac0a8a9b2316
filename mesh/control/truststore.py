"""What everybody in one tenant verifies by: certificates, and the signed statement of whose keys are revoked.

    cert.<kid>   a certificate followed by its issuer, DER
    trust        the statement: tenant, epoch, when, and from which stream time on each revoked key is refused

They lie in the KV bucket `mesh_trust`. A copy of our own lies beside the control plane's keys: the statement, and every
certificate that has not ended. So a store that was lost, altered or restored from an old backup neither takes a
revocation back nor hides a key from whoever revokes what a workload holds; it is put right at the next start. Copies
from an old backup are made up for too: what the store has beyond them counts, and the epoch follows the clock.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import anyio

from mesh import logs
from mesh.certificates import check_chain
from mesh.control import trust_upkeep
from mesh.control.reconcile import notice, now_ms
from mesh.control.stored_certificates import StoredCertificates, taken
from mesh.control.stream_clock import StreamClock
from mesh.control.trust_copies import TrustCopies, earliest
from mesh.errors import BadTrustStatement, MeshError, TooLarge
from mesh.identity import MAX_TRUST_BYTES
from mesh.jetstream.store import KeyValue
from mesh.watch import TRUST_BUCKET, TRUST_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mesh.control.trust import Authority
    from mesh.identity import TrustStatement
    from mesh.jetstream.connection import Connection
    from mesh.keys import Certificate

log = logs.get("control")


class TrustStore:
    """The trust store of one tenant. No workload can write it; this object is its only writer at a time.

    Args:
        connection: The control plane's, in the tenant account.
        authority: Signs statements, and has the roots that certificates are checked against.
        tenant: Whose; a statement of another tenant is none here.
        file: Our own copy of the statement in force; those of the certificates go into a directory beside it.
        alone: Nobody else ever issued certificates of this tenant: then one that we have no copy of is a sign of loss.
    """

    def __init__(
        self, connection: Connection, authority: Authority, tenant: str, file: Path, *, alone: bool = True
    ) -> None:
        self.tenant = tenant
        self._alone = alone
        self._connection = connection
        self._store = KeyValue(connection, TRUST_BUCKET)
        self._clock = StreamClock(self._store, tenant)
        self._stored = StoredCertificates(connection, authority, tenant)
        self._authority = authority
        self._copies = TrustCopies(file, authority, tenant)
        self._epoch = 0
        self._issued_ms = 0
        self._revoked: dict[str, int] = {}
        self._owed = True  # the last statement is not both stored and kept
        self._changed = anyio.Event()
        self._present: dict[str, Certificate] = {}
        self._lock = anyio.Lock()

    @property
    def epoch(self) -> int:
        """Of the last statement: the Unix second of its issue, or one more than the one before; 0 before the first."""
        return self._epoch

    @property
    def issued_ms(self) -> int:
        """When it was issued, Unix milliseconds; 0 before the first of this process."""
        return self._issued_ms

    @property
    def offset_ms(self) -> int:
        """What to add to our time to get that of the server, which stamps events: see `StreamClock`."""
        return self._clock.offset_ms

    @property
    def revoked(self) -> Mapping[str, int]:
        """By key id: the stream time (Unix ms) from which on its events are refused."""
        return MappingProxyType(self._revoked)

    def present(self, at_ms: int) -> list[Certificate]:
        """Every certificate that has not ended at *at_ms*, whatever the broker shows; those being published too."""
        return [held for held in self._present.values() if held.not_after_ms > at_ms]

    # --- start -------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take up what is in force, put the store right from our own copy, and issue the first statement.

        The bucket has to be there: see `Enforcer.foundation`.

        Raises:
            BadTrustStatement: Our own copy is not what we wrote.
            ConfigError: A copy cannot be read or written.
            RequestFailed, Unavailable: The store refused or does not answer.
        """
        ours = await self._copies.statement()
        entry = await self._store.get(TRUST_KEY)
        theirs = None if entry is None else self._opened(entry.value)
        for statement in (ours, theirs):
            if statement is not None:
                self._epoch = max(self._epoch, statement.epoch)
                self._revoked = earliest(self._revoked, statement.revoked)
        if ours is not None and (theirs is None or earliest(theirs.revoked, ours.revoked) != theirs.revoked):
            stored = 0 if theirs is None else theirs.epoch
            log.error("trust_statement_put_back", tenant=self.tenant, epoch=ours.epoch, stored_epoch=stored)
        await self.statement()
        await self._open_certificates()

    def _opened(self, data: bytes) -> TrustStatement | None:
        try:
            return self._copies.opened(data)
        except BadTrustStatement as error:  # ours is the only trust key: what is there is not ours
            log.error("trust_statement_replaced", tenant=self.tenant, code=error.code, error=error.message)
            return None

    async def _open_certificates(self) -> None:
        stored, at_ms = await self._stored.kids(), now_ms()
        first = await self._copies.make_room()  # the first start, or that of a mesh which kept no copies yet
        self._present.update({held.kid: held for held in await self._copies.certificates(at_ms)})
        unkept = await self._stored.live(stored - self._present.keys(), at_ms)
        for held in unkept:
            self._present[held.kid] = held
            await self._copies.keep_certificate(held)
        if unkept and self._alone and not first:
            log.error("certificates_taken_up", tenant=self.tenant, count=len(unkept))
        missing = [held for held in self._present.values() if held.kid not in stored]
        for held in missing:
            await self._stored.put(held)
        if missing:
            log.error("certificates_put_back", tenant=self.tenant, count=len(missing))

    # --- certificates ------------------------------------------------------------------------------------------------

    async def publish(self, chain: bytes) -> str:
        """Hand out a certificate; returns its key id. The same one again changes nothing.

        It is `present` before anything is awaited: whoever makes sure that a workload is not barred and calls this next
        leaves no gap for a revocation to slip through.

        Args:
            chain: The certificate followed by its issuer, DER.

        Raises:
            BadCertificate: None of our roots stands behind it, or the key has another certificate already.
            WeakKey: See `check_public_key`.
            Overloaded: What is left of the store is for the statement; it was not handed out.
            ConfigError: Our own copy cannot be written; then it was not handed out.
            RequestFailed, Unavailable: The store refused or does not answer. It may have it: it counts as handed out.
        """
        certificate = check_chain(chain, self._authority.roots)
        kid = certificate.kid
        held = self._present.get(kid)
        if held is not None:
            if held.chain != certificate.chain:
                raise taken(kid)
            await self._stored.put(held)
            return kid
        self._present[kid] = certificate
        try:
            await self._stored.check_room()
            await self._copies.keep_certificate(certificate)
        except MeshError:
            del self._present[kid]
            raise
        await self._stored.put(certificate)  # whatever it answers: who has seen it may show it, so it stays present
        return kid

    async def known(self, kid: str) -> bool:
        """Whether this key was seen before: it has a certificate, or is revoked.

        Raises:
            RequestFailed, Unavailable: The store refused or does not answer.
        """
        return kid in self._present or kid in self._revoked or await self._stored.has(kid)

    async def certificate(self, kid: str) -> Certificate | None:
        """The certificate of a key, ended ones too; None where there is none that holds up.

        Raises:
            BadSubject: *kid* cannot be a key id.
            RequestFailed, Unavailable: The store refused or does not answer.
        """
        return self._present.get(kid) or await self._stored.get(kid)

    async def certificates(self) -> list[Certificate]:
        """Every certificate that the store holds, ended ones too, and those that it should.

        Raises:
            RequestFailed, Unavailable: The store refused or does not answer.
        """
        kids = sorted({*self._present, *await self._stored.kids()})
        return [found for kid in kids if (found := await self.certificate(kid)) is not None]

    # --- the statement -----------------------------------------------------------------------------------------------

    async def revoke(self, kids: Mapping[str, int]) -> None:
        """Refuse what is stored under these keys from then on; of two times for one key the earlier counts.

        Args:
            kids: Key ids of certificates or of intermediates, and from which stream time (Unix ms).

        Raises:
            TooLarge: No statement has room for so many.
            BadTrustStatement: Something among them is no key id, or no time.
            ConfigError: Our own copy cannot be written; the statement is out all the same.
            RequestFailed, Unavailable: The store refused or does not answer; they go out with the next statement, and
                whoever asks again before that gets an error again, or has them out.
        """
        async with self._lock:
            revoked = earliest(self._revoked, kids)
            if self._owed or revoked != self._revoked:
                await self._issue(revoked)

    async def statement(self) -> None:
        """Issue the statement again, with a higher epoch, and look how far the server's clock is from ours.

        Raises:
            ConfigError, RequestFailed, Unavailable: As `revoke`.
        """
        async with self._lock:
            await self._issue(self._revoked)
        await self._clock.measure()

    async def _issue(self, revoked: dict[str, int]) -> None:
        at_ms = now_ms()
        epoch = max(self._epoch + 1, at_ms // 1000)  # from a backup, we go on above all that readers have seen
        sealed = self._authority.statement(tenant=self.tenant, epoch=epoch, now_ms=at_ms, revoked=revoked)
        if len(sealed) > MAX_TRUST_BYTES:
            raise TooLarge(
                f"a trust statement of {len(revoked)} revoked keys has {len(sealed)} bytes, limit {MAX_TRUST_BYTES}",
                limit=MAX_TRUST_BYTES,
                size=len(sealed),
                next="revoke their issuer instead: `mesh trust rotate --ca --revoke-old`",
            )
        self._copies.opened(sealed)  # nothing goes out that its readers would refuse
        news = self._owed or revoked != self._revoked
        self._epoch, self._issued_ms, self._revoked, self._owed = epoch, at_ms, revoked, True
        try:
            await self._clock.put(TRUST_KEY, sealed)
            if news:  # what is only issued again is found by the next look, which all take at times of their own
                self._changed.set()
                await notice(self._connection, "trust", epoch)
        finally:
            await self._copies.keep_statement(sealed)
        self._owed = False

    async def changed(self) -> None:
        """Wait until a statement has gone out that revokes other keys than at the last call."""
        await self._changed.wait()
        self._changed = anyio.Event()

    # --- what ended --------------------------------------------------------------------------------------------------

    async def prune(self, at_ms: int) -> int:
        """Drop what nothing that is still stored can need; returns how many certificates went.

        A certificate goes `KEEP_MS` after its end, and its revocation with it: see `StoredCertificates.needed`.

        Args:
            at_ms: Unix milliseconds of now.

        Raises:
            ConfigError, RequestFailed, Unavailable: As `revoke`; the next call goes on.
        """
        for held in [held for held in self._present.values() if held.not_after_ms <= at_ms]:
            del self._present[held.kid]
            self._copies.forget_certificate(held.kid)
        needed = await self._stored.needed(at_ms)
        async with self._lock:
            revoked = {kid: from_ms for kid, from_ms in self._revoked.items() if needed(kid, from_ms)}
            if revoked != self._revoked:
                await self._issue(revoked)
        gone = await self._stored.purge_ended(at_ms)
        if gone:
            log.info("certificates_pruned", tenant=self.tenant, count=gone)
        return gone

    # --- running -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Issue the statement again and again, at each connect as well, and prune; until cancelled."""
        await trust_upkeep.run(self, self._connection)
