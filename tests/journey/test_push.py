"""Push in a whole mesh: from the door of one team's agent to the application of another, as people set it up."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from mesh.event import ATTRIBUTES_NEVER_MASKED
from tests.conftest import ROOT
from tests.contract.agent_mesh import until
from tests.contract.push_mesh import App, status
from tests.journey.meshes import RunningMesh, contact, mesh_up, restart_agent

AGENT = "desk"  # of the team support, which reads contacts
ROWS: list[dict[str, Any]] = json.loads((ROOT / "tests" / "tables" / "cloudevents_http.json").read_text())

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[RunningMesh]:
    """The worked example."""
    with mesh_up(tmp_path_factory.mktemp("mesh"), root / "policies") as running:
        yield running


@asynccontextmanager
async def pushed(mesh: RunningMesh, app: App, mode: str) -> AsyncIterator[None]:
    """Have the desk's agent push contacts to *app*: a table in its agent.toml, and a restart."""
    file = mesh.data / "agents" / AGENT / "agent.toml"
    before = file.read_text()
    file.write_text(before + f'\n[push.contacts]\nurl = "{app.url}"\nmode = "{mode}"\n')
    await restart_agent(mesh, AGENT)
    try:
        yield
    finally:
        file.write_text(before)


async def post(mesh: RunningMesh, headers: dict[str, str], body: bytes) -> None:
    """To the door of the CRM's agent."""
    agent = mesh.file.tenants["acme"].agents["crm-adapter"]
    said = {**headers, "Authorization": f"Bearer {Path(agent.token_file).read_text().strip()}"}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{agent.url}/v1/events", data=body, headers=said) as response,
    ):
        assert response.status == 202, await response.text()


def as_binary(id_: str, **attributes: str) -> dict[str, str]:
    """Header fields of a contact."""
    named = {
        "specversion": "1.0",
        "id": id_,
        "source": "/salesforce/eu",
        "type": "crm.contact.updated.v1",
        **attributes,
    }
    return {"content-type": "application/json", **{f"ce-{name}": value for name, value in named.items()}}


async def test_each_mode_goes_in_and_comes_out_structured(mesh: RunningMesh) -> None:
    """The rows that the door reads, posted to a real one: each event reaches the application, attributes unchanged."""
    sent: dict[str, dict[str, Any]] = {}
    rows = [row for row in ROWS if row.get("only") != "out" and _posted(row) and all(map(_judged, row["events"]))]
    assert {row["mode"] for row in rows} == {"binary", "structured", "batch"}
    async with App.running() as app, pushed(mesh, app, "structured"):
        for number, row in enumerate(rows):
            (headers, body), events = _with_ids(row, f"row-{number}"), row["events"]
            await post(mesh, headers, body)
            sent |= {f"row-{number}-{n}": event for n, event in enumerate(events)}
        await until(lambda: set(sent) <= set(app.ids), timeout_s=60)
        for posted in app.posted:
            event = sent[posted.id]
            shown = {name: posted.event.get(name) for name in event if name in KEPT}
            assert shown == {name: value for name, value in event.items() if name in KEPT}


KEPT = ATTRIBUTES_NEVER_MASKED - {"id", "source", "type"}  # this test sets those three; the view masks any other


def _posted(row: dict[str, Any]) -> bool:
    """Whether there is an event in it, and a media type: where there is none, this client adds one."""
    return bool(row["events"]) and "content-type" in {name.lower() for name in row["headers"]}


def _judged(event: dict[str, Any]) -> bool:
    """Whether the worked example's condition on contacts can read its data: else its deny rule refuses it."""
    return isinstance(event.get("data", {}), dict) and "data_base64" not in event


def _with_ids(row: dict[str, Any], id_: str) -> tuple[dict[str, str], bytes]:
    """The row's request, for events that the worked example knows, under ids of this run."""
    named = {"source": "/salesforce/eu", "type": "crm.contact.updated.v1"}
    if row["mode"] == "binary":
        own = {"ce-id": f"{id_}-0", **{f"ce-{name}": value for name, value in named.items()}}
        headers = {name: value for name, value in row["headers"].items() if name.lower() not in own} | own
        return headers, bytes.fromhex(row["body_hex"]) if "body_hex" in row else row["body"].encode()
    said = json.loads(row["body"])
    events = said if isinstance(said, list) else [said]
    for number, event in enumerate(events):
        event.update(named, id=f"{id_}-{number}")
    return row["headers"], json.dumps(said).encode()


async def test_status_shows_a_target_that_is_away(mesh: RunningMesh) -> None:
    """`mesh status` names it, with what is wrong, and exits 1; the agent is ready all the same."""
    async with App.running() as app:
        pass
    async with pushed(mesh, app, "structured"):
        await post(mesh, as_binary("away-1"), json.dumps(contact()).encode())

        async def said() -> dict[str, Any]:
            command = [sys.executable, "-m", "mesh", "status", "--json", "--context", str(mesh.data)]
            done = await anyio.run_process(command, check=False)
            assert done.returncode in {0, 1}, done.stderr
            found: dict[str, Any] = json.loads(done.stdout)
            return found

        report = await said()
        with anyio.fail_after(60):
            while not any("unreachable" in problem for problem in report["problems"]):
                report = await said()
        (desk,) = [agent for agent in report["agents"] if agent["agent"] == AGENT]
        assert (desk["state"], desk["push"]["contacts"]["target"]) == ("ready", f"127.0.0.1:{app.port}")
        async with App.running(port=app.port) as back:
            await until(lambda: "away-1" in back.ids, timeout_s=60)


async def test_sigterm_ends_what_runs(mesh: RunningMesh) -> None:
    """An agent that is told to end while its application works waits for the answer: nothing is posted twice."""
    release, begun = anyio.Event(), anyio.Event()

    async def slow(_: object) -> Any:
        begun.set()
        await release.wait()
        return status(204)

    async with App.running(slow) as app, pushed(mesh, app, "structured"):
        await post(mesh, as_binary("drain-1"), json.dumps(contact()).encode())
        with anyio.fail_after(60):
            await begun.wait()
        log = mesh.data / "log" / f"{AGENT}.log"
        before = log.read_text().count("draining")
        async with anyio.create_task_group() as group:
            group.start_soon(restart_agent, mesh, AGENT)
            await until(lambda: log.read_text().count("draining") > before, timeout_s=60)
            release.set()
        await post(mesh, as_binary("drain-2"), json.dumps(contact()).encode())
        await until(lambda: "drain-2" in app.ids, timeout_s=60)
        assert app.ids.count("drain-1") == 1
