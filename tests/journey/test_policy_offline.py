"""`mesh policy lint`, `objects`, `schema`, `explain`: what a script relies on, and what people read. No mesh runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml
from typer.testing import CliRunner

from mesh.cli import app
from mesh.cli.policy.options import offline
from mesh.errors import Disconnected
from mesh.kubernetes.names import TEAM, TENANT
from mesh.kubernetes.objects import place
from mesh.policy.bundle import ordered
from mesh.policy.load import load
from mesh.policy.model import KINDS
from mesh.policy_files import read_directory
from tests.conftest import ROOT
from tests.unit.policy_world import BASE, access, document

YES, NO, MISUSE = 0, 1, 2
CONTACT = {
    "specversion": "1.0",
    "id": "c-1",
    "source": "/crm/eu",
    "type": "crm.contact.updated.v1",
    "partitionkey": "contact-4711",
    "data": {"name": "Anna Schmidt", "email": "anna@example.com", "country": "DE"},
}
UPDATED = "crm.contact.updated.v1"


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def call(*arguments: str, stdin: str = "") -> Done:
    """Run `mesh policy` in this process, on a wide terminal without colours."""
    environment = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    done = CliRunner().invoke(app, ["policy", *arguments], input=stdin, env=environment)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Done(done.exit_code, done.stdout, done.stderr)


def error_of(done: Done) -> dict[str, Any]:
    """The error object of a `--json` answer, which has no other member and stands alone on standard output."""
    answer = json.loads(done.stdout)
    assert list(answer) == ["error"]
    assert {"code", "message", "expected", "got", "next"} <= set(answer["error"])
    assert done.stderr == ""
    return dict(answer["error"])


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    """A directory with a small set of policies."""
    directory = tmp_path / "policies"
    directory.mkdir()
    for name, text in BASE.items():
        (directory / name).write_text(text)
    return directory


@pytest.fixture
def event(tmp_path: Path) -> str:
    """A file with one event."""
    file = tmp_path / "contact.json"
    file.write_text(json.dumps(CONTACT))
    return str(file)


# --- explain ---------------------------------------------------------------------------------------------------------


def test_an_allowed_read_is_explained_to_a_script(policies: Path, event: str) -> None:
    """Exit 0; the keys, the masked event and the trace stand as the contract says, in a real process."""
    arguments = ("--policies", str(policies), "--tenant", "acme", "--team", "analytics", "--subscribe", UPDATED)
    done = subprocess.run(
        [sys.executable, "-m", "mesh", "policy", "explain", *arguments, "--event", event, "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("MESH_")},
    )
    assert (done.returncode, done.stderr) == (YES, "")
    answer = json.loads(done.stdout)
    assert list(answer) == ["decision", "rule", "reason", "view", "event", "revision", "enforced", "trace"]
    assert (answer["decision"], answer["rule"], answer["reason"]) == ("allow", "analytics-reads", "rule")
    assert (answer["view"], answer["revision"], answer["enforced"]) == ("masked", 0, "nats")
    assert answer["event"]["data"] == {"email": "[REDACTED]", "country": "DE"}
    assert answer["event"]["partitionkey"] != "contact-4711"
    traced = [entry for entry in answer["trace"] if "rule" in entry]
    assert [(t["rule"], t["file"], t["line"], t["effect"], t["matched"]) for t in traced] == [
        ("analytics-reads", "access.yaml", 8, "allow", True)
    ]
    assert "Anna" not in done.stdout


def test_an_allowed_publish_lists_its_copies(policies: Path, event: str) -> None:
    """Exit 0; view and event are null, and each copy has its view, type, route and event."""
    arguments = ("--agent", "crm-adapter", "--publish", UPDATED, "--event", event, "--json")
    done = call("explain", "--policies", str(policies), *arguments)
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["decision"], answer["view"], answer["event"]) == (YES, "allow", None, None)
    assert [(copy["view"], copy["type"], copy["route"]) for copy in answer["copies"]] == [
        ("clear", UPDATED, None),
        ("masked", UPDATED, None),
    ]
    again = call("explain", "--policies", str(policies), "--team", "crm", *arguments[2:])  # the team's only agent
    assert json.loads(again.stdout)["rule"] == "crm-publishes"


RULES = access(
    allow=[{"id": "support-reads", "who": {"teams": ["support"]}, "subscribe": ["crm.>"], "view": "eu"}],
    deny=[
        {"id": "no-tests", "who": {"teams": ["crm"]}, "publish": ["crm.>"], "when": "data.account.endsWith('-test')"},
        {"id": "no-deals", "who": {"teams": ["analytics"]}, "subscribe": ["crm.deal.>"]},
    ],
)
EU = document("View", "eu", {"otherwise": "redact", "rows": "data.country == 'FR'"})


@pytest.mark.parametrize(
    ("question", "told"),
    [
        (("--team", "analytics", "--subscribe", "crm.deal.won.v1"), ("no-deals", "rule", "agent only")),
        (("--agent", "lake", "--subscribe", "crm.deal.won.v1"), ("no-deals", "rule", "agent only")),
        (("--team", "analytics", "--subscribe", "hr.a.v1"), (None, "no-allow-matched", "nats")),
        (("--team", "support", "--subscribe", UPDATED), (None, "row-filter", "agent only")),
        (("--agent", "crm-adapter", "--publish", UPDATED), ("no-tests", "error-in-deny", "agent only")),
        (("--agent", "desk", "--publish", UPDATED), (None, "no-allow-matched", "nats")),
    ],
)
def test_a_no_is_exit_1_with_its_reason(
    policies: Path, event: str, question: tuple[str, ...], told: tuple[str | None, str, str]
) -> None:
    """Every reason for a deny, with the rule's bare id, and no event."""
    (policies / "more.yaml").write_text(f"{RULES}---\n{EU}")
    done = call("explain", "--policies", str(policies), *question, "--event", event, "--json")
    answer = json.loads(done.stdout)
    assert done.returncode == NO
    assert (answer["rule"], answer["reason"], answer["enforced"]) == told
    assert (answer["decision"], answer["event"]) == ("deny", None)
    assert answer["view"] == ("eu" if answer["reason"] == "row-filter" else None)
    assert answer.get("copies", []) == []
    assert "Anna" not in done.stdout


def test_without_policies_the_answer_is_no(tmp_path: Path, event: str) -> None:
    """A directory without a policy is no bundle: deny, with a reason of its own."""
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "later.yaml").write_text("# to be written\n---\n")
    arguments = ("--team", "crm", "--subscribe", UPDATED, "--event", event, "--json")
    done = call("explain", "--policies", str(tmp_path / "none"), *arguments)
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["decision"], answer["reason"]) == (NO, "deny", "no-valid-bundle")


def test_several_views_are_misuse_with_their_grants(policies: Path, event: str) -> None:
    """Where grants give several views, exit 2 with the ids of all of them; `--view` chooses one."""
    more = {"id": "inc", "who": {"teams": ["analytics"]}, "subscribe": ["crm.>"], "view": "clear"}
    (policies / "more.yaml").write_text(access(allow=[more | {"expires": "2100-01-01T00:00:00Z", "reason": "INC"}]))
    arguments = ("--policies", str(policies), "--team", "analytics", "--subscribe", UPDATED, "--event", event, "--json")
    done = call("explain", *arguments)
    assert done.returncode == MISUSE
    error = error_of(done)
    assert (error["code"], error["grants"]) == ("ambiguous-view", ["analytics-reads", "inc"])
    chosen = call("explain", *arguments, "--view", "clear")
    assert (chosen.returncode, json.loads(chosen.stdout)["rule"]) == (YES, "inc")


WHO, WHAT = ("--team", "analytics"), ("--subscribe", UPDATED)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((*WHAT,), "bad-config", "say who"),
        ((*WHO, "--agent", "lake", *WHAT), "bad-config", "say who"),
        ((*WHO,), "bad-config", "say what"),
        ((*WHO, *WHAT, "--publish", UPDATED), "bad-config", "say what"),
        (("--team", "nobody", *WHAT), "bad-config", "no team nobody"),
        (("--agent", "nobody", *WHAT), "bad-config", "no agent nobody"),
        ((*WHO, *WHAT, "--view", "nothing"), "bad-config", "no view nothing"),
        ((*WHO, *WHAT, "--tenant", "other"), "bad-config", "no tenant other"),
        (("--team", "support", "--publish", UPDATED), "bad-config", "2 agents"),
        ((*WHO, "--publish", UPDATED, "--view", "clear"), "bad-config", "--view goes with"),
        ((*WHO, "--subscribe", "crm.>"), "bad-type", "outside the grammar"),
        ((*WHO, "--subscribe"), "bad-config", "requires an argument"),
        ((*WHO, *WHAT, "--colour", "red"), "bad-config", "No such option"),
        ((*WHO, *WHAT, "--policies", "nowhere"), "bad-config", "nowhere is no directory"),
        ((*WHO, *WHAT, "--event", "nowhere.json"), "bad-config", "nowhere.json cannot be read"),
    ],
)
def test_misuse_is_exit_2_and_an_error_for_machines(
    policies: Path, event: str, arguments: tuple[str, ...], code: str, says: str
) -> None:
    """A question that is none, a name nobody has, an option that does not exist: the way out, and no answer."""
    usual = ("--policies", str(policies)) if "--policies" not in arguments else ()
    given = ("--event", event) if "--event" not in arguments else ()
    done = call("explain", *usual, *given, *arguments, "--json")
    assert done.returncode == MISUSE
    error = error_of(done)
    assert (error["code"], says in error["message"]) == (code, True), error
    assert error["expected"]
    assert error["next"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("{", "not-json"),
        ("[1]", "not-json"),
        ('{"id": "1"}', "bad-attribute"),
        (json.dumps(CONTACT | {"tenant": "acme"}), "reserved-attribute"),
        (json.dumps(CONTACT | {"id": "a b"}), "bad-attribute"),
        ("[" * 100_000, "too-deep"),
    ],
)
def test_an_event_no_agent_takes_is_misuse(policies: Path, body: str, code: str) -> None:
    """What the agent's door refuses is not explained; the error says why and repeats nothing."""
    arguments = ("--policies", str(policies), *WHO, *WHAT, "--event", "-", "--json")
    done = call("explain", *arguments, stdin=body)
    assert (done.returncode, error_of(done)["code"]) == (MISUSE, code)


def test_policies_that_do_not_load_are_misuse(policies: Path, event: str) -> None:
    """`explain` answers from policies that load, or not at all: exit 2 with every error's file and line."""
    (policies / "views.yaml").write_text(BASE["views.yaml"].replace("otherwise: redact", "otherwise: redacted"))
    done = call("explain", "--policies", str(policies), *WHO, *WHAT, "--event", event, "--json")
    assert done.returncode == MISUSE
    error = error_of(done)
    assert error["code"] == "policies-invalid"
    assert {"file", "line", "next"} <= set(error["errors"][0])


def test_an_event_counts_as_of_the_type_that_is_asked_about(policies: Path) -> None:
    """One file answers for every type; it may leave the type out."""
    body = json.dumps({name: value for name, value in CONTACT.items() if name != "type"})
    arguments = ("--policies", str(policies), *WHO, "--subscribe", "crm.deal.won.v1", "--event", "-", "--json")
    done = call("explain", *arguments, stdin=body)
    assert json.loads(done.stdout)["event"]["type"] == "crm.deal.won.v1"


def test_a_person_reads_the_decision_its_rules_and_masks(policies: Path, event: str) -> None:
    """The first line is the decision; then rules with their places, conditions part by part, masks, the event."""
    (policies / "more.yaml").write_text(f"{RULES}---\n{EU}")
    read = call("explain", "--policies", str(policies), *WHO, *WHAT, "--event", event).stdout
    assert read.splitlines()[0] == "ALLOW  rule: analytics-reads"
    assert "match  allow analytics-reads  access.yaml:8" in read
    assert "data.email" in read
    assert '"email": "[REDACTED]"' in read
    denied = call(
        "explain", "--policies", str(policies), "--agent", "crm-adapter", "--publish", UPDATED, "--event", event
    )
    assert denied.stdout.splitlines()[0] == "DENY  error-in-deny: no-tests"
    assert "data.account.endsWith('-test')  error: no-such-key" in denied.stdout
    filtered = call("explain", "--policies", str(policies), "--team", "support", *WHAT, "--event", event).stdout
    assert filtered.splitlines()[0] == "DENY  row-filter"
    assert "data.country == 'FR'  false" in filtered
    nothing = call("explain", "--policies", str(policies), *WHO, "--subscribe", "hr.a.v1", "--event", event).stdout
    assert "No allow and no deny is about this." in nothing


def test_the_worked_example_is_explained(tmp_path: Path) -> None:
    """Every fixture of the example, asked by every team and by its publisher, gets an answer and never an error."""
    directory = ROOT / "policies"
    for file in sorted((directory / "fixtures").glob("*.json")):
        type_ = json.loads(file.read_text())["type"]
        for team in ("crm", "support", "analytics", "billing", "engineering", "security"):
            arguments = ("--policies", str(directory), "--team", team, "--subscribe", type_, "--event", str(file))
            done = call("explain", *arguments, "--json")
            assert done.returncode in {YES, NO}, done.stdout
            answer = json.loads(done.stdout)
            assert (answer["decision"] == "allow") == (done.returncode == YES)


def test_a_missing_argument_is_named_to_a_machine() -> None:
    """Also what the command line itself lacks is an error with a message, the usage and the way to help."""
    error = error_of(call("who-can-see", "--json"))
    assert "field" in error["message"].lower()
    assert "Usage:" in error["expected"]


def test_a_command_that_is_not_there_is_an_error_for_a_machine() -> None:
    """A script that misspells a command reads JSON as from any other mistake."""
    assert "bogus" in error_of(call("bogus", "--json"))["message"]


def test_no_error_of_an_offline_command_reads_as_a_no(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 1 is an answer; whatever goes wrong before there is one is exit 2."""

    @offline
    def away(*, json_: bool) -> None:
        raise Disconnected("gone")

    for as_json in (True, False):
        with pytest.raises(typer.Exit) as caught:
            away(json_=as_json)
        assert caught.value.exit_code == MISUSE
    assert "gone" in capsys.readouterr().out


# --- lint ------------------------------------------------------------------------------------------------------------


def test_lint_reads_every_rule_back(policies: Path) -> None:
    """Exit 0: sentences by file and line for a person, the same for a machine, and what deserves a look."""
    (policies / "more.yaml").write_text(f"{RULES}---\n{EU}")
    done = call("lint", "--policies", str(policies))
    assert done.returncode == YES, done.stdout
    assert "access.yaml" in done.stdout.splitlines()
    assert "     8  Team analytics may read crm.> in the view masked." in done.stdout.splitlines()
    assert "the deny `no-tests` reads `data.account` without `has()`" in done.stdout
    told = json.loads(call("lint", "--policies", str(policies), "--json").stdout)
    assert list(told) == ["sentences", "warnings"]
    assert {"access.yaml", "crm.yaml", "more.yaml", "tenant.yaml", "views.yaml"} == {
        s["file"] for s in told["sentences"]
    }
    assert all(list(w) == ["file", "line", "message", "next"] for w in told["warnings"])
    (line,) = (w["line"] for w in told["warnings"] if "no-tests" in w["message"])
    assert "when: data.account" in (policies / "more.yaml").read_text().splitlines()[line - 1]


def test_lint_names_file_line_and_fix_of_what_does_not_load(policies: Path) -> None:
    """Exit 1, with every error at once, for a person and for a machine."""
    (policies / "views.yaml").write_text(
        BASE["views.yaml"].replace("pii.name", "pii.nam").replace("as: clear", "as: cleer")
    )
    done = call("lint", "--policies", str(policies))
    assert done.returncode == NO
    assert "views.yaml:10" in done.stdout
    assert "fix" in done.stdout
    machine = call("lint", "--policies", str(policies), "--json")
    assert machine.returncode == NO
    errors = error_of(machine)["errors"]
    assert all({"file", "line", "message", "next"} <= set(one) and one["next"] for one in errors)


def test_lint_of_nothing_is_misuse(tmp_path: Path) -> None:
    """A directory that is not there, or a tenant nobody has, is misuse; an empty directory does not load."""
    assert call("lint", "--policies", str(tmp_path / "nowhere"), "--json").returncode == MISUSE
    assert call("lint", "--policies", str(ROOT / "policies"), "--tenant", "other", "--json").returncode == MISUSE
    (tmp_path / "empty").mkdir()
    empty = call("lint", "--policies", str(tmp_path / "empty"), "--json")
    assert (empty.returncode, error_of(empty)["code"]) == (NO, "policies-invalid")


def test_lint_of_one_tenant_keeps_to_it(policies: Path) -> None:
    """`--tenant` shows one tenant's rules alone."""
    for name, text in BASE.items():
        (policies / f"other-{name}").write_text(text.replace("acme", "other"))
    every = json.loads(call("lint", "--policies", str(policies), "--json").stdout)
    one = json.loads(call("lint", "--policies", str(policies), "--tenant", "other", "--json").stdout)
    assert {s["tenant"] for s in every["sentences"]} == {"acme", "other"}
    assert {s["tenant"] for s in one["sentences"]} == {"other"}
    assert all(w["file"].startswith("other-") for w in one["warnings"])


# --- objects ---------------------------------------------------------------------------------------------------------


def test_objects_are_the_same_policies() -> None:
    """What is printed for a cluster is, read back, what the files say; no object takes the place of another."""
    policies = ("objects", "--policies", str(ROOT / "policies"), "--namespace", "acme")
    printed = list(yaml.safe_load_all(call(*policies, "--team-namespaces", "acme-{team}").stdout))
    labels = {item["metadata"]["namespace"]: {TENANT: "acme"} for item in printed}
    for name in labels.keys() - {"acme"}:
        labels[name][TEAM] = name.removeprefix("acme-")
    placed = [place(item, labels) for item in printed]
    again = load({one.file: one.text for one in placed})
    files = load(read_directory(ROOT / "policies"))
    assert ordered(d.value for d in again.documents) == ordered(d.value for d in files.documents)
    clash = call(*policies, "--json")  # two teams have a Subscription of one name
    assert (clash.returncode, error_of(clash)["got"]) == (MISUSE, "acme")


# --- schema ----------------------------------------------------------------------------------------------------------


def test_schema_of_each_kind_is_printed_and_written(tmp_path: Path) -> None:
    """One kind on standard output, all of them together, or each in a file of its own for an editor."""
    for kind in KINDS:
        printed = call("schema", kind)
        assert printed.returncode == YES
        assert json.loads(printed.stdout)["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert json.loads(call("schema").stdout)
    done = call("schema", "--out", str(tmp_path / "schemas"), "--json")
    files = json.loads(done.stdout)["files"]
    assert len(files) == len(KINDS) + 1
    assert all(json.loads(Path(file).read_text()) for file in files)
    unknown = call("schema", "Polizei", "--json")
    assert (unknown.returncode, error_of(unknown)["got"]) == (MISUSE, "Polizei")
    shutil.rmtree(tmp_path / "schemas")
    (tmp_path / "schemas").touch()
    assert call("schema", "--out", str(tmp_path / "schemas"), "--json").returncode == MISUSE
