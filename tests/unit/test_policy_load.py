"""Loading: what is wrong does not run, and every error says where it is and how to mend it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ConfigError, PolicyErrors
from mesh.policy.load import PolicySet, load
from mesh.policy.model import PolicyTest, View
from mesh.policy.nodes import MAX_DOCUMENTS, MAX_FILE_CHARS, MAX_NODES, compose, scalar
from mesh.policy_files import MAX_FIXTURES_BYTES, read_directory, read_policies
from tests.conftest import ROOT
from tests.unit.policy_world import BASE, access, document

ROWS = json.loads((ROOT / "tests/tables/policy_load_errors.json").read_text())


def errors_of(**files: str) -> PolicyErrors:
    """The errors of the base with *files* (`x="..."` is `x.yaml`) added."""
    with pytest.raises(PolicyErrors) as caught:
        load(BASE | {f"{name}.yaml": text for name, text in files.items()})
    return caught.value


def loaded(*extra: str) -> PolicySet:
    """The base with *extra* documents."""
    return load(BASE | {f"extra{i}.yaml": text for i, text in enumerate(extra)})


def test_the_base_of_these_tests_loads() -> None:
    """The set that the rows below break is itself without error or warning."""
    policies = loaded()
    assert policies.tenants == ("acme",)
    assert not policies.warnings
    assert len(policies.of("acme")) == 5


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_an_error_names_file_line_and_fix(row: dict[str, Any]) -> None:
    """Each broken document gives exactly the errors of its row, at their lines, each with its fix."""
    caught = errors_of(x=row["yaml"])
    got = [(e.details["file"], e.details["line"], str(e), e.next) for e in caught.errors]
    assert len(got) == len(row["errors"]), got
    for (file, line, message, fix), (want_line, want_message, want_fix) in zip(got, row["errors"], strict=True):
        assert (file, line) == ("x.yaml", want_line), message
        assert message.startswith(f"x.yaml:{want_line}: ")
        assert want_message in message
        assert fix
        assert want_fix in fix


def test_the_rows_are_told_apart_by_name() -> None:
    """No two rows of the table share a name, so a failure points at one."""
    assert len({row["name"] for row in ROWS}) == len(ROWS)


def test_errors_of_all_files_come_at_once() -> None:
    """A person mends everything in one go: errors of several files are listed together, in order."""
    caught = errors_of(a="kind: Nope\n", b=document("View", "V", {"otherwise": "drop"}), c="[")
    assert [(e.details["file"]) for e in caught.errors] == ["a.yaml", "b.yaml", "c.yaml"]
    assert "3 errors" in str(caught)
    assert all(e.next in str(caught) for e in caught.errors)
    assert caught.as_dict()["errors"][1]["file"] == "b.yaml"


def test_what_a_broken_document_may_declare_is_not_called_unknown() -> None:
    """One misspelt key in a View does not make every grant of that view an error too."""
    broken = BASE["views.yaml"].replace("otherwise: redact", "otherwize: redact")
    with pytest.raises(PolicyErrors) as caught:
        load(BASE | {"views.yaml": broken})
    assert [str(e).split(": ")[1] for e in caught.value.errors] == ["unknown key `otherwize` in spec"]


def test_a_missing_tenant_is_an_error() -> None:
    """Documents without their Tenant do not load."""
    with pytest.raises(PolicyErrors, match="unknown tenant `acme`"):
        load({k: v for k, v in BASE.items() if k != "tenant.yaml"})


def test_nothing_at_all_is_an_error() -> None:
    """An empty directory is no policy: it must not mean that nothing is masked, or that all is fine."""
    with pytest.raises(PolicyErrors, match="no policy document"):
        load({"empty.yaml": "# nothing\n---\n"})


def test_an_error_repeats_no_more_than_a_bounded_line() -> None:
    """A name of a thousand characters, or with line breaks, is cut in the error."""
    rule = {"id": "x\n" * 200, "who": {"teams": ["crm"]}, "publish": ["crm.>"]}
    caught = errors_of(x=access(deny=[rule]))
    assert all(len(str(e)) < 200 and "\n" not in str(e) for e in caught.errors)


# --- warnings --------------------------------------------------------------------------------------------------------


def test_a_dead_deny_is_only_a_warning() -> None:
    """A deny of what nobody publishes loads, with a warning: no owner may block another."""
    policies = loaded(access(deny=[{"id": "no-hr", "who": {"teams": ["analytics"]}, "subscribe": ["hr.>"]}]))
    (warning,) = policies.warnings
    assert warning.details["file"] == "extra0.yaml"
    assert "`hr.>` denies what nobody may publish" in str(warning)


def test_a_subscription_beyond_its_grants_is_no_error() -> None:
    """A team may ask for more than it was granted; the set still loads."""
    assert not loaded(document("Subscription", "s", {"types": ["hr.>"]}, team="support")).warnings


def test_a_clear_grant_for_a_time_and_with_a_reason_loads() -> None:
    """Break-glass: `otherwise: clear` for those who do not own the data needs `expires` and `reason`."""
    rule = {"id": "inc-4711", "who": {"teams": ["support"]}, "subscribe": ["crm.contact.>"], "view": "clear"}
    assert not loaded(access(allow=[rule | {"expires": "2026-12-01T00:00:00Z", "reason": "INC-4711"}])).warnings


def of_support(id_: str, **rule: Any) -> dict[str, Any]:
    """A line about the team support, which owns nothing in the base."""
    return {"id": id_, "who": {"teams": ["support"]}} | rule


@pytest.mark.parametrize(
    ("publish", "deny"),
    [
        ({"publish": ["crm.contact.>"], "expires": "2020-01-01T00:00:00Z", "reason": "x"}, None),
        ({"publish": ["crm.contact.>"], "when": "false"}, None),
        ({"publish": ["crm.contact.>"]}, "crm.>"),
        ({"publish": ["crm.contact.>"]}, "crm.contact.secret.>"),
        ({"publish": ["crm.contact.updated.v1"]}, None),
    ],
    ids=["ends", "on-condition", "denied", "denied-in-part", "of-a-part"],
)
def test_a_clear_grant_is_for_those_who_own_the_data(publish: dict[str, Any], deny: str | None) -> None:
    """Whoever may publish a type only for a time, only sometimes, or only in part does not own it."""
    allow = [of_support("p", **publish), of_support("r", subscribe=["crm.contact.>"], view="clear")]
    denies = [of_support("d", publish=[deny])] if deny else []
    caught = errors_of(x=access(allow=allow, deny=denies))
    (error,) = caught.errors
    assert "team `support` may not publish `crm.contact.>`" in str(error)


def test_a_conditional_deny_takes_no_ownership() -> None:
    """A team that may publish a type, but not with every content, is its owner all the same."""
    allow = [
        of_support("p", publish=["crm.contact.>"]),
        of_support("r", subscribe=["crm.contact.>"], view="clear"),
    ]
    assert not loaded(
        access(allow=allow, deny=[of_support("d", publish=["crm.>"], when="event.source == '/x'")])
    ).warnings


def test_a_stricter_third_tag_settles_a_contradiction() -> None:
    """Two masks of equal rank are fine where a stricter one always comes with them."""
    classes = document("Classification", "k", {"types": ["crm.>"], "fields": {"data.email": ["pci.x", "secret"]}})
    mask = [
        {"tags": ["pii.contact.email"], "as": "partial", "with": {"style": "email"}},
        {"tags": ["pci.x"], "as": "partial", "with": {"first": 2}},
        {"tags": ["secret"], "as": "drop"},
    ]
    assert not loaded(classes, document("View", "v", {"mask": mask, "otherwise": "redact"})).warnings


def test_masks_that_never_meet_do_not_contradict() -> None:
    """Two masks of equal rank for fields of types that no event has together are no error."""
    classes = document("Classification", "k", {"types": ["hr.>"], "fields": {"data.email": ["pci.x"]}})
    publishes = access(allow=[{"id": "hr", "who": {"teams": ["support"]}, "publish": ["hr.>"]}])
    mask = [
        {"tags": ["pii.contact.email"], "as": "partial", "with": {"style": "email"}},
        {"tags": ["pci.x"], "as": "partial", "with": {"first": 2}},
    ]
    assert not loaded(classes, publishes, document("View", "v", {"mask": mask, "otherwise": "redact"})).warnings


def test_values_of_a_test_are_plain_json() -> None:
    """What a case sets and expects is what YAML's core schema says, `null` written out, nested as it stands."""
    text = (
        "apiVersion: mesh/v1\nkind: PolicyTest\nmetadata: {name: t, tenant: acme}\nspec:\n  cases:\n"
        "    - as: {team: crm}\n      subscribe: crm.a.v1\n"
        "      set: {data.a: null, data.b: [1, 2.5, NO, true, {c: ~}], data.d: ''}\n"
        "      expect: {decision: allow, fields: {data.a: absent, data.b: {pseudonym: names}}}\n"
    )
    (found,) = [d.value for d in loaded(text).documents if isinstance(d.value, PolicyTest)]
    (case,) = found.spec.cases
    assert case.set == {"data.a": None, "data.b": [1, 2.5, "NO", True, {"c": None}], "data.d": ""}
    assert case.expect.fields == {"data.a": "absent", "data.b": {"pseudonym": "names"}}


def test_places_in_a_test_have_their_lines() -> None:
    """Each value of a case can be pointed at."""
    text = (
        "apiVersion: mesh/v1\nkind: PolicyTest\nmetadata: {name: t, tenant: acme}\nspec:\n  cases:\n"
        "    - as: {team: crm}\n      subscribe: crm.a.v1\n"
        "      expect:\n        decision: allow\n        fields:\n          data.a: absent\n          data.b:\n"
        "            - 1\n"
    )
    (found,) = [d for d in loaded(text).documents if isinstance(d.value, PolicyTest)]
    at = ("spec", "cases", 0, "expect", "fields")
    assert [found.line_of(*at), found.line_of(*at, "data.a"), found.line_of(*at, "data.b", 0)] == [10, 11, 13]


def test_bucket_edges_may_be_whole_numbers() -> None:
    """`[10, 99.5]` are two numbers; a word or a truth value is none."""
    mask = [{"tags": ["public"], "as": "generalize", "with": {"number": [10, 99.5]}}]
    policies = loaded(document("View", "v", {"mask": mask, "otherwise": "redact"}))
    views = {d.value.metadata.name: d.value for d in policies.documents if isinstance(d.value, View)}
    assert views["v"].spec.mask[0].params.number == (10.0, 99.5)


def test_encrypt_names_who_may_open_it() -> None:
    """`for` is written as it reads."""
    mask = [{"tags": ["public"], "as": "encrypt", "with": {"mode": "random", "for": ["crm"]}}]
    policies = loaded(document("View", "v", {"mask": mask, "otherwise": "redact"}))
    views = {d.value.metadata.name: d.value for d in policies.documents if isinstance(d.value, View)}
    assert views["v"].spec.mask[0].params.readers == ("crm",)


# --- YAML ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("NO", "NO"), ("off", "off"), ("yes", "yes"), ("on", "on"), ("true", True), ("False", False), ("tRUE", "tRUE"),
        ("0", 0), ("10", 10), ("-3", -3), ("+3", 3), ("1_000", "1_000"), ("1:30", "1:30"),
        ("1.5", 1.5), ("1e3", 1000.0), (".5", 0.5), ("2026-12-01", "2026-12-01"), ("~", None), ("null", None),
        ("", None), ("'012'", "012"), ('"true"', "true"), ("=", "="), ("0b11", "0b11"), ("1.2.3", "1.2.3"),
    ],
)  # fmt: skip
def test_scalars_follow_the_core_schema(text: str, value: object) -> None:
    """A plain scalar means what YAML 1.2's core schema says, of exactly that type; a quoted one is a string."""
    nodes, faults = compose(f"k: {text}\n")
    assert not faults
    got = scalar(nodes[0].value[0][1])
    assert (type(got), got) == (type(value), value)


def test_country_codes_survive() -> None:
    """`NO` in a list is Norway."""
    policies = loaded(document("Subscription", "s", {"types": ["crm.>"]}, team="analytics").replace("crm.>", "crm.no"))
    assert any("crm.no" in getattr(d.value.spec, "types", ()) for d in policies.documents)


def test_an_alias_bomb_is_refused_at_its_first_anchor() -> None:
    """Nothing is expanded."""
    bomb = "a: &a [x]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{f'*{chr(97 + i)}, ' * 9}]\n" for i in range(20))
    nodes, faults = compose(bomb)
    assert not nodes
    assert [(f.line, f.message) for f in faults] == [(1, "a YAML anchor (`&name`) is not allowed here")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("#" * (MAX_FILE_CHARS + 1), "characters, limit"),
        ("[" + "a," * (MAX_NODES + 1) + "]", "YAML nodes"),
        ("--- a\n" * (MAX_DOCUMENTS + 1), "documents"),
        ("[" * 5000, "levels"),
        ("? " * 3000 + "a", "levels"),
    ],
    ids=["characters", "nodes", "documents", "brackets", "keys"],
)
def test_sizes_are_bounded(text: str, says: str) -> None:
    """A huge or deep file is refused with the limit, not with a crash."""
    _, faults = compose(text)
    assert len(faults) == 1
    assert says in faults[0].message


@given(st.text(alphabet="ab:-[]{},#&*!|>'\"%@ \n?~01.\t\\", max_size=60))
def test_any_text_loads_or_says_why(text: str) -> None:
    """Whatever the text, the loader answers with policies or with its own errors."""
    try:
        load(BASE | {"x.yaml": text})
    except PolicyErrors as caught:
        assert all(e.details["line"] >= 1 and e.next for e in caught.errors)  # noqa: PT017 - both outcomes are fine


_JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from(["", "a", "crm.>", "pii.name", "data.x", "clear", "a b"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "id", "who", "tags", "as"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.sampled_from([text for name, text in BASE.items() if name != "tenant.yaml"]),
    st.integers(0, 20),
    _JUNK,
)
def test_a_document_with_junk_in_any_place_loads_or_says_why(text: str, place: int, junk: object) -> None:
    """Whatever stands where in a document, the loader answers with policies or with its own errors."""
    documents = list(yaml.safe_load_all(text))
    spots = [(d, k) for top in documents for d in _mappings(top) for k in d]
    spot, key = spots[place % len(spots)]
    spot[key] = junk
    try:
        load({"t.yaml": BASE["tenant.yaml"], "x.yaml": yaml.safe_dump_all(documents)})
    except PolicyErrors as caught:
        assert caught.errors  # noqa: PT017 - both outcomes are fine


def _mappings(value: object) -> list[dict[Any, Any]]:
    found = [value] if isinstance(value, dict) else []
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return found + [m for child in children for m in _mappings(child)]


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_directory_is_read_whole(tmp_path: Path) -> None:
    """Every YAML file below the directory is read, by its name from there; hidden files and other files are not."""
    (tmp_path / "access").mkdir()
    (tmp_path / "a.yaml").write_text("a")
    (tmp_path / "access" / "b.yml").write_text("\ufeffb", encoding="utf-8")
    (tmp_path / "access" / "c.json").write_text("{}")
    (tmp_path / ".d.yaml").write_text("d")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "e.yaml").write_text("e")
    (tmp_path / "DENY.YAML").write_text("f")  # a rule that is silently left out would be worse than a strange name
    assert read_directory(tmp_path) == {"a.yaml": "a", "access/b.yml": "b", "DENY.YAML": "f"}


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """A wrong path does not read as an empty set of policies."""
    with pytest.raises(ConfigError, match="is no directory"):
        read_directory(tmp_path / "nope")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 and files over the limit are errors with their file; nothing large is read whole."""
    (tmp_path / "a.yaml").write_bytes(b"ok: 1\nbad: \xff\n")
    (tmp_path / "b.yaml").write_bytes(b"#" * (4 * MAX_FILE_CHARS + 1))
    with pytest.raises(PolicyErrors) as caught:
        read_directory(tmp_path)
    assert [(e.details["file"], e.details["line"]) for e in caught.value.errors] == [("a.yaml", 2), ("b.yaml", 1)]


def test_fixtures_are_read_beside_the_policies(tmp_path: Path) -> None:
    """Every `.json` file below the directory is a fixture, by its name from there, as bytes; hidden ones are not."""
    (tmp_path / "fixtures").mkdir()
    (tmp_path / "a.yaml").write_text("a")
    (tmp_path / "fixtures" / "b.json").write_bytes(b"{}")
    (tmp_path / ".c.json").write_text("{}")
    found = read_policies(tmp_path)
    assert (found.yaml, found.fixtures) == ({"a.yaml": "a"}, {"fixtures/b.json": b"{}"})
    with pytest.raises(ConfigError, match="is no directory"):
        read_policies(tmp_path / "nope")


def test_fixtures_are_bounded(tmp_path: Path) -> None:
    """One file over its limit, or all of them together over theirs, are errors that name the file."""
    (tmp_path / "a.json").write_bytes(b" " * (4 * MAX_FILE_CHARS + 1))
    for number in range(MAX_FIXTURES_BYTES // (4 * MAX_FILE_CHARS) + 1):
        (tmp_path / f"b{number}.json").write_bytes(b" " * (4 * MAX_FILE_CHARS))
    with pytest.raises(PolicyErrors) as caught:
        read_policies(tmp_path)
    assert [e.details["file"] for e in caught.value.errors] == ["a.json", "b8.json"]
    assert read_directory(tmp_path) == {}


# --- the worked example ----------------------------------------------------------------------------------------------


def test_the_worked_example_loads() -> None:
    """`policies/` is without error and without warning."""
    policies = load(read_directory(ROOT / "policies"))
    assert policies.tenants == ("acme",)
    assert not policies.warnings
