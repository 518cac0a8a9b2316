"""`mesh policy test`, `who-can-see` and `diff` as people and CI call them: what they print, and their exit codes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import anyio
import pytest
from typer.testing import CliRunner

from mesh.cli import app
from mesh.client import PublishFailed, connect
from tests.journey.meshes import READERS, RunningMesh, contact, mesh_up, policies_with

OK, NO, MISUSE, WIDENS = 0, 1, 2, 3
ROWS = 'rows: "!has(data.consent)'


def call(*arguments: object) -> tuple[int, str]:
    """Run `mesh policy ...`; the exit code and what was printed."""
    done = CliRunner().invoke(app, ["policy", *map(str, arguments)], env={"COLUMNS": "200", "NO_COLOR": "1"})
    return done.exit_code, done.output


def answer(*arguments: object) -> tuple[int, Any]:
    """The same with `--json`, read."""
    code, printed = call(*arguments, "--json")
    return code, json.loads(printed)


@pytest.fixture
def example(root: Path, tmp_path: Path) -> Path:
    """A copy of the worked example to change."""
    copy = tmp_path / "policies"
    shutil.copytree(root / "policies", copy)
    return copy


def edit(file: Path, old: str, new: str) -> None:
    """Replace text that is there."""
    text = file.read_text()
    assert old in text, (file, old)
    file.write_text(text.replace(old, new))


# --- test ------------------------------------------------------------------------------------------------------------


def test_the_worked_example_passes(root: Path, tmp_path: Path) -> None:
    """`mesh policy test` holds for the example, prints its coverage, and writes a report that CI can read."""
    report = tmp_path / "report.xml"
    code, printed = call("test", "--policies", root / "policies", "--junit", report)
    assert code == OK
    assert "coverage" in printed
    code, told = answer("test", "--policies", root / "policies")
    assert (code, told["passed"], told["failed"]) == (OK, True, 0)
    assert told["coverage"]["total"] == told["coverage"]["covered"] + len(told["coverage"]["missing"])
    assert ET.parse(report).getroot().attrib["tests"] == str(told["tests"])  # noqa: S314 - our own file


def test_one_tenant_can_be_tested(root: Path) -> None:
    """`--tenant` runs the tests of that tenant, and is misuse where there is none of that name."""
    policies = ("--policies", root / "policies")
    code, told = answer("test", *policies, "--tenant", "acme")
    assert (code, {outcome["tenant"] for outcome in told["outcomes"]}) == (OK, {"acme"})
    code, told = answer("test", *policies, "--tenant", "nobody")
    assert (code, told["error"]["expected"]) == (MISUSE, "--tenant acme")


def test_a_widened_view_fails_the_tests(example: Path) -> None:
    """A mask that is taken away fails a case, which names file and line, what was expected and what came."""
    edit(example / "views" / "service.yaml", "as: partial, with: {style: email}", "as: clear")
    code, told = answer("test", "--policies", example)
    assert (code, told["passed"]) == (NO, False)
    failed = [outcome for outcome in told["outcomes"] if not outcome["passed"]]
    assert failed
    assert all(o["file"].startswith("tests/") and o["line"] > 0 and o["failures"] for o in failed)
    code, printed = call("test", "--policies", example)
    assert code == NO
    assert "FAILED" in printed
    assert "expected" in printed


def test_policies_that_do_not_load_are_misuse(example: Path, tmp_path: Path) -> None:
    """No directory, documents that do not load, and a report that cannot be written all end with 2."""
    assert call("test", "--policies", tmp_path / "nowhere")[0] == MISUSE
    assert call("test", "--policies", example, "--junit", tmp_path / "no" / "report.xml")[0] == MISUSE
    edit(example / "views" / "service.yaml", "otherwise: redact", "otherwise: nothing")
    code, told = answer("test", "--policies", example)
    assert (code, told["error"]["code"]) == (MISUSE, "policies-invalid")


# --- who-can-see -----------------------------------------------------------------------------------------------------


def test_who_can_see_names_team_mask_and_rule(root: Path) -> None:
    """Each reader of a field is told with its mask, its view, and the rule with file and line."""
    code, told = answer("who-can-see", "pii.contact.email", "--policies", root / "policies", "--team", "support")
    assert code == OK
    assert {entry["sees"] for entry in told["seen"]} == {"partial email"}
    assert {(entry["rule"], entry["file"]) for entry in told["seen"]} >= {("support-reads-crm", "access/readers.yaml")}
    assert all(entry["line"] > 0 for entry in told["seen"])
    code, printed = call("who-can-see", "data.contact.name", "--policies", root / "policies")
    assert code == OK
    assert "support-reads-crm (access/readers.yaml:" in printed
    assert "no read of" in printed


def test_who_can_see_says_no_and_misuse(root: Path) -> None:
    """1 where nobody sees anything of it; 2 for a team or a type that there is not."""
    policies = ("--policies", root / "policies")
    assert call("who-can-see", "data.x", *policies, "--team", "security", "--type", "crm.>")[0] == NO
    assert call("who-can-see", "data.x", *policies, "--team", "nobody")[0] == MISUSE
    assert call("who-can-see", "data.x", *policies, "--type", "hr.>")[0] == MISUSE
    code, told = answer("who-can-see", "data..x", *policies)
    assert (code, told["error"]["code"]) == (MISUSE, "bad-pattern")


@pytest.mark.parametrize("mistyped", ["pii.contact.emial", "zzz.tag", "zzz.**"])
def test_a_mistyped_tag_is_misuse(root: Path, mistyped: str) -> None:
    """It is no field that everybody masks somehow: the answer names tags that there are."""
    code, told = answer("who-can-see", mistyped, "--policies", root / "policies")
    assert (code, told["error"]["got"]) == (MISUSE, mistyped)
    assert "pii.contact.email" in told["error"]["expected"]


# --- diff ------------------------------------------------------------------------------------------------------------


def test_diff_of_two_directories(root: Path, example: Path) -> None:
    """Nothing changed is 0, narrower is 0, wider is 3 with the owners who must agree."""
    against = ("--against", root / "policies", "--policies", example)
    code, told = answer("diff", *against)
    assert (code, told["changes"], told["widens"]) == (OK, [], False)
    edit(example / "views" / "service.yaml", "as: partial, with: {style: email}", "as: drop")
    code, told = answer("diff", *against)
    assert (code, {change["kind"] for change in told["changes"]}) == (OK, {"narrowed"})
    edit(
        example / "views" / "service.yaml",
        "{tags: [pii.contact.email], as: drop}",
        "{tags: [pii.contact.email], as: clear}",
    )
    code, told = answer("diff", *against)
    assert (code, told["widens"]) == (WIDENS, True)
    assert "security" in told["owners"]
    code, printed = call("diff", *against)
    assert code == WIDENS
    assert "WIDENED" in printed
    assert "partial email -> clear" in printed


@pytest.mark.parametrize(
    ("file", "change", "row"),
    [
        ("tenants/acme.yaml", ("agents: [lake]", "agents: [lake, fund/feed-in]"), ("widened", "agent", "fund/feed-in")),
        (
            "tenants/acme.yaml",
            ("  delivery:", "  identities: {lake: 'spiffe://other/a'}\n  delivery:"),
            ("changed", "agent", "lake"),
        ),
        ("views/service.yaml", ("owner: security", "owner: support"), ("changed", "owner", "View service")),
        ("tenants/acme.yaml", ("{staleness: grace}", "{grace: 24h}"), ("widened", "trust", "acme")),
    ],
    ids=["agent", "identity", "owner", "trust"],
)
def test_other_workloads_owners_and_patience_exit_3(
    root: Path, example: Path, file: str, change: tuple[str, str], row: tuple[str, str, str]
) -> None:
    """Whom a team's rights go to, who is asked next time, how long old trust is relied on: part of what changes."""
    edit(example / file, *change)
    code, told = answer("diff", "--against", root / "policies", "--policies", example)
    assert (code, [(c["kind"], c["what"], c["who"]) for c in told["changes"]]) == (WIDENS, [row])


def test_documents_that_change_no_sight_are_named(root: Path, example: Path) -> None:
    """Nobody sees more or less where a subscription retries once more, and yet an apply makes a revision of it."""
    edit(example / "subscriptions" / "support.yaml", "attempts: 5", "attempts: 6")
    against = ("--against", root / "policies", "--policies", example)
    code, told = answer("diff", *against)
    assert (code, told["changes"], told["documents"]) == (OK, [], ["Subscription support/contacts"])
    assert "but not alike: Subscription support/contacts" in call("diff", *against)[1]


def test_diff_says_what_it_does_not_tell() -> None:
    """Names of members that begin to show are no row, and the help says so."""
    code, printed = call("diff", "--help")
    assert code == OK
    assert "names of the object's members" in " ".join(printed.replace("│", " ").split())


def test_diff_without_a_mesh_says_so(root: Path, tmp_path: Path) -> None:
    """Neither a directory nor a mesh to compare with is misuse, and so are both."""
    policies = ("--policies", root / "policies")
    assert call("diff", *policies, "--context", tmp_path)[0] == MISUSE
    assert call("diff", *policies, "--context", tmp_path, "--against", root / "policies")[0] == MISUSE


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[RunningMesh]:
    """A mesh from the worked example, whose loader has nobody running: its events wait."""
    directory = tmp_path_factory.mktemp("mesh")
    with mesh_up(directory, policies_with(directory, root / "policies", readers=READERS)) as running:
        yield running


@pytest.mark.anyio
async def test_diff_replays_recorded_events(mesh: RunningMesh, example: Path) -> None:
    """Against a mesh, changed rows are asked of what it has recorded, and what waits for plain clients is counted."""
    async with connect(mesh.data, agent="crm-adapter") as crm:
        for index, country in enumerate(("DE", "FR", "FR")):
            data = contact(country=country)
            await crm.publish("crm.contact.updated.v1", data, id=f"c-{index}", source="/salesforce/eu")
        with pytest.raises(PublishFailed):
            await crm.publish("crm.contact.updated.v1", contact(account={"id": "a-test"}), source="/salesforce/eu")
    view = example / "views" / "pseudonymous.yaml"
    edit(view, ROWS, "rows: \"data.country == 'DE' && (!has(data.consent)")
    edit(view, 'analytics != false"', 'analytics != false)"')
    command = ("diff", "--policies", example, "--context", mesh.data)
    code, told = await anyio.to_thread.run_sync(lambda: answer(*command))
    assert (code, told["against"]) == (OK, 1), told
    assert "rows of pseudonymous" in told["conditions"]
    assert told["replay"]["events"] == 4  # one was refused
    assert told["replay"]["teams"] == {"analytics": {"gained": 0, "lost": 2, "undecided": 0}}
    waiting = {(held["team"], held["subscription"]): held["waiting"] for held in told["backlog"]}
    assert waiting["analytics", "lake"] == 3
    code, printed = await anyio.to_thread.run_sync(lambda: call(*command))
    assert "analytics  +0 gained, -2 lost, 0 undecided" in printed
    assert "FR" not in printed.replace("data.country == 'DE'", "")
    deny = example / "access" / "owners.yaml"
    edit(deny, "endsWith('-test')", "endsWith('-sandbox')")
    code, told = await anyio.to_thread.run_sync(lambda: answer(*command))
    assert code == WIDENS
    assert told["replay"]["teams"]["crm"] == {"gained": 0, "lost": 0, "undecided": 1}
    code, told = await anyio.to_thread.run_sync(lambda: answer(*command, "--revision", "7"))
    assert (code, told["error"]["code"]) == (NO, "not-found")
