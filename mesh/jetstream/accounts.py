"""NATS accounts as data: the JWTs of operator mode, and the imports that are the compiled grant.

    operator ── signs ──┬─ system account    its user pushes account JWTs
                        ├─ tenant account    holds every stream, exports families; its only user is the control plane
                        └─ workload account  one per agent or team, no JetStream; imports exact subjects, nothing else

An account boundary is the only thing that stops reply-subject deputies: inside one account, whoever may pull can have
the server deliver to any subject as the reply. So a workload's account *is* its grant, and its users'
permissions only keep its own inbox to itself.

The same keys, names and times give the same bytes. Source: NATS JWT v2 (nats-io/jwt/v2), nkeys.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import nkeys

from mesh.errors import IdentityError, TooLarge
from mesh.jetstream.topology import durables
from mesh.policy.grants import outermost
from mesh.subjects import physical_pattern

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mesh.policy.grants import PublishGrant, SubscriptionGrant
    from mesh.subjects import Pattern

MAX_ACCOUNT_JWT_BYTES = 1_048_576  # the server refuses a longer one ("token too large") at any max_payload, measured
NEXT_THRESHOLD_NS = 600 * 10**9  # 10 min: a pull silent for longer loses its way back (server default 2 min, measured)

_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}
_PREFIXES = {
    "operator": nkeys.PREFIX_BYTE_OPERATOR,
    "account": nkeys.PREFIX_BYTE_ACCOUNT,
    "user": nkeys.PREFIX_BYTE_USER,
}
_encode = msgspec.json.Encoder(order="sorted").encode


# --- keys ------------------------------------------------------------------------------------------------------------


class Nkey:
    """An Ed25519 key of NATS: its prefix says for what. Never used to sign an event: a server chooses what it signs."""

    __slots__ = ("_pair", "public", "seed")

    def __init__(self, seed: str) -> None:
        """Read a seed such as `SA...`.

        Raises:
            IdentityError: It is none.
        """
        try:
            prefix, raw = nkeys.decode_seed(bytearray(seed.encode()))
            if nkeys.encode_seed(bytes(raw), prefix) != seed.encode():  # the package does not check the checksum
                raise nkeys.ErrInvalidSeed
            self._pair = nkeys.from_seed(bytearray(seed.encode()))
            self.public: str = self._pair.public_key.decode()
        except (nkeys.NkeysError, ValueError, TypeError) as error:
            message = "a NATS seed does not decode"
            raise IdentityError(message, expected="58 characters from S", got=f"{len(seed)} characters") from error
        self.seed = seed

    @classmethod
    def from_random(cls, kind: Literal["operator", "account", "user"], random: bytes) -> Nkey:
        """A new key from 32 random bytes."""
        return cls(nkeys.encode_seed(random, _PREFIXES[kind]).decode())

    def sign(self, message: bytes) -> bytes:
        """64 bytes of Ed25519."""
        return bytes(self._pair.sign(message))

    def __repr__(self) -> str:
        return f"Nkey({self.public})"  # never the seed


# --- what an account shares and takes --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class Export:
    """A family of subjects that other accounts of the operator may import."""

    subject: str
    kind: Literal["service", "stream"] = "service"
    many_answers: bool = False
    threshold_ns: int = 0

    def claims(self) -> dict[str, Any]:
        """As it stands in an account JWT."""
        claims: dict[str, Any] = {"name": self.subject, "subject": self.subject, "type": self.kind}
        if self.many_answers:
            claims["response_type"] = "Stream"
        if self.threshold_ns:
            claims["response_threshold"] = self.threshold_ns
        return claims


@dataclass(frozen=True, slots=True, order=True)
class Import:
    """One subject (wildcards allowed) of another account: for a service, the right to publish it there."""

    account: str
    subject: str
    kind: Literal["service", "stream"] = "service"

    def claims(self) -> dict[str, Any]:
        """As it stands in an account JWT."""
        return {"name": self.subject, "account": self.account, "subject": self.subject, "type": self.kind}


# What every tenant account exports, once. Which workload takes which part is decided by the workload's imports, and an
# import stands in a JWT that only the operator can sign.
TENANT_EXPORTS = (
    Export("ev.>"),
    Export("$JS.API.CONSUMER.MSG.NEXT.>", many_answers=True, threshold_ns=NEXT_THRESHOLD_NS),
    Export("$JS.ACK.>"),
    Export("dlq.>"),
    Export("audit.>"),
    Export("report.>"),
    Export("$JS.API.DIRECT.GET.>"),
    Export("ctl.notice", kind="stream"),
)


def workload_imports(tenant: str, name: str) -> list[Import]:
    """What every workload takes: its audit and report subjects, the tenant's bundles, the trust store, the notices.

    Each of its instances (one a process) reports on a subject of its own. The bundle in force, each revision that is
    still needed for older copies, and the candidate that is tried in the shadow have a key each.

    Args:
        tenant: Public key of the tenant account.
        name: Of the workload.
    """
    services = (
        f"audit.{name}",
        f"report.{name}.*",
        "$JS.API.DIRECT.GET.KV_mesh_policy.$KV.mesh_policy.bundle",
        "$JS.API.DIRECT.GET.KV_mesh_policy.$KV.mesh_policy.bundle.*",
        "$JS.API.DIRECT.GET.KV_mesh_policy.$KV.mesh_policy.shadow",
        "$JS.API.DIRECT.GET.KV_mesh_trust.$KV.mesh_trust.>",
        f"$JS.API.DIRECT.GET.REPORTS.report.{name}.*",  # its time stamp is the server's clock
    )
    return [*(Import(tenant, subject) for subject in services), Import(tenant, "ctl.notice", kind="stream")]


def publish_imports(tenant: str, site: str, grants: Iterable[PublishGrant]) -> list[Import]:
    """The subjects that one agent's *grants* let it publish, contained ones dropped.

    Of two patterns that merely overlap both stay: a subject in both arrives twice, is stored once by its message id,
    and is answered twice, the second time with `duplicate` (measured).
    """
    by_view: dict[str, list[Pattern]] = {}
    for grant in grants:
        by_view.setdefault(grant.view, []).append(grant.pattern)
    return [
        Import(tenant, physical_pattern(site, view, pattern))
        for view, patterns in sorted(by_view.items())
        for pattern in outermost(patterns)
    ]


def subscription_imports(
    tenant: str, site: str, domains: Iterable[str], grants: Iterable[SubscriptionGrant]
) -> list[Import]:
    """The pulls, acks and dead letters of *grants*, by exact durable: an ack subject is also a read right (`+NXT`)."""
    domains, imports = tuple(domains), []
    for grant in grants:
        for durable in durables(site, domains, grant):
            imports += [
                Import(tenant, f"$JS.API.CONSUMER.MSG.NEXT.{durable.stream}.{durable.name}"),
                Import(tenant, f"$JS.ACK.{durable.stream}.{durable.name}.>"),
            ]
        imports.append(Import(tenant, f"dlq.{grant.team}.{grant.name}"))
    return imports


# --- JWTs ------------------------------------------------------------------------------------------------------------


def operator_jwt(operator: Nkey, name: str, *, system_account: str, iat: int) -> str:
    """The operator's own JWT, which the server's configuration carries.

    Args:
        operator: Signs itself.
        name: Shown by tools.
        system_account: Public key of the system account.
        iat: Unix seconds.
    """
    nats = {"type": "operator", "version": 2, "system_account": system_account}
    return _sign(operator, operator.public, name, nats, iat)


def account_jwt(
    operator: Nkey,
    account: str,
    name: str,
    *,
    imports: Iterable[Import] = (),
    exports: Iterable[Export] = (),
    jetstream: bool = False,
    closed: bool = False,
    iat: int,
) -> str:
    """One account.

    Args:
        operator: Signs it.
        account: Public key of the account.
        name: Shown by tools and monitoring.
        imports: In any order; none may contain another (the server refuses that).
        exports: In any order.
        jetstream: Whether it may hold streams; only a tenant account may.
        closed: Nobody may connect, and who is connected is cut off: how a workload ends.
        iat: Unix seconds. Servers accept an older one, so whoever pushes keeps the order.

    Raises:
        TooLarge: Over `MAX_ACCOUNT_JWT_BYTES`: give the workload fewer or wider patterns.
    """
    nats: dict[str, Any] = {"type": "account", "version": 2, "limits": _limits(jetstream=jetstream, closed=closed)}
    if taken := [i.claims() for i in sorted(imports)]:
        nats["imports"] = taken
    if shared := [e.claims() for e in sorted(exports)]:
        nats["exports"] = shared
    token = _sign(operator, account, name, nats, iat)
    if len(token) > MAX_ACCOUNT_JWT_BYTES:
        message = f"the account JWT of {name} has {len(token)} bytes, the server takes {MAX_ACCOUNT_JWT_BYTES}"
        raise TooLarge(message, limit=MAX_ACCOUNT_JWT_BYTES, size=len(token), next="grant wider patterns, or fewer")
    return token


def user_jwt(account: Nkey, user: str, name: str, *, subscribe: Sequence[str] | None = None, iat: int) -> str:
    """One user of *account*.

    Args:
        account: Signs it.
        user: Public key of the user.
        name: Shown by tools; for a workload its name.
        subscribe: The only subjects it may subscribe to; None for all (the control plane).
        iat: Unix seconds. There is no expiry: nats-py closes for good on one, and a user ends with its account.
    """
    nats: dict[str, Any] = {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1}
    nats |= {"pub": {}, "sub": {} if subscribe is None else {"allow": sorted(subscribe)}}
    return _sign(account, user, name, nats, iat)


def workload_subscribe(name: str) -> tuple[str, ...]:
    """What a workload's user may subscribe to: its own inbox and the notices."""
    return (f"_INBOX_{name}.>", "ctl.notice")


def creds_file(jwt: str, seed: str) -> bytes:
    """JWT and seed in the format every NATS client reads."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    ).encode()


def claims_of(token: str) -> dict[str, Any]:
    """The claims of a JWT; nothing is verified."""
    claims: dict[str, Any] = msgspec.json.decode(_unb64(token.split(".")[1]))
    return claims


def grants_of(token: str) -> Mapping[str, Any]:
    """What matters in an account JWT: its claims without `iat` and `jti`, so that equal grants compare equal."""
    return {key: value for key, value in claims_of(token).items() if key not in {"iat", "jti"}}


def _limits(*, jetstream: bool, closed: bool) -> dict[str, Any]:
    unlimited = ("subs", "data", "payload", "imports", "exports", "conn", "leaf")
    limits: dict[str, Any] = {**dict.fromkeys(unlimited, -1), "wildcards": True}
    if closed:
        limits["conn"] = 0
    if jetstream:  # files only: what is in memory does not survive
        limits |= {"disk_storage": -1, "streams": -1, "consumer": -1}
    return limits


def _sign(issuer: Nkey, subject: str, name: str, nats: dict[str, Any], iat: int) -> str:
    claims = {"iat": iat, "iss": issuer.public, "sub": subject, "name": name, "nats": nats}
    jti = base64.b32encode(hashlib.sha256(_encode(claims)).digest()).decode().rstrip("=")
    signed = f"{_b64(_encode(_HEADER))}.{_b64(_encode({**claims, 'jti': jti}))}"
    return f"{signed}.{_b64(issuer.sign(signed.encode()))}"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
