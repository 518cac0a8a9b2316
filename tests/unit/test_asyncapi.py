"""The AsyncAPI document: the official parser takes it, events as views show them hold to it, and it says no more."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from mesh.asyncapi import document as asyncapi
from mesh.asyncapi import listed
from mesh.cli.catalog import app
from mesh.errors import PolicyErrors
from mesh.policy.atoms import Atom, atoms
from mesh.policy.compile import Plans
from mesh.policy.load import load
from mesh.policy.matrix import Matrix
from mesh.policy.trial import accepted, plans_of, shown
from mesh.policy_files import read_policies
from tests.conftest import ROOT
from tests.unit.policy_world import document, event, plans
from tests.unit.random_masks import CLASSES, DATAS, MASKS, OTHERWISE, Fields, Lines

NOW_MS = 1_780_000_000_000  # 2026-05-28
SCRIPT = ROOT / "tests" / "node" / "asyncapi.mjs"
OLD = "asyncapi-latest-version"  # the parser would have 3.1.0; it is the one thing it may say
ODD = (
    document(
        "Classification",
        "odd",
        {
            "types": ["crm.*.seen", "crm.odd.>"],
            "fields": {
                "data.*.score": ["score"], "data.list[*].ip": ["ip"], 'data."first name"': ["pii.name"],
                "data.home.**": ["place"], "**.card.number": ["pan"], "account": ["id"], "data.born": ["born"],
                "data.open.**": ["public"], "data.mail": ["mail"],
            },
        },
    ),
    document(
        "View",
        "odd",
        {
            "otherwise": "drop",
            "mask": [
                {"tags": ["score"], "as": "generalize", "with": {"number": [0.5, 10]}},
                {"tags": ["ip"], "as": "truncate-ip"}, {"tags": ["public"], "as": "clear"},
                {"tags": ["place"], "as": "redact"}, {"tags": ["born"], "as": "generalize", "with": {"date": "year"}},
                {"tags": ["pan"], "as": "partial", "with": {"first": 1, "last": 2}},
                {"tags": ["id"], "as": "pseudonym", "with": {"domain": "odd", "bits": 256}},
                {"tags": ["mail"], "as": "encrypt", "with": {"mode": "random", "for": ["support"]}},
            ],
        },
    ),
    document(
        "Access",
        "odd",
        {
            "allow": [
                {"id": "odd-1", "who": {"teams": ["analytics"]}, "subscribe": ["crm.*.seen"], "view": "odd"},
                {"id": "odd-2", "who": {"teams": ["support"]}, "subscribe": ["crm.odd.>"], "view": "odd"},
                {"id": "odd-3", "who": {"agents": ["desk"]}, "publish": ["crm.odd.>"], "when": "has(data.a)"},
            ]
        },
    ),
)  # fmt: skip


@cache
def example() -> tuple[Plans, dict[str, Any]]:
    """The plans of the worked example, and its events by file."""
    files = read_policies(ROOT / "policies")
    return plans_of(load(files.yaml))["acme"], {
        name: accepted(content, now_ms=NOW_MS) for name, content in files.fixtures.items()
    }


def payload(made: dict[str, Any], message: str) -> jsonschema_rs.Validator:
    """What a message's payload has to hold to."""
    reference = {"$ref": f"#/components/messages/{message}/payload", "components": made["components"]}
    return jsonschema_rs.Draft7Validator(reference)


def reads(made: dict[str, Any]) -> dict[tuple[str, str, str], str]:
    """(team, types, view) -> message, of every operation that receives."""
    found = {}
    for operation in made["operations"].values():
        if operation["action"] == "receive":
            channel = made["channels"][operation["channel"]["$ref"].removeprefix("#/channels/")]
            (message,) = operation["messages"]
            key = (operation["tags"][0]["name"], channel["x-mesh-types"], operation["x-mesh-view"])
            found[key] = message["$ref"].rpartition("/")[2]
    return found


def kind_of(policies: Plans, type_: str) -> Atom:
    """The kind of types that *type_* is one of."""
    kinds = atoms([policies.tenancy])
    mine = frozenset(pattern for kind in kinds for pattern in kind.patterns if pattern.matches(type_))
    return next(kind for kind in kinds if kind.patterns == mine)


# --- the official parser ---------------------------------------------------------------------------------------------


def parsed(node: Path, directory: Path, *documents: dict[str, Any]) -> list[dict[str, Any]]:
    """What @asyncapi/parser makes of each."""
    files = [directory / f"{number}.json" for number in range(len(documents))]
    for file, made in zip(files, documents, strict=True):
        file.write_text(json.dumps(made))
    done = subprocess.run([node, SCRIPT, *files], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_official_parser_takes_it(node: Path, tmp_path: Path) -> None:
    """The worked example, two of its teams alone, and odd policies parse without error or warning."""
    policies, _ = example()
    made = [asyncapi(policies, NOW_MS), asyncapi(plans(*ODD), NOW_MS)]
    made += [asyncapi(policies, NOW_MS, team=team) for team in ("analytics", "crm")]
    for one, said in zip(made, parsed(node, tmp_path, *made), strict=True):
        assert [found for found in said["diagnostics"] if found["code"] != OLD] == []
        assert said["channels"] == [channel["address"] for channel in one["channels"].values()]
        understood = {(op["id"], op["action"], *op["messages"]) for op in said["operations"]}
        told = {
            (name, op["action"], *(message["$ref"].rpartition("/")[2] for message in op["messages"]))
            for name, op in one["operations"].items()
        }
        assert understood == told


def test_the_official_parser_can_refuse(node: Path, tmp_path: Path) -> None:
    """A document with a channel taken away is an error to the same script."""
    made = asyncapi(plans(), NOW_MS)
    made["channels"] = {}
    (said,) = parsed(node, tmp_path, made)
    assert any(found["severity"] == 0 for found in said["diagnostics"])


# --- what it says is what is done ------------------------------------------------------------------------------------


def test_every_right_is_an_operation_and_no_other() -> None:
    """The operations are the readings and rights of the matrix, one by one."""
    policies, _ = example()
    matrix = Matrix.of(policies, NOW_MS)
    made = asyncapi(policies, NOW_MS)
    assert set(reads(made)) == {(r.team, r.atom.shown, r.view) for r in matrix.readings if r.view}
    sends = {name for name, operation in made["operations"].items() if operation["action"] == "send"}
    assert len(sends) == len({(right.team, right.atom) for right in matrix.publishing})
    assert {channel["x-mesh-types"] for channel in made["channels"].values()} == {
        atom.shown for atom in atoms([policies.tenancy])
    }


@pytest.mark.parametrize("file", sorted(example()[1]))
def test_an_event_as_shown_holds_to_its_message(file: str) -> None:
    """Each fixture is valid as each reader of its type sees it; as its sender wrote it, it is not, where masks show."""
    policies, fixtures = example()
    made = asyncapi(policies, NOW_MS)
    fields = fixtures[file]
    kind = kind_of(policies, fields["type"])
    readers = [reading for reading in Matrix.of(policies, NOW_MS).readings if reading.view and reading.atom == kind]
    assert readers
    for reading in readers:
        validator = payload(made, reads(made)[reading.team, reading.atom.shown, reading.view])
        seen = shown(policies, reading.view, fields["type"], fields)
        assert [error.message for error in validator.iter_errors(seen)] == []
        unmasked = {**seen, "data": fields["data"]}
        assert not (validator.is_valid(unmasked) and reading.view in {"service", "pseudonymous"})


ODD_DATA = {
    "a": {"score": 3, "card": {"number": "4111-2222"}, "other": 1}, "b": {"score": "none"}, "home": {"street": "x"},
    "list": [{"ip": "192.0.2.77"}, {"ip": "2001:db8::1"}, {"ip": 7}], "first name": "Ada", "born": "1990-02-03",
    "open": {"x": {"y": 1}, "card": {"number": "12345"}}, "mail": "ada@example.org",
}  # fmt: skip


@pytest.mark.parametrize("data", [ODD_DATA, {}, [], "text", None, [1, {"score": 1}], {"list": {"ip": 1}, "home": 3}])
def test_odd_events_hold_too(data: Any) -> None:
    """Wildcards, quoted names, trees and any depth: an event as the view shows it is valid, whatever its shape."""
    policies = plans(*ODD)
    made = asyncapi(policies, NOW_MS)
    for team, type_ in (("analytics", "crm.x.seen.v2"), ("support", "crm.odd.thing.v1")):
        message = reads(made)[team, kind_of(policies, type_).shown, "odd"]
        seen = shown(policies, "odd", type_, event(data, type=type_, account="4711"))
        opened = {**seen, "data": {**seen["data"], "mail": 7}} if team == "support" and data is ODD_DATA else seen
        assert [error.message for error in payload(made, message).iter_errors(opened)] == []


@settings(max_examples=150, deadline=None)
@given(fields=CLASSES, mask=MASKS, otherwise=OTHERWISE, data=st.lists(DATAS, min_size=1, max_size=4))
def test_whatever_the_policies_their_events_hold(fields: Fields, mask: Lines, otherwise: str, data: list[Any]) -> None:
    """Of policies and events made at random, an event as a view shows it is valid against the view's message."""
    assume(fields)
    try:
        policies = plans(
            document("Classification", "random", {"types": ["crm.>"], "fields": fields}),
            document("View", "random", {"mask": mask, "otherwise": otherwise}),
            document("Access", "random", {"allow": [
                {"id": "r", "who": {"teams": ["crm"]}, "subscribe": ["crm.>"], "view": "random"}]}),
        )  # fmt: skip
    except PolicyErrors:
        reject()  # a line that names no tag, or two masks that contradict each other
    made = asyncapi(policies, NOW_MS)
    validator = payload(made, reads(made)["crm", "crm.>", "random"])
    for one in data:
        seen = shown(policies, "random", "crm.contact.updated.v1", event(one))
        assert [error.message for error in validator.iter_errors(seen)] == []


def test_a_dropped_field_is_not_there_and_a_masked_one_says_how() -> None:
    """A view's schema leaves out what it drops, by name, and gives tags and mask of what it shows."""
    made = asyncapi(example()[0], NOW_MS)
    message = made["components"]["messages"]["crm.contact.REST.VIEW.pseudonymous"]
    contact = message["payload"]["properties"]["data"]["properties"]["contact"]
    assert {"name", "address", "note"} <= set(contact["x-mesh-dropped"])
    assert "name" not in contact["properties"]
    assert contact["properties"]["id"]["x-mesh-mask"] == "pseudonym customer"
    assert contact["properties"]["id"]["x-mesh-tags"] == ["id.contact"]
    assert message["payload"]["x-mesh-anywhere"]["**.email"]["x-mesh-mask"] == "pseudonym customer-contact"
    (common,) = contact["allOf"]
    name = common["$ref"].rpartition("/")[2]
    assert "email" in made["components"]["schemas"][name]["properties"]


def test_a_team_sees_its_own_alone() -> None:
    """With a team the document has its rights, and neither another's view nor a type that it may not read."""
    made = asyncapi(example()[0], NOW_MS, team="analytics")
    assert {team for team, _, _ in reads(made)} == {"analytics"}
    assert {view for _, _, view in reads(made)} == {"pseudonymous"}
    assert all(".SENT" not in message for message in made["components"]["messages"])
    assert "billing.payment.failed.v1" not in json.dumps(made)


def test_who_opens_what_is_encrypted_is_told_so() -> None:
    """The team that a ciphertext is for sees the field in clear, another reader of the view a ciphertext."""
    made = asyncapi(example()[0], NOW_MS)
    of = {team: message for (team, _, view), message in reads(made).items() if view == "review"}
    said = {
        team: made["components"]["schemas"][f"{message}.ANYWHERE"]["properties"]["email"]["x-mesh-mask"]
        for team, message in of.items()
    }
    assert said == {"billing": "encrypt random for security", "security": "clear"}


def test_a_right_that_ended_is_gone() -> None:
    """A grant is in the document until it ends, with when that is, and not after."""
    policies, _ = example()
    ends_ms = 1_814_313_600_000  # 2027-06-30
    name = "engineering.READS.billing.payment.failed.v1.VIEW.service"
    assert asyncapi(policies, ends_ms - 1)["operations"][name]["x-mesh-until"] == "2027-06-30T00:00:00.000Z"
    assert name not in asyncapi(policies, ends_ms)["operations"]


# --- the command -----------------------------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str]:
    """Exit code and standard output of `mesh catalog`."""
    done = CliRunner().invoke(app, [*arguments, "--policies", str(ROOT / "policies")])
    return done.exit_code, done.stdout


def test_yaml_and_json_say_the_same() -> None:
    """Both forms hold one document, and YAML says everything where it stands."""
    (code, text), (other, shown_) = run("asyncapi", "--team", "support"), run("asyncapi", "--team", "support", "--yaml")
    assert (code, other) == (0, 0)
    assert yaml.safe_load(shown_) == json.loads(text)
    assert "&id" not in shown_


@pytest.mark.parametrize(
    "arguments", [["asyncapi", "--team", "nobody"], ["list", "--tenant", "nobody"], ["asyncapi", "--yaml", "--json"]]
)
def test_what_is_not_there_is_misuse(arguments: list[str]) -> None:
    """An unknown team or tenant, or two forms at once, exits 2, for machines with an error document."""
    assert run(*arguments)[0] == 2
    code, text = run(*arguments, *([] if "--json" in arguments else ["--json"]))
    assert (code, json.loads(text)["error"]["code"]) == (2, "bad-config")


def test_the_list_names_senders_and_readers() -> None:
    """`list` has a row for each kind of types; `--json` the same."""
    code, text = run("list", "--json")
    found = {one["types"]: one for one in json.loads(text)["types"]}
    assert code == 0
    assert found["crm.contact.>"]["senders"] == ["crm"]
    assert {"team": "support", "view": "service"} in found["crm.contact.>"]["readers"]
    assert found["finance.review.deal.v1"]["senders"] == []
    assert set(found) == {one.types for one in listed(example()[0], NOW_MS)}
    assert all(types in run("list")[1] for types in found)
