"""What the server has beyond what was compiled: in accounts, users, streams, consumers and listeners.

Each difference that gives somebody more, or takes a protection away, is a flag: a stable code, where, and a sentence.
What is less than compiled is no flag; whoever applies policies sees to that.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mesh.jetstream.rights import in_words
from mesh.jetstream.transition import filters_of, remaining, takes_away

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from mesh.jetstream.topology import Config, ConsumerSpec, StreamSpec

# Settings of a stream that guard what is in it; sizes and ages are the operator's to choose.
_GUARDS = (
    "subjects", "retention", "storage", "discard", "duplicate_window", "deny_delete", "deny_purge", "allow_rollup_hdrs",
    "allow_msg_schedules", "allow_msg_ttl",
)  # fmt: skip
# Settings that no stream of the mesh has: each lets stored events leave, be replaced or be taken for others.
_NEVER = (
    "mirror", "sources", "republish", "subject_transform", "subject_delete_marker_ttl", "no_ack", "sealed",
    "allow_msg_counter", "allow_atomic", "allow_batched",
)  # fmt: skip
_OWN_FIELDS = {"type", "version", "limits", "imports", "exports", "revocations", "tags"}  # of an account's claims


@dataclass(frozen=True, slots=True, order=True)
class Flag:
    """Something beyond what was compiled.

    Attributes:
        where: Whose, or what: `agent desk`, `stream EV_local_crm`.
        code: Stable.
        text: A sentence for people.
    """

    where: str
    code: str
    text: str


# By code, what to do about it.
ADVICE = {
    "extra-import": "apply the policies again; if it comes back, see who else holds the operator's key",
    "extra-export": "start the control plane again; if it comes back, see who else holds the operator's key",
    "account-limit": "start the control plane again; if it comes back, see who else holds the operator's key",
    "account-claim": "start the control plane again; if it comes back, see who else holds the operator's key",
    "account-unknown": "replace the operator's key if you did not make it; take its file out of the servers' resolvers",
    "foreign-issuer": "replace the system account's credentials: somebody else pushes with them",
    "servers-differ": "see that every server is connected; the control plane tells those that lag",
    "revocation-missing": "see that every server is connected; the control plane tells those that lag",
    "user-unknown": "`mesh trust revoke --agent`, then `admit`; if it comes back, replace the account's key",
    "user-revoked": "see that every server is connected: the account's JWT did not reach this one",
    "user-signed-by-another": "`mesh trust revoke --agent`, then `admit`; see who holds the account's key",
    "user-bearer": "`mesh trust revoke --agent`, then `admit`; see who holds the account's key",
    "user-unlimited": "`mesh trust rotate --agent ... --credentials`; see who holds the account's key",
    "user-subject": "`mesh trust rotate --agent ... --credentials`; see who holds the account's key",
    "user-responses": "`mesh trust rotate --agent ... --credentials`; see who holds the account's key",
    "stream-setting": "apply the policies again: what can be put right is; what copied meanwhile was read",
    "stream-unknown": "delete it if nobody needs it; only the control plane's credentials make streams",
    "messages-deleted": "`mesh audit verify` and the control plane's log say whether that was meant",
    "consumer-unknown": "delete it; only the control plane's credentials make consumers",
    "consumer-pushes": "delete it; only the control plane's credentials make consumers",
    "consumer-setting": "apply the policies again",
    "consumer-filter": "apply the policies again",
    "tls-off": "`mesh up --tls`, or listen on loopback",
    "tls-one-sided": "set `verify: true` in the server's TLS",
    "no-authentication": "give the server its operator again",
    "other-door": "take it out of the server's configuration",
}

# --- accounts --------------------------------------------------------------------------------------------------------


def account_flags(
    where: str,
    live: Mapping[str, Any],
    wanted: Mapping[str, Any],
    *,
    owner: str,
    consumers: Mapping[tuple[str, str], Config],
) -> Iterator[Flag]:
    """What an account's JWT gives beyond what it has to.

    Args:
        where: For the flags.
        live: Its claims under `nats`, as a server has them.
        wanted: The same, as they have to be.
        owner: Public key of the tenant's account.
        consumers: Of the tenant, by stream and name.
    """
    for one in _beyond(live, wanted, "imports"):
        said = in_words(str(one.get("subject", "")), str(one.get("type", "")), consumers)
        if one.get("account") != owner:
            said = f"reach {one.get('subject')} of the account {one.get('account')}"
        yield Flag(where, "extra-import", f"can {said}; the policies do not say so (import of {one.get('subject')})")
    for one in _beyond(live, wanted, "exports"):
        yield Flag(where, "extra-export", f"shares {one.get('subject')} with every account; the mesh does not")
    limits = wanted["limits"]
    for name, value in sorted(live.get("limits", {}).items()):
        if not _within(value, limits.get(name, 0)):
            what = "it has to be closed: " if name == "conn" and limits.get(name) == 0 else ""
            yield Flag(where, "account-limit", f"{what}its limit {name} is {value}, not {limits.get(name, 0)}")
    for user, until_s in sorted(wanted.get("revocations", {}).items()):
        if live.get("revocations", {}).get(user, -1) < until_s:
            yield Flag(where, "revocation-missing", f"the user {user} is revoked, and the server does not know it")
    for name in sorted(set(live) - _OWN_FIELDS):
        if live[name] not in (None, "", 0, False, [], {}):
            yield Flag(where, "account-claim", f"its JWT says `{name}`, which the mesh never does")


def _beyond(live: Mapping[str, Any], wanted: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    meant = wanted.get(name) or []
    return [one for one in live.get(name) or [] if one not in meant]


def _within(value: object, limit: object) -> bool:
    """Whether a limit is no wider than it has to be; -1 is none."""
    if isinstance(value, bool) or not isinstance(value, int) or not isinstance(limit, int):
        return value == limit or not value
    return limit == -1 or 0 <= value <= limit


# --- users -----------------------------------------------------------------------------------------------------------


def user_flags(
    where: str,
    claims: Mapping[str, Any],
    *,
    account: str,
    expected: str | None,
    subscribe: Sequence[str] | None,
    revoked: Mapping[str, int],
) -> Iterator[Flag]:
    """What a connected user is, or may, beyond what the control plane gave out.

    Args:
        where: For the flags.
        claims: Of its JWT.
        account: Public key of its account, which has to have signed the JWT itself.
        expected: Public key of the one user that the account has; None where it should have none.
        subscribe: All it may subscribe to; None for the control plane, which may everything.
        revoked: By public key the Unix second up to which JWTs are refused.
    """
    user, nats = str(claims.get("sub", "")), claims.get("nats", {})
    if user in revoked and claims.get("iat", 0) <= revoked[user]:
        yield Flag(where, "user-revoked", f"the revoked user {user} is connected")
    elif user != expected:
        yield Flag(where, "user-unknown", f"the user {user} is connected, and the control plane made no such key")
    if claims.get("iss") != account:
        yield Flag(where, "user-signed-by-another", f"the JWT of {user} was signed by {claims.get('iss')}")
    if nats.get("bearer_token"):
        yield Flag(where, "user-bearer", f"{user} connects without proving that it has the key")
    if subscribe is None:
        return
    allowed = (nats.get("sub") or {}).get("allow") or []
    if not allowed:
        yield Flag(where, "user-unlimited", f"{user} may subscribe to everything in its account, others' answers too")
    for subject in sorted(set(allowed) - set(subscribe)):
        yield Flag(where, "user-subject", f"{user} may subscribe to {subject}")
    if nats.get("resp"):
        yield Flag(where, "user-responses", f"{user} may answer whatever it is asked (`allow_responses`)")


# --- streams and consumers -------------------------------------------------------------------------------------------


def stream_flags(spec: StreamSpec | None, config: Config, state: Mapping[str, Any]) -> Iterator[Flag]:
    """What one stream is beyond what the mesh makes.

    Args:
        spec: As it has to be; None for a stream that nobody compiled.
        config: As the server has it.
        state: Of the server: `num_deleted`, `first_seq`.
    """
    where = f"stream {config['name']}"
    for name in _NEVER:
        if config.get(name):
            yield Flag(where, "stream-setting", f"`{name}` is set: {_shown(config[name])}")
    if spec is None:
        stored = ", ".join(config.get("subjects") or ()) or "nothing of its own"
        yield Flag(where, "stream-unknown", f"nobody compiled it; it stores {stored}")
        return
    stated = spec.config()
    for name in _GUARDS:
        if (config.get(name) or None) != (stated[name] or None):
            yield Flag(
                where, "stream-setting", f"`{name}` is {_shown(config.get(name))}, it has to be {_shown(stated[name])}"
            )
    if spec.max_per_subject != -1 or spec.emptied:
        return  # holes are its nature: the newest of a subject replaces the one before, or what is done with goes
    if state.get("num_deleted"):
        yield Flag(where, "messages-deleted", f"messages deleted inside it: {state['num_deleted']}")
    if not spec.max_age_s and spec.full == "new" and state.get("first_seq", 0) > 1:
        yield Flag(where, "messages-deleted", f"it begins with message {state['first_seq']}: those before were purged")


def consumer_flags(
    spec: ConsumerSpec | None, stream: str, name: str, config: Config, *, draining: bool, ours: bool
) -> Iterator[Flag]:
    """What one consumer delivers beyond what the grants give.

    Args:
        spec: As it has to be; None for a consumer that nobody compiled.
        stream: Its stream.
        name: Its name.
        config: As the server has it.
        draining: Whether it still has to deliver what was stored under an old view.
        ours: Nobody compiled it, and yet it is the control plane's: a reader's, or a paused one that keeps its place.
    """
    where = f"consumer {name} on {stream}"
    if target := config.get("deliver_subject"):
        yield Flag(where, "consumer-pushes", f"it sends what it delivers to {target}, whoever may publish there")
    held = filters_of(config)
    if spec is None:
        if not ours:
            yield Flag(where, "consumer-unknown", f"nobody compiled it; it delivers {', '.join(held) or 'everything'}")
        return
    if config.get("ack_policy") != "explicit":
        yield Flag(where, "consumer-setting", f"`ack_policy` is {config.get('ack_policy')}, it has to be explicit")
    meant = remaining(held, spec.filters) if draining else spec.filters
    if takes_away(held or (">",), meant):
        beyond = [text for text in held or (">",) if takes_away((text,), meant)]
        yield Flag(where, "consumer-filter", f"it delivers {', '.join(beyond)}, beyond what the grants give")


# --- listeners -------------------------------------------------------------------------------------------------------


def server_flags(varz: Mapping[str, Any]) -> Iterator[Flag]:
    """What a server lets anybody on its network do: listen in, where it listens beyond its machine without TLS 1.3."""
    where = f"server {varz.get('server_name', varz.get('server_id', ''))}"
    host = str(varz.get("host", ""))
    if not is_loopback(host):
        if not varz.get("tls_required"):
            yield Flag(where, "tls-off", f"clients connect to {host}:{varz.get('port')} without TLS")
        elif not varz.get("tls_verify"):
            yield Flag(where, "tls-one-sided", f"{host}:{varz.get('port')} asks clients for no certificate")
    cluster = varz.get("cluster") or {}
    if (
        cluster.get("cluster_port")
        and not is_loopback(str(cluster.get("addr", "")))
        and not cluster.get("tls_required")
    ):
        yield Flag(where, "tls-off", f"servers connect to {cluster.get('addr')}:{cluster['cluster_port']} without TLS")
    if not varz.get("auth_required"):
        yield Flag(where, "no-authentication", "it takes clients without credentials")
    for door in ("gateway", "leaf", "mqtt", "websocket"):
        if opened := (varz.get(door) or {}).get("port"):
            yield Flag(where, "other-door", f"its {door} port {opened} is open; the mesh uses none")


def connection_flags(where: str, address: str, tls_version: str) -> Iterator[Flag]:
    """A connection from another machine without TLS, or with an old one."""
    if not is_loopback(address) and tls_version != "1.3":
        how = f"TLS {tls_version}" if tls_version else "no TLS"
        yield Flag(where, "tls-off", f"it is connected from {address} with {how}")


def is_loopback(host: str) -> bool:
    """Whether *host* is reached from its own machine alone; a name other than localhost is not, nor is `0.0.0.0`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def unique(flags: Iterable[Flag]) -> list[Flag]:
    """*flags* once each, in order."""
    return sorted(set(flags))


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if isinstance(value, dict):
        return str(value.get("name") or value.get("dest") or value)
    return "off" if value in (None, False) else "on" if value is True else str(value)
