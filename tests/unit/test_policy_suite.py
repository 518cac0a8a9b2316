"""The policies' own tests: what cases and invariants say of policies, and what counts as tried."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest

from mesh.errors import PolicyTestsFailed
from mesh.policy.junit import junit
from mesh.policy.load import load
from mesh.policy.paths import Path
from mesh.policy.places import find
from mesh.policy.suite import Outcome, SuiteResult, run
from tests.unit.policy_world import BASE, access, document

NOW_MS = 1_790_000_000_000
TYPE = "crm.contact.updated.v1"
EVENT = {
    "specversion": "1.0",
    "id": "e-1",
    "source": "/crm",
    "type": TYPE,
    "subject": "contact/1",
    "data": {
        "name": "Anna",
        "email": "anna@example.com",
        "country": "DE",
        "nothing": None,
        "lines": [{"sku": "a", "price": 1}, {"sku": "b", "price": 2}],
        "score": 7,
    },
}
MASKED = {
    "fields": {
        "subject": ["id.contact"],
        "data.phone": ["pii.phone"],
        "data.iban": ["pci.account"],
        "data.lines[*].sku": ["public"],
        "data.address.**": ["pii.location"],
    },
    "mask": [
        {"tags": ["public"], "as": "clear"},
        {"tags": ["pii.name"], "as": "drop"},
        {"tags": ["pii.contact.email"], "as": "pseudonym", "with": {"domain": "mail"}},
        {
            "tags": ["pii.phone"],
            "as": "pseudonym",
            "with": {"domain": "phone", "algorithm": "hmac-sha256", "bits": 192},
        },
        {"tags": ["pci.account"], "as": "encrypt", "with": {"mode": "random", "for": ["support"]}},
    ],
}


def asks(*cases: dict[str, Any], invariants: tuple[dict[str, Any], ...] = (), name: str = "t") -> str:
    """One PolicyTest."""
    return document("PolicyTest", name, {"cases": list(cases), "invariants": list(invariants)})


def suite(*texts: str, fixtures: dict[str, Any] | None = None, base: dict[str, str] | None = None) -> SuiteResult:
    """Run the base policies with more documents."""
    files = (BASE if base is None else base) | {f"z{i}.yaml": text for i, text in enumerate(texts)}
    events = {"fixtures/contact.json": EVENT} | (fixtures or {})
    encoded = {name: msgspec.json.encode(event) for name, event in events.items()}
    return run(load(files), encoded, NOW_MS)


def analytics(expect: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A case of the team that reads the masked view."""
    return {"as": {"team": "analytics"}, "subscribe": TYPE, "event": "contact.json", "expect": expect, **more}


def told(result: SuiteResult) -> list[tuple[str, str, str]]:
    """Every mismatch."""
    return [(m.path, m.expected, m.got) for outcome in result.outcomes for m in outcome.mismatches]


def richer() -> str:
    """The base's classification and masked view with one of every mask."""
    views = (
        document("Classification", "more", {"types": ["crm.>"], "fields": MASKED["fields"]}),
        document("View", "rich", {"mask": MASKED["mask"], "otherwise": "redact"}),
        access("rich", allow=[{"id": "s", "who": {"teams": ["support"]}, "subscribe": ["crm.>"], "view": "rich"}]),
    )
    return "---\n".join(views)


SECRET = {"data.phone": "+49 170 1234520", "data.iban": "DE89370400440532013000", "data.address": {"city": "Berlin"}}


@pytest.mark.parametrize(
    ("path", "wanted", "holds"),
    [
        ("data.name", "absent", True),
        ("data.name", "redacted", False),
        ("data.country", "clear", True),
        ("data.country", "DE", True),
        ("data.country", "FR", False),
        ("data.country", {"equals": "DE"}, True),
        ("data.country", "absent", False),
        ("data.score", "redacted", True),
        ("data.score", None, True),
        ("data.score", "clear", False),
        ("data.nothing", "redacted", False),  # it was null before
        ("data.nothing", "clear", True),
        ("data.email", {"pseudonym": "mail"}, True),
        ("data.email", {"pseudonym": "phone"}, False),
        ("data.phone", {"pseudonym": "phone"}, True),
        ("data.iban", {"encrypted": ["support"]}, True),
        ("data.iban", {"encrypted": ["support", "crm"]}, False),
        ("data.country", {"encrypted": ["support"]}, False),
        ("data.lines[*].sku", "clear", True),
        ("data.lines[*].price", "redacted", True),
        ("data.lines[*].price", "clear", False),
        ("**.price", "redacted", True),
        ("data.address.**", "redacted", True),
        ("subject", "absent", True),  # an attribute that says nothing is left out
        ("data.lines", "clear", False),
        ("data.misspelt", "absent", False),
        ("view", "rich", True),
    ],
)
def test_each_word_says_one_thing_of_a_field(path: str, wanted: Any, holds: bool) -> None:
    """A field's expectation holds for exactly the mask it names, and never where the event has nothing there."""
    expect = {"decision": "allow", "fields": {path: wanted}}
    case = analytics(expect, set=SECRET) | {"as": {"team": "support"}}
    assert suite(richer(), asks(case)).passed is holds


def test_every_failure_is_told() -> None:
    """One run tells every field, every case and every invariant that does not hold, each with its line."""
    wrong = {"decision": "allow", "rule": "crm-reads", "view": "clear", "reason": "row-filter"}
    result = suite(
        asks(
            analytics({"decision": "allow", "fields": {"data.name": "clear", "data.country": "absent"}}),
            analytics(wrong),
            analytics({"decision": "deny"}),
            invariants=({"never": {"see": ["pii.**"]}}, {"only": {"teams": ["crm"], "subscribe": ["crm.>"]}}),
        )
    )
    assert [outcome.passed for outcome in result.outcomes] == [False] * 5
    assert len({(o.file, o.line) for o in result.failures}) == 5
    assert told(result)[:6] == [
        ("data.country", "absent", '"DE"'),
        ("data.name", "clear", "absent"),
        ("rule", "crm-reads", "analytics-reads"),
        ("reason", "row-filter", "rule (analytics-reads)"),
        ("view", "clear", "masked"),
        ("decision", "deny", "allow: rule (analytics-reads)"),
    ]
    with pytest.raises(PolicyTestsFailed) as caught:
        result.require()
    assert len(caught.value.details["failures"]) == 5
    assert result.failures[0].file in str(caught.value)


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ({"event": "nowhere.json"}, "no fixture"),
        ({"event": "broken.json"}, "an agent would not take this event"),
        ({"unset": ["data.nmae"]}, "`unset` finds nothing"),
        ({"set": {"data.country.code": 1}}, "`set` finds nothing"),
        ({"set": {"data.items[*].sku": 1}}, "`set` finds nothing"),
        ({"set": {"source": "not a uri"}}, "an agent would not take this event"),
        ({"unset": ["id"]}, "an agent would not take this event"),
    ],
)
def test_a_case_that_cannot_be_asked_fails(case: dict[str, Any], says: str) -> None:
    """A fixture that is missing or no event, and a change that meets nothing, fail the case instead of the run."""
    result = suite(asks(analytics({"decision": "allow"}, **case)), fixtures={"fixtures/broken.json": {"id": 1}})
    ((_, _, got),) = told(result)
    assert says in got


def test_set_and_unset_change_a_copy_of_the_fixture() -> None:
    """`set` makes members where they are missing and reaches every item; another case has the fixture as it was."""
    change = {"set": {"data.new.deep": 1, "data.lines[*].sku": "x"}, "unset": ["data.lines[*].price", "subject"]}
    owner = {"as": {"team": "crm"}}
    seen = {"data.new.deep": 1, "data.lines": [{"sku": "x"}, {"sku": "x"}]}
    result = suite(
        asks(
            analytics({"decision": "allow", "fields": seen}, **change) | owner,
            analytics({"decision": "allow", "fields": {"data.lines": []}}, unset=["data.lines[*]"]) | owner,
            analytics({"decision": "allow", "fields": {"subject": "clear", "data.lines[*].price": "clear"}}) | owner,
        )
    )
    assert result.passed, told(result)


def test_true_is_not_one() -> None:
    """JSON's true and 1 are two values, also inside of others."""
    case = analytics({"decision": "allow", "fields": {"data.lines": [True]}}, set={"data.lines": [1]})
    assert not suite(asks(case | {"as": {"team": "crm"}})).passed


def test_rights_are_asked_for_at_the_time_of_the_case() -> None:
    """`now` says when: a grant that ends is one before and none after."""
    grant = {
        "id": "inc", "who": {"teams": ["support"]}, "subscribe": ["crm.>"], "view": "clear",
        "expires": "2026-01-01T00:00:00Z", "reason": "INC-1",
    }  # fmt: skip
    before = analytics({"decision": "allow", "rule": "inc"}, now="2025-12-31T23:59:59Z") | {"as": {"team": "support"}}
    after = analytics({"decision": "deny", "reason": "no-allow-matched"}) | {"as": {"team": "support"}}
    assert suite(access(allow=[grant]), asks(before, after)).passed


def test_two_views_need_a_name() -> None:
    """Where grants give several views a case says which, else it fails and names them."""
    second = {"id": "b", "who": {"teams": ["analytics"]}, "subscribe": ["crm.>"], "view": "narrow"}
    narrow = document("View", "narrow", {"otherwise": "drop"})
    unnamed, named = analytics({"decision": "allow"}), analytics({"decision": "allow", "rule": "b"}, view="narrow")
    result = suite(narrow, access(allow=[second]), asks(unnamed, named))
    assert [outcome.passed for outcome in result.outcomes] == [False, True]
    assert "ambiguous-view" in told(result)[0][2]


def test_publishing_is_asked_of_the_agent() -> None:
    """A publish case has the decision with its rule and reason, and the copy of the view it names."""
    deny = {"id": "no-test", "who": {"teams": ["crm"]}, "publish": ["crm.>"], "when": "data.name == 'test'"}
    publish = {"as": {"agent": "crm-adapter"}, "publish": TYPE, "event": "contact.json"}
    result = suite(
        access(deny=[deny]),
        asks(
            publish | {"expect": {"decision": "allow", "view": "masked", "fields": {"data.name": "absent"}}},
            publish | {"set": {"data.name": "test"}, "expect": {"decision": "deny", "rule": "no-test"}},
            publish | {"unset": ["data.name"], "expect": {"decision": "deny", "reason": "error-in-deny"}},
            publish | {"set": {"source": "/other"}, "expect": {"decision": "deny", "reason": "no-allow-matched"}},
            publish | {"set": {"source": "/other"}, "expect": {"decision": "deny", "reason": "source-not-allowed"}},
            publish | {"expect": {"decision": "allow", "fields": {"data.name": "absent"}}},
        ),
    )
    assert [outcome.passed for outcome in result.outcomes] == [True] * 5 + [False]
    assert told(result) == [("expect.fields", "an event to look into", "no view is named")]


COPIES, HIDDEN = "audit.deal.v1", "audit.hidden.v1"
ROUTES = [
    {"id": "big", "match": {"types": ["crm.deal.won"]}, "when": "data.amount > 10", "effect": "copy", "to": COPIES},
    {"id": "away", "match": {"types": ["crm.contact.*"]}, "when": "data.secret", "effect": "move", "to": HIDDEN},
]  # fmt: skip


def routed() -> str:
    """A copy and a move, and a reader of the copies."""
    grant = {"id": "audits", "who": {"teams": ["support"]}, "subscribe": ["audit.>"], "view": "masked"}
    return document("Route", "r", {"routes": ROUTES}) + "---\n" + access("audit", allow=[grant])


def test_a_fixture_reaches_another_type_through_a_route() -> None:
    """A case of a route's type is asked of what the route makes of the fixture, and denied where it makes nothing."""
    deal = EVENT | {"type": "crm.deal.won.v1", "data": {"amount": 11, "name": "Anna"}}
    ask = {"as": {"team": "support"}, "subscribe": "audit.deal.v1", "event": "deal.json"}
    result = suite(
        routed(),
        asks(
            ask | {"expect": {"decision": "allow", "fields": {"data.name": "absent", "causationid": "e-1"}}},
            ask | {"set": {"data.amount": 10}, "expect": {"decision": "deny", "reason": "no-allow-matched"}},
        ),
        fixtures={"fixtures/deal.json": deal},
    )
    assert result.passed, told(result)


def test_a_moved_event_is_denied_to_the_readers_of_its_type() -> None:
    """A move denies by its id; one whose condition fails does too, as an error."""
    result = suite(
        routed(),
        asks(
            analytics({"decision": "deny", "rule": "away", "reason": "rule"}, set={"data.secret": True}),
            analytics({"decision": "deny", "rule": "away", "reason": "error-in-deny"}),
            analytics({"decision": "allow"}, set={"data.secret": False}),
            {"as": {"agent": "crm-adapter"}, "publish": TYPE, "event": "contact.json", "set": {"data.secret": True}}
            | {"expect": {"decision": "allow", "view": "masked"}},
        ),
    )
    assert [outcome.passed for outcome in result.outcomes] == [True, True, True, False]


# --- invariants ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("invariant", "who"),
    [
        ({"never": {"see": ["pii.**"]}}, ["crm"]),
        ({"never": {"see": ["pii.**"], "except": ["crm"]}}, []),
        ({"never": {"see": ["pii.**"], "as": ["clear", "drop"], "except": ["crm"]}}, ["analytics"]),
        ({"never": {"see": ["public"]}}, ["analytics", "crm"]),
        ({"never": {"see": ["nowhere.*"]}}, []),
        ({"only": {"teams": ["crm"], "subscribe": ["crm.>"]}}, ["analytics"]),
        ({"only": {"teams": ["crm", "analytics"], "subscribe": [">"]}}, []),
        ({"only": {"teams": ["analytics"], "publish": ["crm.contact.removed.v1"]}}, ["crm"]),
        ({"only": {"teams": ["crm"], "publish": [">"]}}, []),
    ],
)
def test_invariants_hold_of_the_whole_matrix(invariant: dict[str, Any], who: list[str]) -> None:
    """An invariant names every team that breaks it, whatever types its patterns cut out of the grants."""
    if invariant.get("never", {}).get("see") == ["nowhere.*"]:
        result = suite(document("Classification", "c", {"types": ["crm.>"], "fields": {"data.x": ["nowhere.tag"]}}),
                       asks(invariants=({"never": {"see": ["nowhere.*"], "as": ["encrypt"]}},)))  # fmt: skip
    else:
        result = suite(asks(invariants=(invariant,)))
    assert sorted({path.split()[0] for path, _, _ in told(result)}) == who


def test_a_team_that_can_test_guesses_breaks_the_invariant() -> None:
    """`never guess` names the team that reads tokens of what it may publish, and no other."""
    extra = (
        richer(),
        access("w", allow=[{"id": "w", "who": {"teams": ["support"]}, "publish": ["crm.contact.updated.v1"]}]),
    )
    broken = suite(*extra, asks(invariants=({"never": {"guess": ["pii.**"]}},)))
    assert [path for path, _, _ in told(broken)] == [
        "support guesses pii.contact.email",
        "support guesses pii.phone",
    ]
    assert suite(richer(), asks(invariants=({"never": {"guess": ["pii.**"]}},))).passed
    assert suite(*extra, asks(invariants=({"never": {"guess": ["pci.**"]}},))).passed
    assert suite(*extra, asks(invariants=({"never": {"guess": ["**"], "except": ["support"]}},))).passed


def test_encrypted_is_clear_to_those_who_can_open_it() -> None:
    """Who holds the key sees the value, so an invariant about clear counts it."""
    never = {"never": {"see": ["pci.**"], "except": ["crm"]}}
    assert [path.split()[0] for path, _, _ in told(suite(richer(), asks(invariants=(never,))))] == ["support"]


# --- coverage, JUnit -------------------------------------------------------------------------------------------------


def missing(result: SuiteResult) -> set[str]:
    """What no case has tried."""
    return {item.what for item in result.coverage.missing}


def test_coverage_says_what_no_case_has_tried() -> None:
    """Each rule counts both ways, each row filter both ways, each tag of a view once it was looked at."""
    deny = {"id": "no-test", "who": {"teams": ["crm"]}, "publish": ["crm.>"], "when": "has(data.test)"}
    rows = document("View", "rows", {"like": "masked", "rows": "data.country == 'DE'"})
    grant = {"id": "s", "who": {"teams": ["support"]}, "subscribe": ["crm.contact.>"], "view": "rows"}
    world = (access(deny=[deny], allow=[grant]), rows, routed())
    nothing = suite(*world)
    assert nothing.coverage.percent == 0.0
    assert nothing.passed
    publish = {"as": {"agent": "crm-adapter"}, "publish": TYPE, "event": "contact.json", "set": {"data.secret": True}}
    some = suite(
        *world,
        asks(
            publish | {"expect": {"decision": "allow"}},
            analytics({"decision": "allow", "fields": {"data.name": "absent"}}, set={"data.secret": False}),
            analytics({"decision": "deny"}, set={"data.country": "FR", "data.secret": False})
            | {"as": {"team": "support"}},
        ),
    )
    tried = missing(nothing) - missing(some)
    assert some.passed, told(some)
    assert tried == {
        "the rule crm-publishes matches",
        "the rule no-test is false",
        "the rule analytics-reads matches",
        "the rule analytics-reads does not match",
        "the rule crm-reads does not match",
        "the rule s matches",
        "the rule s does not match",
        "the rule audits does not match",
        "the rows of the view rows leave one out",
        "the route away is true",
        "the route away is false",
        "the view masked shows a field that is pii.name",
    }
    lines = {item.what: (item.file, item.line) for item in nothing.coverage.items}
    assert lines["the rule crm-publishes matches"] == ("access.yaml", 6)


def test_a_rule_is_missed_only_narrowly() -> None:
    """A question that shares neither principal nor type with a rule says nothing about it."""
    grant = {"id": "deals", "who": {"teams": ["support"]}, "subscribe": ["crm.deal.won"], "view": "masked"}
    far = suite(access(allow=[grant]), asks(analytics({"decision": "allow"})))
    near = suite(access(allow=[grant]), asks(analytics({"decision": "deny"}) | {"as": {"team": "support"}}))
    assert "the rule deals does not match" in missing(far)
    assert "the rule deals does not match" not in missing(near)


def test_a_check_that_fails_covers_nothing() -> None:
    """A field that is not as expected was not tried: the percentage cannot be had by writing anything down."""
    right = suite(asks(analytics({"decision": "allow", "fields": {"data.name": "absent"}})))
    wrong = suite(asks(analytics({"decision": "allow", "fields": {"data.name": "clear"}})))
    assert missing(wrong) - missing(right) == {"the view masked shows a field that is pii.name"}


def test_junit_is_xml_whatever_names_say() -> None:
    """The report parses, counts failures, and keeps names with markup, control characters and line breaks in them."""
    name = 'a <b> & "c"\nsecond \x08 line'
    outcome = Outcome("case", "acme", "t", name, "t.yaml", 3)
    passed = suite(asks(analytics({"decision": "allow"}, name="fine"), analytics({"decision": "deny"})))
    assert passed.outcomes[0].name == "fine"
    tree = ET.fromstring(junit(SuiteResult((*passed.outcomes, outcome), passed.coverage)))  # noqa: S314 - our own text
    assert tree.attrib["tests"] == "3"
    assert tree.attrib["failures"] == "1"
    cases = tree.findall("testsuite/testcase")
    assert cases[2].attrib["name"] == name.replace("\x08", "?")
    (failure,) = tree.findall("testsuite/testcase/failure")
    assert failure.attrib["message"].startswith("decision: expected deny, got allow")


def test_paths_lead_to_every_place_there_is() -> None:
    """A path in an event finds every value that its steps reach, at any depth where it says so."""
    event = {"data": {"a": [{"x": 1}, {"x": 2, "y": {"x": 3}}], "x": None}}
    assert list(find(Path.parse("data.a[*].x"), event)) == [("data", "a", 0, "x"), ("data", "a", 1, "x")]
    assert sorted(map(str, find(Path.parse("**.x"), event).values())) == ["1", "2", "3", "None"]
    assert find(Path.parse("data.*.x"), event) == {}
    assert find(Path.parse("data.a.**"), event) == {("data", "a"): event["data"]["a"]}
