"""The certificates in a tenant's trust bucket: one key each, `cert.<kid>`, put once and never replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh import logs
from mesh.authorities import load_cas, to_ms
from mesh.certificates import check_chain, split_chain
from mesh.errors import BadCertificate, IdentityError, RequestFailed
from mesh.jetstream import manage
from mesh.jetstream.store import WRONG_LAST_SEQUENCE, KeyValue
from mesh.watch import TRUST_BUCKET

if TYPE_CHECKING:
    from mesh.control.trust import Authority
    from mesh.jetstream.connection import Connection
    from mesh.keys import Certificate

_PREFIX = f"$KV.{TRUST_BUCKET}.cert."

log = logs.get("control")


class StoredCertificates:
    """The certificates of one tenant as the broker shows them. What it shows is checked; what it hides is hidden.

    Args:
        connection: The control plane's, in the tenant account.
        authority: Has the roots to check against.
        tenant: Named in the log.
    """

    def __init__(self, connection: Connection, authority: Authority, tenant: str) -> None:
        self._connection = connection
        self._store = KeyValue(connection, TRUST_BUCKET)
        self._authority = authority
        self._tenant = tenant
        self._ends: dict[str, int] = {}

    async def kids(self) -> set[str]:
        """The key id of each.

        Raises:
            RequestFailed, Unavailable: The store refused or does not answer.
        """
        found: set[str] = set()
        while True:
            body = {"subjects_filter": f"{_PREFIX}*", "offset": len(found)}
            info = await manage.api(self._connection, f"STREAM.INFO.KV_{TRUST_BUCKET}", body)
            page = info["state"].get("subjects") or {}
            found.update(subject.removeprefix(_PREFIX) for subject in page)
            if not page or len(found) >= info.get("total", 0):
                return found

    async def get(self, kid: str) -> Certificate | None:
        """The certificate of *kid*; None where there is none that holds up, which is logged.

        Raises:
            BadSubject: *kid* cannot be a key id.
            RequestFailed, Unavailable: As `kids`.
        """
        entry = await self._store.get(f"cert.{kid}")
        if entry is None:
            return None
        try:
            found = check_chain(entry.value, self._authority.roots)
            if found.kid != kid:
                raise BadCertificate("a certificate lies under another key's id", expected=kid, got=found.kid)
        except IdentityError as error:
            log.error("stored_certificate_refused", tenant=self._tenant, kid=kid, code=error.code)
            return None
        return found

    async def has(self, kid: str) -> bool:
        """Whether anything lies there.

        Raises:
            BadSubject, RequestFailed, Unavailable: As `get`.
        """
        return await self._store.get(f"cert.{kid}") is not None

    async def ends(self) -> dict[str, int]:
        """When (Unix ms) each stored certificate and each intermediate behind one ends, by key id.

        Raises:
            RequestFailed, Unavailable: As `kids`.
        """
        for kid in await self.kids() - set(self._ends):
            if (held := await self.get(kid)) is not None:
                self._ends[kid] = held.not_after_ms
                for issuer in split_chain(held.chain)[1:2]:
                    self._ends[held.issuer_kid] = to_ms(load_cas(issuer)[0].not_valid_after_utc)
        return dict(self._ends)

    async def put(self, certificate: Certificate) -> None:
        """Store one that is not there yet; the same one again changes nothing.

        Raises:
            BadCertificate: The key has another certificate.
            RequestFailed, Unavailable: As `kids`; in the second case it may be stored all the same.
        """
        kid, chain = certificate.kid, certificate.chain
        try:
            await self._store.put(f"cert.{kid}", chain, expected_revision=0)
        except RequestFailed as error:
            if error.details.get("err_code") != WRONG_LAST_SEQUENCE:
                raise
            entry = await self._store.get(f"cert.{kid}")
            if entry is None or entry.value != chain:
                raise taken(kid) from error

    async def purge(self, kid: str) -> None:
        """Remove it without a trace, so that nothing is left to list.

        Raises:
            RequestFailed, Unavailable: As `kids`.
        """
        self._ends.pop(kid, None)
        await manage.api(self._connection, f"STREAM.PURGE.KV_{TRUST_BUCKET}", {"filter": _PREFIX + kid})


def taken(kid: str) -> BadCertificate:
    """A key has one certificate, for good: what was sealed under it goes on to verify by it."""
    return BadCertificate("this key has another certificate already", got=kid, next="enrol with a new key")
