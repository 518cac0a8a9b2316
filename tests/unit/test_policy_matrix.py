"""The matrix of who sees what: exact over all types, never at odds with what agents do, and what is asked of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mesh.errors import BadPattern
from mesh.event import Limits, draft_from_structured
from mesh.journey import outbound
from mesh.jsontext import decode, encode
from mesh.policy.atoms import Atom, atoms, in_words
from mesh.policy.compile import Plans
from mesh.policy.fields import TOO_MANY
from mesh.policy.invariants import broken
from mesh.policy.matrix import UNCLASSIFIED, Cell, Matrix
from mesh.policy.model_cases import Invariant, Never
from mesh.policy.paths import Path
from mesh.policy.seen import who_can_see
from mesh.policy.trial import TRIAL_KEYS
from mesh.subjects import Pattern, check_type
from tests.unit.policy_world import BASE, access, document, event, plans
from tests.unit.random_masks import DATAS, PATHS, TAGS, leaves, masks_of, meets

NOW_MS = 1_000_000
PUBLISHED = ["crm.>", "ops.a.*.v1", "ops.a.b", "ops.>", "fin.x.y.z.v2", "fin.x.*.z.v2", "fin.*.y.>"]

tokens = st.sampled_from(["a", "b", "x", "y", "z", "contact", "other"])
types = st.builds(
    lambda domain, middle, last: ".".join((domain, *middle, last)),
    st.sampled_from(["crm", "ops", "fin"]),
    st.lists(tokens, max_size=4),
    st.one_of(tokens, st.sampled_from(["v1", "v2", "v9"])),
)
patterns = st.one_of(
    st.sampled_from([">", "*.*.v1", "crm.*.>", "ops.a.>", "fin.x.>", "crm.contact.updated.v1", "*.x.y.>", "ops.b.v1"]),
    types,
)


def world(*extra: str) -> Plans:
    """The base with everything of `PUBLISHED` published by one team and nothing read beside it."""
    lines = [{"id": "crm-publishes", "who": {"teams": ["crm"]}, "publish": PUBLISHED}]
    base = BASE | {"access.yaml": access("base", allow=lines)}
    return plans(*extra, base=base)


@example(["*.*.v1"], ["crm.a.v1", "ops.a.v1"])  # where two patterns meet
@example(["ops.a", "ops.a.>"], ["ops.a.q.v9"])  # only types longer than the pattern
@given(st.lists(patterns, max_size=6), st.lists(types, min_size=1, max_size=20))
def test_every_type_is_in_exactly_one_atom(questions: list[str], some: list[str]) -> None:
    """Whatever patterns cut the types, a published type is taken by exactly the patterns of one atom."""
    cuts = [Pattern.parse(text) for text in questions]
    tenancy = world().tenancy
    found = atoms([tenancy], cuts)
    everything = {*cuts, *tenancy.published(), Pattern.parse("crm.>")}
    for type_ in some:
        if any(pattern.matches(type_) for pattern in tenancy.published()):
            mine = frozenset(pattern for pattern in everything if pattern.matches(type_))
            assert [atom.patterns for atom in found].count(mine) == 1


@given(st.lists(patterns, max_size=6))
def test_a_witness_is_taken_by_its_atoms_patterns_alone(questions: list[str]) -> None:
    """The type that answers for an atom is taken by the pattern it shows as, and by no pattern of another."""
    cuts = [Pattern.parse(text) for text in questions]
    tenancy = world().tenancy
    for atom in atoms([tenancy], cuts):
        assert check_type(atom.witness)
        assert all(pattern.matches(atom.witness) for pattern in atom.patterns)
        assert Pattern.parse(atom.shown).matches(atom.witness)
        assert not any(p.matches(atom.witness) for p in {*cuts, *tenancy.published()} - atom.patterns)


@pytest.mark.parametrize(
    ("some", "told"),
    [
        (["crm.>", "crm.deal.won.v1"], ("crm.>",)),
        (["crm.>"], ("crm.> (but crm.deal.won.v1)",)),
        (["crm.deal.won.v1"], ("crm.deal.won.v1",)),
        (["crm.>", "crm.deal.won.v1", "ops.>"], ("crm.>", "ops.>")),
    ],
)
def test_atoms_are_told_without_saying_too_much(some: list[str], told: tuple[str, ...]) -> None:
    """A pattern within another goes without saying, and one that is not meant is excepted."""
    every = [Atom(name, name, frozenset()) for name in ("crm.>", "crm.deal.won.v1", "ops.>")]
    assert in_words([atom for atom in every if atom.shown in some], every) == told


# --- what it says ----------------------------------------------------------------------------------------------------

RICH = (
    document(
        "Classification",
        "rich",
        {
            "types": ["crm.>"],
            "fields": {
                "subject": ["id.contact"],
                "**.iban": ["pci.account"],
                "data.*.phone": ["pii.phone"],
                "data.items[*].sku": ["public"],
                "data.place.**": ["pii.place"],
            },
        },
    ),
    document(
        "View",
        "rich",
        {
            "mask": [
                {"tags": ["public"], "as": "clear"},
                {"tags": ["pii.name", "pii.place"], "as": "drop"},
                {"tags": ["pii.phone"], "as": "pseudonym", "with": {"domain": "phone"}},
                {"tags": ["pci.account"], "as": "encrypt", "with": {"mode": "deterministic", "for": ["support"]}},
                {"tags": ["pii.contact.email"], "as": "partial", "with": {"style": "email"}},
            ],
            "otherwise": "redact",
        },
    ),
    access(
        "rich",
        allow=[
            {"id": "support-reads", "who": {"teams": ["support"]}, "subscribe": ["crm.contact.>"], "view": "rich"},
            {"id": "analytics-too", "who": {"teams": ["analytics"]}, "subscribe": ["crm.contact.>"], "view": "rich"},
        ],
        deny=[{"id": "no-removed", "who": {"teams": ["support"]}, "subscribe": ["crm.contact.removed.v1"]}],
    ),
)
EVENT: dict[str, Any] = {
    "name": "Anna",
    "email": "anna@example.com",
    "country": "DE",
    "deep": {"iban": "DE89", "phone": "+49 170 1234520"},
    "items": [{"sku": "a"}],
    "place": {"city": "Berlin"},
    "unknown": "x",
}
SHOWN = {
    "data.name": ("name",),
    "data.email": ("email",),
    "data.country": ("country",),
    "**.iban": ("deep", "iban"),
    "data.*.phone": ("deep", "phone"),
    "data.items[*].sku": ("items", 0, "sku"),
    "data.place.**": ("place",),
    UNCLASSIFIED: ("unknown",),
}


def _value(data: Any, way: tuple[Any, ...]) -> Any:
    for step in way:
        if (isinstance(data, dict) and step not in data) or data is None:
            return "absent"
        data = data[step]
    return data


def test_the_matrix_says_what_masking_does() -> None:
    """Of every team and view, each path's action is what becomes of a value there in a real event."""
    made = plans(*RICH)
    matrix = Matrix.of(made, NOW_MS)
    seen = 0
    for cell in matrix.cells:
        if cell.path not in SHOWN:
            continue
        view = made.view(cell.reading.view, cell.reading.atom.witness)
        masked = view.mask(event(EVENT, type=cell.reading.atom.witness), TRIAL_KEYS)
        way = SHOWN[cell.path]
        was, now = _value(EVENT, way), _value(masked["data"], way)
        expected = {"clear": now == was, "drop": now == "absent", "redact": now in (None, "[REDACTED]")}
        if cell.mask[0] in expected:
            assert expected[cell.mask[0]], (cell.path, cell.words, now)
        else:
            assert now not in (was, "absent", None, "[REDACTED]"), (cell.path, cell.words)
        seen += 1
    assert seen > 40


def cells(found: list[Cell]) -> set[tuple[str, str, str]]:
    """Team, view and words of each."""
    return {(cell.reading.team, cell.reading.view, cell.words) for cell in found}


def test_encrypted_is_clear_to_the_teams_that_open_it() -> None:
    """`for` decides whether encrypt counts as clear."""
    made = plans(*RICH)
    found = who_can_see(made, Matrix.of(made, NOW_MS), "pci.account")
    actions = {(cell.reading.team, cell.reading.view): cell.action for cell in found}
    assert actions["support", "rich"] == "clear"
    assert actions["analytics", "rich"] == "encrypt"
    assert ("support", "rich", "encrypt deterministic for support (opens)") in cells(found)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("pii.name", {("crm", "clear", "clear"), ("analytics", "masked", "drop")}),
        ("data.name", {("crm", "clear", "clear"), ("analytics", "masked", "drop")}),
        ("pii.*", {("crm", "clear", "clear"), ("analytics", "masked", "drop")}),
        ("data.nobody.said.anything", {("crm", "clear", "clear"), ("analytics", "masked", "redact")}),
        ("unclassified", {("crm", "clear", "clear"), ("analytics", "masked", "redact")}),
    ],
)
def test_who_can_see_takes_paths_and_tags(field: str, expected: set[tuple[str, str, str]]) -> None:
    """A tag, a pattern of tags, a path, also one that nobody classified: each is answered for every reader."""
    made = plans()
    assert cells(who_can_see(made, Matrix.of(made, NOW_MS), field)) == expected


def test_a_path_counts_with_every_path_that_meets_there() -> None:
    """What a floor lays on `**.iban` holds for `data.other.iban`, which no document names."""
    made = plans(*RICH)
    found = who_can_see(made, Matrix.of(made, NOW_MS), "data.other.iban", team="support")
    assert cells(found) == {("support", "rich", "encrypt deterministic for support (opens)")}
    assert {cell.tags for cell in found} == {("pci.account",)}


def test_a_field_must_be_a_tag_or_a_path() -> None:
    """What is neither is refused, instead of being seen by nobody."""
    made = plans()
    for mistyped in ("data..name", "pii.nmae", "zzz"):
        with pytest.raises(BadPattern):
            who_can_see(made, Matrix.of(made, NOW_MS), mistyped)
    assert {words for *_, words in cells(who_can_see(made, Matrix.of(made, NOW_MS), "source"))} == {"clear"}


def test_types_can_be_asked_for() -> None:
    """Cut along a pattern, the matrix has the part about it alone."""
    made = plans(*RICH)
    matrix = Matrix.of(made, NOW_MS, cuts=("crm.contact.removed.v1",)).only("crm.contact.removed.v1")
    assert {atom.witness for atom in matrix.atoms} == {"crm.contact.removed.v1"}
    assert {(r.team, r.view) for r in matrix.readings} == {
        ("analytics", "masked"), ("analytics", "rich"), ("crm", "clear"), ("support", ""),
    }  # fmt: skip


def test_publishing_is_what_agents_may() -> None:
    """The matrix lists an agent for a type exactly where its plans let it publish that type from its own source."""
    lines = [
        {"id": "lake", "who": {"teams": ["analytics"]}, "publish": ["ops.>", "crm.lake.*.v1"]},
        {
            "id": "gone",
            "who": {"agents": ["desk"]},
            "publish": ["ops.b"],
            "expires": "1970-01-01T00:00:01Z",
            "reason": "x",
        },
    ]
    deny = [{"id": "no-ops-a", "who": {"agents": ["lake"]}, "publish": ["ops.a.>"]}]
    made = plans(access(allow=lines, deny=deny))
    matrix = Matrix.of(made, NOW_MS)
    listed = {(right.agent, right.atom.witness) for right in matrix.publishing}
    for agent, team in made.tenancy.team_of.items():
        for atom in matrix.atoms:
            fields = event(type=atom.witness, source=f"/{team}")
            allowed = made.publisher(agent).decide(fields, now_ms=NOW_MS).allowed
            assert ((agent, atom.witness) in listed) is allowed, (agent, atom)
    assert {agent for agent, _ in listed} == {"crm-adapter", "lake"}


def test_a_deny_that_nats_cannot_say_is_agent_only() -> None:
    """Where the publish lines are wild, NATS hands out what a deny refuses; where they are exact it does not."""
    made = plans(*RICH)
    (denied,) = (r for r in Matrix.of(made, NOW_MS).readings if r.rule == "no-removed")
    assert (denied.view, denied.enforced) == ("", "agent only")
    exact = [
        {"id": "crm-publishes", "who": {"teams": ["crm"]}, "publish": ["crm.contact.removed.v1", "crm.contact.new.v1"]},
        {"id": "analytics-reads", "who": {"teams": ["analytics"]}, "subscribe": ["crm.>"], "view": "masked"},
    ]
    base = BASE | {"access.yaml": access("base", allow=exact)}
    deny = access(deny=[{"id": "no", "who": {"teams": ["analytics"]}, "subscribe": ["crm.contact.removed.v1"]}])
    matrix = Matrix.of(plans(deny, base=base), NOW_MS)
    (refused,) = (r for r in matrix.readings if r.rule == "no")
    assert refused.enforced == "nats"


def test_a_grant_that_has_ended_shows_nothing() -> None:
    """The matrix is of one time: what ends is there before, with its end, and gone after."""
    grant = {
        "id": "inc", "who": {"teams": ["support"]}, "subscribe": ["crm.>"], "view": "clear",
        "expires": "1970-01-01T00:00:10Z", "reason": "INC-1",
    }  # fmt: skip
    made = plans(access(allow=[grant]))
    assert [r.until_ms for r in Matrix.of(made, 9_999).readings if r.rule == "inc"] == [10_000]
    assert not [r for r in Matrix.of(made, 10_000).readings if r.rule == "inc"]


def test_a_routed_type_shows_its_sources_fields() -> None:
    """What is routed into a type is masked there as where it comes from, and needs no line of its own."""
    route = {"id": "r", "match": {"types": ["crm.deal.won"]}, "effect": "copy", "to": "audit.deal.v1"}
    grant = {"id": "audits", "who": {"teams": ["support"]}, "subscribe": ["audit.>"], "view": "masked"}
    made = plans(document("Route", "r", {"routes": [route]}), access(allow=[grant]))
    matrix = Matrix.of(made, NOW_MS)
    assert cells(who_can_see(made, matrix.only("audit.>"), "pii.name")) == {("support", "masked", "drop")}


# --- every place that a path leads to --------------------------------------------------------------------------------

HALF_WAY = {"data.*.*": ["public"], "**.contact.email": ["pii.email"]}  # the first closes the second, but not at once


def shown(fields: dict[str, list[str]], mask: list[dict[str, Any]], *extra: str, otherwise: str = "redact") -> Plans:
    """One classification, which analytics reads in one view."""
    tags = {tag for mine in fields.values() for tag in mine}
    lines = [line for line in mask if tags.intersection(line["tags"])]
    views = document("View", "masked", {"mask": lines, "otherwise": otherwise})
    views += "---\n" + document("View", "clear", {"otherwise": "clear"})
    spec = {"types": ["crm.>"], "fields": fields}
    return plans(*extra, base=BASE | {"crm.yaml": document("Classification", "crm", spec), "views.yaml": views})


def clear(*tags: str) -> list[dict[str, Any]]:
    """Mask lines that show *tags*."""
    return [{"tags": [tag], "as": "clear"} for tag in tags]


def test_a_place_that_stays_open_is_seen_where_others_are_closed() -> None:
    """A path that another one closes half way down is still clear above, and who-can-see says so, with what meets."""
    made = shown(HALF_WAY, clear("public", "pii.email"))
    for field in ("pii.email", "**.contact.email", "data.contact.email"):
        found = who_can_see(made, Matrix.of(made, NOW_MS), field, team="analytics")
        assert cells(found) == {("analytics", "masked", "clear")}, field
    paths = {cell.path for cell in who_can_see(made, Matrix.of(made, NOW_MS), "pii.email", team="analytics")}
    assert paths == {"**.contact.email", "**.contact.email + data.*.*"}


def test_an_invariant_sees_every_place() -> None:
    """`never` fails for a value in clear at a place that the path reaches only before another one closes it."""
    made = shown(HALF_WAY, clear("public", "pii.email"))
    never = Invariant(never=Never(see=("pii.**",), actions=("clear",), exceptions=("crm",)))
    assert {m.path for m in broken(never, Matrix.of(made, NOW_MS))} == {
        "analytics reads **.contact.email of crm.>",
        "analytics reads **.contact.email + data.*.* of crm.>",
    }
    hidden = shown(HALF_WAY, clear("public"))
    assert not broken(never, Matrix.of(hidden, NOW_MS))


def test_a_guess_is_found_at_every_place() -> None:
    """Tokens that show only where no other path closes their place can be guessed too."""
    lines = [*clear("public"), {"tags": ["pii.email"], "as": "pseudonym", "with": {"domain": "mail"}}]
    (guess,) = Matrix.of(shown(HALF_WAY, lines, access(allow=[GUESSING])), NOW_MS).guesses
    assert (guess.team, guess.domain) == ("analytics", "mail")


def test_a_path_that_never_shows_is_told_with_what_closes_it() -> None:
    """Below a classified scalar nothing shows, and the table has a line that says so."""
    made = shown({"data.contact": ["public"], "data.contact.email": ["pii.email"]}, clear("public", "pii.email"))
    assert cells(who_can_see(made, Matrix.of(made, NOW_MS), "pii.email", team="analytics")) == {
        ("analytics", "masked", "redact")
    }


def test_more_places_than_are_looked_at_count_as_clear() -> None:
    """Where the paths make too many places to look at all, each team that reads them may see everything in clear."""
    deep = {f"**.a.{'*.' * 16}{name}": ["pii.email"] for name in ("b", "c")}
    made = shown(deep, clear("public"))
    found = who_can_see(made, Matrix.of(made, NOW_MS), "pii.email", team="analytics")
    assert {cell.action for cell in found} == {"clear", "redact"}
    assert {cell.path for cell in found} == {TOO_MANY}


@example({"data.*.*": ["t0"], "**.a.b": ["t1"]}, clear("t0", "t1"), "redact", {"a": {"b": "<value 1 of this event>"}})
@settings(max_examples=100)
@given(
    st.dictionaries(PATHS, st.lists(st.sampled_from(TAGS), min_size=1, max_size=2), min_size=1, max_size=5),
    masks_of([{"as": "clear"}, {"as": "clear"}, {"as": "redact"}, {"as": "drop"}]),
    st.sampled_from(["redact", "drop"]),
    DATAS,
)
def test_what_leaves_in_clear_is_clear_in_the_matrix(
    fields: dict[str, list[str]], mask: list[dict[str, Any]], otherwise: str, data: Any
) -> None:
    """Whatever the policies and the event: a value that a copy shows is clear in the cell of the paths that meet."""
    made = shown(fields, mask, otherwise=otherwise)
    found = {frozenset(c.paths) for c in Matrix.of(made, NOW_MS).cells if c.reading.team == "analytics" and not c.rank}
    draft = draft_from_structured(encode(event(data)), now_ms=NOW_MS, limits=Limits())
    made_copies = outbound(
        draft, made.publisher("crm-adapter"), TRIAL_KEYS, site="local", tenant="acme", revision=1,
        dedupe_key=bytes(32), now_ms=NOW_MS,
    ).copies  # fmt: skip
    (copy,) = (copy for copy in made_copies if copy.view == "masked")
    left = dict(leaves(decode(copy.body).get("data")))
    for at, value in leaves(data):
        if value in left.values() and value not in ("", None):
            meeting = frozenset(text for text in fields if meets(Path.parse(text), at))
            assert meeting in found, (meeting, at)


GUESSING = {"id": "lake-publishes", "who": {"teams": ["analytics"]}, "publish": ["crm.contact.imported.v1"]}


def test_who_feeds_a_domain_and_reads_its_tokens_can_guess() -> None:
    """Reading tokens alone, or publishing alone, is no guess; both are."""
    assert not Matrix.of(plans(*RICH), NOW_MS).guesses
    (guess,) = Matrix.of(plans(*RICH, access(allow=[GUESSING])), NOW_MS).guesses
    assert (guess.team, guess.domain, guess.tags) == ("analytics", "phone", ("pii.phone",))
