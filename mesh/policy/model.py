"""The policy documents as types: one frozen Struct per kind.

    Tenant           teams, their agents, defaults of subscriptions, what consumers do while trust is stale
    Classification   what each field of a type is (tags), owned by the producing team
    View             what a reader sees: row filter, masks per tag (`model_masks.py`), and `otherwise` for the rest
    Access           who may publish what, and who may read what in which view
    Route            copies and moves of events to other types, by content
    Subscription     what a team has delivered (`model_delivery.py`)
    PolicyTest       what the others have to come to (`model_cases.py`); it stands in no bundle

A Struct here says the shape, of texts that `model_words.py` says; `check.py` says what a set of documents must hold
together. `omit_defaults` keeps a bundle readable for an agent one version older, as long as nothing new is used.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, field

from mesh.policy.model_cases import PolicyTestSpec
from mesh.policy.model_delivery import Delivery, SubscriptionSpec
from mesh.policy.model_masks import MaskLine, Otherwise
from mesh.policy.model_words import (
    MAX_FIELDS,
    MAX_LIST,
    MAX_TEXT_CHARS,
    Agent,
    Agents,
    Duration,
    Expression,
    Instant,
    Name,
    RuleId,
    SourcePatterns,
    Spec,
    SpiffeId,
    Tags,
    Teams,
    Text,
    TypeName,
    TypePatterns,
)

API_VERSION: Final = "mesh/v1"
MAX_IDENTITIES = 16_384  # of one tenant; one a team at the very least

# --- metadata --------------------------------------------------------------------------------------------------------


class TenantMetadata(Spec, frozen=True):
    """A Tenant's own name is the tenant."""

    name: Name
    owner: Annotated[str, Meta(max_length=MAX_TEXT_CHARS)] = ""


class Metadata(Spec, frozen=True):
    """Unique by kind, tenant and name; `owner` must agree to a widening."""

    name: Name
    tenant: Name
    owner: Annotated[str, Meta(max_length=MAX_TEXT_CHARS)] = ""


class TeamMetadata(Spec, frozen=True):
    """Of a Subscription: unique by tenant, team and name; the team owns it."""

    name: Name
    tenant: Name
    team: Name


# --- Tenant ----------------------------------------------------------------------------------------------------------


class Team(Spec, frozen=True):
    """A team and the agents that run for it; another tenant's agent is `tenant/agent`."""

    agents: Annotated[tuple[Agent, ...], Meta(max_length=MAX_LIST)] = ()
    contact: Text | None = None


class Trust(Spec, frozen=True):
    """What consumers do once their trust statement is older than 60 s: newer ones are withheld, or nobody issues any.

    grace    go on, mark the events, raise an alarm; pause once the statement is `grace` old (1h; at most 24h)
    strict   pause at once, until a new one arrives
    """

    staleness: Literal["grace", "strict"] = "grace"
    grace: Duration | None = None


class TenantSpec(Spec, frozen=True):
    """Who there is, and what holds for all of them."""

    teams: Annotated[dict[Name, Team], Meta(min_length=1, max_length=MAX_FIELDS)]
    identities: Annotated[dict[Agent, SpiffeId], Meta(max_length=MAX_IDENTITIES)] = field(default_factory=dict)
    delivery: Delivery = Delivery()
    trust: Trust = Trust()


class _Document(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True, tag_field="kind"
):
    api_version: Literal["mesh/v1"] = field(name="apiVersion", default=API_VERSION)
    kind: ClassVar[str]


class _Owned(_Document, frozen=True):
    """What some owner in a tenant wrote."""

    metadata: Metadata

    @property
    def tenant(self) -> str:
        """The tenant this document belongs to."""
        return self.metadata.tenant


class Tenant(_Document, tag="Tenant", frozen=True):
    """One tenant: teams, agents, identities, delivery defaults, what holds while trust is stale."""

    metadata: TenantMetadata
    spec: TenantSpec
    kind: ClassVar[str] = "Tenant"

    @property
    def tenant(self) -> str:
        """The tenant this document belongs to: itself."""
        return self.metadata.name


# --- Classification, View, Access ------------------------------------------------------------------------------------


class ClassificationSpec(Spec, frozen=True):
    """Which tags the fields of these types carry; all matching paths of all documents add up."""

    types: TypePatterns
    fields: Annotated[dict[Text, Tags], Meta(min_length=1, max_length=MAX_FIELDS)]


class Classification(_Owned, tag="Classification", frozen=True):
    """What each field of a type is."""

    spec: ClassificationSpec
    kind: ClassVar[str] = "Classification"


class ViewSpec(Spec, frozen=True):
    """What a reader sees. Either `otherwise` with `mask`, or `like` (another view's masks and rows) with own `rows`."""

    rows: Expression | None = None
    mask: Annotated[tuple[MaskLine, ...], Meta(max_length=MAX_LIST)] = ()
    otherwise: Otherwise | None = None
    like: Name | None = None


class View(_Owned, tag="View", frozen=True):
    """A row filter plus masks."""

    spec: ViewSpec
    kind: ClassVar[str] = "View"


class Who(Spec, frozen=True):
    """Whom a rule is about: keys AND, items OR."""

    teams: Teams | None = None
    agents: Agents | None = None


class Allow(Spec, frozen=True):
    """A right: publish (from more sources, under a condition) or subscribe (in one view; `since` opens history)."""

    id: RuleId
    who: Who
    publish: TypePatterns | None = None
    subscribe: TypePatterns | None = None
    sources: SourcePatterns | None = None
    when: Expression | None = None
    view: Name | None = None
    expires: Instant | None = None
    since: Instant | None = None
    reason: Text | None = None


class Deny(Spec, frozen=True):
    """A refusal, stronger than every right."""

    id: RuleId
    who: Who
    publish: TypePatterns | None = None
    subscribe: TypePatterns | None = None
    when: Expression | None = None
    reason: Text | None = None


class AccessSpec(Spec, frozen=True):
    """Who may do what."""

    allow: Annotated[tuple[Allow, ...], Meta(max_length=MAX_LIST)] = ()
    deny: Annotated[tuple[Deny, ...], Meta(max_length=MAX_LIST)] = ()


class Access(_Owned, tag="Access", frozen=True):
    """Rights and refusals."""

    spec: AccessSpec
    kind: ClassVar[str] = "Access"


# --- Route -----------------------------------------------------------------------------------------------------------


class Match(Spec, frozen=True):
    """Which events a route is about: keys AND, items OR."""

    types: TypePatterns
    sources: SourcePatterns | None = None


class RouteLine(Spec, frozen=True):
    """One copy or move: a new event of the type `to`, for the events that match."""

    id: RuleId
    match: Match
    effect: Literal["copy", "move"]
    to: TypeName
    when: Expression | None = None
    reason: Text | None = None


class RouteSpec(Spec, frozen=True):
    """Where copies go."""

    routes: Annotated[tuple[RouteLine, ...], Meta(min_length=1, max_length=MAX_LIST)]


class Route(_Owned, tag="Route", frozen=True):
    """Content-based copies and moves."""

    spec: RouteSpec
    kind: ClassVar[str] = "Route"


# --- Subscription ----------------------------------------------------------------------------------------------------


class Subscription(_Document, tag="Subscription", frozen=True):
    """A team's durable subscription."""

    metadata: TeamMetadata
    spec: SubscriptionSpec
    kind: ClassVar[str] = "Subscription"

    @property
    def tenant(self) -> str:
        """The tenant this document belongs to."""
        return self.metadata.tenant


# --- PolicyTest ------------------------------------------------------------------------------------------------------


class PolicyTest(_Owned, tag="PolicyTest", frozen=True):
    """What the policies of a tenant have to come to."""

    spec: PolicyTestSpec
    kind: ClassVar[str] = "PolicyTest"


AnyDocument: TypeAlias = Tenant | Classification | View | Access | Route | Subscription | PolicyTest
KINDS: dict[str, type[AnyDocument]] = {
    c.kind: c for c in (Tenant, Classification, View, Access, Route, Subscription, PolicyTest)
}  # fmt: skip
