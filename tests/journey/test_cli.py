"""The command line: what each command prints for a person and for a machine, and its exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from mesh import __version__
from mesh.cli import app
from mesh.cli.events import FOUND
from mesh.cli.session import operator_session
from mesh.client import connect
from mesh.jetstream.manage import api
from tests.journey.meshes import RunningMesh, contact

SOURCE = "/salesforce/eu"
YES, NO, MISUSE = 0, 1, 2

pytestmark = pytest.mark.anyio


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


def environment(**more: str) -> dict[str, str]:
    """A terminal wide enough for a whole line, and no other variable of ours."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    return {**inherited, "COLUMNS": "200", "NO_COLOR": "1", **more}


def run(*arguments: str, **more: str) -> Done:
    """Run `mesh` as a process."""
    done = subprocess.run(
        [sys.executable, "-m", "mesh", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env=environment(**more),
    )
    return Done(done.returncode, done.stdout, done.stderr)


def call(*arguments: str, **more: str) -> Done:
    """Run a command in this process: the same code, without the second that Python takes to start."""
    with ThreadPoolExecutor(1) as thread:  # the command has an event loop of its own
        done = thread.submit(CliRunner().invoke, app, arguments, env=environment(**more)).result()
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Done(done.exit_code, done.stdout, done.stderr)


@pytest.fixture
def command(mesh: RunningMesh) -> Command:
    """Run a command in the context of the running mesh."""
    return lambda *arguments: call(*arguments, MESH_CONTEXT=str(mesh.data))


@pytest.fixture(scope="module")
async def published(mesh: RunningMesh) -> None:
    """Three events: two contacts, one of them without consent to analytics, and a deal."""
    async with connect(mesh.data, agent="crm-adapter") as m:
        await m.publish("crm.contact.updated.v1", contact(note="[/bold] \x1b[31m"), source=SOURCE, id="seen-by-all")
        await m.publish(
            "crm.contact.updated.v1", contact(consent={"analytics": False}), source=SOURCE, id="not-for-analytics"
        )
        await m.publish("crm.deal.won.v1", {"deal": {"amount": 100.0, "currency": "EUR"}}, source=SOURCE, id="deal-1")


def error_of(done: Done) -> dict[str, Any]:
    """The error object of a `--json` answer, which has no other member."""
    answer = json.loads(done.stdout)
    assert list(answer) == ["error"]
    assert {"code", "message", "expected", "got", "next"} <= set(answer["error"])
    return dict(answer["error"])


async def test_version_and_help() -> None:
    """`mesh --version` prints one line; `mesh --help` lists the commands; an unknown one is misuse."""
    assert run("--version").stdout == f"mesh {__version__}\n"
    helped = run("--help")
    assert helped.returncode == YES
    assert all(name in helped.stdout for name in ("up", "demo", "status", "events", "subscription"))
    assert call("evnets").returncode == MISUSE
    assert call("events", "tail", "--count", "many").returncode == MISUSE


async def test_tail_prints_what_the_team_sees(mesh: RunningMesh, published: None) -> None:
    """One JSON document a line, each in the team's view and verified; what its rows hide is not there."""
    arguments = ("events", "tail", "crm.>", "--team", "analytics", "--all", "--count", "2", "--json")
    done = run(*arguments, MESH_CONTEXT=str(mesh.data))
    assert done.returncode == YES, done.stderr
    shown = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["event"]["id"] for one in shown] == ["seen-by-all", "deal-1"]
    for one in shown:
        assert one["verified"] is True
        assert one["view"] == one["event"]["view"] == "pseudonymous"
        assert one["subject"].startswith("ev.local.pseudonymous.")
    assert "anna.schmidt" not in done.stdout


async def test_tail_keeps_values_out_of_the_terminal_s_language(command: Command, published: None) -> None:
    """For a person an event is one line, and nothing in it is markup or a control character."""
    done = command("events", "tail", "crm.contact.>", "--team", "crm", "--all", "--count", "1")
    assert done.returncode == YES, done.stderr
    (line,) = done.stdout.splitlines()
    assert "crm.contact.updated.v1 seen-by-all verified" in line
    assert r'"note":"[/bold] \u001b[31m"' in line


async def test_nobody_looks_without_a_team(mesh: RunningMesh, command: Command) -> None:
    """Without a team there is no view and so nothing to see: misuse, and the answer names the teams."""
    for arguments in (("events", "tail"), ("events", "show", "deal-1"), ("subscription", "show", "contacts")):
        done = command(*arguments, "--json")
        assert done.returncode == MISUSE
        error = error_of(done)
        assert error["code"] == "bad-config"
        assert "analytics, billing, crm, engineering, security, support" in error["expected"]
    person = run("events", "tail", MESH_CONTEXT=str(mesh.data))
    assert person.returncode == MISUSE
    assert person.stdout == ""
    assert "reading needs a team" in person.stderr
    assert "--team" in person.stderr


async def test_show_is_the_same_event_in_each_team_s_view(command: Command, published: None) -> None:
    """Support sees part of the address, analytics a token, the owners all of it, and billing no such event."""
    emails = {}
    for team in ("support", "analytics", "crm"):
        done = command("events", "show", "seen-by-all", "--team", team, "--json")
        assert done.returncode == YES, done.stdout
        (shown,) = json.loads(done.stdout)
        assert shown["verified"] is True
        assert shown["signer"] == "spiffe://mesh.local/ns/acme/sa/crm-adapter"
        emails[team] = shown["event"]["data"]["contact"]["email"]
    assert emails["crm"] == "anna.schmidt@example.com"
    assert emails["support"] == "a***@***.com"
    assert len({*emails.values()}) == 3
    hidden = command("events", "show", "seen-by-all", "--team", "billing", "--json")
    assert hidden.returncode == NO
    assert error_of(hidden)["code"] == "not-found"
    person = command("events", "show", "deal-1", "--team", "billing")
    assert person.returncode == YES
    assert "verified" in person.stdout
    assert '"amount": 100.0' in person.stdout


async def test_show_hides_rows_the_team_may_not_see(command: Command, published: None) -> None:
    """An event that a row filter keeps from a team does not exist for it, and does for others."""
    assert command("events", "show", "not-for-analytics", "--team", "support", "--json").returncode == YES
    assert command("events", "show", "not-for-analytics", "--team", "analytics", "--json").returncode == NO


async def test_subscriptions_are_listed_and_shown(command: Command, published: None) -> None:
    """All teams' or one team's subscriptions, with durable, view, types and lag."""
    listed = json.loads(command("subscription", "list", "--json").stdout)
    assert {fact["team"] for fact in listed} >= {"analytics", "billing", "engineering", "security", "support"}
    (lake,) = json.loads(command("subscription", "list", "--team", "analytics", "--json").stdout)
    assert (lake["team"], lake["subscription"], lake["durable"]) == ("analytics", "lake", "analytics--lake")
    assert (lake["view"], lake["active"], lake["lag"]) == ("pseudonymous", True, 2)
    assert sorted(lake["streams"]) == ["EV_local_billing", "EV_local_crm"]
    shown = json.loads(command("subscription", "show", "lake", "--team", "analytics", "--json").stdout)
    assert shown == lake
    person = command("subscription", "list")
    assert person.returncode == YES
    assert "contacts" in person.stdout
    assert "crm.contact.>" in person.stdout
    missing = command("subscription", "show", "nothing", "--team", "support", "--json")
    assert (missing.returncode, error_of(missing)["code"]) == (NO, "not-found")


async def test_status_of_a_mesh_that_is_well(command: Command, published: None) -> None:
    """Exit 0; streams, agents, subscriptions, dead letters and trust, for machines and for people."""
    done = command("status", "--json")
    assert done.returncode == YES, done.stdout
    report = json.loads(done.stdout)
    assert report["problems"] == []
    assert (report["tenant"], report["revision"], report["dead_letters"]) == ("acme", 1, 0)
    assert {agent["state"] for agent in report["agents"]} == {"ready"}
    assert {"EV_local_crm", "DLQ", "AUDIT"} <= {stream["stream"] for stream in report["streams"]}
    assert report["trust"]["age_s"] < 60
    person = command("status")
    assert person.returncode == YES
    assert all(text in person.stdout for text in ("crm-adapter", "EV_local_crm", "analytics", "dead letters: 0"))


async def test_status_is_no_when_something_needs_a_look(command: Command, mesh: RunningMesh, tmp_path: Path) -> None:
    """An agent nobody reaches is a problem: exit 1, and the report names it."""
    file = json.loads((mesh.data / "mesh.json").read_bytes())
    file["tenants"]["acme"]["agents"]["desk"]["health_url"] = "http://127.0.0.1:9"
    elsewhere = tmp_path / "mesh.json"
    elsewhere.write_text(json.dumps(file))
    done = call("status", "--json", MESH_CONTEXT=str(elsewhere))
    assert done.returncode == NO
    assert json.loads(done.stdout)["problems"] == ["agent desk: unreachable"]


async def test_misuse_says_what_to_do(command: Command, tmp_path: Path) -> None:
    """A context that is not there, an unknown team, a pattern outside the grammar: exit 2 and the way out."""
    nowhere = call("status", "--json", "--context", str(tmp_path))
    assert nowhere.returncode == MISUSE
    assert "mesh up" in error_of(nowhere)["next"]
    stranger = command("events", "tail", "--team", "nobody", "--json")
    assert (stranger.returncode, error_of(stranger)["got"]) == (MISUSE, "nobody")
    pattern = command("events", "tail", "crm.>.x", "--team", "support", "--json")
    assert (pattern.returncode, error_of(pattern)["code"]) == (MISUSE, "bad-pattern")
    grammar = command("events", "tail", "CRM.>", "--team", "support")
    assert grammar.returncode == MISUSE
    assert "[a-z0-9" in grammar.stderr  # brackets are the grammar's, not markup


async def test_demo_keeps_nothing_in_a_used_directory(tmp_path: Path) -> None:
    """`--keep` on a file or on a directory with something in it is misuse, before anything starts."""
    (tmp_path / "notes.txt").touch()
    used = call("demo", "--keep", str(tmp_path), "--json")
    assert (used.returncode, error_of(used)["code"]) == (MISUSE, "bad-config")
    assert "is not empty" in error_of(used)["message"]
    file = call("demo", "--keep", str(tmp_path / "notes.txt"), "--json")
    assert (file.returncode, error_of(file)["code"]) == (MISUSE, "bad-config")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


async def test_nothing_within_reach_is_a_no(command: Command) -> None:
    """A sound pattern in which the team may read nothing: exit 1."""
    done = command("events", "tail", "github.>", "--team", "support", "--json")
    assert (done.returncode, error_of(done)["code"]) == (NO, "not-found")


async def test_verify_says_whether_all_of_a_source_is_stored(mesh: RunningMesh, command: Command) -> None:
    """Exit 0 and what cannot be shown, then 3 and what lacks, for a machine and a person; a range leaves it out."""
    source = "/crm/verified"
    async with connect(mesh.data, agent="crm-adapter") as m:
        for number in range(3):
            await m.publish("crm.contact.updated.v1", contact(), source=source, id=f"verified-{number}")
    whole = command("events", "verify", "--source", source, "--json")
    assert whole.returncode == YES, whole.stdout
    said = json.loads(whole.stdout)
    assert (said["complete"], said["findings"]) == (True, [])
    assert {(each["stored"], each["last"]) for each in said["counted"]} == {(3, 3)}
    assert all("the highest stored is 3" in text for text in said["unproven"])
    shown = json.loads(command("events", "show", "verified-1", "--team", "support", "--json").stdout)[0]
    async with operator_session(str(mesh.data)) as session:
        await api(session.connection, f"STREAM.MSG.DELETE.{shown['stream']}", {"seq": shown["seq"]})
    gap = command("events", "verify", "--source", source, "--view", shown["view"], "--json")
    assert gap.returncode == FOUND
    assert [(each["what"], each["first"]) for each in json.loads(gap.stdout)["findings"]] == [("pending", 2)]
    person = command("events", "verify", "--source", source)
    assert person.returncode == FOUND
    assert "pending number 2 of epoch" in person.stdout
    assert "the record of /crm/verified: 1 findings" in person.stdout
    after = f"{shown['stream']}:{shown['seq'] + 1}"
    for options in (("--to", "2000-01-01T00:00:00Z"), ("--from", "2999-01-01T00:00:00Z")):
        assert command("events", "verify", "--source", source, *options).returncode == NO
    assert command("events", "verify", "--source", source, "--from", after, "--json").returncode in {YES, FOUND}


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        (("--source", "/crm/nobody"), NO, "not-found"),
        (("--source", SOURCE, "--from", "yesterday"), MISUSE, "bad-config"),
        (("--source", SOURCE, "--from", "7"), MISUSE, "bad-config"),
        (("--source", SOURCE, "--from", "EV_local_none:7"), MISUSE, "bad-config"),
        (("--source", SOURCE, "--from", "EV_local_crm:999999"), NO, "not-found"),
    ],
)
async def test_a_question_about_no_source_and_no_place(
    command: Command, published: None, options: tuple[str, ...], status: int, code: str
) -> None:
    """An unknown source, time or place is said, and what would be one."""
    done = command("events", "verify", *options, "--json")
    assert (done.returncode, error_of(done)["code"]) == (status, code)


async def test_mesh_that_does_not_run_is_a_no(
    mesh: RunningMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A context whose server is gone: exit 1, saying that NATS is not reached."""
    monkeypatch.setattr("mesh.cli.operator.CONNECT_TIMEOUT_S", 0.5)
    file = json.loads((mesh.data / "mesh.json").read_bytes())
    gone = tmp_path / "mesh.json"
    gone.write_text(json.dumps({**file, "nats_url": "nats://127.0.0.1:9"}))
    done = call("subscription", "list", "--json", MESH_CONTEXT=str(gone))
    assert (done.returncode, error_of(done)["code"]) == (NO, "nats-unreachable")
    assert "no connection to NATS" in error_of(done)["message"]  # the lock is held: another server is meant


async def test_mesh_that_was_stopped_says_how_to_start_it(mesh: RunningMesh, tmp_path: Path) -> None:
    """Nobody holds the lock of its directory: exit 1, the command to copy, and no line of a log around it."""
    data = tmp_path / "my mesh"
    shutil.copytree(mesh.data / "admin", data / "admin")
    file = json.loads((mesh.data / "mesh.json").read_bytes())
    (data / "mesh.json").write_text(json.dumps({**file, "nats_url": "nats://127.0.0.1:9", "data": str(data)}))
    (data / "mesh.lock").touch()
    done = run("status", "--context", str(data))
    assert done.returncode == NO
    said = done.stderr.splitlines()
    assert said[0] == "error nats-unreachable this mesh is not running"
    assert said[-1] == f"  next     mesh up --data '{data}'"
    assert "nats_unreachable" not in done.stderr
    (data / "admin" / "nats.creds").unlink()
    gone = call("status", "--json", "--context", str(data))
    assert (gone.returncode, error_of(gone)["next"]) == (MISUSE, "restart `mesh up`: it writes it again")
