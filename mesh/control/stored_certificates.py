"""The certificates in a tenant's trust bucket: one key each, `cert.<kid>`, put once and never replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh import logs
from mesh.authorities import load_cas, to_ms
from mesh.certificates import check_chain, split_chain
from mesh.errors import BadCertificate, IdentityError, Overloaded, RequestFailed
from mesh.jetstream import manage
from mesh.jetstream.store import WRONG_LAST_SEQUENCE, KeyValue
from mesh.watch import TRUST_BUCKET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mesh.control.trust import Authority
    from mesh.jetstream.connection import Connection
    from mesh.keys import Certificate

DAY_MS = 86_400_000
KEEP_MS = 31 * DAY_MS  # after a certificate's end: dead letters live 30 days, events 7
UNKNOWN_MS = 2 * 366 * DAY_MS  # after the time a key is revoked from, without its certificate: a CA lives for a year
FULL_PERCENT = 80  # of the bucket, for certificates; the rest is for the statement, which is put beside the one before

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
        self._ends[kid] = found.not_after_ms
        for issuer in split_chain(found.chain)[1:2]:
            self._ends[found.issuer_kid] = to_ms(load_cas(issuer)[0].not_valid_after_utc)
        return found

    async def live(self, kids: Iterable[str], at_ms: int) -> list[Certificate]:
        """The certificates of *kids* that have not ended at *at_ms*; one that does not hold up is none.

        Raises:
            BadSubject, RequestFailed, Unavailable: As `get`.
        """
        held = [await self.get(kid) for kid in sorted(kids)]
        return [one for one in held if one is not None and one.not_after_ms > at_ms]

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
            await self.get(kid)
        return dict(self._ends)

    async def check_room(self) -> None:
        """Raise unless there is room for another certificate: a bucket that is full would refuse the statement too.

        Raises:
            Overloaded: `FULL_PERCENT` of the bucket are filled.
            RequestFailed, Unavailable: As `kids`.
        """
        info = await manage.stream_info(self._connection, f"KV_{TRUST_BUCKET}")
        limit, filled = info["config"]["max_bytes"], info["state"]["bytes"]
        if 0 < limit * FULL_PERCENT <= filled * 100:
            raise Overloaded(
                "the trust store has no room for another certificate",
                expected=f"less than {FULL_PERCENT} % of {limit} bytes: the rest is for the trust statement",
                got=f"{filled} bytes",
                next="find out who enrols that often (`mesh trust list --all`), and revoke it;"
                " certificates leave the store 31 days after their end",
            )

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

    async def needed(self, at_ms: int) -> Callable[[str, int], bool]:
        """Whether the revocation of a key id, from a time (Unix ms) on, can still matter at *at_ms*.

        It can until `KEEP_MS` after the end of its certificate, and where we never saw one for `UNKNOWN_MS`, which no
        certificate outlives.

        Raises:
            RequestFailed, Unavailable: As `kids`.
        """
        ends = await self.ends()
        return lambda kid, from_ms: at_ms < (ends[kid] + KEEP_MS if kid in ends else from_ms + UNKNOWN_MS)

    async def purge_ended(self, at_ms: int) -> int:
        """Remove those that ended `KEEP_MS` before *at_ms*, without a trace that a list would show; how many those are.

        Raises:
            RequestFailed, Unavailable: As `kids`; the next call goes on.
        """
        gone = [kid for kid in await self.kids() if kid in self._ends and self._ends[kid] + KEEP_MS <= at_ms]
        for kid in gone:
            await manage.api(self._connection, f"STREAM.PURGE.KV_{TRUST_BUCKET}", {"filter": _PREFIX + kid})
            del self._ends[kid]
        return len(gone)


def taken(kid: str) -> BadCertificate:
    """A key has one certificate, for good: what was sealed under it goes on to verify by it."""
    return BadCertificate("this key has another certificate already", got=kid, next="enrol with a new key")
