"""`mesh trust audit` on a mesh of real processes: what it prints, its exit codes, and what standing does to it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mesh.cli.session import operator_session
from mesh.control.datadir import DataDirectory
from mesh.control.nkeys import NkeyFiles
from mesh.control.reconcile import SYSTEM, Operator
from mesh.jetstream import accounts
from mesh.jetstream.connection import Connection
from mesh.jetstream.manage import api
from tests.contract.agent_mesh import until
from tests.journey.meshes import RunningMesh
from tests.journey.test_cli import MISUSE, NO, YES, Command, Done, call, error_of

pytestmark = pytest.mark.anyio

STREAM = "EV_local_crm"
EXTRA = {"stream_name": STREAM, "config": {"name": "mine", "durable_name": "mine", "ack_policy": "explicit"}}


@pytest.fixture
def command(mesh: RunningMesh) -> Command:
    """Run a command in the context of the running mesh."""
    return lambda *arguments: call(*arguments, MESH_CONTEXT=str(mesh.data))


def report(done: Done) -> Any:
    """What `--json` printed; the exit code says whether anything is flagged."""
    found = json.loads(done.stdout)
    assert done.returncode == (YES if found["holds"] else NO), done.stderr
    return found


def identity(found: Any, kind: str, name: str) -> dict[str, Any]:
    """One of the report."""
    return next(one for one in found["identities"] if (one["kind"], one["identity"]) == (kind, name))


async def test_a_mesh_that_is_up_gives_nobody_more_than_it_compiled(mesh: RunningMesh, command: Command) -> None:
    """Every agent and team of the worked example with its rights, its account and its connections; no flag; exit 0."""
    found = report(command("trust", "audit", "--json"))
    assert (found["tenant"], found["revision"], found["flags"]) == ("acme", 1, [])
    agent, team = identity(found, "agent", "crm-adapter"), identity(found, "team", "support")
    assert agent["spiffe_id"] == "spiffe://mesh.local/ns/acme/sa/crm-adapter"
    assert agent["publish"][0] == "crm.contact.> in clear, minimal, pseudonymous, service (site local)"
    assert (agent["state"], agent["connections"], agent["create"]) == ("open", 1, [])
    assert team["read"][1] == f"crm.contact.> in service: support--contacts on {STREAM}"
    public = NkeyFiles(DataDirectory(mesh.data).keys).get("account", "acme/crm-adapter").public
    assert agent["account"] == public


def test_what_is_printed_is_read_by_people(mesh: RunningMesh, command: Command) -> None:
    """Each identity with the three verbs, what all have once, and the verdict last."""
    done = command("trust", "audit")
    assert done.returncode == YES, done.stderr
    lines = done.stdout.splitlines()
    place = lines.index(next(line for line in lines if line.startswith("team support ")))
    assert lines[place + 1].startswith("  publish  dead letters of support/contacts")
    assert "  read     billing.payment.failed.v1 in service: support--failed-payments on EV_local_billing" in lines
    assert lines[-1].startswith("acme: nothing beyond what revision 1 compiles: 1 server, 12 accounts")


async def test_what_somebody_made_with_stolen_credentials_is_flagged(mesh: RunningMesh, command: Command) -> None:
    """A durable, and an account's rights: exit 1, each with a sentence and what to do next; gone, exit 0 again."""
    operator = Operator(NkeyFiles(DataDirectory(mesh.data).keys))
    name, system_creds = "acme/desk", operator.control_creds(SYSTEM)
    async with operator_session(str(mesh.data)) as session:
        system = await Connection.open(mesh.file.nats_url, name="thief", creds=system_creds)
        try:
            held = (await system.request(_lookup(operator, name), b"")).data.decode()
            claims = accounts.claims_of(held)["nats"]
            wide = [accounts.Import(i["account"], i["subject"], i["type"]) for i in claims["imports"]]
            wide.append(accounts.Import(operator.public("acme"), f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.mine"))
            token = accounts.account_jwt(
                operator.keys.get("operator", "operator"),
                operator.public(name),
                name,
                imports=wide,
                iat=accounts.claims_of(held)["iat"] + 1,
            )
            await system.request("$SYS.REQ.CLAIMS.UPDATE", token.encode())
            await api(session.connection, f"CONSUMER.CREATE.{STREAM}.mine", {**EXTRA, "action": "create"})
            flags = report(command("trust", "audit", "--json"))["flags"]
            assert {(flag["where"], flag["code"]) for flag in flags} == {
                ("agent desk", "extra-import"),
                (f"consumer mine on {STREAM}", "consumer-unknown"),
            }
            shown = command("trust", "audit")
            assert shown.returncode == NO
            assert "extra-import agent desk: can read everything on >: mine on EV_local_crm" in shown.stdout
            assert all(flag["next"] in shown.stdout for flag in flags)
            await api(session.connection, f"CONSUMER.DELETE.{STREAM}.mine")
            await system.request("$SYS.REQ.CLAIMS.UPDATE", held.encode())
        finally:
            await system.close()
    await until(lambda: report(command("trust", "audit", "--json"))["holds"])


async def test_a_barred_agent_and_replaced_credentials_leave_no_flag(mesh: RunningMesh, command: Command) -> None:
    """Standing is what was meant: barred is told as such, admitted is open again with a user of its own."""
    assert command("trust", "revoke", "--agent", "desk", "--now").returncode == YES

    def told() -> Any:
        return report(command("trust", "audit", "--json"))

    await until(lambda: told()["flags"] == [])  # a server may still show the connection that it is ending
    assert identity(told(), "agent", "desk")["state"] == "barred"
    shown = command("trust", "audit").stdout
    assert "agent desk barred" in shown
    assert command("trust", "admit", "desk").returncode == YES
    await until(lambda: identity(told(), "agent", "desk")["connections"] == 1)
    await until(lambda: told()["flags"] == [])


def test_without_a_mesh_it_says_so(mesh: RunningMesh, command: Command) -> None:
    """A tenant that is not there is misuse; an argument too many as well, in JSON where that was asked for."""
    assert error_of(command("trust", "audit", "--tenant", "nobody", "--json"))["code"] == "bad-config"
    assert call("trust", "audit", "--nonsense", "--json").returncode == MISUSE


def _lookup(operator: Operator, name: str) -> str:
    return f"$SYS.REQ.ACCOUNT.{operator.public(name)}.CLAIMS.LOOKUP"
