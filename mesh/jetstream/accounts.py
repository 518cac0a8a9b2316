"""NATS accounts as data: the keys and JWTs of operator mode.

    operator ── signs ──┬─ system account    its user pushes account JWTs
                        ├─ tenant account    holds every stream, exports families; its only user is the control plane
                        └─ workload account  one per agent or team, no JetStream; imports exact subjects, nothing else

An account boundary is the only thing that stops reply-subject deputies: inside one account, whoever may pull can have
the server deliver to any subject as the reply. So a workload's account *is* its grant (`imports.py`), and its users'
permissions only keep its own inbox to itself.

The same keys, names and times give the same bytes. Source: NATS JWT v2 (nats-io/jwt/v2), nkeys.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import nkeys

from mesh.errors import IdentityError, TooLarge
from mesh.jetstream.imports import (
    NEXT_THRESHOLD_NS,
    TENANT_EXPORTS,
    Export,
    Import,
    publish_imports,
    subscription_imports,
    workload_imports,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "MAX_ACCOUNT_JWT_BYTES",
    "MAX_CONNECTIONS",
    "MAX_SUBSCRIPTIONS",
    "NEXT_THRESHOLD_NS",
    "TENANT_EXPORTS",
    "Account",
    "Export",
    "Import",
    "Nkey",
    "account_jwt",
    "claims_of",
    "creds_file",
    "grants_of",
    "operator_jwt",
    "publish_imports",
    "subscription_imports",
    "term_of",
    "user_jwt",
    "workload_imports",
    "workload_subscribe",
]

# The server refuses a longer one than 1 MiB ("token too large") at any max_payload, measured; and the message that
# pushes it, its subjects included, has to fit our max_payload of 1 MB.
MAX_ACCOUNT_JWT_BYTES = 1_048_576 - 576

# What a workload may hold of the server's memory; nats-server has no such limits of its own accord. An account without
# JetStream is a workload's or the system's: the latter has a connection or two.
MAX_SUBSCRIPTIONS = 1000  # of one connection: an inbox, the notices, and one for each durable that it pulls
MAX_CONNECTIONS = 256  # of one account, over all servers: as many replicas, or members of a team

_TERM = "mesh-term:"  # a tag, which gives nobody anything
_TERM_RE = re.compile(rf"{_TERM}[0-9]{{1,15}}")
_SIGNATURE_CHARS = 86  # 64 bytes of Ed25519 as base64url
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


@dataclass(frozen=True, slots=True)
class Account:
    """One account as it has to be.

    Attributes:
        public: Its public key.
        name: Shown by tools and monitoring.
        imports: None may contain another (the server refuses that).
        exports: In any order.
        jetstream: Whether it may hold streams; only a tenant account may. Without, connections and their subscriptions
            are limited.
        closed: Nobody may connect, and who is connected is cut off: how a workload ends.
        revocations: By public key of a user, the Unix second up to which JWTs made for it are refused; who is connected
            with one is cut off.
        term: Of the control plane that says so, where several may lead one after the other; 0 where there is one.
    """

    public: str
    name: str
    imports: frozenset[Import] = frozenset()
    exports: tuple[Export, ...] = ()
    jetstream: bool = False
    closed: bool = False
    revocations: Mapping[str, int] = field(default_factory=dict)
    term: int = 0

    def claims(self) -> dict[str, Any]:
        """What its JWT says under `nats`."""
        limits = _limits(jetstream=self.jetstream, closed=self.closed)
        nats: dict[str, Any] = {"type": "account", "version": 2, "limits": limits}
        if taken := [i.claims() for i in sorted(self.imports)]:
            nats["imports"] = taken
        if shared := [e.claims() for e in sorted(self.exports)]:
            nats["exports"] = shared
        if self.revocations:
            nats["revocations"] = dict(self.revocations)
        if self.term:
            nats["tags"] = [f"{_TERM}{self.term}"]
        return nats

    def token(self, operator: Nkey, *, iat: int) -> str:
        """Its JWT.

        Args:
            operator: Signs it.
            iat: Unix seconds. Servers accept an older one, so whoever pushes keeps the order.

        Raises:
            TooLarge: Over `MAX_ACCOUNT_JWT_BYTES`: give the workload fewer or wider patterns. Nothing was signed.
        """
        signed = _unsigned(operator, self.public, self.name, self.claims(), iat)
        size = len(signed) + 1 + _SIGNATURE_CHARS
        if size > MAX_ACCOUNT_JWT_BYTES:
            message = f"the account JWT of {self.name} has {size} bytes, the server takes {MAX_ACCOUNT_JWT_BYTES}"
            raise TooLarge(message, limit=MAX_ACCOUNT_JWT_BYTES, size=size, next="grant wider patterns, or fewer")
        return _signed(operator, signed)


def account_jwt(
    operator: Nkey,
    account: str,
    name: str,
    *,
    imports: Iterable[Import] = (),
    exports: Iterable[Export] = (),
    jetstream: bool = False,
    closed: bool = False,
    revocations: Mapping[str, int] | None = None,
    iat: int,
) -> str:
    """The JWT of one account: see `Account` and `Account.token`.

    Raises:
        TooLarge: As `Account.token`.
    """
    spec = Account(
        account,
        name,
        imports=frozenset(imports),
        exports=tuple(exports),
        jetstream=jetstream,
        closed=closed,
        revocations=revocations or {},
    )
    return spec.token(operator, iat=iat)


def user_jwt(account: Nkey, user: str, name: str, *, subscribe: Sequence[str] | None = None, iat: int) -> str:
    """One user of *account*.

    Args:
        account: Signs it.
        user: Public key of the user.
        name: Shown by tools; for a workload its name.
        subscribe: The only subjects it may subscribe to; None for all (the control plane).
        iat: Unix seconds. There is no expiry: nats-py closes for good on one, and a user ends with its account.
    """
    subscriptions = -1 if subscribe is None else MAX_SUBSCRIPTIONS
    nats: dict[str, Any] = {"type": "user", "version": 2, "subs": subscriptions, "data": -1, "payload": -1}
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


def grants_of(token: str, *, term: bool = True) -> Mapping[str, Any]:
    """What matters in an account JWT: its claims without `iat` and `jti`, so that equal grants compare equal.

    Args:
        token: The JWT.
        term: Whether of which term it is matters.
    """
    grants = {key: value for key, value in claims_of(token).items() if key not in {"iat", "jti"}}
    if not term:
        tags = [tag for tag in grants["nats"].get("tags") or () if not _TERM_RE.fullmatch(tag)]
        grants["nats"] = {**grants["nats"], "tags": tags}
    return grants


def term_of(token: str) -> int:
    """The term of the control plane that made an account JWT; 0 where it says none."""
    tags = claims_of(token)["nats"].get("tags") or ()
    return max((int(tag.removeprefix(_TERM)) for tag in tags if _TERM_RE.fullmatch(tag)), default=0)


def _limits(*, jetstream: bool, closed: bool) -> dict[str, Any]:
    unlimited = ("subs", "data", "payload", "imports", "exports", "conn")
    limits: dict[str, Any] = {**dict.fromkeys(unlimited, -1), "leaf": 0, "wildcards": True}
    if not jetstream:
        limits |= {"subs": MAX_SUBSCRIPTIONS, "conn": MAX_CONNECTIONS}
    if closed:
        limits["conn"] = 0
    if jetstream:  # files only: what is in memory does not survive
        limits |= {"disk_storage": -1, "streams": -1, "consumer": -1}
    return limits


def _sign(issuer: Nkey, subject: str, name: str, nats: dict[str, Any], iat: int) -> str:
    return _signed(issuer, _unsigned(issuer, subject, name, nats, iat))


def _unsigned(issuer: Nkey, subject: str, name: str, nats: dict[str, Any], iat: int) -> str:
    claims = {"iat": iat, "iss": issuer.public, "sub": subject, "name": name, "nats": nats}
    jti = base64.b32encode(hashlib.sha256(_encode(claims)).digest()).decode().rstrip("=")
    return f"{_b64(_encode(_HEADER))}.{_b64(_encode({**claims, 'jti': jti}))}"


def _signed(issuer: Nkey, unsigned: str) -> str:
    return f"{unsigned}.{_b64(issuer.sign(unsigned.encode()))}"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
