"""What only the control plane can measure: how far each subscription is behind, who runs which policies, what fills up.

The leader asks the server that leads each durable (`CONSUMER.INFO`): other servers' counts are old. Whoever stops
leading forgets these series, so that each is shown by one process. Labels are names of the policies: tenant, team,
subscription, agent, stream; never a subject, an id or a value.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio

from mesh import logs
from mesh.control.reconcile import now_ms
from mesh.control.rollout import running
from mesh.errors import MeshError, NoBundle, RequestFailed
from mesh.jetstream.durables import durables
from mesh.jetstream.manage import api, consumer_info
from mesh.reports import read_reports
from mesh.telemetry import Counter, Gauge, Shown, counter, gauge

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesh.control.in_force import InForce
    from mesh.control.trust import Authority
    from mesh.jetstream.connection import Connection
    from mesh.jetstream.durables import Durable
    from mesh.policy.grants import SubscriptionGrant

EVERY_S = 10.0  # between two rounds; a durable takes a millisecond of the server
DLQ = "DLQ"

PENDING = gauge(
    "mesh.consumer.pending", "{event}", "stored and not delivered yet; rising: too slow, or nobody consumes"
)
ACK_PENDING = gauge("mesh.consumer.ack_pending", "{event}", "delivered and not settled; at max_in_flight: too slow")
WAITING = gauge("mesh.consumer.waiting", "{request}", "pulls that wait; 0 while events are pending: nobody consumes")
REDELIVERED = gauge("mesh.consumer.redelivered", "{event}", "of ack_pending, delivered before: handlers fail or hang")
SETTLED = counter("mesh.consumer.settled", "{delivery}", "flat while events are pending: nothing gets done")
OLDEST = gauge(
    "mesh.consumer.oldest_unacked", "s", "age of the oldest event that waits or is in hand: what SLOs are of"
)
LAST_ACK = gauge("mesh.consumer.last_ack_age", "s", "0 where nothing is to do; rising: stalled")
LETTERS = counter("mesh.dlq.letters", "{event}", "dead letters written since the stream began: `mesh dlq list`")
STORED = gauge("mesh.dlq.stored", "{event}", "dead letters that wait for somebody: redrive or discard them")
STREAM_BYTES = gauge("mesh.stream.bytes", "By", "of mesh.stream.limit: old events go, or new ones are refused")
STREAM_LIMIT = gauge("mesh.stream.limit", "By", "what the stream may hold; see the sizing table")
REVISION = gauge("mesh.policy.revision", "{revision}", "in force, as the control plane has it")
RUNS = gauge("mesh.policy.agent.revision", "{revision}", "the oldest that a live instance of the agent or team runs")
AGENTS = gauge("mesh.policy.agents", "{instance}", "by state: behind or refusing for a minute, see `mesh status`")
APPLY_AGE = gauge("mesh.policy.apply_age", "s", "since when not everybody runs what is in force; 0: everybody does")
CA_LEFT = gauge("mesh.ca.left", "s", "of the mesh CA's certificate, renewed by itself; below a day: it was not")

OF_LAG: tuple[Counter | Gauge, ...] = (PENDING, ACK_PENDING, WAITING, REDELIVERED, SETTLED, OLDEST, LAST_ACK)

log = logs.get("control")


class Lag(NamedTuple):
    """One subscription, over all its durables."""

    pending: int = 0
    ack_pending: int = 0
    waiting: int = 0
    redelivered: int = 0
    settled: int = 0
    oldest_s: float = 0.0
    last_ack_s: float = 0.0

    def plus(self, info: dict[str, Any], oldest_s: float, at_s: float) -> Lag:
        """With one more durable, as the server describes it."""
        outstanding = info["num_pending"] + info["num_ack_pending"] > 0
        acked = info["ack_floor"].get("last_active") or info["created"]
        return Lag(
            self.pending + info["num_pending"],
            self.ack_pending + info["num_ack_pending"],
            self.waiting + info["num_waiting"],
            self.redelivered + info["num_redelivered"],
            self.settled + info["ack_floor"]["consumer_seq"],
            max(self.oldest_s, oldest_s),
            max(self.last_ack_s, at_s - _seconds(acked) if outstanding else 0.0),
        )


class Measures:
    """Measures one tenant.

    Args:
        connection: The control plane's, in the tenant account.
        policies: Of the tenant.
        authority: Its CA's certificate.
    """

    def __init__(self, connection: Connection, policies: InForce, authority: Authority) -> None:
        self._connection = connection
        self._policies = policies
        self._authority = authority
        self._tenant = policies.tenant
        self._shown = Shown()
        self._behind_since_s: float | None = None

    async def run(self) -> None:
        """Measure until cancelled."""
        try:
            while True:
                if await self._round():
                    self._shown.sweep()
                await anyio.sleep(EVERY_S)
        finally:
            self._shown.sweep()
            self._shown.sweep()

    async def _round(self) -> bool:
        """Whether all of it was measured: what is gone shows in such a round alone."""
        self._shown.show(CA_LEFT, self._authority.ca.not_after_ms / 1000 - time.time())
        whole = True
        for measure in (self._subscriptions, self._streams, self._dead_letters, self._rollout):
            try:
                await measure()
            except NoBundle:
                return False  # nothing was applied yet
            except MeshError as error:
                log.warning("not_measured", tenant=self._tenant, what=measure.__name__.strip("_"), code=error.code)
                whole = False
        return whole

    async def _subscriptions(self) -> None:
        grants = self._policies.grants
        for grant in grants.active:
            lag = await self._lag(grant, durables(grants.site, grants.domains, grant))
            labels = {"tenant": self._tenant, "team": grant.team, "subscription": grant.name}
            for metric, value in zip(OF_LAG, lag, strict=True):
                self._shown.show(metric, value, **labels)

    async def _lag(self, grant: SubscriptionGrant, places: Iterable[Durable]) -> Lag:
        lag, at_s = Lag(), time.time()
        for place in places:
            try:
                info = await consumer_info(self._connection, place.stream, place.name)
            except RequestFailed:
                log.warning("durable_not_measured", team=grant.team, subscription=grant.name, stream=place.stream)
                continue  # it is being made
            lag = lag.plus(info, await self._oldest_s(place, info, at_s), at_s)
        return lag

    async def _oldest_s(self, place: Durable, info: dict[str, Any], at_s: float) -> float:
        """The age of the first event after the last up to which everything is settled."""
        if info["num_pending"] + info["num_ack_pending"] == 0:
            return 0.0
        oldest_s = at_s
        for subject in place.filters:
            wanted = {"seq": info["ack_floor"]["stream_seq"] + 1, "next_by_subj": subject}
            try:
                found = await api(self._connection, f"STREAM.MSG.GET.{place.stream}", wanted)
            except RequestFailed:  # none of this filter
                continue
            oldest_s = min(oldest_s, _seconds(found["message"]["time"]))
        return max(0.0, at_s - oldest_s)

    async def _streams(self) -> None:
        offset = 0
        while True:
            page = await api(self._connection, "STREAM.LIST", {"offset": offset})
            for info in page["streams"] or ():
                labels = {"tenant": self._tenant, "stream": info["config"]["name"]}
                self._shown.show(STREAM_BYTES, info["state"]["bytes"], **labels)
                if (limit := info["config"].get("max_bytes", -1)) > 0:
                    self._shown.show(STREAM_LIMIT, limit, **labels)
            offset += len(page["streams"] or ())
            if not page["streams"] or offset >= page["total"]:
                return

    async def _dead_letters(self) -> None:
        info = await api(self._connection, f"STREAM.INFO.{DLQ}", {"subjects_filter": "dlq.>"})
        self._shown.show(LETTERS, info["state"]["last_seq"], tenant=self._tenant)
        known = set(self._policies.grants.subscriptions)
        stored: dict[tuple[str, str], int] = dict.fromkeys(known, 0)
        for subject, count in (info["state"].get("subjects") or {}).items():
            team, _, name = subject.removeprefix("dlq.").partition(".")
            key = (team, name) if (team, name) in known else ("", "")  # of a subscription that is gone
            stored[key] = stored.get(key, 0) + count
        for (team, name), count in stored.items():
            self._shown.show(STORED, count, tenant=self._tenant, team=team, subscription=name)

    async def _rollout(self) -> None:
        plans = self._policies.plans
        bundle = plans.bundle
        found = running(await read_reports(self._connection), self._policies.grants.agents, bundle, at_ms=now_ms())
        show, tenant = self._shown.show, self._tenant
        show(REVISION, bundle.revision, tenant=tenant)
        counts = {"current": 0, "behind": 0, "refusing": 0, "silent": 0}
        oldest: dict[tuple[str, str], int] = {}
        for one in found:
            counts[one.state] += 1
            if one.state != "silent":
                key = (one.kind, one.name)
                oldest[key] = min(one.revision, oldest.get(key, one.revision))
        for (kind, name), revision in oldest.items():
            show(RUNS, revision, tenant=tenant, kind=kind, name=name)
        for state, count in counts.items():
            show(AGENTS, count, tenant=tenant, state=state)
        show(APPLY_AGE, self._apply_age_s(counts["behind"] + counts["refusing"]), tenant=tenant)

    def _apply_age_s(self, late: int) -> float:
        if not late:
            self._behind_since_s = None
            return 0.0
        now_s = time.monotonic()
        if self._behind_since_s is None:
            self._behind_since_s = now_s
        return now_s - self._behind_since_s


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()
