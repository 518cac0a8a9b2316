"""The structural part of a tenant's policies: what NATS enforces, and what the control plane builds from.

    per agent           which subjects it may publish (view and pattern), which pseudonym keys it needs
    per team            which views of which types it may read
    per subscription    the filters of its durable, or why it is inactive
    domains             the first tokens of types, one stream each

A deny inside an allow becomes narrower patterns where the publish lines it meets name exact types; elsewhere NATS
cannot say it and agents alone enforce it: the part of the grant that holds it is marked `agent_only`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mesh.policy.model import Retry, Subscription
from mesh.policy.rules import Rule, Tenancy, spiffe_id
from mesh.policy.texts import seconds
from mesh.retry import RetryPolicy
from mesh.subjects import Pattern, stream_name

DEFAULT_MAX_IN_FLIGHT = 1000


@dataclass(frozen=True, slots=True)
class PublishGrant:
    """An agent may publish copies of these types in this view."""

    view: str
    pattern: Pattern
    agent_only: bool = False


@dataclass(frozen=True, slots=True)
class AgentGrants:
    """What one agent may publish.

    Attributes:
        types: What its publish lines name, readers or not.
        publish: Its copies: only views that somebody may read.
        domains: Pseudonym domains it masks with, and so holds the keys of.
    """

    agent: str
    team: str
    spiffe_id: str
    types: tuple[Pattern, ...]
    publish: tuple[PublishGrant, ...]
    domains: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReadGrant:
    """A team may read these types in this view, until `expires_ms` where that is set."""

    view: str
    pattern: Pattern
    rule: str
    expires_ms: int | None = None
    agent_only: bool = False


@dataclass(frozen=True, slots=True)
class SubscriptionGrant:
    """One durable subscription, as the grants of now let it be.

    Attributes:
        view: The one it reads; empty where that is not clear.
        filters: Patterns of the types it is delivered, none inside another.
        active: Whether it is delivered anything.
        reason: Why not, in words; empty where it is active.
        agent_only: A deny inside its filters that NATS cannot enforce.
        start: `new`, `all`, or an RFC 3339 time. Counts when the durable is made, never again.
        retry: Deliveries, their backoff, and how long a handler may be silent.
        max_in_flight: Events one replica handles at a time.
    """

    team: str
    name: str
    view: str
    filters: tuple[Pattern, ...]
    active: bool = True
    reason: str = ""
    agent_only: bool = False
    start: str = "new"
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT

    @property
    def durable(self) -> str:
        """`<team>--<name>`, in the stream of each domain its filters reach; neither holds `--`."""
        return f"{self.team}--{self.name}"


@dataclass(frozen=True, slots=True)
class Grants:
    """All of it, of one tenant. `streams` maps each domain to its stream."""

    tenant: str
    site: str
    agents: Mapping[str, AgentGrants]
    teams: Mapping[str, tuple[ReadGrant, ...]]
    subscriptions: Mapping[tuple[str, str], SubscriptionGrant]
    streams: Mapping[str, str]

    @property
    def domains(self) -> tuple[str, ...]:
        """The first tokens of all types that may be published."""
        return tuple(self.streams)

    @property
    def active(self) -> tuple[SubscriptionGrant, ...]:
        """The subscriptions that get durables."""
        return tuple(grant for grant in self.subscriptions.values() if grant.active)


class GrantsCompiler:
    """Works out the grants of one tenant at one time.

    Args:
        tenancy: The parsed policies.
        site, trust_domain: The bundle's.
        now_ms: Unix milliseconds; without it, every right that can expire has.
    """

    def __init__(self, tenancy: Tenancy, *, site: str, trust_domain: str, now_ms: int | None) -> None:
        self._tenancy = tenancy
        self._site = site
        self._trust_domain = trust_domain
        self._now_ms = now_ms
        self._published = tenancy.published()
        self._domains = sorted({p.domain for p in self._published if p.domain is not None})

    def compile(self) -> Grants:
        """The grants."""
        tenancy = self._tenancy
        teams = {team: self._reads(team) for team in sorted(tenancy.members)}
        reads = [grant for grants in teams.values() for grant in grants]
        subscriptions = sorted(tenancy.subscriptions, key=lambda s: (s.metadata.team, s.metadata.name))
        return Grants(
            tenant=tenancy.name,
            site=self._site,
            agents={agent: self._agent(agent, reads) for agent in sorted(tenancy.team_of)},
            teams=teams,
            subscriptions={
                (s.metadata.team, s.metadata.name): self._subscription(s, teams.get(s.metadata.team, ()))
                for s in subscriptions
            },
            streams={domain: stream_name(self._site, domain) for domain in self._domains},
        )

    def _live(self, rules: Iterable[Rule]) -> list[Rule]:
        return [rule for rule in rules if not rule.ended(self._now_ms)]

    # --- agents ------------------------------------------------------------------------------------------------------

    def _agent(self, agent: str, reads: list[ReadGrant]) -> AgentGrants:
        tenancy = self._tenancy
        types = tuple(outermost(p for rule in self._live(tenancy.publishing(agent)) for p in rule.patterns))
        denies = [p for rule in tenancy.publish_denies(agent) if rule.when is None for p in rule.patterns]
        wanted: dict[str, list[Pattern]] = {}
        for grant in reads:
            for mine in types:
                both = mine.intersection(grant.pattern)
                if both is not None:
                    wanted.setdefault(grant.view, []).append(both)
        publish = []
        for view, patterns in sorted(wanted.items()):
            for pattern in outermost(patterns):
                if not any(deny.covers(pattern) for deny in denies):
                    agent_only = any(deny.intersects(pattern) for deny in denies)
                    publish.append(PublishGrant(view, pattern, agent_only))
        identity = tenancy.tenant.spec.identities.get(agent) or spiffe_id(self._trust_domain, tenancy.name, agent)
        domains = sorted({d for grant in publish for d in self._mask_domains(grant)})
        return AgentGrants(agent, tenancy.team_of[agent], identity, types, tuple(publish), tuple(domains))

    def _mask_domains(self, grant: PublishGrant) -> frozenset[str]:
        tenancy = self._tenancy
        tags: set[str] = set()
        for document in tenancy.classified:
            if any(pattern.intersects(grant.pattern) for pattern in document.patterns):
                tags |= document.tags
        return tenancy.tables[grant.view].domains(tags)

    # --- teams and subscriptions -------------------------------------------------------------------------------------

    def _reads(self, team: str) -> tuple[ReadGrant, ...]:
        denies = [p for rule in self._tenancy.read_denies(team) for p in rule.patterns]
        grants: dict[ReadGrant, None] = {}
        for rule in self._live(self._tenancy.reading(team)):
            for pattern in rule.patterns:
                for part, agent_only in self._without(pattern, denies):
                    grants[ReadGrant(rule.view, part, rule.id, rule.expires_ms, agent_only)] = None
        return tuple(grants)

    def _without(self, pattern: Pattern, denies: list[Pattern]) -> list[tuple[Pattern, bool]]:
        """What *denies* leave of *pattern*, each part with whether it holds something that NATS cannot take out.

        One more deny leaves no more than before: where NATS cannot enforce it, those that it can stay enforced.
        """
        meeting = [deny for deny in denies if deny.intersects(pattern)]
        if not meeting:
            return [(pattern, False)]
        parts = outermost(p for p in (known.intersection(pattern) for known in self._published) if p is not None)
        left = [part for part in parts if not any(deny.covers(part) for deny in meeting)]
        return [(part, any(deny.intersects(part) for deny in meeting)) for part in left]

    def _subscription(self, document: Subscription, reads: tuple[ReadGrant, ...]) -> SubscriptionGrant:
        team = document.metadata.team
        wanted = [Pattern.parse(text) for text in document.spec.types]
        view, reason = self._view(document, wanted, reads)
        filters: list[Pattern] = []
        agent_only = False
        if not reason:
            filters, reason, agent_only = self._filters(wanted, [g for g in reads if g.view == view], team)
        retry, max_in_flight = subscription_delivery(self._tenancy, document)
        return SubscriptionGrant(
            team=team,
            name=document.metadata.name,
            view=view,
            filters=tuple(filters),
            active=not reason,
            reason=reason,
            agent_only=agent_only,
            start=document.spec.start,
            retry=retry,
            max_in_flight=max_in_flight,
        )

    @staticmethod
    def _view(document: Subscription, wanted: list[Pattern], reads: tuple[ReadGrant, ...]) -> tuple[str, str]:
        """The view a subscription reads, and why it has none."""
        team, named = document.metadata.team, document.spec.view
        if named is not None:
            held = any(grant.view == named for grant in reads)
            return named, "" if held else f"team `{team}` has no grant for the view `{named}`"
        lasting = [g for g in reads if g.expires_ms is None and any(g.pattern.intersects(w) for w in wanted)]
        views = sorted({grant.view for grant in lasting})
        if len(views) == 1:
            return views[0], ""
        if not views:
            return "", f"team `{team}` has no lasting grant for {_listed(wanted)}"
        return "", f"the grants of team `{team}` give the views {', '.join(views)}: say which in `spec.view`"

    def _filters(self, wanted: list[Pattern], reads: list[ReadGrant], team: str) -> tuple[list[Pattern], str, bool]:
        """The filters of a subscription, why there are none, and whether a deny inside them is left to agents."""
        denies = [p for rule in self._tenancy.read_denies(team) for p in rule.patterns]
        filters: list[Pattern] = []
        beyond = []
        for pattern in wanted:
            meets = (both for g in reads if (both := g.pattern.intersection(pattern)) is not None)
            parts = [found for part in meets for found in self._in_domains(part)]
            if not parts:
                beyond.append(pattern)
            filters.extend(parts)
        if beyond:
            view = reads[0].view
            return [], f"beyond the team's grants in the view `{view}`, or never published: {_listed(beyond)}", False
        kept = [part for pattern in outermost(filters) for part in self._without(pattern, denies)]
        left = outermost(part for part, _ in kept)
        return left, "" if left else "a deny covers all of it", any(agent_only for _, agent_only in kept)

    def _in_domains(self, pattern: Pattern) -> list[Pattern]:
        """*pattern* domain by domain, as each has a stream of its own; only domains somebody publishes in."""
        if pattern.domain is not None:
            return [pattern] if pattern.domain in self._domains else []
        within = (pattern.intersection(Pattern.parse(f"{domain}.>")) for domain in self._domains)
        return [part for part in within if part is not None]


def outermost(patterns: Iterable[Pattern]) -> list[Pattern]:
    """*patterns* without those that another one covers, sorted: the server refuses contained filters (10138)."""
    kept: list[Pattern] = []
    for pattern in sorted(dict.fromkeys(patterns)):
        if not any(other.covers(pattern) for other in kept):
            kept = [other for other in kept if not pattern.covers(other)]
            kept.append(pattern)
    return kept


def subscription_delivery(tenancy: Tenancy, document: Subscription) -> tuple[RetryPolicy, int]:
    """The retry policy and the in-flight bound of a subscription: its own, else the tenant's, else the defaults."""
    mine, tenants = document.spec, tenancy.tenant.spec.delivery
    return _retry(mine.retry, tenants.retry), mine.max_in_flight or tenants.max_in_flight or DEFAULT_MAX_IN_FLIGHT


def _retry(mine: Retry, tenants: Retry) -> RetryPolicy:
    backoff = mine.backoff or tenants.backoff
    ack_wait = mine.ack_wait or tenants.ack_wait
    usual = RetryPolicy()
    return RetryPolicy(
        attempts=mine.attempts or tenants.attempts or usual.attempts,
        backoff_s=usual.backoff_s if backoff is None else tuple(seconds(text) for text in backoff),
        ack_wait_s=usual.ack_wait_s if ack_wait is None else seconds(ack_wait),
    )


def _listed(patterns: Iterable[Pattern]) -> str:
    return ", ".join(f"`{pattern.written}`" for pattern in patterns)
