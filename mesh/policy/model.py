"""The policy documents as types: one frozen Struct per kind, and the few words they share.

    Tenant           teams, their agents, defaults of subscriptions, what consumers do while trust is stale
    Classification   what each field of a type is (tags), owned by the producing team
    View             what a reader sees: row filter, masks per tag, and `otherwise` for everything else
    Access           who may publish what, and who may read what in which view
    Route            copies and moves of events to other types, by content
    Subscription     what a team has delivered
    PolicyTest       what the others have to come to: cases and invariants; it stands in no bundle

A Struct here says the shape; `check.py` says what a set of documents must hold together. `omit_defaults` keeps a bundle
readable for an agent one version older, as long as nothing new is used.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, field

from mesh.globs import MAX_SOURCE_CHARS
from mesh.policy import texts
from mesh.subjects import MAX_NAME_CHARS, NAME_RE

API_VERSION: Final = "mesh/v1"

# --- bounds ----------------------------------------------------------------------------------------------------------

MAX_LIST = 256  # patterns, tags or rules in one list: a page nobody reads is a policy nobody checks
MAX_FIELDS = 1024  # classified paths in one document
MAX_TEXT_CHARS = 1000  # a reason, a contact
MAX_IDENTITIES = 16_384  # of one tenant; one a team at the very least
MAX_CONDITION_CHARS = 1000  # design section 4: expressions are bounded
MAX_FAILURES = 1000  # in a row; a handler that fails more often than that has been failing for minutes
MIN_POISON_OF, MAX_POISON_OF = 10, 10_000  # of fewer a share says nothing; more are gone before anybody notices

Text: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_TEXT_CHARS)]
Expression: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_CONDITION_CHARS)]


# --- small grammars --------------------------------------------------------------------------------------------------

# What schemas say of texts that have a grammar; `check.py` parses them and says more. No look-around: RE2 knows none.
MOST_CHARS = "x-most-chars"  # becomes `maxLength`, which msgspec would give back the one of `Text`


def _grammar(pattern: str, most: int = MAX_TEXT_CHARS) -> Meta:
    return Meta(extra_json_schema={"pattern": f"^(?:{pattern})$", MOST_CHARS: most})


_NAME = NAME_RE.pattern
_TYPE_CHARS, _TAG_CHARS = 8 * 65 + 64, 8 * 65  # the longest there can be

Name: TypeAlias = Annotated[Text, _grammar(_NAME, MAX_NAME_CHARS)]
Agent: TypeAlias = Annotated[Text, _grammar(f"(?:{_NAME}/)?{_NAME}", 2 * MAX_NAME_CHARS + 1)]
TypeName: TypeAlias = Annotated[Text, _grammar(r"[a-z0-9_-]{1,64}(?:\.[a-z0-9_-]{1,64}){1,7}", _TYPE_CHARS)]
TypePattern: TypeAlias = Annotated[
    Text, _grammar(r"(?:(?:[a-z0-9_-]{1,64}|\*)\.){0,8}(?:[a-z0-9_-]{1,64}|\*|>)", _TYPE_CHARS)
]
Tag: TypeAlias = Annotated[Text, _grammar(texts.TAG_RE.pattern, _TAG_CHARS)]
TagPattern: TypeAlias = Annotated[
    Text, _grammar(r"(?:[a-z0-9_-]{1,64}|\*\*?)(?:\.(?:[a-z0-9_-]{1,64}|\*\*?)){0,7}", _TAG_CHARS)
]
SourcePattern: TypeAlias = Annotated[Text, Meta(extra_json_schema={MOST_CHARS: MAX_SOURCE_CHARS})]
RuleId: TypeAlias = Annotated[Text, _grammar(texts.RULE_RE.pattern, texts.MAX_RULE_ID_CHARS)]
Duration: TypeAlias = Annotated[Text, _grammar(texts.DURATION_RE.pattern, 11)]
Rate: TypeAlias = Annotated[Text, _grammar(texts.RATE_RE.pattern, 13)]
Instant: TypeAlias = Annotated[Text, _grammar(texts.RFC3339_RE.pattern, 35)]
SpiffeId: TypeAlias = Annotated[Text, _grammar(texts.SPIFFE_RE.pattern, 2048)]
Start: TypeAlias = Annotated[Text, _grammar(f"new|all|{texts.RFC3339_RE.pattern}", 35)]

Teams: TypeAlias = Annotated[tuple[Name, ...], Meta(min_length=1, max_length=MAX_LIST)]
Agents: TypeAlias = Annotated[tuple[Agent, ...], Meta(min_length=1, max_length=MAX_LIST)]
TypePatterns: TypeAlias = Annotated[tuple[TypePattern, ...], Meta(min_length=1, max_length=MAX_LIST)]
TagPatterns: TypeAlias = Annotated[tuple[TagPattern, ...], Meta(min_length=1, max_length=MAX_LIST)]
Tags: TypeAlias = Annotated[tuple[Tag, ...], Meta(min_length=1, max_length=MAX_LIST)]
SourcePatterns: TypeAlias = Annotated[tuple[SourcePattern, ...], Meta(min_length=1, max_length=MAX_LIST)]

# --- actions ---------------------------------------------------------------------------------------------------------

Action: TypeAlias = Literal[
    "clear", "encrypt", "pseudonym", "partial", "generalize", "truncate-ip", "redact", "drop"
]  # fmt: skip
Otherwise: TypeAlias = Literal["clear", "redact", "drop"]

STRICTNESS: dict[str, int] = {
    "clear": 0, "encrypt": 1, "pseudonym": 2, "partial": 3, "generalize": 4, "truncate-ip": 4, "redact": 5, "drop": 6,
}  # fmt: skip
WITH_KEYS: dict[str, frozenset[str]] = {
    "partial": frozenset({"style", "first", "last"}),
    "pseudonym": frozenset({"domain", "algorithm", "bits"}),
    "encrypt": frozenset({"mode", "readers"}),
    "generalize": frozenset({"date", "number", "geo"}),
    "truncate-ip": frozenset({"v4", "v6"}),
}


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Base of everything written in a document."""


class With(Spec, frozen=True):
    """Parameters of one mask action.

    partial       style; or first, last: how many characters stay
    pseudonym     domain; algorithm, bits
    encrypt       mode; for: the teams that can open it
    generalize    date; or number: the edges of the buckets; or geo: how many decimals stay
    truncate-ip   v4, v6: how many bits stay
    """

    style: Literal["email", "phone", "iban", "pan"] | None = None
    first: Annotated[int, Meta(ge=0, le=64)] | None = None
    last: Annotated[int, Meta(ge=0, le=64)] | None = None
    domain: Name | None = None
    algorithm: Literal["blake2b", "hmac-sha256"] = "blake2b"
    bits: Annotated[int, Meta(ge=64, le=256, multiple_of=8)] = 128
    mode: Literal["deterministic", "random"] | None = None
    readers: Teams | None = field(name="for", default=None)
    date: Literal["year", "month", "day"] | None = None
    number: Annotated[tuple[float, ...], Meta(min_length=1, max_length=64)] | None = None
    geo: Annotated[int, Meta(ge=0, le=6)] | None = None
    v4: Annotated[int, Meta(ge=0, le=32)] | None = None
    v6: Annotated[int, Meta(ge=0, le=128)] | None = None


class MaskLine(Spec, frozen=True):
    """`{tags: [...], as: action, with: {...}}`: what becomes of a field that carries one of these tags."""

    tags: TagPatterns
    action: Action = field(name="as")
    params: With = field(name="with", default=With())


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


class Retry(Spec, frozen=True):
    """How often and when an event is delivered again. Durations are text such as `500ms`, `30s`, `5m`, `1h`."""

    attempts: Annotated[int, Meta(ge=1, le=1000)] | None = None
    backoff: Annotated[tuple[Duration, ...], Meta(min_length=1, max_length=32)] | None = None
    ack_wait: Duration | None = None


class Breaker(Spec, frozen=True):
    """A handler that failed `failures` times in a row (0: never mind) is left alone for `open`, such as `10s`."""

    failures: Annotated[int, Meta(ge=0, le=MAX_FAILURES)] | None = None
    open: Duration | None = None


class Poison(Spec, frozen=True):
    """More than this share of the last `of` events became dead letters: the subscription pauses. 1 never pauses."""

    share: float | None = None
    of: Annotated[int, Meta(ge=MIN_POISON_OF, le=MAX_POISON_OF)] | None = None


class Delivery(Spec, frozen=True):
    """What a tenant's subscriptions use where they say nothing."""

    retry: Retry = Retry()
    max_in_flight: Annotated[int, Meta(ge=1, le=100_000)] | None = None


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
    identities: Annotated[dict[Agent, SpiffeId], Meta(max_length=MAX_IDENTITIES)] = {}
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


class SubscriptionSpec(Spec, frozen=True):
    """What a team has delivered, from when, in what order, how failures are retried, and when it pauses by itself.

    `client` says who pulls: `mesh`, our library or agent, or `nats`, any NATS client. `rate` is text such as `200/s`.
    """

    types: TypePatterns
    view: Name | None = None
    start: Start = "new"
    retry: Retry = Retry()
    max_in_flight: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    order_by: Literal["partitionkey"] | None = None
    client: Literal["mesh", "nats"] = "mesh"
    rate: Rate | None = None
    breaker: Breaker = Breaker()
    poison: Poison = Poison()


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


class Principal(Spec, frozen=True):
    """Who a case is about: a team that reads, or an agent that publishes; exactly one of them."""

    team: Name | None = None
    agent: Agent | None = None


class Expect(Spec, frozen=True):
    """What a case has to come to.

    `fields` maps a path to a JSON value, or to `absent`, `clear`, `redacted`, `{pseudonym: domain}`,
    `{encrypted: [teams]}`, `{equals: value}`.
    """

    decision: Literal["allow", "deny"]
    rule: RuleId | None = None
    reason: Text | None = None
    view: Name | None = None
    fields: Annotated[dict[Text, Any], Meta(max_length=MAX_FIELDS)] = {}


class Case(Spec, frozen=True):
    """One question to the policies and its answer.

    Exactly one of `subscribe` and `publish` holds the type. `event` is a fixture; `set` and `unset` change it by path.
    """

    principal: Principal = field(name="as")
    expect: Expect
    name: Text | None = None
    subscribe: TypeName | None = None
    publish: TypeName | None = None
    view: Name | None = None
    event: Text | None = None
    set: Annotated[dict[Text, Any], Meta(max_length=MAX_FIELDS)] = {}
    unset: Annotated[tuple[Text, ...], Meta(max_length=MAX_LIST)] = ()
    now: Instant | None = None


class Never(Spec, frozen=True):
    """Nobody (but `except`) sees fields with these tags under one of these actions, or can test guesses of them."""

    see: TagPatterns | None = None
    actions: Annotated[tuple[Action, ...], Meta(min_length=1, max_length=MAX_LIST)] = field(
        name="as", default=("clear",)
    )
    guess: TagPatterns | None = None
    exceptions: Teams | None = field(name="except", default=None)


class Only(Spec, frozen=True):
    """Only these teams may subscribe to, or publish, any of these types."""

    teams: Teams
    subscribe: TypePatterns | None = None
    publish: TypePatterns | None = None


class Invariant(Spec, frozen=True):
    """What holds of the whole matrix; exactly one of the two."""

    never: Never | None = None
    only: Only | None = None


class PolicyTestSpec(Spec, frozen=True):
    """Cases and invariants."""

    cases: Annotated[tuple[Case, ...], Meta(max_length=MAX_FIELDS)] = ()
    invariants: Annotated[tuple[Invariant, ...], Meta(max_length=MAX_LIST)] = ()


class PolicyTest(_Owned, tag="PolicyTest", frozen=True):
    """What the policies of a tenant have to come to."""

    spec: PolicyTestSpec
    kind: ClassVar[str] = "PolicyTest"


AnyDocument: TypeAlias = Tenant | Classification | View | Access | Route | Subscription | PolicyTest
KINDS: dict[str, type[AnyDocument]] = {
    c.kind: c for c in (Tenant, Classification, View, Access, Route, Subscription, PolicyTest)
}  # fmt: skip
