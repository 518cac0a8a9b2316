"""Pull in a whole mesh: the lines of the agent's page as they stand there, and an agent that is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.contract.agent_mesh import until
from tests.contract.pull_mesh import Puller, ids, leases
from tests.journey.meshes import RunningMesh, contact, mesh_up, policies_with

AGENT = "desk"  # of the team support, which reads contacts
ACK_WAIT = "5s"  # what a killed agent held comes again this long after it was last heard of

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[RunningMesh]:
    """The worked example, where the server waits a shorter while for who has contacts in hand."""
    directory = tmp_path_factory.mktemp("mesh")
    name = "subscriptions/support.yaml"
    text = (root / "policies" / name).read_text()
    assert text.count("{attempts: 5,") == 1  # of contacts
    shorter = {name: text.replace("{attempts: 5,", f"{{attempts: 5, ack_wait: {ACK_WAIT},")}
    with mesh_up(directory, policies_with(directory, root / "policies", shorter, readers=[AGENT])) as running:
        yield running


async def post(mesh: RunningMesh, id_: str) -> None:
    """A contact, to the door of the CRM's agent."""
    agent = mesh.file.tenants["acme"].agents["crm-adapter"]
    event = {"specversion": "1.0", "id": id_, "source": "/salesforce/eu", "type": "crm.contact.updated.v1"}
    headers = {
        "Authorization": f"Bearer {Path(agent.token_file).read_text().strip()}",
        "Content-Type": "application/cloudevents+json",
    }
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{agent.url}/v1/events", json=event | {"data": contact()}, headers=headers) as response,
    ):
        assert response.status == 202, await response.text()


def puller(mesh: RunningMesh) -> Puller:
    """A client of the desk's agent, where that listens now."""
    directory = mesh.data / "agents" / AGENT
    ports = json.loads((directory / "ports.json").read_bytes())
    return Puller(ports["url"], (directory / "token").read_text().strip())


async def test_the_lines_of_the_page(mesh: RunningMesh, root: Path) -> None:
    """Fetched, extended and acked by curl, masked for support; a stream then has nothing of it."""
    page = (root / "agent" / "README.md").read_text()
    lines, tail = re.findall(
        r"```sh\n(.*?)```", page.partition("## Pull over HTTP")[2].partition("\n## ")[0], re.DOTALL
    )
    await post(mesh, "line-1")

    def run(script: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=mesh.data / "agents" / AGENT,
            capture_output=True,
            timeout=60,
            check=True,
        )
        return done.stdout.decode()

    extended, acked = results(run(lines))
    (fetched,) = json.loads((mesh.data / "agents" / AGENT / "fetched.json").read_bytes())["events"]
    assert (fetched["attempt"], fetched["event"]["id"]) == (1, "line-1")
    assert fetched["event"]["data"]["contact"]["email"] == "a***@***.com"
    assert (extended["ok"], extended["expires_s"], acked["ok"]) == (True, 120, True)
    await post(mesh, "line-2")
    setting = "".join(line for line in lines.splitlines(keepends=True)[:3])
    command = tail.replace("curl -sN", "exec timeout 60 curl -sN").strip()  # it would go on until somebody ends it
    streamed = run(f"{setting}exec 3< <({command}); grep -m 1 ^data: <&3; kill $!")
    assert '"id":"line-2"' in streamed


def results(text: str) -> list[dict[str, Any]]:
    """Of answers that stand one behind the other."""
    found, decoder = [], json.JSONDecoder()
    while text:
        answer, end = decoder.raw_decode(text)
        found += answer["results"]
        text = text[end:]
    return found


async def test_a_killed_agent_loses_nothing(mesh: RunningMesh) -> None:
    """Killed with leases open, it comes again and hands their events out anew; the old leases are gone."""
    await post(mesh, "killed-1")
    old = await puller(mesh).fetch()
    assert ids(old) == ["killed-1"]
    pid = mesh.agent_pid(AGENT)
    os.kill(pid, signal.SIGKILL)

    def again() -> bool:
        ports = mesh.data / "agents" / AGENT / "ports.json"
        return ports.exists() and mesh.agent_pid(AGENT) != pid

    await until(again, timeout_s=60)
    answer = await puller(mesh).say("ack", *leases(old))
    new: list[dict[str, Any]] = []

    async def redelivered() -> bool:
        got = await puller(mesh).get("wait_s=10&lease_s=60")
        new.extend(got.json["events"] if got.status == 200 else [])
        return bool(new)

    await until(redelivered, timeout_s=120)
    assert ids(new) == ["killed-1"]
    assert (await puller(mesh).told("ack", *leases(new)))[0]["ok"]
    assert answer.status in (409, 503)  # gone, or not yet read which subscriptions there are
