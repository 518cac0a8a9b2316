"""What CEL checks of a policy object beside its schema: keys that need, or exclude, each other.

The loader says the same and more (`mesh/policy/check*.py`); here the API server says it at once, to whoever edits.
Only `has`, comparisons and `size` of short lists: a rule runs once for each item of bounded lists, and the API server
refuses a definition whose rules could cost too much. CEL does not see what has no type, such as the values that a test
expects; a rule that names such a member is no rule.

Source: Kubernetes, "Validation rules" of CustomResourceDefinitions: names that CEL reserves are written `__as__`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from mesh.policy.check import RESERVED_SUBSCRIPTIONS
from mesh.policy.check_masks import MAX_GEO_DECIMALS, MAX_V4_BITS, MAX_V6_BITS
from mesh.policy.model_masks import WITH_KEYS, With

# Words of CEL that no field name may be: https://kubernetes.io/docs/reference/using-api/cel/
RESERVED: Final = frozenset((
    "true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import", "let",
    "loop", "package", "namespace", "return", "var", "void", "while",
))  # fmt: skip


class Rule(NamedTuple):
    """One entry of `x-kubernetes-validations`: what must hold of `self`, and what is said where it does not."""

    rule: str
    message: str


def escaped(name: str) -> str:
    """A field's *name* as CEL has it."""
    return f"__{name}__" if name in RESERVED else name


def _any(owner: str, keys: list[str]) -> str:
    return " || ".join(f"has({owner}.{escaped(key)})" for key in keys)


def _only_with(action: str) -> Rule:
    """The parameters of *action* stand beside no other; a default written out says nothing."""
    default = With()
    names = dict(zip(With.__struct_fields__, With.__struct_encode_fields__, strict=True))
    stray = []
    for key in sorted(WITH_KEYS[action]):
        written, usual = escaped(names[key]), getattr(default, key)
        other = "" if usual is None else f" && self.with.{written} != {usual!r}"
        stray.append(f"(has(self.with.{written}){other})")
    told = ", ".join(f"`{names[key]}`" for key in sorted(WITH_KEYS[action]))
    rule = f"self.__as__ == '{action}' || !has(self.with) || !({' || '.join(stray)})"
    return Rule(rule, f"only `{action}` takes {told}: remove them, or use that action")


_WHO = Rule("has(self.teams) || has(self.agents)", "`who` names nobody: add `teams` or `agents`")
_VERB = Rule(
    "has(self.publish) != has(self.subscribe)", "a rule has exactly one of `publish` and `subscribe`: split it into two"
)
_WHEN = Rule(
    "!has(self.when) || !has(self.subscribe)",
    "`when` has no place on a subscribe rule: give the team a View with `rows` instead",
)
_MASKS = (
    Rule(
        "self.__as__ != 'partial' || (has(self.with) && has(self.with.style) != (has(self.with.first) ||"
        " has(self.with.last)))",
        "`partial` needs `with: {style: ...}`, or `with: {first: n, last: m}`",
    ),
    Rule(
        "self.__as__ != 'pseudonym' || (has(self.with) && has(self.with.domain))",
        "`pseudonym` needs `with: {domain: <name>}`",
    ),
    Rule(
        "self.__as__ != 'encrypt' || (has(self.with) && has(self.with.mode) && has(self.with.__for__))",
        "`encrypt` needs `with: {mode: ..., for: [<team>, ...]}`",
    ),
    Rule(
        "self.__as__ != 'generalize' || (has(self.with) && ((has(self.with.date) ? 1 : 0) + (has(self.with.number) ?"
        " 1 : 0) + (has(self.with.geo) ? 1 : 0)) == 1)",
        "`generalize` needs exactly one of `date`, `number` and `geo` in `with`",
    ),
    *(_only_with(action) for action in sorted(WITH_KEYS)),
)

RULES: Final[dict[str, tuple[Rule, ...]]] = {
    "Trust": (
        Rule(
            "!has(self.grace) || !has(self.staleness) || self.staleness != 'strict'",
            "`strict` has no grace: remove `grace`, or `staleness: strict`",
        ),
    ),
    "ViewSpec": (
        Rule(
            "has(self.like) || has(self.otherwise)",
            "the view has no `otherwise`: unclassified fields and tags that no line names need a mask",
        ),
        Rule(
            "!has(self.like) || !has(self.mask) || size(self.mask) == 0",
            "a view with `like` takes its masks from there: remove `mask`, or `like`",
        ),
    ),
    "MaskLine": _MASKS,
    "With": (
        Rule(f"!has(self.v4) || self.v4 <= {MAX_V4_BITS}", f"`v4` leaves hardly more than one host: {MAX_V4_BITS}"),
        Rule(f"!has(self.v6) || self.v6 <= {MAX_V6_BITS}", f"`v6` leaves hardly more than one host: {MAX_V6_BITS}"),
        Rule(f"!has(self.geo) || self.geo <= {MAX_GEO_DECIMALS}", f"`geo` leaves a single place: {MAX_GEO_DECIMALS}"),
    ),
    "AccessSpec": (
        Rule(
            "(has(self.allow) && size(self.allow) > 0) || (has(self.deny) && size(self.deny) > 0)",
            "an Access without a rule: add one to `allow` or `deny`, or delete it",
        ),
    ),
    "Who": (_WHO,),
    "Allow": (
        _VERB,
        _WHEN,
        Rule(
            "has(self.view) == has(self.subscribe)", "a subscribe rule names the view its team reads; no other has one"
        ),
        Rule("!has(self.sources) || has(self.publish)", "`sources` belongs to a publish rule"),
        Rule("!has(self.expires) || has(self.reason)", "a grant that expires says why: add `reason`"),
        Rule("!has(self.since) || has(self.subscribe)", "`since` opens stored events: it belongs to a subscribe rule"),
    ),
    "Deny": (_VERB, _WHEN),
    "Poison": (Rule("!has(self.share) || (self.share > 0.0 && self.share <= 1.0)", "`share` is above 0, at most 1"),),
    "SubscriptionSpec": (
        Rule(
            "!has(self.client) || self.client != 'nats' || !(has(self.order_by) || has(self.rate) ||"
            " (has(self.breaker) && (has(self.breaker.failures) || has(self.breaker.open))) ||"
            " (has(self.poison) && (has(self.poison.share) || has(self.poison.of))) ||"
            " (has(self.retry) && has(self.retry.backoff)))",
            "`order_by`, `rate`, `breaker`, `poison` and `backoff` are kept by the mesh's own library: remove them, or"
            " `client: nats`",
        ),
    ),
    "PolicyTestSpec": (
        Rule(
            "(has(self.cases) && size(self.cases) > 0) || (has(self.invariants) && size(self.invariants) > 0)",
            "a PolicyTest that tests nothing: add one to `cases` or `invariants`, or delete it",
        ),
    ),
    "Principal": (Rule("has(self.team) != has(self.agent)", "a case is about exactly one of `team` and `agent`"),),
    "Case": (
        Rule("has(self.subscribe) != has(self.publish)", "a case has exactly one of `subscribe` and `publish`"),
        Rule("!has(self.subscribe) || has(self.__as__.team)", "agents do not subscribe: write `as: {team: <name>}`"),
        Rule("!has(self.publish) || has(self.__as__.agent)", "teams do not publish: write `as: {agent: <name>}`"),
        Rule("!has(self.publish) || !has(self.view)", "a publisher has no view: every reader's view is made"),
    ),
    "Never": (Rule("has(self.see) || has(self.guess)", "`never` says nothing: add `see` or `guess`"),),
    "Only": (Rule("has(self.subscribe) != has(self.publish)", "`only` has exactly one of `subscribe` and `publish`"),),
    "Invariant": (Rule("has(self.never) != has(self.only)", "an invariant has exactly one of `never` and `only`"),),
}
"""By the name of the Struct in `mesh/policy/model*.py`."""

RESERVED_NAMES: Final = Rule(
    " && ".join(f"self.metadata.name != '{name}'" for name in sorted(RESERVED_SUBSCRIPTIONS)),
    f"the names {', '.join(sorted(RESERVED_SUBSCRIPTIONS))} are taken by the mesh",
)
