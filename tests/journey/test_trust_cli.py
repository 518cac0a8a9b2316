"""`mesh trust` on a whole mesh: what is revoked, replaced and admitted, and that nothing honest is lost by it."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from agent.enrolment import KeyFiles
from agent.settings import load as load_settings
from mesh.cli.policy import request
from mesh.client import connect
from tests.journey.meshes import RunningMesh, contact, mesh_up, policies_with
from tests.journey.test_cli import MISUSE, NO, YES, Command, Done, call, error_of

pytestmark = pytest.mark.anyio

TYPE, SOURCE = "crm.contact.updated.v1", "/salesforce/eu"
AGENT = "crm-adapter"
DEADLINE_S = 60


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[RunningMesh]:
    """A mesh from the worked example, whose server encrypts what it stores."""
    directory = tmp_path_factory.mktemp("mesh")
    with mesh_up(directory, policies_with(directory, root / "policies", readers=["desk"]), "--encrypt") as running:
        yield running


@pytest.fixture
def command(mesh: RunningMesh) -> Command:
    """Run `mesh trust ...` in the context of the running mesh."""
    return lambda *arguments: call("trust", *arguments, MESH_CONTEXT=str(mesh.data))


def answer(done: Done, status: int = YES) -> dict[str, Any]:
    """The JSON that a command printed."""
    assert done.returncode == status, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def keys(command: Command, *, state: str = "good") -> list[str]:
    """The key ids of the agent that are in this state."""
    listed = answer(command("list", "--agent", AGENT, "--json"))
    return [key["kid"] for key in listed["keys"] if key["state"] == state]


async def publish(mesh: RunningMesh, *ids: str) -> None:
    """One contact each, through the agent's door."""
    async with connect(mesh.data, agent=AGENT) as m:
        for id_ in ids:
            await m.publish(TYPE, contact(), source=SOURCE, id=id_)


async def delivered(mesh: RunningMesh, *ids: str) -> None:
    """Wait until the consuming team was handed each of them, verified."""
    missing = set(ids)
    with anyio.fail_after(DEADLINE_S):
        async with connect(mesh.data, team="support") as m, m.subscription("contacts") as contacts:
            while missing:
                async with await contacts.next() as event:
                    missing.discard(event.id)


async def test_list_and_show(command: Command) -> None:
    """Every agent's key, what it is certified by, and what everybody verifies by; for people and for machines."""
    listed = answer(command("list", "--json"))
    assert {key["agent"] for key in listed["keys"]} >= {AGENT, "desk", "billing-adapter"}
    (kid,) = keys(command)
    shown = command("list").stdout
    assert f"{AGENT} " in shown
    assert kid in shown
    assert answer(command("list", "--agent", "desk", "--json"))["keys"][0]["agent"] == "desk"
    detail = answer(command("show", kid, "--json"))
    assert (detail["kid"], detail["spiffe_id"]) == (kid, f"spiffe://mesh.local/ns/acme/sa/{AGENT}")
    assert "BEGIN CERTIFICATE" in command("show", kid).stdout
    anchors = answer(command("show", "--json"))
    assert anchors["ca"]["kid"] == detail["issuer_kid"] == listed["ca"]["kid"]
    text = command("show").stdout
    assert all(anchors[name] in text for name in ("trust_domain", "trust_key", "policy_key"))


async def test_a_revoked_key_is_replaced_and_nothing_honest_is_lost(mesh: RunningMesh, command: Command) -> None:
    """Events go on before, at and after the cut: each is delivered, and the agent has another key in a second."""
    (old,) = keys(command)
    said: dict[str, Any] = {}
    ids = [f"cut-{number}" for number in range(60)]

    async def revoke() -> None:
        done = await anyio.to_thread.run_sync(lambda: command("revoke", old, "--reason", "INC-4711", "--json"))
        said.update(answer(done))

    async with anyio.create_task_group() as group:
        group.start_soon(revoke)
        for id_ in ids:
            await publish(mesh, id_)
            await anyio.sleep(0.03)  # the cut lies a second ahead: they come from both sides of it
    assert said["keys"] == [{"kid": old, "from_ms": said["cut_ms"]}]
    await delivered(mesh, *ids)
    assert old not in keys(command)
    assert keys(command, state="revoked") == [old]
    again = command("revoke", old)
    assert re.search(rf"{re.escape(old)}: what is stored from \S+Z on is refused \(\d+ s ago\)", again.stdout)


async def test_a_rotation_says_who_has_another_key(mesh: RunningMesh, command: Command) -> None:
    """New keys and NATS credentials for an agent that runs; it goes on publishing."""
    (old,) = keys(command)
    creds = (mesh.data / "agents" / AGENT / "nats.creds").read_bytes()
    said = answer(command("rotate", "--agent", AGENT, "--credentials", "--json"))
    assert [(one["agent"], one["state"]) for one in said["agents"]] == [(AGENT, "renewed")]
    assert said["credentials"] == [AGENT]
    assert (mesh.data / "agents" / AGENT / "nats.creds").read_bytes() != creds
    assert old not in keys(command)
    await publish(mesh, "rotated")
    await delivered(mesh, "rotated")
    done = command("rotate", "--all")
    assert done.returncode == YES, done.stdout + done.stderr
    assert "renewed" in done.stdout
    assert "waiting until the agents have other keys" in done.stderr


async def test_a_revoked_agent_is_barred_until_it_is_admitted(mesh: RunningMesh, command: Command) -> None:
    """It has no key and gets none; admitted, it enrols by itself, and what it publishes is delivered again."""
    done = command("revoke", "--agent", AGENT, "--reason", "laptop stolen")
    assert done.returncode == YES, done.stderr
    assert f"{AGENT} is barred" in done.stdout
    assert answer(command("list", "--json"))["barred"] == [AGENT]
    assert f"barred {AGENT}: `mesh trust admit {AGENT}` lets it back" in command("list").stdout
    assert f"barred: {AGENT}; `mesh trust admit {AGENT}` lets it back" in problems(mesh)
    assert error_of(command("rotate", "--agent", AGENT, "--json"))["code"] == "workload-barred"
    with anyio.fail_after(DEADLINE_S):
        while keys(command):  # until the cut
            await anyio.sleep(0.05)
    assert answer(command("admit", AGENT, "--json")) == {"tenant": "acme", "workload": AGENT, "admitted": True}
    with anyio.fail_after(DEADLINE_S):
        while not keys(command):
            await anyio.sleep(0.05)
    await publish(mesh, "admitted")
    await delivered(mesh, "admitted")
    assert "was not barred" in command("admit", AGENT).stdout
    listed = json.loads(call("audit", "list", "--json", MESH_CONTEXT=str(mesh.data)).stdout)
    kinds = [record["kind"] for record in listed["records"] if record["kind"].startswith("trust-")]
    assert kinds[-2:] == ["trust-revoked", "trust-admitted"]


async def test_a_team_is_barred_until_it_is_admitted(mesh: RunningMesh, command: Command) -> None:
    """It is told as a team: it has no keys and no certificate, and comes back by its name."""
    done = command("revoke", "--team", "billing")
    assert done.returncode == YES, done.stderr
    assert "the team billing is barred: its NATS account is closed" in done.stdout
    assert "mesh trust admit --team billing" in done.stdout
    assert not re.search(r"certificate|statement|0 keys", done.stdout)
    await told(mesh, "barred: team-billing; `mesh trust admit --team billing` lets it back")
    assert answer(command("admit", "--team", "billing", "--json"))["admitted"] is True
    await told(mesh)


async def told(mesh: RunningMesh, *expected: str) -> None:
    """Wait until `mesh status` names these problems and no other: agents of earlier tests are ready again, too."""
    with anyio.fail_after(DEADLINE_S):
        while problems(mesh) != list(expected):
            await anyio.sleep(0.05)


def problems(mesh: RunningMesh) -> list[str]:
    """What `mesh status` says needs a look; its exit code says whether something does."""
    done = call("status", "--json", MESH_CONTEXT=str(mesh.data))
    found: list[str] = json.loads(done.stdout)["problems"]
    assert done.returncode == (NO if found else YES)
    return found


async def test_an_agent_without_keys_is_told_apart_from_no_agent(command: Command) -> None:
    """Of one that is not there the names of those that are; one that is barred is one of them."""
    error = error_of(command("list", "--agent", "nobody", "--json"))
    assert (error["code"], error["got"]) == ("not-found", "nobody")
    assert {AGENT, "desk", "billing-adapter"} <= set(error["expected"].split(", "))
    assert answer(command("revoke", "--agent", "desk", "--now", "--json"))["barred"] == "desk"
    assert {key["state"] for key in answer(command("list", "--agent", "desk", "--json"))["keys"]} == {"revoked"}
    assert answer(command("admit", "desk", "--json"))["admitted"] is True


async def test_a_control_plane_that_hangs_keeps_nobody(
    mesh: RunningMesh, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who looks is told in seconds; who changes something that nobody knows; `mesh status` says it as a problem."""
    os.kill(mesh.pid, signal.SIGSTOP)
    try:
        monkeypatch.setitem(request.READS_S, "list", 0.3)
        monkeypatch.setattr(request, "CHANGE_S", 0.3)
        looked = error_of(command("list", "--json"))
        assert (looked["code"], looked["message"]) == (
            "unavailable",
            "the control plane gave no answer within 0.3 s",
        )
        changed = error_of(command("admit", AGENT, "--json"))
        assert "it is not known whether this was done" in changed["message"]
        assert "`mesh trust list`" in changed["next"]
        assert problems(mesh)[-1].startswith("who is barred is not known: the control plane gave no answer")
    finally:
        os.kill(mesh.pid, signal.SIGCONT)
        monkeypatch.undo()
    assert answer(command("list", "--json"))["barred"] == []


async def test_a_key_in_files_is_issued(mesh: RunningMesh, command: Command, tmp_path: Path) -> None:
    """Files that an agent reads, private; the mesh lists and revokes the key. Those that are there stay as they are."""
    out = tmp_path / "keys"
    said = answer(command("issue", AGENT, "--out", str(out), "--hours", "48", "--json"))
    settings = load_settings(
        "\n".join([f'name = "{AGENT}"', 'tenant = "acme"', f'trust_dir = "{mesh.data / "trust"}"',
                   *(f'{name} = "{path}"' for name, path in said["settings"].items())]), {},
    ).settings  # fmt: skip
    signer = KeyFiles(settings, tmp_path).signer
    assert (signer.kid, str(signer.spiffe_id)) == (said["kid"], said["spiffe_id"])
    assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in out.iterdir()} == {
        "event.key": 0o600, "event.crt": 0o600,
    }  # fmt: skip
    assert said["kid"] in keys(command)

    before = (out / "event.key").read_bytes()
    refused = command("issue", AGENT, "--out", str(out), "--json")
    assert (refused.returncode, error_of(refused)["code"]) == (MISUSE, "bad-config")
    assert (out / "event.key").read_bytes() == before
    replaced = command("issue", AGENT, "--out", str(out), "--force")
    assert replaced.returncode == YES, replaced.stderr
    assert f'event_key_file = "{out / "event.key"}"\nevent_cert_file = "{out / "event.crt"}"' in replaced.stdout
    other = KeyFiles(settings, tmp_path).signer
    assert f"{other.kid} is {other.spiffe_id}" in replaced.stdout
    assert other.kid != signer.kid
    for kid in (signer.kid, other.kid):
        assert command("revoke", kid, "--now").returncode == YES
    assert {signer.kid, other.kid} <= set(keys(command, state="revoked"))


async def test_the_store_gets_another_key_and_nothing_is_lost(mesh: RunningMesh, command: Command) -> None:
    """The server restarts with it; what was stored is read, and what comes next is delivered."""
    key = (mesh.data / "admin" / "store.key").read_bytes()
    await publish(mesh, "before-the-key")
    done = command("rotate", "--store", "--reason", "yearly")
    assert done.returncode == YES, done.stdout + done.stderr
    assert "the server's store has another encryption key" in done.stdout
    assert (mesh.data / "admin" / "store.key").read_bytes() != key
    await publish(mesh, "after-the-key")
    await delivered(mesh, "before-the-key", "after-the-key")


NOT_THERE = "AAAAAAAAAAAAAAAAAAAAAA"
DASH = "-AAAAAAAAAAAAAAAAAAAAA"


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (("show", NOT_THERE), NO, "not-found"),
        (("show", DASH), NO, "not-found"),  # no option, though it begins like one
        (("show", "no-key"), MISUSE, "bad-attribute"),
        (("revoke",), MISUSE, "bad-config"),
        (("revoke", NOT_THERE), NO, "not-found"),
        (("revoke", DASH), NO, "not-found"),
        (("revoke", NOT_THERE, "--agent", AGENT), MISUSE, "bad-config"),
        (("revoke", NOT_THERE, "--now", "--from", "1h"), MISUSE, "bad-config"),
        (("revoke", NOT_THERE, "--from", "yesterday"), MISUSE, "bad-config"),
        (("revoke", "--team", "support", "--now"), MISUSE, "bad-config"),
        (("revoke", "--agent", "nobody"), NO, "not-found"),
        (("revoke", "--agent", AGENT, "--from", "2999-01-01T00:00:00Z"), MISUSE, "bad-attribute"),
        (("rotate",), MISUSE, "bad-config"),
        (("rotate", "--ca", "--credentials"), MISUSE, "bad-config"),
        (("rotate", "--all", "--revoke-old"), MISUSE, "bad-config"),
        (("list", "--agent", "nobody"), NO, "not-found"),
        (("rotate", "--agent", "nobody"), NO, "not-found"),
        (("issue", AGENT), MISUSE, "bad-config"),
        (("issue", "nobody", "--out", "{out}"), NO, "not-found"),
        (("issue", AGENT, "--out", "{out}", "--hours", "721"), MISUSE, "bad-attribute"),
        (("issue", AGENT, "--out", "/dev/null/keys"), MISUSE, "bad-config"),
        (("admit",), MISUSE, "bad-config"),
        (("admit", "--agent", AGENT), MISUSE, "bad-config"),
        (("revoke", "--from"), MISUSE, "bad-config"),
    ],
)
async def test_what_cannot_be_done_says_why(
    command: Command, tmp_path: Path, arguments: tuple[str, ...], status: int, code: str
) -> None:
    """One error object, and an exit code that tells a no from misuse."""
    done = command(*(argument.replace("{out}", str(tmp_path)) for argument in arguments), "--json")
    assert (done.returncode, error_of(done)["code"]) == (status, code)


@pytest.mark.parametrize(
    ("arguments", "name", "words"),
    [
        (("revoke", NOT_THERE, "--agent", AGENT), "got", "KID and --agent"),
        (("revoke", "--agent", AGENT, "--team", "support"), "got", "--agent and --team"),
        (("revoke",), "got", "none of them"),
        (("rotate", "--revoke-old"), "next", "mesh trust rotate --ca --revoke-old"),
    ],
)
async def test_options_that_clash_are_named(
    command: Command, arguments: tuple[str, ...], name: str, words: str
) -> None:
    """What stands in the answer is what was typed, or what to type."""
    assert error_of(command(*arguments, "--json"))[name] == words


@pytest.mark.parametrize("verb", ["list", "show", "revoke", "rotate", "issue", "admit", "audit"])
def test_help_has_an_example(verb: str) -> None:
    """Whoever is in a hurry copies a line."""
    done = call("trust", verb, "--help")
    assert done.returncode == YES
    assert re.search(rf"Examples?:\s+mesh trust {verb}", done.stdout)


async def test_without_a_mesh_it_says_so(tmp_path: Path) -> None:
    """No mesh there: misuse, with what to do."""
    assert error_of(call("trust", "list", "--json", "--context", str(tmp_path)))["code"] == "bad-config"
