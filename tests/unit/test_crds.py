"""Policies as Kubernetes objects: the definitions are structural, current, and refuse what the loader refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from re import _parser
from typing import Any

import pytest
import yaml
from cel_expr_python import cel

from mesh.errors import PolicyErrors
from mesh.kubernetes import crds
from mesh.kubernetes.crds import definition, file_name, kustomization, rendered
from mesh.kubernetes.names import API_VERSION, PLURALS, TEAM, TENANT
from mesh.kubernetes.objects import as_object, place
from mesh.kubernetes.rules import RULES, escaped
from mesh.kubernetes.structural import OPEN
from mesh.policy.load import load
from mesh.policy.model import KINDS
from mesh.policy_files import read_directory
from tests.conftest import ROOT
from tests.unit.test_policy_schema import documents

SCHEMAS = {kind: definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for kind in PLURALS}
EXAMPLE = [d for text in read_directory(ROOT / "policies").values() for d in documents(text)]
RULE = "x-kubernetes-validations"
ALLOWED = {
    "type", "description", "properties", "required", "items", "additionalProperties", "enum", "pattern", "format",
    "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minimum", "maximum",
    "multipleOf", OPEN, RULE, "x-kubernetes-list-type", "x-kubernetes-list-map-keys",
}  # fmt: skip
PYTHON: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float),
}  # fmt: skip


# --- a small API server ----------------------------------------------------------------------------------------------


def celled(value: Any) -> Any:
    """*value* with its members named as CEL has them."""
    if isinstance(value, dict):
        return {escaped(name): celled(item) for name, item in value.items()}
    return [celled(item) for item in value] if isinstance(value, list) else value


def holds(rule: str, value: Any) -> bool:
    """What CEL says of *value*; an error is a no, as the API server has it."""
    environment = cel.NewEnv(variables={"self": cel.Type.DYN})
    result = environment.compile(rule).eval(data={"self": celled(value)})
    return result.value() is True


def refusals(value: Any, schema: dict[str, Any], at: str = "") -> Iterator[str]:
    """Why the API server would refuse *value* with strict validation; nothing where it would not."""
    if "type" not in schema:
        return
    kind = PYTHON[schema["type"]]
    if not isinstance(value, kind) or (isinstance(value, bool) and schema["type"] != "boolean"):
        yield f"{at}: type"
        return
    size = len(value) if isinstance(value, str | list | dict) else value
    unit = {"string": "Length", "array": "Items", "object": "Properties"}.get(schema["type"], "imum")
    if not schema.get(f"min{unit}", size) <= size <= schema.get(f"max{unit}", size):
        yield f"{at}: size"
    if "multipleOf" in schema and value % schema["multipleOf"]:
        yield f"{at}: multiple"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: enum"
    if "pattern" in schema and re.search(schema["pattern"], value) is None:
        yield f"{at}: pattern"
    yield from _inside(value, schema, at)
    yield from (f"{at}: {rule['message']}" for rule in schema.get(RULE, ()) if not holds(rule["rule"], value))


def _inside(value: Any, schema: dict[str, Any], at: str) -> Iterator[str]:
    if schema["type"] == "array":
        for index, item in enumerate(value):
            yield from refusals(item, schema["items"], f"{at}[{index}]")
    elif "additionalProperties" in schema:
        for name, item in value.items():
            yield from refusals(item, schema["additionalProperties"], f"{at}.{name}")
    elif schema["type"] == "object" and at != ".metadata":  # of metadata the API server knows more
        yield from (f"{at}.{name}: missing" for name in schema.get("required", ()) if name not in value)
        for name, item in value.items():
            if name not in schema["properties"]:
                yield from () if schema.get(OPEN) else (f"{at}.{name}: unknown",)
            else:
                yield from refusals(item, schema["properties"][name], f"{at}.{name}")
    elif at == ".metadata":
        yield from refusals(value["name"], schema["properties"]["name"], ".metadata.name")


def stored(value: Any, schema: dict[str, Any]) -> Any:
    """*value* as the API server stores it: without what the schema does not know, where it is not open for that."""
    if isinstance(value, list):
        return [stored(item, schema["items"]) for item in value] if "items" in schema else value
    if not isinstance(value, dict) or "type" not in schema:
        return value
    if "additionalProperties" in schema:
        return {name: stored(item, schema["additionalProperties"]) for name, item in value.items()}
    known = schema["properties"]
    return {n: stored(v, known.get(n, {})) for n, v in value.items() if n in known or schema.get(OPEN)}


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node of a schema."""
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from nodes(part, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{path}[]")


# --- the definitions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PLURALS)
def test_the_files_are_what_the_structs_say(kind: str) -> None:
    """`python -m mesh.kubernetes.crds` was run after the last change of the model."""
    assert (crds.DIRECTORY / file_name(kind)).read_text() == rendered(kind)
    assert (crds.DIRECTORY / "kustomization.yaml").read_text() == kustomization()
    assert yaml.safe_load(rendered(kind)) == definition(kind)


def test_every_kind_has_a_definition_and_no_other_has() -> None:
    """A kind that is added to the model is a kind of the cluster too."""
    assert list(PLURALS) == list(KINDS)
    known = {path.name for path in crds.DIRECTORY.iterdir()}
    assert known == {"kustomization.yaml", *(file_name(kind) for kind in PLURALS)}


@pytest.mark.parametrize("kind", PLURALS)
def test_a_schema_is_structural(kind: str) -> None:
    """A type at each node but an event's values, no reference, no choice of schemas, members or a map, never both."""
    for path, node in nodes(SCHEMAS[kind]):
        assert set(node) <= ALLOWED, (path, set(node) - ALLOWED)
        assert "type" in node or node.get(OPEN) is True, path
        assert not {"properties", "additionalProperties"} <= set(node), path
        if node.get("type") == "object" and path != ".metadata":
            assert ("properties" in node) or ("additionalProperties" in node), path
        assert ("items" in node) == (node.get("type") == "array"), path
        assert set(node.get("required", ())) <= set(node.get("properties", {})), path
        assert path != ".metadata" or set(node["properties"]) <= {"name", "generateName"}


def test_only_the_values_of_tests_have_no_type() -> None:
    """An event may hold anything, so what a PolicyTest puts into one may too."""
    found = {(kind, path) for kind, schema in SCHEMAS.items() for path, node in nodes(schema) if "type" not in node}
    assert found == {
        ("PolicyTest", ".spec.cases[].set[]"),
        ("PolicyTest", ".spec.cases[].expect.fields[]"),
    }


@pytest.mark.parametrize("kind", PLURALS)
def test_everything_has_a_bound(kind: str) -> None:
    """So that the API server can say beforehand what a rule may cost, and that no object fills etcd."""
    for path, node in nodes(SCHEMAS[kind]):
        if path in {".apiVersion", ".kind", ".metadata"}:
            continue
        if node.get("type") == "string" and "enum" not in node and node.get("format") != "date-time":
            assert "maxLength" in node, path
        if node.get("type") == "array":
            assert "maxItems" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path


def repeated(parsed: Any) -> int:
    """How often the innermost part of a pattern may be repeated by the counts around it."""
    most = 1
    for name, argument in parsed:
        if str(name) == "MAX_REPEAT":
            _, high, part = argument
            most = max(most, (1 if high == _parser.MAXREPEAT else int(high)) * repeated(part))
        elif str(name) == "SUBPATTERN":
            most = max(most, repeated(argument[-1]))
        elif str(name) == "BRANCH":
            most = max([most, *(repeated(part) for part in argument[1])])
    return most


@pytest.mark.parametrize("kind", PLURALS)
def test_every_pattern_is_one_that_re2_reads(kind: str) -> None:
    """No look-around, and no counted repetition above 1,000, also within another: Go refuses those."""
    for path, node in nodes(SCHEMAS[kind]):
        pattern = node.get("pattern", "^$")
        assert pattern[0] == "^", path
        assert pattern[-1] == "$", path
        assert not re.search(r"\(\?[=!<P]|\\[1-9bBZ]", pattern), path
        assert repeated(_parser.parse(pattern)) <= 1000, path


# The API server's limits, and its prices as far as our rules use them: a member or a comparison of short texts costs
# about 1, so a node of the syntax tree counts 1, and a literal text a tenth for each character.
MAX_RULE_COST, MAX_OBJECT_COST = 10_000_000, 100_000_000
_WORD = re.compile(r"'[^']*'|[A-Za-z_][A-Za-z_0-9]*|[0-9.]+|[!=<>&|?:+]+")


def cost(rule: str) -> float:
    """What one run of a rule may cost, roughly and not too little."""
    return sum(1 + len(word) / 10 for word in _WORD.findall(rule))


@pytest.mark.parametrize("kind", PLURALS)
def test_rules_are_cheap(kind: str) -> None:
    """Far below the limits, even for the largest object: no loop, no regular expression, no work on long texts."""
    total = 0.0

    def walk(node: dict[str, Any], times: int) -> None:
        nonlocal total
        for rule in node.get(RULE, ()):
            assert not re.search(r"\.(all|exists|map|filter|matches|split|join|contains|replace)\(", rule["rule"])
            assert cost(rule["rule"]) * times < MAX_RULE_COST / 10
            total += cost(rule["rule"]) * times
        for part in node.get("properties", {}).values():
            walk(part, times)
        if "items" in node:
            walk(node["items"], times * node.get("maxItems", 1))
        if "additionalProperties" in node:
            walk(node["additionalProperties"], times * node.get("maxProperties", 1))

    walk(SCHEMAS[kind], 1)
    assert total < MAX_OBJECT_COST / 10


@pytest.mark.parametrize("kind", PLURALS)
def test_a_definition_has_what_people_look_at(kind: str) -> None:
    """Status apart from the rest, so that rights on both differ; columns that exist; names that a cluster can tell."""
    made = definition(kind)
    version = made["spec"]["versions"][0]
    assert version["subresources"] == {"status": {}}
    assert made["metadata"]["name"] == f"{made['spec']['names']['plural']}.{made['spec']['group']}"
    assert made["spec"]["scope"] == "Namespaced"
    paths = {path for path, _ in nodes(SCHEMAS[kind])}
    for column in version["additionalPrinterColumns"]:
        path = column["jsonPath"].partition("[?")[0]
        assert path in paths or path.startswith(".metadata."), column
    assert [c["name"] for c in version["additionalPrinterColumns"]][:3] == ["Accepted", "Applied", "Revision"]


def typed(schema: dict[str, Any]) -> bool:
    """Whether CEL sees a node: it has a type, and so has what is in it, where that is all of one kind."""
    inner = schema.get("items") or schema.get("additionalProperties")
    return "type" in schema and (inner is None or typed(inner))


@pytest.mark.parametrize("kind", PLURALS)
def test_rules_name_what_cel_sees(kind: str) -> None:
    """The API server refuses a definition with a rule about a member that is not there, or has no type."""
    plain = {escaped(name): name for _, node in nodes(SCHEMAS[kind]) for name in node.get("properties", {})}
    for path, node in nodes(SCHEMAS[kind]):
        for rule in node.get(RULE, ()):
            for way in re.findall(r"self((?:\.\w+)+)", rule["rule"]):
                here = node
                for step in way.split(".")[1:]:
                    assert plain[step] in here["properties"], (path, rule["rule"])
                    here = here["properties"][plain[step]]
                    assert typed(here), (path, rule["rule"])


def test_every_rule_is_in_a_schema() -> None:
    """A Struct that is renamed does not lose its rules silently."""
    found = {rule["rule"] for schema in SCHEMAS.values() for _, node in nodes(schema) for rule in node.get(RULE, ())}
    assert {rule.rule for rules in RULES.values() for rule in rules} <= found


# --- objects ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", EXAMPLE, ids=lambda d: f"{d['kind']}-{d['metadata']['name']}")
def test_a_policy_of_the_example_is_a_valid_object(document: dict[str, Any]) -> None:
    """And is the same document again, when it is read back."""
    item = as_object(document, "acme", API_VERSION)
    assert list(refusals(item, SCHEMAS[document["kind"]])) == []
    placed = place(item, {"acme": {TENANT: "acme"}})
    assert placed.refusal is None
    again = yaml.safe_load(placed.text)
    assert again == document


def wrong(kind: str, change: dict[str, Any], *, name: str = "x") -> tuple[str, dict[str, Any]]:
    """A document of *kind* that only *change* makes wrong."""
    specs: dict[str, dict[str, Any]] = {
        "Tenant": {"teams": {"crm": {"agents": ["crm-adapter"]}}},
        "Classification": {"types": ["crm.>"], "fields": {"data.name": ["pii.name"]}},
        "View": {"otherwise": "redact"},
        "Access": {"allow": [{"id": "a", "who": {"teams": ["crm"]}, "publish": ["crm.>"]}]},
        "Route": {"routes": [{"id": "r", "match": {"types": ["crm.>"]}, "effect": "copy", "to": "crm.copy.v1"}]},
        "Subscription": {"types": ["crm.>"]},
        "PolicyTest": {"invariants": [{"only": {"teams": ["crm"], "subscribe": ["crm.>"]}}]},
    }
    spec = deepcopy(specs[kind])
    spec = {key: value for key, value in {**spec, **change}.items() if value is not None}
    metadata = {"name": name, "tenant": "acme", **({"team": "crm"} if kind == "Subscription" else {})}
    return kind, {"apiVersion": "mesh/v1", "kind": kind, "metadata": metadata, "spec": spec}


def mask(**line: Any) -> tuple[str, dict[str, Any]]:
    """A View with one wrong mask line."""
    line = {("as" if key == "as_" else "with" if key == "with_" else key): value for key, value in line.items()}
    return wrong("View", {"mask": [{"tags": ["pii.name"], **line}]})


def allow(**rule: Any) -> tuple[str, dict[str, Any]]:
    """An Access with one wrong right."""
    return wrong("Access", {"allow": [{"id": "a", "who": {"teams": ["crm"]}, **rule}]})


def case(**members: Any) -> tuple[str, dict[str, Any]]:
    """A PolicyTest with one wrong case."""
    usual = {"as": {"team": "crm"}, "subscribe": "crm.a.v1", "expect": {"decision": "allow"}}
    made = {**usual, **{("as" if key == "as_" else key): value for key, value in members.items()}}
    return wrong("PolicyTest", {"cases": [{key: value for key, value in made.items() if value is not None}]})


WRONG = [
    # shapes
    wrong("View", {"mask": [{"tags": ["pii.name"], "as": "hide"}]}),
    wrong("Subscription", {"types": []}),
    wrong("Subscription", {"types": "crm.>"}),
    wrong("Subscription", {"types": ["crm.>.x"]}),
    wrong("Subscription", {"types": ["CRM.>"]}),
    wrong("Subscription", {"max_in_flight": 0}),
    wrong("Subscription", {"retry": {"ack_wait": "30 seconds"}}),
    wrong("Subscription", {"rate": "many"}),
    wrong("Subscription", {"start": "yesterday"}),
    wrong("Subscription", {}, name="Invoices"),
    wrong("Subscription", {}, name="a--b"),
    wrong("Subscription", {}, name="x" * 41),
    wrong("Tenant", {"teams": {}}),
    wrong("Tenant", {"identities": {"crm-adapter": "https://x"}}),
    wrong("Classification", {"fields": {"data.name": ["PII"]}}),
    wrong("Classification", {"fields": {"data.name": ["pii.*"]}}),
    wrong("Route", {"routes": []}),
    wrong("Route", {"routes": [{"id": "r", "match": {"types": ["crm.>"]}, "effect": "copy", "to": "crm"}]}),
    allow(publish=["crm.>"], id="Not an id"),
    allow(publish=["crm.>"], when="x" * 1001),
    allow(subscribe=["crm.>"], view="v", expires="2026-12-01", reason="r"),
    # keys that need, or exclude, each other
    wrong("Tenant", {"trust": {"staleness": "strict", "grace": "1h"}}),
    wrong("View", {"otherwise": None, "mask": []}),
    wrong("View", {"otherwise": "redact", "like": "other", "mask": [{"tags": ["pii.name"], "as": "drop"}]}),
    mask(as_="partial"),
    mask(as_="partial", with_={"style": "email", "first": 2}),
    mask(as_="pseudonym"),
    mask(as_="pseudonym", with_={"bits": 256}),
    mask(as_="encrypt", with_={"mode": "random"}),
    mask(as_="encrypt", with_={"for": ["crm"]}),
    mask(as_="generalize"),
    mask(as_="generalize", with_={"date": "year", "geo": 2}),
    mask(as_="generalize", with_={"geo": 4}),
    mask(as_="truncate-ip", with_={"v4": 29}),
    mask(as_="truncate-ip", with_={"v6": 65}),
    mask(as_="clear", with_={"domain": "d"}),
    mask(as_="drop", with_={"style": "email"}),
    mask(as_="redact", with_={"for": ["crm"]}),
    mask(as_="clear", with_={"date": "year"}),
    mask(as_="clear", with_={"v4": 8}),
    mask(as_="clear", with_={"bits": 256}),
    mask(as_="clear", with_={"algorithm": "hmac-sha256"}),
    wrong("Access", {"allow": []}),
    wrong("Access", {"allow": [{"id": "a", "who": {}, "publish": ["crm.>"]}]}),
    allow(),
    allow(publish=["crm.>"], subscribe=["crm.>"], view="v"),
    allow(subscribe=["crm.>"]),
    allow(subscribe=["crm.>"], view="v", when="true"),
    allow(publish=["crm.>"], view="v"),
    allow(subscribe=["crm.>"], view="v", sources=["/x"]),
    allow(subscribe=["crm.>"], view="v", expires="2030-12-01T00:00:00Z"),
    allow(publish=["crm.>"], since="2026-01-01T00:00:00Z"),
    wrong("Access", {"deny": [{"id": "d", "who": {"teams": ["crm"]}}]}),
    wrong("Access", {"deny": [{"id": "d", "who": {"teams": ["crm"]}, "subscribe": ["crm.>"], "when": "true"}]}),
    wrong("Subscription", {"poison": {"share": 0.0}}),
    wrong("Subscription", {"poison": {"share": 1.5}}),
    wrong("Subscription", {"client": "nats", "order_by": "partitionkey"}),
    wrong("Subscription", {"client": "nats", "rate": "5/s"}),
    wrong("Subscription", {"client": "nats", "breaker": {"failures": 3}}),
    wrong("Subscription", {"client": "nats", "poison": {"of": 50}}),
    wrong("Subscription", {"client": "nats", "retry": {"backoff": ["1s"]}}),
    wrong("Subscription", {}, name="tail"),
    wrong("Subscription", {}, name="replay"),
    wrong("PolicyTest", {"invariants": []}),
    wrong("PolicyTest", {"invariants": [{}]}),
    wrong("PolicyTest", {"invariants": [{"never": {}}]}),
    wrong("PolicyTest", {"invariants": [{"only": {"teams": ["crm"]}}]}),
    wrong("PolicyTest", {"invariants": [{"only": {"teams": ["c"], "subscribe": ["c.>"]}, "never": {"see": ["x"]}}]}),
    case(as_={}),
    case(as_={"team": "crm", "agent": "crm-adapter"}),
    case(subscribe=None),
    case(publish="crm.a.v1"),
    case(as_={"agent": "crm-adapter"}),
    case(subscribe=None, publish="crm.a.v1"),
    case(as_={"agent": "crm-adapter"}, subscribe=None, publish="crm.a.v1", view="v"),
]


@pytest.mark.parametrize(("kind", "document"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_a_wrong_object_is_refused_by_the_api_server(kind: str, document: dict[str, Any]) -> None:
    """By its schema or by a rule of it, and the loader refuses the same: the two agree."""
    assert list(refusals(as_object(document, "acme", API_VERSION), SCHEMAS[kind]))
    with pytest.raises(PolicyErrors) as refused:
        load({"x.yaml": yaml.safe_dump(document)})
    assert [e for e in refused.value.errors if "unknown tenant" not in str(e) and "no policy document" not in str(e)]


UNKNOWN = [
    allow(publish=["crm.>"], wehn="data.amount > 10"),
    wrong("Access", {"denny": []}),
    wrong("View", {"otherwize": "redact"}),
    wrong("View", {"mask": [{"tags": ["pii.name"], "as": "pseudonym", "with": {"domain": "d", "bit": 64}}]}),
    wrong("Subscription", {"retry": {"backof": ["1s"]}}),
    wrong("Tenant", {"teams": {"crm": {"agents": ["crm-adapter"], "agent": []}}}),
    wrong(
        "Route", {"routes": [{"id": "r", "match": {"types": ["crm.>"]}, "effect": "copy", "to": "c.v1", "wen": "1"}]}
    ),
    case(expext={"decision": "deny"}),
]


@pytest.mark.parametrize(("kind", "document"), UNKNOWN, ids=lambda value: value if isinstance(value, str) else "")
def test_a_key_that_nobody_knows_is_stored_and_refused(kind: str, document: dict[str, Any]) -> None:
    """Whatever the client: pruned, a misspelt condition would be a wider right that nobody hears of."""
    assert stored(document["spec"], SCHEMAS[kind]["properties"]["spec"]) == document["spec"]
    with pytest.raises(PolicyErrors, match="unknown key"):
        load({"x.yaml": yaml.safe_dump(document)})


def test_each_rule_refuses_something() -> None:
    """Of the rows above; a rule that nothing breaks may as well be wrong."""
    broken = set()
    for kind, document in WRONG:
        item = as_object(document, "acme", API_VERSION)
        broken |= {refusal.partition(": ")[2] for refusal in refusals(item, SCHEMAS[kind])}
    messages = {rule["message"] for schema in SCHEMAS.values() for _, n in nodes(schema) for rule in n.get(RULE, ())}
    assert messages - broken == set()


@pytest.mark.parametrize("kind", PLURALS)
def test_the_base_of_the_wrong_ones_is_right(kind: str) -> None:
    """So that each row is refused for its own fault."""
    _, document = wrong(kind, {})
    assert list(refusals(as_object(document, "acme", API_VERSION), SCHEMAS[kind])) == []


def test_a_team_stands_in_a_label() -> None:
    """Of a Subscription in the tenant's own namespace; in a team's it is the namespace's."""
    _, document = wrong("Subscription", {})
    item = as_object(document, "acme", API_VERSION)
    assert item["metadata"]["labels"] == {TEAM: "crm"}
