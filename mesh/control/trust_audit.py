"""`mesh trust audit`: what every identity can do on the live servers, and what of it nobody compiled.

Derived from what the servers say: the account JWTs that each of them holds, the users that are connected, the streams
and consumers of the tenant. The compiled policies are only what it is compared with.
"""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from mesh.control.durables import FOR_GOOD
from mesh.control.identities import described, identities
from mesh.control.live import read_live
from mesh.control.reader import IDLE_NS
from mesh.control.reconcile import now_ms
from mesh.jetstream import excess, manage
from mesh.jetstream.accounts import Account, claims_of
from mesh.jetstream.durables import REPLAY, redrive, replays
from mesh.jetstream.excess import Flag
from mesh.jetstream.topology import consumer, desired

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mesh.control.accounts import Accounts
    from mesh.control.door import Handler
    from mesh.control.identities import Identity
    from mesh.control.in_force import InForce
    from mesh.control.live import Live
    from mesh.control.reconcile import Operator
    from mesh.control.standing import Standing
    from mesh.jetstream.changes import Actual
    from mesh.jetstream.connection import Connection
    from mesh.jetstream.topology import Config, ConsumerSpec
    from mesh.policy.grants import Grants

_READER = "read-"  # consumers of `mesh.control.reader`


class TrustAudit:
    """Of one tenant.

    Args:
        system: A connection of the system account.
        operator: Whose signature counts, and whose keys are known.
        accounts: Of the tenant.
        policies: Of the tenant.
        standing: Who is barred, and which users are revoked; nobody unless given.
    """

    def __init__(
        self,
        system: Connection,
        operator: Operator,
        accounts: Accounts,
        policies: InForce,
        standing: Standing | None = None,
    ) -> None:
        self._system = system
        self._operator = operator
        self._accounts = accounts
        self._policies = policies
        self._standing = standing

    async def report(self) -> dict[str, Any]:
        """Everything, for the command line.

        Raises:
            NoBundle: No policies are in force.
            RequestFailed, Unavailable: A server refused or did not answer: half an audit would be none.
        """
        began_ms, grants = now_ms(), self._policies.grants
        known = await anyio.to_thread.run_sync(self._operator.keys.names)
        everybody = await anyio.to_thread.run_sync(identities, self._operator, self._accounts, self._standing, grants)
        live = await read_live(self._system)
        actual = await manage.read_actual(self._policies.connection)
        flags = [
            *self._account_flags(live, everybody, known, actual),
            *_connections_flags(live, everybody, known),
            *(flag for server in live.servers for flag in excess.server_flags(server)),
            *await self._stream_flags(grants, actual),
        ]
        return {
            "tenant": self._policies.tenant,
            "revision": self._policies.plans.bundle.revision,
            "holds": not flags,
            "servers": sorted(str(server.get("server_name", "")) for server in live.servers),
            "identities": [self._told(one, live, actual) for one in everybody],
            "streams": len(actual.streams),
            "consumers": len(actual.consumers),
            "flags": [{**asdict(flag), "next": excess.ADVICE[flag.code]} for flag in excess.unique(flags)],
            "took_ms": now_ms() - began_ms,
        }

    def _told(self, one: Identity, live: Live, actual: Actual) -> dict[str, Any]:
        public = one.account.public
        claims = [claims_of(token)["nats"] for token in live.tokens.get(public, ())]
        told = described(one, claims, owner=self._accounts.owner, consumers=actual.consumers)
        return {**told, "connections": sum(c.get("account") == public for c in live.connections)}

    def _account_flags(
        self, live: Live, everybody: list[Identity], known: Mapping[str, str], actual: Actual
    ) -> Iterator[Flag]:
        by_account = {one.account.public: one for one in everybody}
        operator = self._operator.keys.get("operator", "operator").public
        for public, tokens in sorted(live.tokens.items()):
            one = by_account.get(public)
            where = _where(public, one, known)
            if one is not None and (len(tokens) < len(live.servers) or len({_grants(token) for token in tokens}) > 1):
                yield Flag(where, "servers-differ", "the servers of the cluster have different JWTs for it")
            if public not in known and not all(_empty(claims_of(token)["nats"]) for token in tokens):
                yield Flag(where, "account-unknown", "a server knows it, and the control plane never made it")
            for claims in map(claims_of, tokens):
                if claims.get("iss") != operator:
                    yield Flag(where, "foreign-issuer", f"its JWT was signed by {claims.get('iss')}, not our operator")
                live_nats, wanted = claims["nats"], Account("", "").claims()
                if one is not None:
                    wanted = one.account.claims()
                else:  # another tenant's, whose own rights are audited there: here it may do nothing
                    taken = [i for i in live_nats.get("imports", ()) if i.get("account") == self._accounts.owner]
                    live_nats = {"imports": taken}
                yield from excess.account_flags(
                    where, live_nats, wanted, owner=self._accounts.owner, consumers=actual.consumers
                )

    async def _stream_flags(self, grants: Grants, actual: Actual) -> list[Flag]:
        """Streams and consumers against what the grants ask for."""
        topology = desired(grants.site, grants.domains, grants.active)
        streams = {spec.name: spec for spec in topology.streams}
        consumers = {(spec.stream, spec.name): spec for spec in (*topology.consumers, *_sidelines(grants))}
        draining = set(self._policies.draining)
        flags: list[Flag] = []
        for name in sorted(actual.streams):
            info = await manage.stream_info(self._policies.connection, name)
            flags += excess.stream_flags(streams.get(name), info["config"], info["state"])
        for (stream, name), config in sorted(actual.consumers.items()):
            flags += excess.consumer_flags(
                consumers.get((stream, name)),
                stream,
                name,
                config,
                draining=f"{name} on {stream}" in draining or name.endswith(f"--{REPLAY}"),
                ours=_of_a_reader(name, config) or config.get("pause_until") == FOR_GOOD,
            )
        return flags


def _connections_flags(live: Live, everybody: list[Identity], known: Mapping[str, str]) -> Iterator[Flag]:
    """Who is connected, in the tenant's accounts and in those that nobody knows."""
    by_account = {one.account.public: one for one in everybody}
    for connection in live.connections:
        account = str(connection.get("account", ""))
        one = by_account.get(account)
        where = _where(account, one, known)
        if one is None and account in known:
            continue  # another tenant's
        yield from excess.connection_flags(where, str(connection.get("ip", "")), connection.get("tls_version", ""))
        user = str(connection.get("authorized_user", ""))
        if one is None:
            yield Flag(where, "account-unknown", f"the user {user} is connected in it")
            continue
        claims = claims_of(connection["jwt"]) if connection.get("jwt") else {"sub": user}
        yield from excess.user_flags(
            where,
            claims,
            account=account,
            expected=one.user,
            subscribe=one.subscribe,
            revoked=one.revoked,
        )


def handlers(audit: TrustAudit) -> dict[str, Handler]:
    """The audit as a request; packed, because it names every identity of the tenant and has to fit one message."""

    async def answer(_request: dict[str, Any]) -> dict[str, Any]:
        return {"report": b64encode(zlib.compress(msgspec.json.encode(await audit.report()))).decode()}

    return {"audit": answer}


def unpack(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The report in what `handlers` answers."""
    report: dict[str, Any] = msgspec.json.decode(zlib.decompress(b64decode(answer["report"])))
    return report


def _where(account: str, one: Identity | None, known: Mapping[str, str]) -> str:
    return f"account {known.get(account, account)}" if one is None else one.where


def _empty(nats: Mapping[str, Any]) -> bool:
    """Whether an account is closed and shares nothing: it gives nobody anything."""
    return nats.get("limits", {}).get("conn") == 0 and not nats.get("imports") and not nats.get("exports")


def _grants(token: str) -> bytes:
    return msgspec.json.encode(claims_of(token)["nats"], order="sorted")


def _sidelines(grants: Grants) -> Iterator[ConsumerSpec]:
    """What may stand beside the durables of subscriptions: replays, which old views drain from too, and redrives."""
    for grant in grants.active:
        for durable in (*replays(grants.site, grants.domains, grant), redrive(grant)):
            yield consumer(durable, grant)


def _of_a_reader(name: str, config: Config) -> bool:
    """Whether it is a reader of the control plane's: it vanishes by itself, and no account imports its pulls."""
    threshold = config.get("inactive_threshold", 0)
    return name.startswith(_READER) and not config.get("durable_name") and 0 < threshold <= IDLE_NS
