"""Plans: a bundle made ready to decide and mask with. One object a bundle, swapped whole.

Everything by type is worked out when the type is first met and kept, bounded; maskings are shared by all types that the
same classifications cover. So the cost of an event does not grow with the number of policies.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from mesh.errors import NotFound
from mesh.policy.bundle import Bundle
from mesh.policy.decide import NO_READ, LastingView, PublisherPlans, ReadDecision, ViewPlan
from mesh.policy.granting import GrantsCompiler
from mesh.policy.grants import AgentGrants, Grants, SubscriptionGrant
from mesh.policy.mask import Masking
from mesh.policy.masktable import MaskTable
from mesh.policy.paths import Path
from mesh.policy.rules import Rule, Tenancy, spiffe_id
from mesh.policy.texts import seconds
from mesh.staleness import GRACE_S, Staleness

MAX_ANSWERS = 8192  # in each of the caches by type; full means emptied, then filled again


@dataclass(frozen=True, slots=True)
class ReadGrantNow:
    """What lets a team read a type in a view at one time.

    Attributes:
        rule: The id of the first grant that does.
        since_ms: From when on stored events are opened by it; the earliest of all that hold now, None where none says.
        expires_ms: When the last of them ends; None where one lasts.
    """

    rule: str
    since_ms: int | None
    expires_ms: int | None


class Plans:
    """Answers every question of the journey from one bundle.

    Attributes:
        bundle: What it was made from.
        tenancy: Its policies, parsed.
        staleness: What consumers do while no newer trust statement comes.

    Raises:
        BadBundle: The bundle's policies do not parse.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.tenancy: Tenancy = bundle.tenancy()
        tenancy = self.tenancy
        self.staleness = _staleness(tenancy)
        self._maskings: dict[tuple[str, tuple[int, ...]], Masking] = {}
        self._classifying: dict[str, tuple[int, ...]] = {}
        self._views: dict[str, tuple[LastingView, ...]] = {}
        self._publishers: dict[str, PublisherPlans] = {}
        self._reads: dict[tuple[str, str, str], tuple[tuple[int | None, ReadDecision], ...]] = {}
        self._agents = {self.spiffe_id(agent): agent for agent in tenancy.team_of}
        self._may_publish: dict[tuple[str, str, str], bool] = {}
        self._ends = sorted({rule.expires_ms for rule in tenancy.allows if rule.expires_ms is not None})
        self._compilers: dict[int | None, GrantsCompiler] = {}

    # --- who ---------------------------------------------------------------------------------------------------------

    def spiffe_id(self, agent: str) -> str:
        """The SPIFFE id of *agent*: the one given in `identities`, else by the trust domain's rule."""
        tenant = self.tenancy.tenant
        return tenant.spec.identities.get(agent) or spiffe_id(self.bundle.trust_domain, self.bundle.tenant, agent)

    # --- publishing --------------------------------------------------------------------------------------------------

    def publisher(self, agent: str) -> PublisherPlans:
        """The plans of *agent*; of one that the tenant does not know they refuse everything."""
        plans = self._publishers.get(agent)
        if plans is None:
            tenancy = self.tenancy
            team = tenancy.team_of.get(agent)
            plans = PublisherPlans(
                team,
                tenancy.publishing(agent),
                tenancy.publish_denies(agent),
                routes=tenancy.routes,
                principal={"agent": agent, "team": team or "", "tenant": tenancy.name, "id": self.spiffe_id(agent)},
                views_of=self.views,
            )
            if team is not None:
                self._publishers[agent] = plans
        return plans

    def may_publish(self, spiffe_id: str, type_: str, source: str) -> bool:
        """V5: whether this identity may publish *type_* from *source*; conditions and ends are not asked."""
        key = (spiffe_id, type_, source)
        known = self._may_publish.get(key)
        if known is None:
            agent = self._agents.get(spiffe_id)
            known = agent is not None and self.publisher(agent).may_publish(type_, source)
            if len(self._may_publish) >= MAX_ANSWERS:
                self._may_publish.clear()
            self._may_publish[key] = known
        return known

    def views(self, type_: str) -> tuple[LastingView, ...]:
        """The views of *type_* that some team may read, each with the time its last grant ends, by name."""
        views = self._views.get(type_)
        if views is None:
            until: dict[str, int | None] = {}
            for team in self.tenancy.members:
                refused, allows = self._reading(team, type_)
                for rule in () if refused else allows:
                    before = until.get(rule.view, 0)
                    ends = rule.expires_ms
                    until[rule.view] = None if before is None or ends is None else max(before, ends)
            views = tuple(LastingView(self.view(name, type_), until[name]) for name in sorted(until))
            if len(self._views) >= MAX_ANSWERS:
                self._views.clear()
            self._views[type_] = views
        return views

    def view(self, name: str, type_: str) -> ViewPlan:
        """The plan of the view *name* for *type_*, readers or not. Raises KeyError where there is no such view."""
        tenancy = self.tenancy
        table = tenancy.tables[name]
        covering = self._covering(type_)
        masking = self._maskings.get((name, covering))
        if masking is None:
            pairs = (pair for i in covering for pair in tenancy.classified[i].fields)
            masking = Masking(pairs, table, tenant=tenancy.name)
            if len(self._maskings) >= MAX_ANSWERS:
                self._maskings.clear()
            self._maskings[name, covering] = masking
        return ViewPlan(name, masking, tenancy.rows[name])

    def sides(self, view: str, type_: str) -> tuple[tuple[tuple[Path, tuple[str, ...]], ...], MaskTable]:
        """What *view* shows of *type_* comes from: the classified paths with their tags, and the view's masks.

        Raises:
            KeyError: There is no such view.
        """
        classified = self.tenancy.classified
        pairs = tuple(pair for index in self._covering(type_) for pair in classified[index].fields)
        return pairs, self.tenancy.tables[view]

    def _covering(self, type_: str) -> tuple[int, ...]:
        covering = self._classifying.get(type_)
        if covering is None:
            if len(self._classifying) >= MAX_ANSWERS:
                self._classifying.clear()
            covering = self._classifying[type_] = self.tenancy.classifying(type_)
        return covering

    # --- reading -----------------------------------------------------------------------------------------------------

    def reader(self, team: str, type_: str, view: str, *, now_ms: int) -> ReadDecision:
        """Whether *team* may be handed a copy of *type_* in *view* now.

        Args:
            team: The reader.
            type_: Logical.
            view: Of the copy.
            now_ms: Unix milliseconds, for grants that end.
        """
        key = (team, type_, view)
        known = self._reads.get(key)
        if known is None:
            refused, allows = self._reading(team, type_)
            if refused is not None:
                known = ((None, ReadDecision(allowed=False, rule=refused.id, reason="rule")),)
            else:
                mine = (rule for rule in allows if rule.view == view)
                known = tuple((r.expires_ms, ReadDecision(allowed=True, rule=r.id, reason="rule")) for r in mine)
            if len(self._reads) >= MAX_ANSWERS:
                self._reads.clear()
            self._reads[key] = known
        for expires_ms, decision in known:
            if expires_ms is None or now_ms < expires_ms:
                return decision
        return NO_READ

    def grant(self, team: str, type_: str, view: str, now_ms: int) -> ReadGrantNow | None:
        """What lets *team* be handed a copy of *type_* in *view* now; None where `reader` says no.

        Args:
            team: The reader.
            type_: Logical.
            view: Of the copy.
            now_ms: Unix milliseconds, for grants that end.
        """
        refused, allows = self._reading(team, type_)
        live = [rule for rule in allows if rule.view == view and not rule.ended(now_ms)] if refused is None else []
        if not live:
            return None
        ends = [rule.expires_ms for rule in live]
        return ReadGrantNow(
            live[0].id,
            min((rule.since_ms for rule in live if rule.since_ms is not None), default=None),
            None if None in ends else max(end for end in ends if end is not None),
        )

    def _reading(self, team: str, type_: str) -> tuple[Rule | None, list[Rule]]:
        """The deny that stands in *team*'s way to *type_*, and the allows it has."""
        refused = next(iter(self.tenancy.read_denies_of(team, type_)), None)
        return refused, [rule for rule in self.tenancy.reading(team) if rule.covers_type(type_)]

    # --- structure ---------------------------------------------------------------------------------------------------

    def subscription(self, team: str, name: str, *, now_ms: int | None = None) -> SubscriptionGrant:
        """The subscription *name* of *team*, active or not.

        Raises:
            NotFound: The policies declare none of that name.
        """
        found = self._compiler(now_ms).subscription(team, name)
        if found is None:
            names = sorted(s.metadata.name for s in self.tenancy.subscriptions if s.metadata.team == team)
            raise NotFound(
                f"team `{team}` has no subscription `{name}`",
                expected=", ".join(names) or "a Subscription document of that team",
                got=name,
                next="declare it in the policies, or use another name",
            )
        return found

    def subscription_view(self, team: str, name: str, *, now_ms: int | None = None) -> str | None:
        """The view that the subscription *name* of *team* reads; None where it is inactive, or there is none."""
        found = self._compiler(now_ms).subscription(team, name)
        return found.view if found is not None and found.active else None

    def agent_grants(self, agent: str, *, now_ms: int | None = None) -> AgentGrants | None:
        """What *agent* may publish, as in `grants`, at the cost of one; None where the tenant does not know it."""
        return self._compiler(now_ms).agent(agent)

    def grants(self, *, now_ms: int | None = None) -> Grants:
        """What NATS enforces. Without *now_ms* every grant that can expire counts as expired."""
        return self._compiler(now_ms).compile()

    def _compiler(self, now_ms: int | None) -> GrantsCompiler:
        """Between two ends of rights nothing changes. Beside the one without a clock, one is kept: time goes on."""
        ended = None if now_ms is None else bisect_right(self._ends, now_ms)
        compiler = self._compilers.get(ended)
        if compiler is None:
            bundle = self.bundle
            compiler = GrantsCompiler(self.tenancy, site=bundle.site, trust_domain=bundle.trust_domain, now_ms=now_ms)
            self._compilers = {at: kept for at, kept in self._compilers.items() if at is None}
            self._compilers[ended] = compiler
        return compiler


def _staleness(tenancy: Tenancy) -> Staleness:
    trust = tenancy.tenant.spec.trust
    grace_s = GRACE_S if trust.grace is None else seconds(trust.grace)
    return Staleness(strict=trust.staleness == "strict", grace_s=grace_s)
